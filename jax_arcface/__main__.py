"""The command line: `python -m jax_arcface train|evaluate|embed`."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import platformdirs
import tyro

from jax_arcface.cli import commands, runs
from jax_arcface.errors import UserError, nearest
from jax_arcface.losses.registry import describe
from jax_arcface.training import config as configs
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.fit import Diverged

# Less time on a CPU (docs/performance.md): XLA's own convolutions, and threads of oneDNN that do not keep a core busy
# while they wait. XLA refuses to start with a flag that it does not know, so that is for the versions known to know it.
CPU_ENVIRONMENT = {
    "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT",
    "OMP_WAIT_POLICY": "passive",
}
_KNOWN_BY = ("0.10.", "0.11.")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (commands.TrainOptions, commands.train),
    "evaluate": (commands.EvaluateOptions, commands.evaluate),
    "embed": (commands.EmbedOptions, commands.embed),
}
_USAGE = f"""usage: python -m jax_arcface {{{",".join(_COMMANDS)}}} ...

  train      trains a model and writes a run directory
  evaluate   prints and writes accuracy and loss of a run
  embed      writes embeddings of a data set or of image files

python -m jax_arcface COMMAND --help tells a command's flags."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the words after the program's name; those of the process where None.

    Returns:
      The exit status: 0; 1 for a training that diverged; 2 for a user's mistake, told in one line on standard error;
      130 where Ctrl-C ended the command at once; 1 where nobody reads on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    set_up()
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    try:
        if words[0] not in _COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: {nearest(words[0], tuple(_COMMANDS))}")
        options, command = _COMMANDS[words[0]]
        command(_parse(options, words[0], words[1:]))
    except (UserError, Diverged) as error:
        print(f"jax_arcface: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("jax_arcface: ended at once by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def set_up() -> None:
    """What the command line sets before JAX starts, where the user has set nothing.

    The variables of `cpu_environment`, that glibc keeps freed memory, and that what JAX compiles lies in the user's
    cache folder for later starts.
    """
    os.environ.update(cpu_environment())  # read when JAX first uses a device
    keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("jax-arcface", appauthor=False)) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def keep_freed_memory() -> bool:
    """Has glibc take arrays below a GiB from one heap, and give the heap's free end back only from a GiB on.

    XLA allocates the same large arrays in each step. glibc would give them back to the system in between, which would
    then clear each of their pages anew. The heap is one for all threads, since no array of more than 64 MiB fits into
    those that glibc gives to others than the first. Nothing changes where the user has set GLIBC_TUNABLES or a MALLOC_
    variable.

    Returns:
      Whether glibc took all three settings.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not mallopt(_M_MMAP_THRESHOLD, 2**30):  # an older glibc refuses, and goes on as before
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**30) and mallopt(_M_ARENA_MAX, 1))


def cpu_environment() -> dict[str, str]:
    """What of `CPU_ENVIRONMENT` the user has not set, and this jaxlib is known to know."""
    flags_known = jaxlib.__version__.startswith(_KNOWN_BY)
    return {
        name: value
        for name, value in CPU_ENVIRONMENT.items()
        if name not in os.environ and (name != "XLA_FLAGS" or flags_known)
    }


def _parse(options: type, command: str, words: list[str]) -> Any:
    """The options that the words describe; for `train` the defaults follow from --config, --dataset and --resume."""
    default: Any = _train_defaults(words) if options is commands.TrainOptions else None
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                options,
                args=words,
                prog=f"python -m jax_arcface {command}",
                default=default,
                description=_description(options),
            )
    except SystemExit as end:
        if end.code:
            raise UserError(_one_line(command, complaint.getvalue())) from None
        raise
    if options is commands.TrainOptions and parsed.resume and parsed.out is not None:  # else `train` asks for it
        _check_resumed(parsed.training, default.training)
    return parsed


def _description(options: type) -> str:
    """What --help says first; for `train` all losses, too."""
    text = str(options.__doc__)
    return f"{text}\n\nLosses (docs/losses.md):\n{describe()}" if options is commands.TrainOptions else text


def _train_defaults(words: Sequence[str]) -> commands.TrainOptions:
    """What holds where no flag says otherwise: the resumed run's config, the file's, or the data set's recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--loss")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(words))
    except argparse.ArgumentError:
        return commands.TrainOptions()  # a flag without its value: the real parser says so
    if given.resume and given.out is not None:
        if given.config is not None:
            raise UserError("--config has no effect with --resume, which takes the run's own configuration")
        return commands.TrainOptions(training=_resumed(given.out))
    if given.config is not None:
        return commands.TrainOptions(training=configs.read(given.config, given.dataset, given.loss))
    return commands.TrainOptions(training=configs.recipe(given.dataset or "digits", given.loss or "arcface"))


def _resumed(out: Path) -> TrainConfig:
    """The configuration of a run, or what replicas have in common, with the first seed."""
    begun = runs.read_replicas(out)
    if not begun:
        return runs.read_config(out)
    name, config = next(iter(begun.items()))
    return dataclasses.replace(config, margin=None) if name.startswith("margin") else config


def _check_resumed(given: TrainConfig, run: TrainConfig) -> None:
    if (name := configs.changed_field(given, run)) is not None:
        asked, was = getattr(given, name), getattr(run, name)
        raise UserError(
            f"{configs.flag(name)} is {asked}, but the run to resume has {was}: leave it out, or start a new run"
        )


# Tyro's word for what a flag takes, and ours.
_KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def _one_line(command: str, complaint: str) -> str:
    """Tyro's complaint in one line, without its frame, rules and help texts.

    >>> _one_line("train", "╭─ Missing ───╮\\n│ Missing value for argument '--epochs'. │\\n│ ──── │\\n│ Help │\\n╰──╯")
    '--epochs needs a value; see train --help'
    """
    rows = [row.strip("│ ") for row in complaint.splitlines()]
    if not complaint.startswith("╭"):
        del rows[:2]  # the title and its rule, where the terminal has no frames
    parts = re.split(r"\n(?:─+|-{4,})\n", "\n".join(row for row in rows if not row.startswith(("╭", "╰"))))
    said, rest = " ".join(parts[0].split()), " ".join(" ".join(parts[1:]).split())
    hint = f"see {command} --help"
    if found := re.match(r"Unrecognized options: ([^\s,]+)", said):
        said = f"there is no flag {found[1]}" if found[1].startswith("-") else f"{found[1]!r} is not expected here"
        if guess := re.search(rf"(?:Perhaps you meant|similar to {re.escape(found[1])}): (--\S+)", rest):
            hint = f"did you mean {guess[1]}?"
    elif found := re.match(r"Missing value for argument '(\S+)'", said):
        said = f"{found[1]} needs a value"
    elif said.startswith("Missing from"):
        said = f"{command} needs {' and '.join(row for row in rows if re.fullmatch('[A-Z_]+', row))}"
    elif found := re.match(r"Error parsing (\S+): .*?(?:base 10: |to float: |from \[)('[^']*')", said):
        kind = re.search(r"helptext: \S+ (?:\{None\}\|)?(\w+)", rest)
        said = f"{found[1]} is {found[2]}; it must be {_KINDS.get(kind[1], kind[1]) if kind else 'of another type'}"
    return f"{said}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
