"""Pairs of embeddings: drawn from labels, or all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jax_arcface.evaluation.verification import Tally, checked
from jax_arcface.philox import generator

# Scores of all pairs are counted in steps of 2**-20: a float32 cosine of some hundred dimensions is not exacter.
STEPS = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of examples.

    Args:
      first, second: int64 [P], the examples' indices. same: bool [P], whether both are of one identity.
      fold: int64 [P], of a cross-validation.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def draw_pairs(labels: ArrayLike, count: int = 6000, folds: int = 10, seed: int = 0) -> Pairs:
    """Draws pairs as in LFW's protocol: half of them of one identity, in folds of equal size, each balanced.

    A positive pair is a random example that has another of its class, and one of these; a negative pair a random
    example and one of another class. Both are drawn with replacement, by `docs/recipe.md`, section Evaluation.

    Args:
      labels: integers [N].
      count: pairs, a multiple of twice the folds. folds: F. seed: of the draw.

    Raises:
      ValueError: a count that cannot be divided, or labels that have no pair of one kind.

    >>> pairs = draw_pairs([0, 0, 1, 1], count=4, folds=2)
    >>> pairs.same.tolist(), pairs.fold.tolist()
    ([True, False, True, False], [0, 0, 1, 1])
    """
    labels = np.asarray(labels)
    if count < 1 or folds < 1 or count % (2 * folds):
        raise ValueError(f"{count} pairs cannot be divided into {folds} folds of as many equal as different ones")
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if (sizes < 2).all() or len(sizes) < 2:
        raise ValueError("pairs need two classes, and a class with two examples")
    order = np.argsort(classes, kind="stable")
    start = np.cumsum(sizes) - sizes
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - start[classes[order]]  # of each example within its class
    draw = generator(seed, "pairs", 0).random((count, 2))
    same = np.arange(count) % 2 == 0
    can = np.flatnonzero(sizes[classes] > 1)
    first = np.where(same, can[(draw[:, 0] * len(can)).astype(int)], (draw[:, 0] * len(labels)).astype(int))
    of, size = classes[first], sizes[classes[first]]
    # among the others of its class, skipping itself; among those of other classes, skipping its whole class
    partner = (draw[:, 1] * np.where(same, size - 1, len(labels) - size)).astype(int)
    inside = partner + (partner >= place[first])
    outside = partner + np.where(partner >= start[of], size, 0)
    second = order[np.where(same, start[of] + inside, outside)]
    return Pairs(first, second, same, np.arange(count) // (count // folds))


def unit(embeddings: ArrayLike) -> np.ndarray:
    """Embeddings [N, D] divided by their lengths; float64 stays, all else becomes float32.

    Raises:
      ValueError: another shape, or an embedding that is zero or not finite: how many, and the first.
    """
    found = np.asarray(embeddings)
    found = found if found.dtype == np.float64 else found.astype(np.float32)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"embeddings must be [N, D] and not empty, not {list(found.shape)}")
    largest = np.abs(found).max(axis=1)
    if len(bad := np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))):
        raise ValueError(f"{len(bad)} of {len(found)} embeddings are zero or not finite, the first at {bad[0]}")
    found = found / largest[:, None]  # whose squares neither overflow nor vanish
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def labelled(
    embeddings: ArrayLike, labels: ArrayLike, normalise: Callable[[ArrayLike], np.ndarray] = unit
) -> tuple[np.ndarray, np.ndarray]:
    """The unit embeddings [N, D] and their labels [N]; ValueError where there is not one label for each."""
    units, labels = normalise(embeddings), np.asarray(labels)
    if labels.shape != units.shape[:1]:
        raise ValueError(f"there are {len(units)} embeddings, but labels {list(labels.shape)}")
    return units, labels


def check_dimensions(one: np.ndarray, other: np.ndarray) -> None:
    """Raises ValueError where two sets of embeddings, [N, D] and [M, D'], differ in D."""
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"the embeddings have {one.shape[1]} and {other.shape[1]} dimensions")


ROUNDED = 2.0**40


def unit64(embeddings: ArrayLike) -> np.ndarray:
    """`unit` in float64."""
    return unit(np.asarray(embeddings).astype(np.float64))


def cosines64(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines of float64 unit vectors, rounded to multiples of 2**-40: float64 [B, M].

    A matrix product adds in an order that depends on where a vector stands; rounded, equal vectors have equal cosines.
    """
    return np.rint(np.clip(rows @ columns.T, -1, 1) * ROUNDED) / ROUNDED


def pair_scores(embeddings: ArrayLike, pairs: Pairs) -> np.ndarray:
    """The cosine of each pair of embeddings [N, D]: float64 [P].

    >>> pair_scores(np.array([[2.0, 0.0], [0.0, 3.0]]), Pairs(*np.array([[0], [1], [0], [0]]))).tolist()
    [0.0]
    """
    units = unit(embeddings).astype(np.float64)
    return np.einsum("pd,pd->p", units[pairs.first], units[pairs.second])


def all_pairs(
    embeddings: ArrayLike,
    labels: ArrayLike,
    others: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    block_size: int = 2048,
) -> Tally:
    """Counts the scores of all N (N - 1) / 2 pairs, or of all pairs with another set, in memory that N does not change.

    A score is the pair's cosine, rounded to a multiple of 2**-20. With this definition every number computed from the
    tally is exact: no pair is left out, and no score is sorted.

    Args:
      embeddings: [N, D], compared in float64 where both sets are, else in float32.
      labels: integers [N].
      others: embeddings [M, D] and labels [M] of the other set.
      block_size: embeddings of each side compared at a time.

    Raises:
      ValueError: embeddings that are zero or not finite, labels that do not fit, or no pair of one of the two kinds.

    >>> from jax_arcface.evaluation.verification import auc
    >>> auc(all_pairs(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), [0, 0, 1]))
    1.0
    """
    rows, row_labels = labelled(embeddings, labels)
    columns, column_labels = (rows, row_labels) if others is None else labelled(*others)
    _, small = np.unique(np.concatenate([row_labels, column_labels]), return_inverse=True)  # JAX cuts to 32 bits
    row_labels, column_labels = small[: len(rows)].astype(np.int32), small[len(row_labels) :].astype(np.int32)
    check_dimensions(rows, columns)
    product = _in_numpy if rows.dtype == columns.dtype == np.float64 else _block
    bins = 2 * STEPS + 1
    counts = np.zeros(2 * bins, np.int64)

    def count(found: Array | np.ndarray, is_diagonal: bool) -> None:
        steps = np.asarray(found)
        counted = steps[np.triu_indices(len(steps), 1)] if is_diagonal else steps.ravel()
        np.add(counts, np.bincount(counted, minlength=2 * bins), out=counts)

    pending = None  # JAX computes a block while the one before is counted
    for top in range(0, len(rows), block_size):
        here = slice(top, top + block_size)
        for left in range(0 if others is not None else top, len(columns), block_size):
            there = slice(left, left + block_size)
            found = product(rows[here], columns[there], row_labels[here], column_labels[there])
            if pending is not None:
                count(*pending)
            pending = found, others is None and left == top
    if pending is not None:
        count(*pending)
    negatives, positives = counts[:bins][::-1], counts[bins:][::-1]
    held = np.flatnonzero(negatives + positives)
    return checked(Tally((STEPS - held) / STEPS, positives[held], negatives[held]))


@jax.jit
def _block(rows: Array, columns: Array, row_labels: Array, column_labels: Array) -> Array:
    """The bin of each pair: 0 for the cosine -1, and further 2 * STEPS + 1 bins for pairs of one identity."""
    cosines = jnp.matmul(rows, columns.T, precision="highest", preferred_element_type=jnp.float32)
    steps = jnp.rint(jnp.clip(cosines, -1, 1) * STEPS).astype(jnp.int32) + STEPS
    return steps + (2 * STEPS + 1) * (row_labels[:, None] == column_labels)


def _in_numpy(rows: np.ndarray, columns: np.ndarray, row_labels: np.ndarray, column_labels: np.ndarray) -> np.ndarray:
    """`_block` in float64."""
    steps = np.rint(np.clip(rows @ columns.T, -1, 1) * STEPS).astype(np.int64) + STEPS
    return steps + (2 * STEPS + 1) * (row_labels[:, None] == column_labels)


def angle_edges(bins: int = 180) -> np.ndarray:
    """The edges of equal bins of angles from 0 to pi, in radians: [bins + 1]."""
    return np.linspace(0, np.pi, bins + 1)


def angle_histogram(found: Tally, bins: int = 180) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one identity, and of two, by their angle: two int64 [bins] over `angle_edges`."""
    angles = np.arccos(np.clip(found.scores, -1, 1))
    where = np.minimum((angles / np.pi * bins).astype(int), bins - 1)
    sums = [np.bincount(where, c, minlength=bins).astype(np.int64) for c in (found.positives, found.negatives)]
    return sums[0], sums[1]
