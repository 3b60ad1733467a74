"""The flags of a command: one for each field of its options."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from jax_arcface.errors import UserError, near

SHORT = {"learning_rate": "--lr", "batch_size": "--bs", "weight_decay": "--wd"}
# Flags of other programs that people try here.
_ELSEWHERE = {
    "--device": "JAX takes its device from the environment: JAX_PLATFORMS=cpu, cuda or tpu",
    "--replicas": "python -m experiments sweep trains several seeds",
    "--margins": "python -m experiments sweep trains several margins",
}
_KINDS = {int: "a whole number", float: "a number"}


def flag(field: str) -> str:
    """The flag that sets a field.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + field.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, which is a UserError; flags may be written with underscores, too.

    Args:
      command: its name, and those of its positional arguments, in capitals.
      description: the first lines of `--help`.
    """

    def __init__(self, command: str, description: str):
        positional = [word for word in command.split() if word.isupper()]
        command = command.removesuffix(" ".join(positional)).strip()
        super().__init__(
            prog=f"python -m jax_arcface {command}",
            usage=" ".join(["%(prog)s", *positional, "[FLAGS]"]),
            description=inspect.cleandoc(description),
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        )
        self.command = command
        self._groups: dict[str, Any] = {}

    def add_fields(
        self,
        options: type,
        groups: Mapping[str, str] = MappingProxyType({}),
        defaults: Any = None,
        choices: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Adds a flag for each field of a dataclass, or a positional argument where its metadata say `positional`.

        Args:
          options: the dataclass; a field's help is the string below it.
          groups: the heading above a field, and above the fields that follow until the next one named here.
          defaults: an instance of `options`; the fields' own defaults where None.
          choices: the words that a field can be, for its help.
        """
        texts, group = docs(options), ""
        for field in dataclasses.fields(options):
            group = groups.get(field.name, group)
            kind, *optional = str(field.type).split(" | ")
            text = texts.get(field.name, "").replace("%", "%%")
            if field.metadata.get("positional"):
                nargs = "?" if optional else None
                name = field.name.upper()
                self.add_argument(field.name, type=_reader(kind, False), nargs=nargs, metavar=name, help=text)
                continue
            if field.name in choices:
                text = f"{text.rstrip('.')}: {', '.join(choices[field.name])}."
            default = field.default if defaults is None else getattr(defaults, field.name)
            if default is not None and default is not False and default != "":
                text += " (default: on)" if default is True else f" (default: {default})"
            if group not in self._groups:
                self._groups[group] = self.add_argument_group(group) if group else self
            names = [flag(field.name), *([SHORT[field.name]] if field.name in SHORT else [])]
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            if kind != "bool":
                how = {"type": _reader(kind, bool(optional)), "metavar": kind.upper()}
            self._groups[group].add_argument(*names, dest=field.name, default=default, help=text, **how)

    def add_listing(self, flag: str, listing: Callable[[], str], text: str) -> None:
        """Adds a flag that prints `listing()` and ends the program."""

        class Listing(argparse.Action):
            def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
                print(listing())
                parser.exit()

        self.add_argument(flag, action=Listing, nargs=0, dest=argparse.SUPPRESS, help=text)

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The options' values by name.

        Raises:
          UserError: an unknown flag, with the one that was likely meant, or a value that is missing or cannot be read.
          SystemExit: after `--help`.
        """
        words = [w.replace("_", "-", w.partition("=")[0].count("_")) if w.startswith("--") else w for w in words]
        values, unknown = self.parse_known_args(words)
        if unknown:
            self._refuse(unknown[0].partition("=")[0])
        return vars(values)

    def _refuse(self, word: str) -> NoReturn:
        if word in _ELSEWHERE:
            raise UserError(f"there is no flag {word}: {_ELSEWHERE[word]}")
        if not word.startswith("-"):
            raise UserError(f"{word!r} is not expected here; see {self.command} --help")
        guess = near(word.lstrip("-"), [name.removeprefix("--") for name in self._option_string_actions])
        hint = f"did you mean --{guess}?" if guess else f"see {self.command} --help"
        raise UserError(f"there is no flag {word}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Raises argparse's complaint as a UserError."""
        subject, _, said = message.removeprefix("argument ").partition(": ")
        subject = subject.partition("/")[0]  # without its short name
        if subject == "the following arguments are required":
            said = f"{self.command} needs {said.replace(', ', ' and ')}"
        elif said == "expected one argument":
            said = f"{subject} needs a value"
        else:
            said = f"{subject} {said}"
        raise UserError(f"{said}; see {self.command} --help")


@functools.cache
def docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass; none where its source is not at hand.

    >>> from jax_arcface.training.config import TrainConfig
    >>> docs(TrainConfig)["batch_size"]
    'Images in a step.'
    """
    try:
        (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    except OSError:
        return {}
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = " ".join(said.split())
    return found


def _reader(kind: str, optional: bool) -> Callable[[str], Any]:
    """What reads a value of a type; `none` is None where the field may be."""
    read: Any = {"str": str, "int": int, "float": float, "Path": Path}[kind]

    def reader(word: str) -> Any:
        if optional and word.lower() == "none":
            return None
        try:
            return read(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {word!r}; it must be {_KINDS[read]}") from None

    return reader
