"""The command line: `python -m parity_tests` prints the table, `trace` draws trainings, `planted` plants errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from jax_arcface.errors import UserError, nearest
from jax_arcface.training.fit import Diverged as JaxDiverged
from parity_tests import planted
from parity_tests.cases import PAIRS, Case, Result, Unavailable, all_cases
from parity_tests.report import describe_bound, make_folder, markdown, summary, write_json
from torch_reference.errors import UserError as TorchUserError
from torch_reference.training.step import Diverged as TorchDiverged

_PARITY = Path("runs/parity")


def measure(cases: Sequence[Case]) -> tuple[list[Result], dict[str, str]]:
    """Measures the cases and prints each; returns the results, and why others were left out."""
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
    make_folder(out)
    results, skipped = measure(cases)
    missed = [result for result in results if not result.passed]
    (out / "parity.md").write_text(markdown(results, skipped))
    write_json(out / "parity.json", {"results": [vars(result) for result in results], "left out": skipped})
    print("", *summary(results), sep="\n")
    print(f"\n{len(results) - len(missed)} of {len(results)} within their bounds, {len(skipped)} left out")
    print(f"written to {out / 'parity.md'} and {out / 'parity.json'}")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      The exit status: 0; 1 where a bound is missed, or a planted error is; 2 for a user's mistake, with one line on
      standard error.
    """
    try:
        return _run(_parser().parse_args(arguments))
    except (UserError, TorchUserError, Unavailable, JaxDiverged, TorchDiverged) as error:
        print(f"parity_tests: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)  # as in the tests
    if options.command is not None:
        for name in ("out", "only", "cases"):
            if getattr(options, name) is not None:
                right = "give it after" if name == "out" else "leave it out"
                raise UserError(f"--{name} has no effect before {options.command}: {right}")
    if options.command == "trace":
        from parity_tests.trace import draw

        print(f"written to {draw(options.config, options.steps, options.folder)}")
        return 0
    if options.command == "planted":
        return planted.run(options.folder)
    cases = all_cases(options.only or (), options.cases or ())
    for text in options.cases or ():
        if not any(text in str(case) for case in cases):
            raise UserError(f"no case has {text!r} in its name")
    return table(options.out or _PARITY, cases)


class _Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def _pair(word: str) -> str:
    if word not in PAIRS:
        raise argparse.ArgumentTypeError(f"there is no pair {word!r}: {nearest(word, tuple(PAIRS))}")
    return word


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m parity_tests",
        description="Measures how far apart jax_arcface and torch_reference are, and prints a table. "
        "The exit status is 1 where a bound is missed.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder for parity.md and parity.json (default: {_PARITY}, beside the trainings' run directories)",
    )
    parser.add_argument("--only", nargs="+", type=_pair, metavar="PAIR", help=f"only these: {', '.join(PAIRS)}")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases whose names contain one of these texts")
    commands = parser.add_subparsers(dest="command", metavar="{trace,planted}")
    trace = commands.add_parser("trace", help="train both in lockstep and draw their difference")
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
        dest="folder",
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
        dest="folder",
        type=Path,
        default=_PARITY,
        help=f"folder for planted.md and planted.json (default: {_PARITY})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
