"""Cross-batch memory: embeddings of earlier batches, for pair losses to compare a batch with.

XBM (Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, arXiv 1912.06798). A memory is a value; a step
takes one and gives the next:

    loss = supcon_loss(embeddings, labels, memory=memory)
    memory = remember(memory, embeddings, labels)

An anchor's positives and negatives are then those of the batch and those of the memory, which are constants for the
gradient. On a mesh each device has the whole memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jax_arcface.losses import checks
from jax_arcface.losses.mesh import gathered
from jax_arcface.losses.vectors import checked_labels


class Memory(NamedTuple):
    """The latest embeddings.

    Args:
      embeddings: [M, D]. labels: [M].
      seen: how many were ever remembered, a scalar. Of the M places the first `seen` are taken, at most all.
    """

    embeddings: Array
    labels: Array
    seen: Array

    @property
    def is_taken(self) -> Array:
        """Which places hold an embedding, [M]."""
        return jnp.arange(len(self.labels)) < self.seen


def empty_memory(size: int, embedding_dim: int, dtype: DTypeLike = jnp.float32) -> Memory:
    """A memory with M = `size` places and nothing in it.

    Raises:
      ValueError: a size or a dimension below 1.

    >>> empty_memory(100, 8).embeddings.shape
    (100, 8)
    """
    checks.whole(size=size, embedding_dim=embedding_dim)
    return Memory(jnp.zeros((size, embedding_dim), dtype), jnp.zeros(size, jnp.int32), jnp.zeros((), jnp.int32))


def remember(memory: Memory, embeddings: ArrayLike, labels: ArrayLike) -> Memory:
    """The memory with a batch in it, in place of the oldest.

    Args:
      memory: of M places.
      embeddings: [B, D], B <= M. labels: [B], any integers.

    Raises:
      ValueError, TypeError: shapes that do not fit, a batch larger than the memory, or labels that are not integers.

    >>> memory = remember(empty_memory(3, 1), jnp.array([[1.0], [2.0]]), jnp.array([5, 6]))
    >>> remember(memory, jnp.array([[3.0], [4.0]]), jnp.array([7, 8])).labels.tolist()
    [8, 6, 7]
    """
    embeddings, (size, dim) = jnp.asarray(embeddings), memory.embeddings.shape
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or len(embeddings) > size:
        raise ValueError(
            f"embeddings {embeddings.shape} do not fit the memory: they must be [B, {dim}] with B at most {size}"
        )
    if not isinstance(labels, Array):
        labels = jnp.asarray(labels)  # as they are: batches must agree on what a number means
    labels = gathered(checked_labels(labels, len(embeddings))).astype(memory.labels.dtype)
    embeddings = gathered(jax.lax.stop_gradient(embeddings)).astype(memory.embeddings.dtype)
    place = (memory.seen + jnp.arange(len(labels))) % size
    return Memory(
        memory.embeddings.at[place].set(embeddings), memory.labels.at[place].set(labels), memory.seen + len(labels)
    )
