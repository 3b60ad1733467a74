"""The command line: `python -m parity_tests` prints the table, `python -m parity_tests trace` draws two trainings."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parity_tests.cases import Case, Result, Unavailable, all_cases

_PACKAGES = ("jax", "flax", "optax", "torch", "numpy", "mpmath", "pytorch-metric-learning")


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


def describe_bound(result: Result) -> str:
    """A bound in words.

    >>> describe_bound(Result("x", "float64", 0.0, 0.0, 0.0, 1e-12, "relative", True, ""))
    '1e-12 relative'
    """
    return "equal" if result.unit == "exact" else f"{result.bound:g} {result.unit}"


def versions() -> dict[str, str]:
    """The versions that were measured."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def markdown(results: Sequence[Result], skipped: dict[str, str]) -> str:
    """The table as Markdown."""
    lines = [
        "Errors are the largest over all values and gradients compared; relative errors and ulp are those of each "
        "array's largest element.",
        "",
        "| what | dtype | absolute | relative | ulp | bound | verdict |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r.what} | {r.dtype} | {r.absolute:.2g} | {r.relative:.2g} | {r.ulp:.3g} | {describe_bound(r)} | "
            f"{'within' if r.passed else '**missed**'} |"
            for r in results
        ),
        *(f"| {what} | | | | | | left out: {reason} |" for what, reason in skipped.items()),
        "",
        "Measured with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def table(out: Path, only: Sequence[str]) -> int:
    """Measures, prints and writes the table; the exit status."""
    cases = [case for case in all_cases() if not only or case.pair in only]
    results, skipped = measure(cases)
    missed = [result for result in results if not result.passed]
    out.mkdir(parents=True, exist_ok=True)
    (out / "parity.md").write_text(markdown(results, skipped))
    rows = [vars(result) for result in results]
    # JSON has no infinity
    rows = [{k: str(v) if isinstance(v, float) and v == float("inf") else v for k, v in row.items()} for row in rows]
    (out / "parity.json").write_text(
        json.dumps({"versions": versions(), "results": rows, "left out": skipped}, indent=2) + "\n"
    )
    print(f"\n{len(results) - len(missed)} of {len(results)} within their bounds, {len(skipped)} left out")
    print(f"written to {out / 'parity.md'} and {out / 'parity.json'}")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    from parity_tests.cases import PAIRS

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
        "--only", nargs="+", choices=PAIRS, default=[], metavar="PAIR", help=f"these alone: {', '.join(PAIRS)}"
    )
    commands = parser.add_subparsers(dest="command", metavar="trace")
    trace = commands.add_parser("trace", help="train both in lockstep and draw how far apart they are")
    trace.add_argument("--config", type=Path, required=True, help="JSON file with configuration fields")
    trace.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    trace.add_argument(
        "--out",
        dest="figures",
        type=Path,
        default=Path("figures"),
        help="folder for parity_trajectory.png (default: figures)",
    )
    options = parser.parse_args(arguments)
    if options.command != "trace":
        return table(options.out, options.only)
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
