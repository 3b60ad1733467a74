"""Benchmarks: `python -m experiments bench NAME`, and `--check` against the committed results.

    python -m experiments bench head --batch-size 256 --classes 102400 --dimension 128
    python -m experiments bench step --dataset mnist --json mine.json
    python -m experiments bench --check

Everything is a ratio of contenders that take turns in one run (`turns.py`), with the floor of the work beside them
(`floor.py`; not with `--no-floor`, on an accelerator or in bfloat16). `--check` repeats the runs whose results lie in
`experiments/bench/results` and reports which JAX contender has become slower, measured by its ratio, by more than
`--tolerance` (1.3 by default); its exit status is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from experiments._arguments import Parser, UserError, check_at_least, check_can_be_written, read_json
from experiments._machine import machine, versions
from experiments.bench.floor import CONTENDERS as MACHINE
from experiments.bench.floor import Work, described, least_time
from experiments.bench.turns import Contender, Row, measure, work

RESULTS = Path(__file__).parent / "results"
# Those whose contenders take turns; the others are programs of their own.
NAMES = ("head", "step", "replicas")
PROGRAMS = ("evaluation", "export", "growth", "mesh", "seconds_to_accuracy", "serving", "start_up")


class Benchmark(Protocol):
    """What a module of `NAMES` has."""

    REFERENCE: str
    CONTENDERS: Mapping[str, Contender]

    @staticmethod
    def parser() -> Parser:
        """Of its own flags."""

    @staticmethod
    def headline(options: argparse.Namespace) -> str:
        """What is measured, in a line."""

    @staticmethod
    def least_work(options: argparse.Namespace) -> Work:
        """The work that the floor is of."""


def main(words: list[str]) -> int:
    """Runs the benchmark that the first word names, or the check, whose status it gives."""
    if words[:1] == ["--check"]:
        return check(words[1:])
    if words[:1] in (["-h"], ["--help"]):
        known = ", ".join((*NAMES, *PROGRAMS))
        print(
            f"usage: python -m experiments bench NAME ...\n       python -m experiments bench --check\n\n"
            f"NAME is one of {known}; NAME --help lists its flags."
        )
        return 0
    if not words or words[0] not in (*NAMES, *PROGRAMS):
        asked = f"there is no benchmark {words[0]!r}; " if words else ""
        raise UserError(f"{asked}known: {', '.join((*NAMES, *PROGRAMS))}; or --check")
    if words[0] in PROGRAMS:
        status: int | None = importlib.import_module(f"experiments.bench.{words[0]}").main(words[1:])
        return status or 0
    benchmark, options = _parsed(words)
    if options.worker:
        work({**MACHINE, **benchmark.CONTENDERS}[options.worker], options)
        return 0
    result = run_named(words)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def run_named(words: list[str]) -> dict[str, Any]:
    """One run of the benchmark that the first word names: what was asked, on what, and a row for each contender."""
    benchmark, options = _parsed(words)
    chosen = options.contenders or list(benchmark.CONTENDERS)
    if unknown := [name for name in chosen if name not in benchmark.CONTENDERS]:
        raise UserError(f"there is no contender {unknown[0]!r}; known: {', '.join(benchmark.CONTENDERS)}")
    reference = benchmark.REFERENCE if benchmark.REFERENCE in chosen else chosen[0]
    rates = MACHINE if _has_floor(options) else {}
    contenders = {name: benchmark.CONTENDERS[name] for name in chosen} | rates
    per_run = getattr(options, "steps", 1)
    rows = measure(words, contenders, reference, options.turns, per_run)
    return {
        **circumstances(words, options.turns),
        "headline": benchmark.headline(options),
        "reference": reference,
        "rows": {name: row._asdict() for name, row in rows.items() if name not in MACHINE},
        "floor": least_time(benchmark.least_work(options), rows, per_run) if rates else None,
    }


def _has_floor(options: argparse.Namespace) -> bool:
    """Whether the rates of `floor.py` are those of what is measured."""
    if options.no_floor or getattr(options, "precision", "float32") != "float32":
        return False
    # in a process of its own, which leaves an accelerator's memory alone
    program = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "cpu"


def circumstances(words: list[str], turns: int) -> dict[str, Any]:
    """What stands in each result: the command, but for where that is written, and what it ran on."""
    files = ("--json", "--figure")
    pairs = zip(["", *words], words, strict=False)
    kept = [word for before, word in pairs if before not in files and not word.startswith(files)]
    return {"command": shlex.join(kept), "turns": turns, "machine": machine(), "versions": versions()}


def table(result: Mapping[str, Any]) -> str:
    """A result for the terminal."""
    lines = [
        f"{result['headline']}; {result['turns']} turns; {result['machine']}",
        f"{'':<36} {'median ms':>10} {'smallest to largest':>22} {'ratio':>6} {'MiB':>7} {'first s':>8}",
    ]
    for name, values in result["rows"].items():
        row = Row(**values)
        lines.append(
            f"{name:<36} {row.milliseconds:>10.1f} {f'{row.smallest:.1f} to {row.largest:.1f}':>22} {row.ratio:>6.2f} "
            f"{row.mebibytes:>7.0f} {row.first_seconds:>8.1f}"
        )
    if found := result.get("floor"):
        lines.append(described(found))
    lines.append(f"ratio: of {result['reference']}; MiB: the process's peak memory; first s: until the first run's end")
    return "\n".join(lines)


def check(words: list[str]) -> int:
    """Repeats the committed runs; 1 where a JAX contender's ratio has grown beyond the tolerance, else 0."""
    parser = Parser("bench --check", check.__doc__)
    parser.add_argument("--tolerance", type=float, default=1.3, help="how many times a ratio may grow (default: 1.3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files to compare with")
    options = parser.parse_args(words)
    status = 0
    for was in _runs(options.results):
        now = run_named([*shlex.split(was["command"]), "--no-floor"])
        print(f"{was['headline']}: ratio to {was['reference']}")
        for name, row in was["rows"].items():
            if not name.startswith("JAX") or name == was["reference"]:
                continue
            growth = now["rows"][name]["ratio"] / row["ratio"]
            verdict = "SLOWER" if growth > options.tolerance else "ok"
            status |= verdict == "SLOWER"
            print(f"  {name:<36} {row['ratio']:.3f} -> {now['rows'][name]['ratio']:.3f}  x {growth:.2f}  {verdict}")
    return status


def _runs(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder that are of contenders in turns; reports files that are not."""
    runs = []
    for file in sorted(folder.glob("*.json")):
        result = read_json(file)
        if "reference" in result:
            runs.append(result)
        else:
            print(f"{file.name} is skipped: no run of contenders in turns")
    if not runs:
        raise UserError(f"{folder} holds no result of {', '.join(NAMES)} to compare with; --json writes one")
    return runs


def _parsed(words: list[str]) -> tuple[Benchmark, argparse.Namespace]:
    benchmark: Any = importlib.import_module(f"experiments.bench.{words[0]}")
    parser = benchmark.parser()
    parser.add_argument("--turns", type=int, default=7, help="of which the median is taken (default: 7)")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help=f"of: {', '.join(benchmark.CONTENDERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with hardware and versions")
    parser.add_argument("--no-floor", action="store_true", help="does not measure the machine's rates")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(words[1:])
    check_at_least(1, **{name: number for name, number in vars(options).items() if type(number) is int})
    check_can_be_written(json=options.json)
    return benchmark, options
