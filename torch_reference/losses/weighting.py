"""Which examples of a batch count, and how much; and how the losses of examples become the loss of the batch."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from torch_reference.losses.margins import Margin
from torch_reference.losses.vectors import checked_labels, upcast

Reduction = Literal["mean", "none"]
_REDUCTIONS = ("mean", "none")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The examples of a batch that count, those with a weight above 0. A loss is computed of these alone.

    Args:
      weights: [A], of the A examples that count, each above 0.
      chosen: [B], True for an example that counts; None where all do.
      reduction: `"mean"` or `"none"`.
    """

    weights: Tensor
    chosen: Tensor | None
    reduction: Reduction

    def rows(self, values: Tensor) -> Tensor:
        """Of values [B, ...] those of the examples that count: [A, ...]."""
        return values if self.chosen is None else values[self.chosen]

    def margins(self, margin: Margin) -> Margin:
        """A margin whose values may be one for each example, [B], for the examples that count."""

        def of(value: float | Tensor) -> float | Tensor:
            return self.rows(value) if isinstance(value, Tensor) and value.ndim else value

        return dataclasses.replace(margin, m1=of(margin.m1), m2=of(margin.m2), m3=of(margin.m3))

    def spread(self, values: Tensor) -> Tensor:
        """Values [A, ...] back at their places in the batch, [B, ...], with 0 for what does not count."""
        if self.chosen is None:
            return values
        (places,) = self.chosen.nonzero(as_tuple=True)
        return values.new_zeros(len(self.chosen), *values.shape[1:]).index_add(0, places, values)

    def mean(self, values: Tensor) -> Tensor:
        """sum(w v) / sum(w) of values v [A]; 0 where no example counts."""
        w = self.weights.to(values.dtype)
        return divided((w * values).sum(), w.sum())

    def reduce(self, losses: Tensor) -> Tensor:
        """The mean of the losses l [A]; or w l [B], without reduction."""
        return self.mean(losses) if self.reduction == "mean" else self.spread(self.weights.to(losses.dtype) * losses)


def counted(
    labels: Tensor, batch: int, classes: int | None, weights: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Batch]:
    """The checked labels of the examples that count, int64 [A], and which these are.

    Args:
      labels: [B], integers, which must lie in [0, C) where C is given and the example counts.
      batch: B. classes: C.
      weights: [B], numbers >= 0 or bool; None where all examples count alike.

    Raises:
      ValueError: an unknown reduction, labels or weights of the wrong shape or out of range.
      TypeError: labels that are not integers, complex weights.

    >>> labels, batch = counted(torch.tensor([2, 0, -1]), 3, 4, torch.tensor([0.5, 2.0, 0.0]), "none")
    >>> labels, batch.reduce(torch.tensor([3.0, 4.0]))
    (tensor([2, 0]), tensor([1.5000, 8.0000, 0.0000]))
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(map(repr, _REDUCTIONS))}")
    if weights is None:
        return checked_labels(labels, batch, classes), Batch(torch.ones(batch, device=labels.device), None, reduction)
    labels = checked_labels(labels, batch)
    if weights.shape != (batch,):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; one for each example is expected: ({batch},)")
    w = upcast(weights)
    wrong = weights[~((w >= 0) & w.isfinite())]
    if len(wrong):
        raise ValueError(f"weights must be at least 0 and finite; found {wrong[0]}")
    chosen = w > 0
    return checked_labels(labels[chosen], int(chosen.sum()), classes), Batch(w[chosen], chosen, reduction)


def divided(total: Tensor, weight: Tensor) -> Tensor:
    """total / weight, 0 where both are."""
    return total / torch.where(weight > 0, weight, 1.0)
