"""Closed-set classification by the nearest prototype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses.fused import chosen_loss, has_many_cosines, nearest_class
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import linear_logits
from jax_arcface.losses.vectors import checked_labels, cosines, normalize


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

    >>> predict(jnp.array([[2.0, 1.0], [0.0, -1.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [1, 1]
    """
    embeddings = np.asarray(embeddings)
    starts = range(0, max(len(embeddings), 1), block_size)  # of no embeddings there is one block, an empty one
    blocks = [embeddings[start : start + block_size] for start in starts]
    return np.concatenate([_predict(block, prototypes, bias) for block in blocks]).astype(np.int64)


@jax.jit
def _predict(embeddings: Array, prototypes: Array, bias: Array | None) -> Array:
    if bias is not None:
        return jnp.argmax(linear_logits(embeddings, prototypes, bias), axis=-1)
    if has_many_cosines(embeddings, prototypes):
        return nearest_class(embeddings, prototypes)
    return jnp.argmax(cosines(embeddings, prototypes), axis=-1)


def accuracy(embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, bias: ArrayLike | None = None) -> float:
    """The share of embeddings [N, D] of which `predict` gives the label [N].

    >>> accuracy(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 1]))
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

    >>> class_means(jnp.array([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]), jnp.array([0, 0, 1]), 2)
    array([[ 0.5,  0.5],
           [ 0. , -1. ]], dtype=float32)
    """
    labels = np.asarray(checked_labels(labels, np.shape(embeddings)[0], num_classes))
    sums = np.zeros((num_classes, np.shape(embeddings)[1]))
    np.add.at(sums, labels, np.asarray(normalize(embeddings)))
    return (sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]).astype(np.float32)


def mean_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: float,
    filter_above: float | None = None,
    block_size: int = 1000,
) -> float:
    """The mean margin softmax loss of embeddings [N, D] with labels [N], block_size at a time.

    `filter_above` is that of `margin_logits`.
    """
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    total = 0.0
    for start in range(0, len(labels), block_size):
        block = slice(start, start + block_size)
        loss = _loss(embeddings[block], prototypes, labels[block], margin, scale, filter_above)
        total += float(loss) * len(labels[block])
    return total / len(labels)


@jax.jit
def _loss(
    embeddings: Array, prototypes: Array, labels: Array, margin: Margin, scale: Array, filter_above: float | None
) -> Array:
    loss_of = chosen_loss(embeddings, prototypes)
    return loss_of(embeddings, prototypes, labels, margin, scale, filter_above=filter_above)
