"""What was measured, as Markdown and JSON: a row for each case, and a short table of them all."""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jax_arcface.errors import UserError
from parity_tests.cases import PAIRS, Result

_PACKAGES = ("jax", "flax", "optax", "torch", "numpy", "mpmath", "pytorch-metric-learning")


def describe_bound(result: Result) -> str:
    """A bound in words.

    >>> describe_bound(Result("x", "margins", "float64", 0.0, 0.0, 0.0, 1e-12, "relative", True, ""))
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


def summary(results: Sequence[Result]) -> list[str]:
    """The short table: a row for all results of a pair that have the same dtype and bound, with the largest error.

    >>> both = [Result("x", "heads", "float32", 1.0, 1e-7, ulp, 64.0, "ulp", True, "") for ulp in (0.5, 2.0)]
    >>> print(*summary(both), sep="\\n")
    | what | dtype | cases | largest error | bound |
    |---|---|---|---|---|
    | heads: logits, loss; gradients | float32 | 2 | 2 | 64 ulp |
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.pair, result.dtype, describe_bound(result)), []).append(result)
    lines = ["| what | dtype | cases | largest error | bound |", "|---|---|---|---|---|"]
    for (pair, dtype, bound), group in groups.items():
        missed = sum(not result.passed for result in group)
        bound = f"{bound}, **missed by {missed}**" if missed else bound
        lines.append(
            f"| {PAIRS[pair]} | {dtype} | {len(group)} | {max(result.error for result in group):.2g} | {bound} |"
        )
    return lines


def markdown(results: Sequence[Result], skipped: dict[str, str]) -> str:
    """Both tables as Markdown."""
    lines = [
        *summary(results),
        "",
        "Errors are the largest over all values and gradients compared; relative errors and ulp are those of each "
        "array's largest element. Where the bound is ulp, the largest error is in ulp. What is NaN or infinite on both "
        "sides is an infinite error.",
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
        measured_with(),
    ]
    return "\n".join(lines) + "\n"


def measured_with() -> str:
    """The versions, in a sentence."""
    return "Measured with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + "."


def make_folder(out: Path) -> None:
    """Makes the folder of --out, so that what takes minutes to measure can be written there.

    Raises:
      UserError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"--out {out} is no folder that can be written to: {error.strerror}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with the versions; an infinite number, which JSON has not, as the string "inf"."""
    path.write_text(json.dumps({"versions": versions()} | _without_infinity(content), indent=2) + "\n")


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
