"""The command line: `python -m parity_tests` prints the table, `trace` draws trainings, `planted` plants errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from parity_tests import planted
from parity_tests.cases import PAIRS, Case, Result, Unavailable, all_cases
from parity_tests.report import describe_bound, markdown, summary, write_json


def measure(cases: Sequence[Case]) -> tuple[list[Result], dict[str, str]]:
    """Measures the cases, telling each as it comes; the results, and why others could not be had."""
    results, skipped = [], {}
    width = max(len(case.what) for case in cases)
    print(f"{'what':<{width}}  dtype    absolute  relative  ulp       bound          verdict")
    for case in cases:
        try:
            result = case.result
        except Unavailable as reason:
            skipped[str(case)] = str(reason)
            print(f"{case.what:<{width}}  {case.dtype:<7}  left out: {reason}", flush=True)
            continue
        results.append(result)
        verdict = "within" if result.passed else f"MISSED: {result.farthest}"
        print(
            f"{result.what:<{width}}  {result.dtype:<7}  {result.absolute:<8.2g}  {result.relative:<8.2g}  "
            f"{result.ulp:<8.3g}  {describe_bound(result):<13}  {verdict}",
            flush=True,
        )
    return results, skipped


def table(out: Path, cases: Sequence[Case]) -> int:
    """Measures the cases, prints and writes their table; the exit status."""
    results, skipped = measure(cases)
    missed = [result for result in results if not result.passed]
    out.mkdir(parents=True, exist_ok=True)
    (out / "parity.md").write_text(markdown(results, skipped))
    write_json(out / "parity.json", {"results": [vars(result) for result in results], "left out": skipped})
    print("", *summary(results), sep="\n")
    print(f"\n{len(results) - len(missed)} of {len(results)} within their bounds, {len(skipped)} left out")
    print(f"written to {out / 'parity.md'} and {out / 'parity.json'}")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests",
        description="Measures how far jax_arcface and torch_reference are apart, and prints it as a table. "
        "The exit status is 1 where a bound is missed.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/parity"),
        help="folder for parity.md and parity.json (default: runs/parity, beside the trainings' run directories)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(PAIRS), default=[], metavar="PAIR", help=f"these alone: {', '.join(PAIRS)}"
    )
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="TEXT", help="those of them whose names hold one of these texts"
    )
    commands = parser.add_subparsers(dest="command", metavar="{trace,planted}")
    trace = commands.add_parser("trace", help="train both in lockstep and draw how far apart they are")
    trace.add_argument(
        "--config",
        type=Path,
        nargs="+",
        required=True,
        help="JSON files with configuration fields; a panel of the figure for each",
    )
    trace.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    trace.add_argument(
        "--out",
        dest="figures",
        type=Path,
        default=Path("figures"),
        help="folder for parity_trajectory.png (default: figures)",
    )
    planting = commands.add_parser(
        "planted",
        help="plant known errors, one at a time, and see that each is caught; the exit status is 1 where one is not",
    )
    planting.add_argument(
        "--out",
        type=Path,
        default=argparse.SUPPRESS,
        help="folder for planted.md and planted.json (default: runs/parity)",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in the tests
    if options.command is None:
        cases = all_cases(options.only, options.cases)
        if not cases:
            parser.error(f"no case has any of {options.cases} in its name")
        return table(options.out, cases)
    if options.command == "planted":
        return planted.run(options.out)
    from parity_tests.trace import draw

    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; it must be at least 1")
    try:
        print(f"written to {draw(options.config, options.steps, options.figures)}")
    except (ValueError, Unavailable) as error:
        print(f"python -m parity_tests trace: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
