"""The command line: `python -m torch_reference train|evaluate|embed`."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import difflib
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch_reference.cli import commands, runs
from torch_reference.errors import UserError, nearest
from torch_reference.losses.registry import describe
from torch_reference.training import config as configs
from torch_reference.training.config import TrainConfig, changed_field, flag
from torch_reference.training.fit import Diverged

_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (commands.TrainOptions, commands.train),
    "evaluate": (commands.EvaluateOptions, commands.evaluate),
    "embed": (commands.EmbedOptions, commands.embed),
}
_USAGE = f"""usage: python -m torch_reference {{{",".join(_COMMANDS)}}} ...

  train      trains a model and writes a run directory
  evaluate   prints and writes accuracy and loss of a run
  embed      writes embeddings of a data set or of image files

python -m torch_reference COMMAND --help tells a command's flags."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: the words after the program's name; those of the process where None.

    Returns:
      The exit status: 0; 1 for a training that diverged; 2 for a user's mistake, told in one line on standard error;
      130 for a second Ctrl-C; 1 where nobody reads on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    try:
        if words[0] not in _COMMANDS:
            raise UserError(f"there is no command {words[0]!r}: {nearest(words[0], tuple(_COMMANDS))}")
        options, command = _COMMANDS[words[0]]
        command(_parse(options, words[0], words[1:]))
    except (UserError, Diverged) as error:
        print(f"torch_reference: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("torch_reference: ended at once by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed tensors below a GiB in its heap for the next step.

    Without, it returns large tensors to the system, which clears every page again when the next step asks for it.
    All threads share that heap: a thread's own holds no tensor above 64 MiB. Nothing is changed where the user has set
    GLIBC_TUNABLES or a MALLOC_ variable.

    Returns:
      Whether glibc did as told; an older one refuses.
    """
    tuned = [name for name in os.environ if name.startswith(("GLIBC_TUNABLES", "MALLOC_"))]
    if tuned or not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**30) and mallopt(arena_max, 1))


def _parse(options: type, command: str, words: list[str]) -> Any:
    """The options that the words describe; for `train` the defaults follow from --config, --dataset and --resume."""
    parser = _Parser(command, options)
    own = [field for field in dataclasses.fields(options) if field.name != "training"]
    _add_arguments(parser, own)
    defaults = None
    if options is commands.TrainOptions:
        defaults = _train_defaults(words)
        _add_arguments(parser, dataclasses.fields(TrainConfig), defaults)
    # as written by someone who thinks of the field: --batch_size
    words = [word.replace("_", "-", word.partition("=")[0].count("_")) if word[:2] == "--" else word for word in words]
    given, unknown = parser.parse_known_args(words)
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [flag(field.name) for field in (*own, *dataclasses.fields(TrainConfig if defaults else options))]
        guess = difflib.get_close_matches(word, known, n=1)
        said = f"there is no flag {word}" if word[0] == "-" else f"{word!r} is not expected here"
        raise UserError(f"{said}; " + (f"did you mean {guess[0]}?" if guess else f"see {command} --help"))
    values = vars(given)
    if defaults is not None:
        config = TrainConfig(**{field.name: values.pop(field.name) for field in dataclasses.fields(TrainConfig)})
        if values["resume"] and values["out"] is not None:  # without, the command complains
            _check_resumed(config, defaults)
        values["training"] = config
    return options(**values)


class _Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def __init__(self, command: str, options: type):
        positional = [f.metadata["positional"] for f in dataclasses.fields(options) if "positional" in f.metadata]
        prog = f"python -m torch_reference {command}"
        super().__init__(
            prog=prog,
            usage=" ".join([prog, "[OPTIONS]", *positional]),
            description=_description(options),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        subject, _, said = message.removeprefix("argument ").partition(": ")
        if subject == "the following arguments are required":
            said = f"{self.command} needs {said.replace(', ', ' and ')}"
        elif said == "expected one argument":
            said = f"{subject} needs a value"
        else:
            said = f"{subject} {said}"
        raise UserError(f"{said}; see {self.command} --help")


def _description(options: type) -> str:
    """What --help says first, wrapped; for `train` all losses, too."""
    width = shutil.get_terminal_size().columns - 2
    lines = [textwrap.fill(line, width) for line in inspect.cleandoc(str(options.__doc__)).splitlines()]
    if options is commands.TrainOptions:
        losses = (textwrap.fill(line, width, subsequent_indent="  ") for line in describe().splitlines())
        lines += ["", "Losses (docs/losses.md):", "", *losses]
    return "\n".join(lines)


def _add_arguments(
    parser: argparse.ArgumentParser, fields: Sequence[dataclasses.Field[Any]], defaults: TrainConfig | None = None
) -> None:
    """A flag for each field, or a positional argument where its metadata say so."""
    for field in fields:
        kind, *optional = str(field.type).split(" | ")
        text = field.metadata["help"]
        if "positional" in field.metadata:
            parser.add_argument(field.name, type=_reader(kind, False), metavar=field.metadata["positional"], help=text)
            continue
        default = field.default if defaults is None else getattr(defaults, field.name)
        text = f"{text} (default: {default})".replace("%", "%%")
        if kind == "bool":
            parser.add_argument(flag(field.name), action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            metavar = f"{{None}}|{kind.upper()}" if optional else kind.upper()
            parser.add_argument(
                flag(field.name), type=_reader(kind, bool(optional)), default=default, metavar=metavar, help=text
            )


def _reader(kind: str, optional: bool) -> Callable[[str], Any]:
    """What reads a flag's value."""
    read: Callable[[str], Any] = {"str": str, "int": int, "float": float, "Path": Path}[kind]

    def reader(word: str) -> Any:
        if optional and word == "None":
            return None
        try:
            return read(word)
        except ValueError:
            wanted = {"int": "a whole number", "float": "a number"}[kind]
            raise argparse.ArgumentTypeError(f"is {word!r}; it must be {wanted}") from None

    return reader


def _train_defaults(words: Sequence[str]) -> TrainConfig:
    """What holds where no flag says otherwise: with --resume the run's configuration, with --config the file's, else
    the data set's recipe."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--loss")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(words))
    except argparse.ArgumentError:
        return TrainConfig()  # a flag without its value: the real parser says so
    if given.resume and given.out is not None:
        if given.config is not None:
            raise UserError("--config has no effect with --resume, which takes the run's own configuration")
        return _of_run_or_set(given.out)
    if given.config is not None:
        return configs.read(given.config, given.dataset, given.loss)
    return configs.recipe(given.dataset or "digits", given.loss or "arcface")


def _of_run_or_set(out: Path) -> TrainConfig:
    """A run's configuration, or that which the runs of a set are made from: its first seed, or no margin."""
    for name, config in runs.read_replicas(out).items():
        return config if name.startswith("seed-") else dataclasses.replace(config, margin=None)
    return runs.read_config(out)


def _check_resumed(given: TrainConfig, run: TrainConfig) -> None:
    if name := changed_field(given, run):
        asked, was = getattr(given, name), getattr(run, name)
        raise UserError(f"{flag(name)} is {asked}, but the run to resume has {was}: leave it out, or start a new run")


if __name__ == "__main__":
    sys.exit(main())
