"""Closed-set classification by the nearest prototype."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses.fused import classify
from jax_arcface.losses.registry import Inputs, Objective
from jax_arcface.losses.vectors import checked_labels, normalize


def predict(
    embeddings: ArrayLike, prototypes: ArrayLike, bias: ArrayLike | None = None, block_size: int = 1000
) -> np.ndarray:
    """The class whose prototype has the largest cosine with each embedding; the first of equals.

    Args:
      embeddings: [N, D]. prototypes: [C, D], or [C, K, D] with sub-centres.
      bias: [C], of a linear classifier, whose class is the one with the largest W_j . x + b_j.
      block_size: embeddings compared at a time.

    Returns:
      int64 [N].

    >>> predict(np.array([[2.0, 1.0], [0.0, -1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [1, 1]
    """
    embeddings = np.asarray(embeddings)
    find: Callable[..., ArrayLike] = classify
    if not {np.asarray(a).dtype.name for a in (embeddings, prototypes)} <= _HALF_AND_SINGLE:
        find, prototypes = _predict_in_numpy, np.asarray(prototypes, np.float64)  # float32 would change the vectors
    starts = range(0, max(len(embeddings), 1), block_size)  # of no embeddings there is one block, an empty one
    blocks = [embeddings[start : start + block_size] for start in starts]
    return np.concatenate([find(block, prototypes, bias) for block in blocks]).astype(np.int64)


_HALF_AND_SINGLE = {"float16", "bfloat16", "float32"}


def _predict_in_numpy(embeddings: np.ndarray, prototypes: np.ndarray, bias: ArrayLike | None) -> np.ndarray:
    """`classify` in float64, for float64 vectors and integers of any size."""
    embeddings = embeddings.astype(np.float64)
    if bias is not None:
        return np.argmax(embeddings @ prototypes.T + np.asarray(bias, np.float64), axis=-1)
    one, other = _units(embeddings), _units(prototypes)
    found = one @ other.reshape(-1, other.shape[-1]).T
    return np.argmax(found.reshape(len(one), len(other), -1).max(axis=-1), axis=-1)


def _units(vectors: np.ndarray) -> np.ndarray:
    """Vectors divided by their lengths, however long they are; zero stays zero."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / np.where(largest > 0, largest, 1)
    length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    return vectors / np.where(length > 0, length, 1)


def accuracy(embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, bias: ArrayLike | None = None) -> float:
    """The share of embeddings [N, D] of which `predict` gives the label [N].

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1]))
    0.5
    """
    return float(np.mean(predict(embeddings, prototypes, bias) == np.asarray(labels)))


def class_means(embeddings: ArrayLike, labels: ArrayLike, num_classes: int) -> np.ndarray:
    """The mean of each class's embeddings, each of them normalised first: prototypes of a model that has none.

    Args:
      embeddings: [N, D]. labels: [N], in [0, C). num_classes: C.

    Returns:
      float32 [C, D]; zero for a class without an example.

    Raises:
      ValueError: a label outside [0, C), or not one for each embedding.
      TypeError: labels that are not integers.

    >>> class_means(np.array([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]), np.array([0, 0, 1]), 2)
    array([[ 0.5,  0.5],
           [ 0. , -1. ]], dtype=float32)
    """
    labels = np.asarray(checked_labels(labels, np.shape(embeddings)[0], num_classes))
    sums = np.zeros((num_classes, np.shape(embeddings)[1]))
    np.add.at(sums, labels, np.asarray(normalize(embeddings)))
    return (sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]).astype(np.float32)


def mean_loss(
    objective: Objective,
    owned: Mapping[str, ArrayLike],
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    step: int = 0,
    block_size: int = 1000,
) -> float | None:
    """The mean of the classification loss, times its weight, with its full margin and without label smoothing.

    Args:
      objective: the losses, of which the classification loss counts.
      owned: `prototypes` [C, D] or [C, K, D], and with `softmax` a `bias` [C].
      embeddings: [N, D]. labels: [N].
      step: steps done, for a loss that is annealed.
      block_size: embeddings looked at at a time.

    Returns:
      None where the classification loss has a state or random margins, or where there is none: what such a loss is
      depends on the batch.

    >>> from jax_arcface.losses.terms import norm_softmax
    >>> print(f"{mean_loss(norm_softmax(scale=1.0), {'prototypes': np.eye(2)}, np.eye(2), np.arange(2)):.4f}")
    0.3133
    """
    term = objective.classifier
    labels = np.asarray(labels)
    if term is None or term.loss.draws or term.loss.init(len(np.asarray(owned["prototypes"])), 2) or not len(labels):
        return None
    options = tuple((key, 0.0 if key == "label_smoothing" else value) for key, value in term.options)
    alone = Objective((dataclasses.replace(term, options=options),))
    embeddings, total = np.asarray(embeddings), 0.0
    for start in range(0, len(labels), block_size):
        block = slice(start, start + block_size)
        total += float(_loss(alone, dict(owned), embeddings[block], labels[block], step)) * len(labels[block])
    return total / len(labels)


@functools.partial(jax.jit, static_argnums=0)
def _loss(objective: Objective, owned: dict[str, Array], embeddings: Array, labels: Array, step: Array) -> Array:
    return objective.apply(Inputs(embeddings, labels, owned, step), {}).loss
