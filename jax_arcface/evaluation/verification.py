"""Verification: are two embeddings of the same identity?

A pair is accepted if its score (a cosine) is at least the threshold. Equal scores are counted together, never in a
random order. TAR (true accept rate) is 1 - FNMR, and FAR (false accept rate) is FMR.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# A rate that fewer false accepts than these would decide is no measurement.
FEWEST_ACCEPTS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """How many pairs have each score: all that the metrics of verification depend on.

    Args:
      scores: float64 [T], distinct and decreasing.
      positives, negatives: int64 [T], the pairs of one identity and of two with that score.
    """

    scores: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """What a threshold reaches that is chosen for a false accept rate.

    Args:
      far_wished: the false accept rate asked for.
      tar, far, threshold: reached; None where the negatives are too few to measure it.
    """

    far_wished: float
    tar: float | None
    far: float | None
    threshold: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Folds:
    """Accuracy by LFW's protocol: `accuracies` and `thresholds` [F]; see `cross_validated`."""

    accuracies: np.ndarray
    thresholds: np.ndarray

    @property
    def mean(self) -> float:
        """Mean accuracy over the folds."""
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the folds (divided by F), as face recognition usually gives it."""
        return float(self.accuracies.std())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, as LFW defines it: the deviation (divided by F - 1) over sqrt(F)."""
        return float(self.accuracies.std(ddof=1) / np.sqrt(len(self.accuracies)))


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """The metrics of verification; see the functions of these names."""

    positives: int
    negatives: int
    auc: float
    eer: float
    eer_threshold: float
    best_accuracy: float
    best_threshold: float
    points: tuple[OperatingPoint, ...]
    folds: Folds | None = None


def tally(scores: ArrayLike, same: ArrayLike) -> Tally:
    """Counts scores [P] of pairs, of which `same` [P] says whether both are of one identity.

    Raises:
      ValueError: lists of different lengths, a score that is not finite, or no pair of one of the two kinds.

    >>> tally([0.5, 0.9, 0.5], [False, True, True]).positives.tolist()
    [1, 1]
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"scores and same must both be [P], not {scores.shape} and {same.shape}")
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"{bad} of {len(scores)} scores are not finite, the first at {np.argmin(np.isfinite(scores))}")
    distinct, where = np.unique(-scores, return_inverse=True)
    counts = [np.bincount(where[same == kind], minlength=len(distinct)) for kind in (True, False)]
    return checked(Tally(-distinct, *counts))


def checked(found: Tally) -> Tally:
    """The same tally; ValueError where it lacks pairs of one identity, or of two."""
    for kind, counts in (("one identity", found.positives), ("two identities", found.negatives)):
        if not counts.sum():
            raise ValueError(f"there is no pair of {kind}: verification needs both kinds")
    return found


def roc(found: Tally) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The receiver operating characteristic.

    Returns:
      thresholds, FAR and TAR, each float64 [T + 1]: a threshold for each distinct score, decreasing, after infinity.

    >>> thresholds, far, tar = roc(tally([0.9, 0.5, 0.1], [True, True, False]))
    >>> thresholds.tolist(), far.tolist(), tar.tolist()
    ([inf, 0.9, 0.5, 0.1], [0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    rates = [np.concatenate([[0], np.cumsum(c)]) / c.sum() for c in (found.negatives, found.positives)]
    return np.concatenate([[np.inf], found.scores]), rates[0], rates[1]


def auc(found: Tally) -> float:
    """Area under the ROC: the share of (positive, negative) in which the positive scores higher; equals count half.

    >>> auc(tally([0.9, 0.5, 0.5], [True, True, False]))
    0.75
    """
    _, far, tar = roc(found)
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2)


def eer(found: Tally) -> tuple[float, float]:
    """Equal error rate, where the ROC's line between two thresholds crosses FNMR = FMR, and the score there.

    >>> rate, threshold = eer(tally([0.9, 0.8, 0.3, 0.1], [True, False, True, False]))
    >>> rate
    0.5
    """
    thresholds, far, tar = roc(found)
    gap = far - (1 - tar)  # from -1 to 1, never decreasing
    after = int(np.argmax(gap >= 0))
    before = after - 1
    part = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + part * (far[after] - far[before])), float(thresholds[after])


def best_accuracy(found: Tally) -> tuple[float, float]:
    """The largest share of pairs that one threshold decides correctly, and that threshold (of equals the highest).

    >>> accuracy, threshold = best_accuracy(tally([0.9, 0.5, 0.4], [True, True, False]))
    >>> accuracy, threshold
    (1.0, 0.5)
    """
    right = np.concatenate([[0], np.cumsum(found.positives - found.negatives)]) + found.negatives.sum()
    best = int(np.argmax(right))
    threshold = np.inf if best == 0 else found.scores[best - 1]
    return float(right[best] / (found.positives.sum() + found.negatives.sum())), float(threshold)


def tar_at_far(
    found: Tally, fars: tuple[float, ...] = FARS, fewest: float = FEWEST_ACCEPTS
) -> tuple[OperatingPoint, ...]:
    """The true accept rate at the lowest threshold whose false accept rate is at most the one wished.

    A rate is measured only where at least `fewest` false accepts are expected. Nothing is interpolated.

    >>> point, = tar_at_far(tally([*[0.9] * 50, *[0.1] * 100], [True] * 50 + [False] * 100), (0.1,))
    >>> point.tar, point.far, point.threshold
    (1.0, 0.0, 0.9)
    """
    thresholds, far, tar = roc(found)
    count, points = int(found.negatives.sum()), []
    for wished in fars:
        # a hair below, for products such as 0.1 * 100 that round down
        if wished * count < fewest * (1 - 1e-12):
            points.append(OperatingPoint(wished, None, None, None))
            continue
        at = int(np.searchsorted(np.cumsum(found.negatives), wished * count * (1 + 1e-12), side="right"))
        points.append(OperatingPoint(wished, float(tar[at]), float(far[at]), float(thresholds[at])))
    return tuple(points)


def cross_validated(scores: ArrayLike, same: ArrayLike, fold: ArrayLike) -> Folds:
    """LFW's protocol: each fold's accuracy at the threshold that is best on all the other folds (`best_accuracy`).

    Args:
      scores: [P]. same: [P]. fold: [P], each pair's fold.

    Raises:
      ValueError: fewer than two folds, or folds of which the others lack pairs of one kind.

    Reference: Huang et al. 2007, Labeled Faces in the Wild, section 4 (view 2).

    >>> cross_validated([0.9, 0.1, 0.8, 0.2], [True, False, True, False], [0, 0, 1, 1]).accuracies.tolist()
    [1.0, 0.5]
    """
    scores, same, fold = np.asarray(scores, np.float64), np.asarray(same, bool), np.asarray(fold)
    names = np.unique(fold)
    if len(names) < 2 or fold.shape != scores.shape:
        raise ValueError(f"at least two folds are needed, one number for each pair; there are {len(names)}")
    accuracies, thresholds = [], []
    for name in names:
        inside = fold == name
        _, threshold = best_accuracy(tally(scores[~inside], same[~inside]))
        thresholds.append(threshold)
        accuracies.append(np.mean((scores[inside] >= threshold) == same[inside]))
    return Folds(np.array(accuracies), np.array(thresholds))


def verify(
    found: Tally, folds: Folds | None = None, fars: tuple[float, ...] = FARS, fewest: float = FEWEST_ACCEPTS
) -> Verification:
    """All metrics of verification of a tally; `fars` and `fewest` as in `tar_at_far`."""
    positives, negatives = int(found.positives.sum()), int(found.negatives.sum())
    return Verification(
        positives, negatives, auc(found), *eer(found), *best_accuracy(found), tar_at_far(found, fars, fewest), folds
    )
