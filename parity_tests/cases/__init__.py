"""What is compared: the one list of cases that the tests check and the table shows."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

from parity_tests.compare import Difference

Unit = Literal["relative", "ulp", "exact"]


class Unavailable(Exception):
    """A case's requirement is missing; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One row of the table, and one test.

    Args:
      what: what is compared.
      pair: the pair of twins, `margins` for margins_test.py.
      dtype: the arithmetic.
      bound: the largest error allowed, in `unit`.
      unit: `relative` (to the largest element), `ulp` (of the largest element), or `exact`, where nothing may differ.
      measure: gives the differences; raises `Unavailable` where it cannot. All values compared are to be finite: what
        is NaN or infinite on both sides is an infinite error.
      covers: public names that are compared.
      slow: left to `make test-all`.
    """

    what: str
    pair: str
    dtype: str
    bound: float
    measure: Callable[[], Iterable[Difference]]
    unit: Unit = "relative"
    covers: tuple[str, ...] = ()
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.what}, {self.dtype}"

    @functools.cached_property
    def result(self) -> Result:
        """What was measured; each case is measured once in a process."""
        differences = [_missed(d) if d.nonfinite else d for d in self.measure()]
        if not differences:
            raise AssertionError(f"{self} compared nothing")
        key = "absolute" if self.unit == "exact" else self.unit
        worst = max(differences, key=lambda d: getattr(d, key))
        return Result(
            self.what,
            self.pair,
            self.dtype,
            # the largest of each, which need not be in the same array
            max(d.absolute for d in differences),
            max(d.relative for d in differences),
            max(d.ulp for d in differences),
            self.bound,
            self.unit,
            bool(getattr(worst, key) <= self.bound),
            worst.at(worst.farthest),
        )

    def check(self) -> None:
        """Raises AssertionError, naming the place, where the bound is missed."""
        assert self.result.passed, (
            f"{self}: absolute {self.result.absolute:.3g}, relative {self.result.relative:.3g}, "
            f"ulp {self.result.ulp:.3g}; bound {self.bound:g} {self.unit}; farthest: {self.result.farthest}"
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a case measured: the largest errors, and where the largest of them was."""

    what: str
    pair: str
    dtype: str
    absolute: float
    relative: float
    ulp: float
    bound: float
    unit: Unit
    passed: bool
    farthest: str

    @property
    def error(self) -> float:
        """The largest error in the unit of the bound."""
        return self.absolute if self.unit == "exact" else getattr(self, self.unit)


def _missed(found: Difference) -> Difference:
    """The same as an infinite error: what is NaN on both sides would agree with anything that is."""
    note = f"{found.nonfinite} values are NaN or infinite on both sides"
    return dataclasses.replace(found, absolute=math.inf, relative=math.inf, ulp=math.inf, farthest=None, note=note)


def renamed(prefix: str, differences: Iterable[Difference]) -> list[Difference]:
    """The same differences with a prefix to their names."""
    return [dataclasses.replace(d, name=f"{prefix} {d.name}") for d in differences]


def bound_of(dtype: Any) -> dict[str, Any]:
    """The bound of margins and losses: 1e-12 in float64, and in float32 64 ulp of the largest element."""
    return {"bound": 1e-12} if dtype == "float64" else {"bound": 64.0, "unit": "ulp"}


# The files of cases, and what the summary calls them.
PAIRS = {
    "margins": "margins: psi(theta), derivative",
    "losses": "cosines, logits, losses; gradients",
    "objective": "every loss by name, two steps",
    "heads": "heads: logits, loss; gradients",
    "backbones": "backbones: embeddings, gradients, running statistics",
    "sampling": "random numbers, order, augmented batches",
    "weights": "initial weights",
    "data": "data sets as decoded",
    "training": "optimisers, schedules, margin warm-up",
    "trajectories": "whole trainings, after each step",
    "evaluation": "predictions, losses, exchanged models",
}


def all_cases(only: Collection[str] = (), named: Collection[str] = ()) -> list[Case]:
    """Every case, in the order of the table; or those of some pairs, or with one of some texts in their names."""
    pairs = [pair for pair in PAIRS if not only or pair in only]
    cases = [case for pair in pairs for case in importlib.import_module(f"{__name__}.{pair}").CASES]
    return [case for case in cases if not named or any(text in str(case) for text in named)]
