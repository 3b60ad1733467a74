"""Regularisers: what is added to a classification loss, from the embeddings' centres or from the prototypes alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import angles
from jax_arcface.losses.mesh import gathered, on_each_device, own_rows, shard_of, varying_as
from jax_arcface.losses.reduction import Reduction, checked_weights, reduce, without_ignored
from jax_arcface.losses.vectors import (
    bounded,
    checked_labels,
    checked_vectors,
    cosines,
    normalize,
    saturated,
    squared_distances,
    upcast,
)

# Squared distances of prototypes below this count as this.
_NEAREST = 2.0**-20


def center_loss(
    embeddings: ArrayLike,
    centers: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Center loss: 1/2 |x - c_y|^2 (Wen et al., ECCV 2016, equation 2; here the mean over the batch).

    Args:
      embeddings: x, [B, D], any float dtype; not normalised. Entries beyond +-2^40 count as that, without gradient.
      centers: c, [C, D]. The paper moves them by `center_displacements`, not by this loss's gradient.
      labels: [B], integers in [0, C).
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label outside
      [0, C).

    Raises:
      ValueError, TypeError: shapes that do not fit; else as `softmax_loss`.

    >>> x, c = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[0.0, 0.0], [1.0, 2.0]])
    >>> print(center_loss(x, c, jnp.array([0, 1])))  # (25 + 4) / 4
    7.25
    """
    from_center, _, weights = _from_centers(embeddings, centers, labels, weights)
    return reduce(jnp.sum(from_center**2, axis=1), weights, reduction) / 2


def center_displacements(
    embeddings: ArrayLike, centers: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    """What each example moves its centre by, before the rate: (c_y - x) / (1 + n_y) (Wen et al. 2016, equation 4).

    n_y is the number of examples of its class in the batch. The paper's rule, which moves c_j by -rate times the sum
    over the examples of class j, is `centers.at[labels].add(-rate * displacements)`.

    Args:
      embeddings, centers, labels: as in `center_loss`, which also says what is raised.
      weights: w, [B], numbers >= 0 or bools; then w (c_y - x) / (1 + n_y) with n_y the sum of the class's weights.

    Returns:
      [B, D], float32 (float64 for float64).

    >>> x, c, labels = jnp.array([[3.0], [6.0]]), jnp.zeros((2, 1)), jnp.array([1, 1])
    >>> moves = center_displacements(x, c, labels)
    >>> print(c.at[labels].add(-0.5 * moves).ravel())  # c_1 moves by half of (3 + 6) / (1 + 2)
    [0.  1.5]
    """
    from_center, labels, weights = _from_centers(embeddings, centers, labels, weights)
    same = labels[:, None] == gathered(labels)
    if weights is None:
        return -from_center / (1 + jnp.sum(same, axis=1)[:, None])
    weights = weights.astype(from_center.dtype)
    count = jnp.sum(jnp.where(same, gathered(weights), 0), axis=1)
    return -from_center * (weights / (1 + count))[:, None]


def _from_centers(
    embeddings: ArrayLike, centers: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    """x - c_y, [B, D], 0 for an example of weight 0, and the checked labels and weights."""
    embeddings, centers = jnp.asarray(embeddings), jnp.asarray(centers)
    if embeddings.ndim != 2 or centers.ndim != 2 or embeddings.shape[1] != centers.shape[1]:
        raise ValueError(
            f"embeddings {embeddings.shape} and centers {centers.shape} do not fit: they must be [B, D] and [C, D]"
        )
    weights = checked_weights(weights, len(embeddings))
    labels = checked_labels(labels, len(embeddings), shard_of(centers, embeddings, labels).total, weights)
    from_center = bounded(embeddings) - own_rows(bounded(centers), labels)
    return (from_center if weights is None else without_ignored(from_center, weights)), labels, weights


def intra_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Intra-loss: theta_y / pi, the angle to the own class (ArcFace, Deng et al., CVPR 2019, equation 5).

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, of which the nearest counts.
      labels: [B], integers in [0, C).
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar in [0, 1], or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label
      outside [0, C).

    Raises:
      ValueError, TypeError: shapes that do not fit; else as `softmax_loss`.

    >>> print(intra_loss(jnp.array([[0.0, 2.0]]), jnp.eye(2), jnp.array([0])))  # a right angle
    0.5
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    labels = checked_labels(labels, len(embeddings), shard_of(prototypes, embeddings, labels).total, weights)
    embeddings = without_ignored(embeddings, weights)
    own = own_rows(upcast(prototypes), labels)
    cosine = jax.vmap(lambda x, w: cosines(x[None], w[None])[0, 0])(embeddings, own)
    return reduce(angles(cosine), weights, reduction) / math.pi


def inter_loss(
    prototypes: ArrayLike,
    labels: ArrayLike,
    block_size: int = 4096,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Inter-loss: minus the mean angle between a class of the batch and the others, over pi.

    -1 / (pi (C - 1)) mean over the batch of sum_{j != y} arccos(u(W_y) . u(W_j)), u(w) = w / |w|. ArcFace (Deng et al.,
    CVPR 2019), equation 6.

    Args:
      prototypes: W, [C, D], any float dtype; only their direction counts.
      labels: [B], integers in [0, C).
      block_size: classes that are looked at together: [B, block_size] is held, never [B, C], in both passes.
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar in [-1, 0], or [B] with `reduction="none"`; float32 (float64 for float64); 0 where there is one class.
      NaN inside jit for a label outside [0, C).

    Raises:
      ValueError, TypeError: prototypes that are no matrix, or a block size that is not a whole number above 0; else as
        `softmax_loss`.

    >>> print(inter_loss(jnp.eye(3), jnp.array([0, 0, 2])))  # right angles
    -0.5
    """
    return -_over_other_classes(angles, prototypes, labels, block_size, reduction, weights) / math.pi


def hyperspherical_energy(
    prototypes: ArrayLike,
    labels: ArrayLike,
    block_size: int = 4096,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Minimum hyperspherical energy: the mean of 1 / |u(W_y) - u(W_j)|^2 over the batch and the other classes.

    1 / (C - 1) mean over the batch of sum_{j != y} 1 / |u(W_y) - u(W_j)|^2, u(w) = w / |w|. MHE (Liu et al., NeurIPS
    2018, arXiv 1805.09298), s = 2, over the classes of the batch. Reverse mode only, but for float64: a gradient that
    does not fit saturates, which has no counterpart in forward mode.

    Args:
      prototypes, labels, block_size, reduction, weights: as in `inter_loss`, which also says what is raised. Squared
        distances below 2^-20 count as 2^-20, without gradient.

    Returns:
      A scalar >= 1/4, or [B] with `reduction="none"`; float32 (float64 for float64); 0 where there is one class. NaN
      inside jit for a label outside [0, C).

    >>> print(hyperspherical_energy(jnp.eye(3), jnp.array([0, 0, 2])))  # |e_i - e_j|^2 = 2
    0.5
    """
    prototypes = jnp.asarray(prototypes)
    if prototypes.dtype != jnp.float64:
        prototypes = saturated(prototypes)  # a gradient of up to 2^40 over a prototype's length saturates
    return _over_other_classes(_energy, prototypes, labels, block_size, reduction, weights)


def _energy(cosine: Array) -> Array:
    squared = squared_distances(cosine)
    return 1 / jnp.where(squared < _NEAREST, _NEAREST, squared)  # NaN stays


def _over_other_classes(
    of_cosine: Callable[[Array], Array],
    prototypes: ArrayLike,
    labels: ArrayLike,
    block_size: int,
    reduction: Reduction,
    weights: ArrayLike | None,
) -> Array:
    """1 / (C - 1) sum_{j != y} of_cosine(u(W_y) . u(W_j)), the mean over the batch or of each example."""
    prototypes = jnp.asarray(prototypes)
    if prototypes.ndim != 2:
        raise ValueError(f"prototypes have shape {prototypes.shape}; they must be [C, D], without sub-centres")
    checks.whole(block_size=block_size)
    weights, total = checked_weights(weights, np.size(labels)), shard_of(prototypes, labels).total
    labels = checked_labels(labels, np.size(labels), total, weights)
    totals = _blockwise(of_cosine, prototypes, labels, int(block_size))
    return reduce(totals, weights, reduction) / max(1, total - 1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _blockwise(of_cosine: Callable[[Array], Array], prototypes: Array, labels: Array, block_size: int) -> Array:
    def here(labels: Array, prototypes: Array, _: tuple, total: int | None) -> Array:
        shard = shard_of(prototypes, labels, total=total)
        unit = normalize(prototypes)
        rows_here, dim = unit.shape
        size = min(block_size, rows_here)
        own = varying_as(unit, own_rows(unit, labels, total=total))
        blocks = jnp.pad(unit, ((0, -rows_here % size), (0, 0))).reshape(-1, size, dim)

        @jax.checkpoint  # the backward pass computes a block's cosines anew
        def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
            first, rows = block
            place = first + jnp.arange(size)
            number = shard.first + place
            is_other = (number != labels[:, None]) & (place < rows_here) & (number < shard.total)
            cosine = jnp.matmul(own, rows.T, precision=jax.lax.Precision.HIGHEST)
            return total + jnp.sum(jnp.where(is_other, of_cosine(cosine), 0), axis=1), None

        firsts = size * jnp.arange(len(blocks))
        zeros = varying_as(own, jnp.zeros(len(labels), unit.dtype))
        sums, _ = jax.lax.scan(add, zeros, (firsts, blocks))
        return shard.sum(sums)

    return on_each_device(here, labels, prototypes)
