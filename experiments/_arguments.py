"""Arguments of experiments, and mistakes in them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn


class UserError(ValueError):
    """A user's mistake: its message states, in one line, what is wrong and what would be right."""


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake: `python -m experiments` prints it and ends with status 2.

    >>> Parser("bench head", "What is measured.").prog
    'python -m experiments bench head'
    """

    def __init__(self, name: str, description: str | None):
        super().__init__(
            prog=f"python -m experiments {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog.removeprefix('python -m experiments ')} --help")


def read_json(file: Path) -> Any:
    """What a JSON file holds; UserError where it is none."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None


def check_at_least(low: int, **numbers: int | None) -> None:
    """Raises UserError for a flag whose number is given and below `low`.

    >>> check_at_least(1, epochs=0)
    Traceback (most recent call last):
    ...
    experiments._arguments.UserError: --epochs is 0; it must be at least 1
    """
    for name, number in numbers.items():
        if number is not None and number < low:
            raise UserError(f"--{name.replace('_', '-')} is {number}; it must be at least {low}")


def check_can_be_written(**files: Path | None) -> None:
    """Raises UserError for a flag whose file is given and is a folder, or lies where there is none.

    >>> check_can_be_written(json=Path("no/such/result.json"))
    Traceback (most recent call last):
    ...
    experiments._arguments.UserError: --json is no/such/result.json; it must be a file in a folder that exists
    """
    for name, file in files.items():
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise UserError(f"--{name} is {file}; it must be a file in a folder that exists")
