"""A set of trainings: one for each combination of values, and a table of their results.

    python -m experiments sweep runs/seeds --grid seed=0,1,2 -- --dataset mnist
    python -m experiments sweep runs/grid --grid loss=arcface,cosface --grid seed=0,1,2 -- --epochs 10
    python -m experiments sweep runs/pairs --grid "loss=triplet:m=0.3,mining=hard;supcon"
    python -m experiments sweep runs/torch --program torch_reference --grid margin=0.3,0.5 -- --compile

What follows `--` are flags of the program's `train`. Each combination is a run directory in OUT, named by its values.
The same command again skips what is finished, goes on with what was interrupted and begins what is missing; it may have
more values. At the end, and of what is there with `--table`, it prints the mean and the standard deviation over the
seeds, and writes them into OUT as sweep.md and sweep.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._arguments import Parser, UserError, read_json
from experiments._machine import machine

PROGRAMS = ("jax_arcface", "torch_reference")
_FILES = ("config.json", "metrics.jsonl", "model.safetensors", "embeddings.npz")
Grid = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of values, and its run directory."""

    values: dict[str, str]
    run: Path

    @property
    def flags(self) -> list[str]:
        """The flags that give `train` these values."""
        return [word for field, value in self.values.items() for word in (_flag(field), value)]


def main(words: list[str]) -> int:
    """Trains what is not there yet, and prints and writes the table."""
    at = words.index("--") if "--" in words else len(words)
    options, flags = _parser().parse_args(words[:at]), words[at + 1 :]
    grid = parse_grid(options.grid)
    if options.table:
        if grid or flags:
            raise UserError("--table takes no --grid and no flags of train: it is of what is there")
        program, grid, flags = _begun(options.out)
        return _report(options.out, program, grid, flags)
    if not grid:
        raise UserError("sweep needs --grid FIELD=VALUE,VALUE,... at least once")
    for flag in ("--out", "--resume", *map(_flag, grid)):
        if any(word == flag or word.startswith(f"{flag}=") for word in flags):
            raise UserError(f"{flag} cannot be among the flags of train: the sweep gives it")
    return sweep(options.out, grid, flags, options.program)


def sweep(out: Path, grid: Grid, flags: Sequence[str] = (), program: str = PROGRAMS[0]) -> int:
    """Trains each combination of the grid that is not finished, then prints and writes the table.

    Args:
      out: folder of the run directories.
      grid: values by field of the configuration; `seed` is what the table's means are over.
      flags: further flags of `train`, the same for all.
      program: which trains.

    Returns:
      0; 1 where a training diverged; 2 for a mistake in the flags; 130 for Ctrl-C. With the latter two it ends at once.

    Raises:
      UserError: `out` holds a sweep with other flags, fields or program.
    """
    _record(out, program, grid, flags)
    found = list(cells(out, grid))
    failed = []
    for number, cell in enumerate(found, start=1):
        if is_finished(cell.run):
            continue
        print(f"\n[{number}/{len(found)}] {cell.run.name}", flush=True)
        status = train(cell, flags, program)
        if status == 1:
            failed.append(cell.run.name)
        elif status:
            if status == 130:
                print("stopped; the same command goes on")
            elif not any(cell.run.exists() for cell in found):
                (out / "sweep.json").unlink()  # nothing began: the flags may be mended
            return status
    _report(out, program, grid, flags)
    if failed:
        print(f"diverged: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def train(cell: Cell, flags: Sequence[str], program: str) -> int:
    """Trains a cell in a process of its own, from its checkpoint where there is one; returns the exit status."""
    begun = (cell.run / "dataset.json").exists()
    words = [*(_without_config(flags) if begun else flags), *cell.flags, "--out", str(cell.run)]
    # Ctrl-C reaches the training as well, which ends in its own time. The handler is not inherited, as SIG_IGN were.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        command = [sys.executable, "-m", program, "train", *words, *(["--resume"] if begun else [])]
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """The values by field that `FIELD=VALUE,VALUE` describe; `;` separates values that have commas.

    >>> parse_grid(["seed=0,1", "loss=triplet:m=0.3,mining=hard;supcon"])
    {'seed': ['0', '1'], 'loss': ['triplet:m=0.3,mining=hard', 'supcon']}
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        field, equals, text = word.partition("=")
        field = field.strip().replace("-", "_")
        values = [value.strip() for value in text.split(";" if ";" in text else ",")]
        if not equals or not field.isidentifier() or "" in values or len(set(values)) < len(values) or field in grid:
            raise UserError(f"--grid {word!r}: it must be FIELD=VALUE,VALUE,... with each field and value once")
        grid[field] = values
    return grid


def cells(out: Path, grid: Grid) -> Iterator[Cell]:
    """All combinations, the last field's values one after the other.

    >>> [cell.run.name for cell in cells(Path("out"), {"margin": ["0.3", "0.5"], "seed": ["0"]})]
    ['margin=0.3_seed=0', 'margin=0.5_seed=0']
    """
    for values in itertools.product(*grid.values()):
        named = dict(zip(grid, values, strict=True))
        name = "_".join(f"{field}={value}" for field, value in named.items())
        yield Cell(named, out / re.sub(r"[^\w.=+-]+", "-", name))


def is_finished(run: Path) -> bool:
    """Whether a run directory, by either program, holds a model that was trained to its last epoch."""
    if not all((run / name).exists() for name in _FILES):
        return False
    records = read_records(run)
    return bool(records) and records[-1]["epoch"] == read_json(run / "config.json")["epochs"]


def rows(out: Path, grid: Grid) -> list[dict[str, Any]]:
    """What the finished cells reached, a row for each combination but for the seed.

    Each has the values, the test accuracies of the last epoch by seed, their `mean`, their standard deviation `std`
    (None for a single one), and the minutes of a training.
    """
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for cell in cells(out, grid):
        if not is_finished(cell.run):
            continue
        records = read_records(cell.run)
        values = {field: value for field, value in cell.values.items() if field != "seed"}
        row = found.setdefault(tuple(values.items()), {"values": values, "test_accuracy": {}, "minutes": []})
        seed = str(read_json(cell.run / "config.json")["seed"])
        row["test_accuracy"][seed] = records[-1]["test_accuracy"]
        row["minutes"].append(sum(record["seconds"] for record in records) / 60)
    for row in found.values():
        reached = list(row["test_accuracy"].values())
        row["mean"] = statistics.fmean(reached)
        row["std"] = statistics.stdev(reached) if len(reached) > 1 else None
        row["minutes"] = statistics.fmean(row["minutes"])
    return list(found.values())


def markdown(table: Sequence[Mapping[str, Any]], grid: Grid) -> str:
    """The rows as a Markdown table."""
    fields = [field for field in grid if field != "seed"]
    head = [*fields, "test accuracy", "seeds", "minutes each"]
    lines = [head, ["---"] * len(head)]
    for row in table:
        spread = "" if row["std"] is None else f" +- {100 * row['std']:.2f}"
        accuracy = f"{100 * row['mean']:.2f}{spread} %"
        values = [row["values"][field] for field in fields]
        lines.append([*values, accuracy, str(len(row["test_accuracy"])), f"{row['minutes']:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _report(out: Path, program: str, grid: Grid, flags: Sequence[str]) -> int:
    table = rows(out, grid)
    if not table:
        raise UserError(f"{out} holds no finished run")
    text = markdown(table, grid)
    print(f"\n{program} train {shlex.join(flags)}".rstrip(), end="\n\n")
    print(text, end="")
    if left := [cell.run.name for cell in cells(out, grid) if not is_finished(cell.run)]:
        print(f"not finished: {', '.join(left)}", file=sys.stderr)
    (out / "sweep.md").write_text(text)
    _write(out, program, grid, flags, machine=machine(), rows=table)
    return 0


def _record(out: Path, program: str, grid: Grid, flags: Sequence[str]) -> None:
    """Writes what is swept, before the first training; a sweep that was begun must have been of the same."""
    if (out / "sweep.json").exists():
        was, begun, had = _begun(out)
        for what, asked, held in (
            ("the program", program, was),
            ("the flags of train", shlex.join(flags), shlex.join(had)),
            ("the fields of the grid", ", ".join(grid), ", ".join(begun)),
        ):
            if asked != held:
                raise UserError(f"{out} was begun with {what} {held!r}, not {asked!r}: give another folder")
        if missing := [f"{field}={value}" for field in begun for value in begun[field] if value not in grid[field]]:
            raise UserError(f"{out} was begun with {', '.join(missing)}, too: give all its values, or another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(out, program, grid, flags)


def _begun(out: Path) -> tuple[str, dict[str, list[str]], list[str]]:
    if not (out / "sweep.json").exists():
        raise UserError(f"{out} holds no sweep: it has no sweep.json")
    held = read_json(out / "sweep.json")
    try:
        return held["program"], held["grid"], held["flags"]
    except (KeyError, TypeError):
        raise UserError(f"{out / 'sweep.json'} is not of a sweep") from None


def _write(out: Path, program: str, grid: Grid, flags: Sequence[str], **result: Any) -> None:
    value = {"program": program, "flags": list(flags), "grid": {field: list(grid[field]) for field in grid}} | result
    temporary = out / ".sweep.json"
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(out / "sweep.json")


def read_records(run: Path) -> list[dict[str, Any]]:
    """What a run, by either program, recorded after each epoch."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _without_config(flags: Sequence[str]) -> list[str]:
    """The flags without --config and its value: a resumed run has its own."""
    kept, words = [], iter(flags)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("--config="):
            kept.append(word)
    return kept


def _parser() -> Parser:
    parser = Parser("sweep", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the run directories")
    parser.add_argument("--program", choices=PROGRAMS, default=PROGRAMS[0], help="which trains (default: jax_arcface)")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=VALUE,...", help="values of a field of the configuration"
    )
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is finished in OUT")
    return parser
