"""The command line: `python -m jax_arcface train|evaluate|embed|export|verify|identify|faces`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

_COMMANDS = {
    "train": "trains a model and writes a run directory",
    "evaluate": "prints and writes the accuracy and the loss of a run",
    "embed": "writes the embeddings of a data set or of image files, and prints what the images show",
    "export": "writes a trained model as ONNX, StableHLO, safetensors or PyTorch weights",
    "verify": "says whether two images are of the same class",
    "identify": "ranks a gallery of images by their likeness to an image",
    "faces": "finds, aligns, compares and names the faces in photos",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the words after the program's name; those of the process where None.

    Returns:
      The exit status: 0; 1 for a training that diverged, and where nobody reads on; 2 for a user's mistake, answered
      in one line on standard error; 130 where Ctrl-C ended it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("jax_arcface: ended by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m jax_arcface {{{','.join(_COMMANDS)}}} ...\n")
        print(*(f"  {name:<10} {what}" for name, what in _COMMANDS.items()), sep="\n")
        print("\npython -m jax_arcface COMMAND --help lists a command's flags.")
        return 0
    from jax_arcface.errors import UserError, nearest

    try:
        if words[0] not in _COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: {nearest(words[0], tuple(_COMMANDS))}")
        _imported("jax_arcface.cli.environment").set_up()
        status: int = _imported(f"jax_arcface.cli.{words[0]}").main(words[1:])
        return status
    except UserError as error:
        print(f"jax_arcface: {error}", file=sys.stderr)
        return 2


def _imported(name: str) -> Any:
    """Imports a module, which takes a second with JAX; Ctrl-C meanwhile is heeded at its end.

    Raised at once, it would be lost where JAX is called back by the garbage collector.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return importlib.import_module(name)
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        module = importlib.import_module(name)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
    return module


if __name__ == "__main__":
    sys.exit(main())
