"""Same identity or not: rates of right and wrong decisions by a threshold on the cosine.

A pair is accepted where score >= threshold, so that pairs with equal scores are accepted or refused together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEWEST = 10 - 1e-11  # expected false accepts, below which a rate is not measured; a hair less, for 0.1 * 100


class Tally(NamedTuple):
    """Pairs by score: the distinct scores [T], rising, and the pairs of one identity and of two with each of them."""

    scores: Tensor
    positives: Tensor
    negatives: Tensor


class OperatingPoint(NamedTuple):
    """The rates at the threshold for a false accept rate; None where that would be fewer than ten false accepts."""

    far_wished: float
    tar: float | None
    far: float | None
    threshold: float | None


class Folds(NamedTuple):
    """Accuracy and threshold of each fold, [F]."""

    accuracies: Tensor
    thresholds: Tensor


def tally(scores: Tensor, same: Tensor) -> Tally:
    """Counts the pairs with each score.

    Args:
      scores: [P], finite. same: bool [P].

    Raises:
      ValueError: other shapes, a score that is not finite, or one kind of pairs alone.

    >>> tally(torch.tensor([0.5, 0.9, 0.5]), torch.tensor([False, True, True])).negatives
    tensor([1, 0])
    """
    scores, same = torch.as_tensor(scores).double(), torch.as_tensor(same).bool()
    if scores.dim() != 1 or same.shape != scores.shape:
        raise ValueError(f"scores {list(scores.shape)} and same {list(same.shape)} must be [P] both")
    if not scores.isfinite().all():
        raise ValueError(f"{(~scores.isfinite()).sum()} scores are not finite")
    distinct, where = scores.unique(return_inverse=True)
    count = torch.zeros(2, len(distinct), dtype=torch.long)
    count.index_put_((same.long(), where), torch.ones_like(where), accumulate=True)
    return complete(Tally(distinct, count[1], count[0]))


def complete(t: Tally) -> Tally:
    """The tally itself; ValueError where it has pairs of one kind alone."""
    if t.positives.sum() == 0:
        raise ValueError("no pair is of one identity: there is nothing to verify")
    if t.negatives.sum() == 0:
        raise ValueError("no pair is of two identities: there is nothing to verify")
    return t


def accepted(t: Tally) -> tuple[Tensor, Tensor]:
    """Positive and negative pairs accepted at each of the distinct scores as threshold, [T] each."""
    return t.positives.flip(0).cumsum(0).flip(0), t.negatives.flip(0).cumsum(0).flip(0)


def auc(t: Tally) -> float:
    """The area under the ROC, as the probability that a positive pair outscores a negative one; a tie is half.

    >>> auc(tally(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([True, True, False])))
    0.75
    """
    below = t.negatives.cumsum(0) - t.negatives
    wins = (t.positives.double() * (below + t.negatives.double() / 2)).sum()
    return (wins / t.positives.sum() / t.negatives.sum()).item()


def eer(t: Tally) -> tuple[float, float]:
    """The rate at which false accepts and false rejects are equally frequent, and the first threshold at or below it.

    Between two thresholds the rates lie on a line.

    >>> eer(tally(torch.tensor([0.9, 0.8, 0.3, 0.1]), torch.tensor([True, False, True, False])))[0]
    0.5
    """
    right, wrong = accepted(t)
    far = [*(wrong.double() / t.negatives.sum()).tolist(), 0.0]
    missed = [*(1 - right.double() / t.positives.sum()).tolist(), 1.0]
    at = max(i for i in range(len(t.scores)) if far[i] >= missed[i])
    # far falls from far[at] to far[at + 1] while missed rises: where the lines meet
    gap, next_gap = far[at] - missed[at], missed[at + 1] - far[at + 1]
    rate = (far[at] * next_gap + far[at + 1] * gap) / (gap + next_gap)
    return rate, t.scores[at].item()


def best_accuracy(t: Tally) -> tuple[float, float]:
    """The best share of right decisions, and the highest threshold with it (infinity where refusing all is best)."""
    right, wrong = accepted(t)
    decided = torch.cat([right + t.negatives.sum() - wrong, t.negatives.sum()[None]])
    best = decided.max()
    at = int((decided == best).nonzero()[-1])
    threshold = t.scores[at].item() if at < len(t.scores) else float("inf")
    return (best / (t.positives.sum() + t.negatives.sum()).double()).item(), threshold


def tar_at_far(t: Tally, fars: tuple[float, ...] = FARS, fewest: float = FEWEST) -> tuple[OperatingPoint, ...]:
    """TAR (1 - FNMR) at the lowest threshold with a FAR (FMR) of at most each rate, without interpolation.

    A rate is None where fewer than `fewest` false accepts are expected.

    >>> t = tally(torch.tensor([0.9] * 50 + [0.1] * 100).double(), torch.tensor([True] * 50 + [False] * 100))
    >>> tar_at_far(t, (0.1, 0.01))[0].far, tar_at_far(t, (0.1, 0.01))[1].tar
    (0.0, None)
    """
    right, wrong = accepted(t)
    positives, negatives = int(t.positives.sum()), int(t.negatives.sum())
    points = []
    for rate in fars:
        if rate * negatives < fewest:
            points.append(OperatingPoint(rate, None, None, None))
            continue
        allowed = (wrong <= rate * negatives * (1 + 1e-12)).nonzero()
        if len(allowed) == 0:
            points.append(OperatingPoint(rate, 0.0, 0.0, float("inf")))
            continue
        at = int(allowed[0])
        points.append(OperatingPoint(rate, int(right[at]) / positives, int(wrong[at]) / negatives, t.scores[at].item()))
    return tuple(points)


def cross_validated(scores: Tensor, same: Tensor, fold: Tensor) -> Folds:
    """Each fold's accuracy with the threshold that is best on the other folds, as LFW (Huang et al. 2007) does it."""
    accuracies, thresholds = [], []
    for number in (names := fold.unique()):
        if len(names) < 2:
            raise ValueError("a cross-validation needs two folds or more")
        rest = fold != number
        threshold = best_accuracy(tally(scores[rest], same[rest]))[1]
        decided = scores[~rest] >= threshold
        accuracies.append((decided == same[~rest]).double().mean())
        thresholds.append(threshold)
    return Folds(torch.stack(accuracies), torch.tensor(thresholds, dtype=torch.float64))
