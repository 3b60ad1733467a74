"""The command line's flags, made from the fields of the options and of the configuration."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch_reference.cli import runs
from torch_reference.cli.commands import TrainOptions
from torch_reference.errors import UserError
from torch_reference.losses.registry import describe
from torch_reference.models.backbones import import_own
from torch_reference.training import config as configs
from torch_reference.training.config import TrainConfig, changed_field

SHORT = {"learning_rate": "--lr", "batch_size": "--bs", "weight_decay": "--wd"}
FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}


def flag(field: str) -> str:
    """The flag of a field.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{field.replace('_', '-')}"


def parse(options: type, command: str, words: Sequence[str]) -> Any:
    """The options that the words describe.

    Raises:
      UserError: a mistake in them.
    """
    # as written by someone who thinks of the field: --batch_size
    words = [word.replace("_", "-", word.partition("=")[0].count("_")) if word[:2] == "--" else word for word in words]
    fields = [field for field in dataclasses.fields(options) if field.name != "training"]
    if options is TrainOptions:
        fields = [*dataclasses.fields(TrainConfig), *fields]
    parser = _Parser(command, options, fields)
    if {"-h", "--help"} & {*words}:
        parser.add_fields(fields, _asked_for(words) if options is TrainOptions else None)
        parser.print_help()
        raise SystemExit(0)
    if options is TrainOptions and "--help-losses" in words:
        width = shutil.get_terminal_size().columns - 2
        print("\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in describe().splitlines()))
        raise SystemExit(0)
    parser.add_fields(fields)
    given, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(_about(unknown[0].partition("=")[0], command, [field.name for field in fields]))
    values = vars(given)
    if options is TrainOptions:
        changes = {name: values.pop(name) for name in FIELDS & values.keys()}
        import_own(changes.get("backbone", ""))  # a file's word would not do
        values["training"] = _config(changes, values)
    return options(**values)


class _Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def __init__(self, command: str, options: type, fields: Sequence[dataclasses.Field[Any]]):
        positional = [field.metadata["positional"] for field in fields if "positional" in field.metadata]
        prog = f"python -m torch_reference {command}"
        super().__init__(
            prog=prog,
            usage=" ".join([prog, "[OPTIONS]", *positional]),
            description=inspect.cleandoc(options.__doc__ or ""),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.command = command
        if options is TrainOptions:
            self.add_argument(
                "--help-losses",
                action="store_true",
                default=argparse.SUPPRESS,
                help="list the losses with their options and exit",
            )

    def error(self, message: str) -> NoReturn:
        subject, _, said = message.removeprefix("argument ").partition(": ")
        subject = subject.partition("/")[0]
        if subject == "the following arguments are required":
            said = f"{self.command} needs {said.replace(', ', ' and ')}"
        elif said == "expected one argument":
            said = f"{subject} needs a value"
        else:
            said = f"{subject} {said}"
        raise UserError(f"{said}; see {self.command} --help")

    def add_fields(self, fields: Sequence[dataclasses.Field[Any]], defaults: TrainConfig | None = None) -> None:
        """Adds an argument for each field; what is not given will not be there."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for field in fields:
            kind, *optional = str(field.type).split(" | ")
            text = field.metadata["help"].replace("%", "%%")
            if "positional" in field.metadata:
                how: dict[str, Any] = {"nargs": "?"} if optional else {}
                name = field.metadata["positional"]
                self.add_argument(field.name, type=_reader(kind, False), metavar=name, help=text, **how)
                continue
            group = field.metadata["group"]
            if group not in groups:
                groups[group] = self.add_argument_group(group)
            default = getattr(defaults, field.name, field.default)
            if default is not None and kind != "bool":
                text = f"{text} [{default}]"
            names = [flag(field.name), *([SHORT[field.name]] if field.name in SHORT else [])]
            if kind == "bool":
                groups[group].add_argument(
                    *names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
                )
                continue
            choices = field.metadata["choices"]
            groups[group].add_argument(
                *names,
                type=_reader(kind, bool(optional)),
                metavar=f"{{{','.join(choices)}}}" if choices else kind.upper(),
                default=argparse.SUPPRESS,
                help=text,
            )


def _reader(kind: str, optional: bool) -> Callable[[str], Any]:
    """What reads a flag's value."""
    read: Callable[[str], Any] = {"str": str, "int": int, "float": float, "Path": Path}[kind]

    def reader(word: str) -> Any:
        if optional and word.lower() == "none":
            return None
        try:
            return read(word)
        except ValueError:
            wanted = {"int": "a whole number", "float": "a number"}[kind]
            raise argparse.ArgumentTypeError(f"is {word!r}; it must be {wanted}") from None

    return reader


def _about(word: str, command: str, fields: Sequence[str]) -> str:
    """What is said of an unknown word."""
    if word[0] != "-":
        return f"{word!r} is not expected here; see {command} --help"
    near = difflib.get_close_matches(word.lstrip("-"), [flag(name)[2:] for name in fields], n=1, cutoff=0.75)
    return f"there is no flag {word}; " + (f"did you mean --{near[0]}?" if near else f"see {command} --help")


def _asked_for(words: Sequence[str]) -> TrainConfig:
    """The recipe whose defaults `--help` shows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset", nargs="?", default="digits")
    parser.add_argument("--loss", nargs="?", default="arcface")
    parser.add_argument("--embedding-dim", nargs="?")
    given, _ = parser.parse_known_args(list(words))
    few = {"2": 2, "3": 3}.get(given.embedding_dim)  # the dimensions that have defaults of their own
    return configs.recipe(given.dataset or "digits", given.loss or "arcface", embedding_dim=few)


def _config(given: dict[str, Any], options: dict[str, Any]) -> TrainConfig:
    """The configuration: the flags over that of the resumed run, of the file, or of the data set's recipe."""
    if options.get("resume"):
        if options.get("config"):
            raise UserError("--config has no effect with --resume, which takes the run's own configuration")
        return _resumed(given, options.get("out"))
    if path := options.get("config"):
        values = configs.read_values(path)
        values |= {name: given[name] for name in ("epochs", "embedding_dim") if name in given}
        start = configs.from_dict(values, str(path), given.get("dataset"), given.get("loss"))
    else:
        named = given.get("dataset", "digits"), given.get("loss", "arcface")
        start = configs.recipe(*named, given.get("epochs"), given.get("embedding_dim"))
    return dataclasses.replace(start, **given)


def _resumed(given: dict[str, Any], out: Path | None) -> TrainConfig:
    """The configuration of a run that goes on: its own, or with more epochs."""
    if out is None:
        raise UserError("--resume needs --out, the run directory")
    run = runs.read_config(out)
    config = dataclasses.replace(run, **given)
    name = changed_field(dataclasses.replace(config, epochs=run.epochs), run)
    if name is None and config.epochs < run.epochs:
        name = "epochs"
    if name:
        asked, was = getattr(config, name), getattr(run, name)
        remedy = "give more" if name == "epochs" else "start a new run"
        raise UserError(f"{flag(name)} is {asked}, but the run to resume has {was}: leave it out, or {remedy}")
    return config
