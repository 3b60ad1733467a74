"""Which pairs are compared: some drawn from labels, or all there are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_reference.evaluation.accuracy import Array
from torch_reference.evaluation.verification import Tally, complete
from torch_reference.philox import generator

STEPS = 2**20  # a score is counted at the nearest multiple of 1 / STEPS


class Pairs(NamedTuple):
    """Indices of two examples, whether they are of one identity, and the fold, [P] each."""

    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor


def unit(embeddings: Array) -> Tensor:
    """Embeddings [N, D] over their lengths, in float64 where they are and in float32 otherwise.

    Raises:
      ValueError: another shape, or embeddings that have no direction.
    """
    x = torch.as_tensor(embeddings)
    x = x if x.dtype == torch.float64 else x.float()
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"embeddings {list(x.shape)} must be [N, D], with one at least")
    largest = x.abs().amax(dim=1, keepdim=True)
    if bad := torch.nonzero(~largest.isfinite()[:, 0] | (largest[:, 0] == 0)).flatten().tolist():
        raise ValueError(f"embedding {bad[0]} is zero or not finite, one of {len(bad)} such")
    x = x / largest
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def draw_pairs(labels: Array, count: int = 6000, folds: int = 10, seed: int = 0) -> Pairs:
    """`count` pairs, in turn of one identity and of two, as docs/recipe.md draws them (section Evaluation).

    Raises:
      ValueError: pairs that cannot be divided into balanced folds, or labels without a pair of one of the kinds.

    >>> pairs = draw_pairs(torch.tensor([0, 0, 1, 1]), count=4, folds=2)
    >>> pairs.same.tolist(), pairs.fold.tolist()
    ([True, False, True, False], [0, 0, 1, 1])
    """
    y = torch.as_tensor(labels).tolist()
    if count <= 0 or folds <= 0 or count % (2 * folds) != 0:
        raise ValueError(f"{count} pairs do not make {folds} folds with as many of one identity as of two")
    members: dict[int, list[int]] = {}
    for index, label in enumerate(y):
        members.setdefault(label, []).append(index)
    sociable = [index for index, label in enumerate(y) if len(members[label]) > 1]
    if not sociable or len(members) < 2:
        raise ValueError("labels must have a class of two examples, and two classes")
    by_class = [index for label in sorted(members) for index in members[label]]
    begins, begin = {}, 0
    for label in sorted(members):
        begins[label], begin = begin, begin + len(members[label])
    first, second = [], []
    for number, (u, v) in enumerate(generator(seed, "pairs", 0).random((count, 2)).tolist()):
        if number % 2 == 0:
            one = sociable[int(u * len(sociable))]
            others = members[y[one]]
            at = int(v * (len(others) - 1))
            other = others[at if at < others.index(one) else at + 1]
        else:
            one = int(u * len(y))
            inside = len(members[y[one]])
            at = int(v * (len(y) - inside))
            other = by_class[at if at < begins[y[one]] else at + inside]
        first.append(one)
        second.append(other)
    numbers = torch.arange(count)
    return Pairs(torch.tensor(first), torch.tensor(second), numbers % 2 == 0, numbers // (count // folds))


def pair_scores(embeddings: Array, pairs: Pairs) -> Tensor:
    """The cosines of pairs, float64 [P]."""
    x = unit(embeddings).double()
    return (x[pairs.first] * x[pairs.second]).sum(dim=1)


def all_pairs(embeddings: Array, labels: Array, *, block_size: int = 2048) -> Tally:
    """Counts every pair of two examples once, by its cosine rounded to a multiple of 2**-20.

    Args:
      embeddings: [N, D]. labels: [N].
      block_size: rows of a block; the memory needed is that of a block and of the counts.

    Raises:
      ValueError: as `unit` and `complete`.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> all_pairs(x, torch.tensor([0, 0, 1])).positives.sum()
    tensor(1)
    """
    x, y = unit(embeddings), torch.as_tensor(labels)
    if y.shape != x.shape[:1]:
        raise ValueError(f"{len(x)} embeddings have labels {list(y.shape)}")
    counts = np.zeros((2, 2 * STEPS + 1), np.int64)
    for start in range(0, len(x), block_size):
        rows, own = x[start : start + block_size], y[start : start + block_size]
        for left in range(start, len(x), block_size):
            columns, others = x[left : left + block_size], y[left : left + block_size]
            bins = ((rows @ columns.T).clamp(-1, 1) * STEPS).round().long() + STEPS
            same = own[:, None] == others
            counted = torch.ones_like(same)
            if left == start:
                counted = counted.triu(diagonal=1)
            for kind in (0, 1):
                wanted = bins[counted & (same == bool(kind))]
                counts[kind] += np.bincount(wanted.numpy(), minlength=2 * STEPS + 1)
    held = np.flatnonzero(counts.sum(axis=0))
    negatives, positives = torch.from_numpy(counts[:, held])
    return complete(Tally(torch.from_numpy(held - STEPS).double() / STEPS, positives, negatives))
