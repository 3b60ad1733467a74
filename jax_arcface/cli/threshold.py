"""`threshold.json` of a run: from which cosine on two images count as of one class."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from jax_arcface.errors import UserError
from jax_arcface.evaluation import tar_at_far
from jax_arcface.evaluation.pairs import STEPS
from jax_arcface.evaluation.verification import FEWEST_ACCEPTS, Tally
from jax_arcface.files import read_json, shown

_FILE = "threshold.json"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What `threshold.json` holds.

    Args:
      threshold: the lowest cosine that is accepted.
      far, tar: the share of pairs of two classes, and of one, that it accepts.
      negatives: pairs of two classes that the share is of.
    """

    threshold: float
    far: float
    tar: float
    negatives: int

    def __post_init__(self) -> None:
        numbers = dataclasses.astuple(self)
        if not all(type(number) in (int, float) for number in numbers) or type(self.negatives) is not int:
            raise ValueError(f"{numbers} are not three numbers and a count")
        if not (-1 <= self.threshold <= 1 and 0 <= self.far <= 1 and 0 <= self.tar <= 1 and self.negatives > 0):
            raise ValueError(f"{numbers} are no cosine, two rates and a count")

    def accepts(self, cosine: float) -> bool:
        """Whether a cosine, rounded as the scores of `all_pairs` are, reaches the threshold."""
        return round(cosine * STEPS) / STEPS >= self.threshold

    def __str__(self) -> str:
        return f"{degrees(self.threshold)}, with a false accept rate of {self.far:.2g}"


def calibrate(found: Tally, far: float) -> Threshold:
    """The lowest threshold whose false accept rate is at most `far`.

    Raises:
      UserError: a rate that is not between 0 and 1, that the negative pairs are too few for, or that no threshold has.

    >>> from jax_arcface.evaluation import tally
    >>> calibrate(tally([0.5] * 3 + [0.25] * 99, [True] * 3 + [False] * 99), 0.2)
    Threshold(threshold=0.5, far=0.0, tar=1.0, negatives=99)
    """
    if not 0 < far < 1:
        raise UserError(f"the false accept rate to calibrate for is {far:g}; it must lie between 0 and 1")
    (point,) = tar_at_far(found, (far,))
    negatives = int(found.negatives.sum())
    if point.threshold is None or point.tar is None or point.far is None:
        raise UserError(
            f"{negatives:,} pairs of different classes are too few to measure a false accept rate of {far:g}: "
            f"{math.ceil(FEWEST_ACCEPTS / far):,} are needed"
        )
    if not math.isfinite(point.threshold):
        raise UserError(f"no threshold has a false accept rate of at most {far:g}: too many pairs score highest")
    return Threshold(point.threshold, point.far, point.tar, negatives)


def threshold_file(run: Path) -> Path:
    """Where a run keeps its threshold."""
    return run / _FILE


def read_threshold(run: Path) -> Threshold | None:
    """The threshold of a run; None where it has none yet.

    Raises:
      UserError: a file that is damaged.
    """
    path = threshold_file(run)
    if not path.exists():
        return None
    try:
        return Threshold(**read_json(path))
    except (TypeError, ValueError) as error:
        raise UserError(f"{shown(path)} is damaged ({error}): run evaluate {run} --calibrate 1e-3") from None


def degrees(cosine: float) -> str:
    """The angle with this cosine, as it is printed.

    >>> degrees(0.0)
    '90.0 degrees'
    """
    return f"{math.degrees(math.acos(min(max(cosine, -1.0), 1.0))):.1f} degrees"
