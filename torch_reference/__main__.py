"""The command line: `python -m torch_reference train|evaluate|embed|verify|identify|export`.

Nothing is imported before `main` runs, so that it can answer Ctrl-C, and PyTorch only once a command is known, so that
`--help` needs neither it nor time.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = ("train", "evaluate", "embed", "verify", "identify", "export")
USAGE = f"""usage: python -m torch_reference {{{",".join(COMMANDS)}}} ...

  train      trains a model and writes a run directory
  evaluate   prints and writes the accuracy and loss of a run
  embed      writes embeddings and predictions of a data set or of image files
  verify     says whether two images are of one class
  identify   ranks a gallery of images by their likeness to an image
  export     writes a trained model as ONNX, torch.export's program or safetensors

python -m torch_reference COMMAND --help lists a command's flags."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the words after the program's name; those of the process where None.

    Returns:
      The exit status: 0; 1 for a training that diverged, a package that is missing, or where nobody reads on; 2 for a
      user's mistake, in one line on standard error; 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _answer(words)
    except KeyboardInterrupt:
        return _said("ended at once by Ctrl-C", 130)
    except BrokenPipeError:  # who reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _answer(words: Sequence[str]) -> int:
    from torch_reference.errors import UserError, nearest

    try:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        if words[0] not in COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: {nearest(words[0], COMMANDS)}")
        keep_freed_memory()
        return _run(words[0], words[1:])
    except UserError as error:
        return _said(str(error), 2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # the one that is the user's wherever it comes from
            raise
        return _said(f"{error.filename} is too long a name for a file", 2)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("torch_reference"):
            raise
        return _said(f"it needs {error.name}, which is not installed: pip install {error.name}", 1)


def _run(command: str, words: Sequence[str]) -> int:
    from torch_reference.cli import commands, verify
    from torch_reference.cli.arguments import parse
    from torch_reference.training.step import Diverged

    try:
        if command == "train":
            return commands.train(parse(commands.TrainOptions, command, words))
        if command == "evaluate":
            return commands.evaluate(parse(commands.EvaluateOptions, command, words))
        if command == "embed":
            return commands.embed(parse(commands.EmbedOptions, command, words))
        if command == "verify":
            return verify.verify(parse(verify.VerifyOptions, command, words))
        if command == "identify":
            return verify.identify(parse(verify.IdentifyOptions, command, words))
        return commands.export(parse(commands.ExportOptions, command, words))
    except Diverged as error:
        return _said(str(error), 1)


def _said(message: str, status: int) -> int:
    print(f"torch_reference: {message}", file=sys.stderr)
    return status


def keep_freed_memory() -> bool:
    """Makes glibc keep freed tensors below a GiB in its heap for the next step.

    Otherwise it returns large tensors to the system, which clears every page again when the next step asks for it.
    All threads share that heap: a thread's own holds no tensor above 64 MiB. Nothing is changed where the user has set
    GLIBC_TUNABLES or a MALLOC_ variable.

    Returns:
      Whether glibc did so; an older one refuses.
    """
    import ctypes

    tuned = [name for name in os.environ if name.startswith(("GLIBC_TUNABLES", "MALLOC_"))]
    if tuned or not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**30) and mallopt(arena_max, 1))


if __name__ == "__main__":
    sys.exit(main())
