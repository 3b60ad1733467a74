"""Is a set of embeddings sound? What tells a collapsed or damaged one."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Health:
    """What `health` counts.

    Args:
      examples, dimensions: N and D.
      non_finite: embeddings with a value that is not finite; the rest is about the others. zeros: those of length 0.
      effective_rank: the participation ratio (sum l)^2 / sum l^2 of the covariance's eigenvalues l, from 1 to D.
      collapsed_dimensions: eigenvalues below 1e-6 of the largest.
      norm_mean, norm_std, norm_min, norm_max: of the embeddings' lengths.
      duplicates: embeddings that equal an earlier one, number by number.
      singletons: classes with one example; None without labels.
    """

    examples: int
    dimensions: int
    non_finite: int
    zeros: int
    effective_rank: float | None
    collapsed_dimensions: int | None
    norm_mean: float | None
    norm_std: float | None
    norm_min: float | None
    norm_max: float | None
    duplicates: int
    singletons: int | None


def health(embeddings: ArrayLike, labels: ArrayLike | None = None) -> Health:
    """Looks at embeddings [N, D], and at their integer labels [N] where there are any.

    >>> found = health(np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), [0, 0, 1])
    >>> found.effective_rank, found.collapsed_dimensions, found.duplicates, found.singletons
    (1.0, 1, 1, 1)
    """
    x = np.asarray(embeddings)
    finite = np.isfinite(x).all(axis=1)
    rest = x[finite].astype(np.float64)
    norms = np.linalg.norm(rest, axis=1)
    rank = collapsed = None
    if len(rest) > 1:
        values = np.maximum(np.linalg.eigvalsh(np.cov(rest, rowvar=False, ddof=0).reshape(x.shape[1], -1)), 0)
        if values.sum() > 0:
            rank = float(values.sum() ** 2 / (values**2).sum())
            collapsed = int((values < 1e-6 * values.max()).sum())
    singletons = None if labels is None else int((np.unique(np.asarray(labels), return_counts=True)[1] == 1).sum())
    statistics = (np.mean, np.std, np.min, np.max)
    mean, std, low, high = (float(of(norms)) if len(norms) else None for of in statistics)
    examples, dimensions = x.shape
    return Health(
        examples,
        dimensions,
        int((~finite).sum()),
        int((norms == 0).sum()),
        rank,
        collapsed,
        mean,
        std,
        low,
        high,
        len(rest) - len(np.unique(rest, axis=0)),
        singletons,
    )
