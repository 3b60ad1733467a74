"""Partial FC: each step sees the batch's own classes and a share of the others, drawn anew; only these move.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
CVPR 2022, section 3.2. It goes with any classification loss and any optimiser of optax:

    sample = sample_classes(jax.random.fold_in(key, step), labels, prototypes, share=0.1)

    def loss_of(embeddings, rows):
        return margin_softmax_loss(embeddings, rows, sample.labels, Margin.arcface())

    loss, (d_embeddings, d_rows) = jax.value_and_grad(loss_of, (0, 1))(embeddings, take_rows(prototypes, sample))
    prototypes, state = update_rows(optax.sgd(0.1, 0.9), d_rows, state, prototypes, sample)

Rows that are not sampled, and their part of the optimiser's state, are neither read nor written. For the dense
behaviour, where momentum and weight decay move them too, differentiate through `take_rows` and update as usual. All
that is random comes from the key. On a mesh (`losses/mesh.py`) each device samples among its own classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.mesh import on_each_part, shard_of
from jax_arcface.losses.vectors import checked_labels

_Tree = TypeVar("_Tree")


class Sample(NamedTuple):
    """The classes of a step.

    Args:
      rows: [N], where they stand among the prototypes, ascending; on a mesh among those of the same device, and as
        many for each device.
      labels: [B], where each example's class is among the sampled; -1 for a label outside [0, C).
    """

    rows: Array
    labels: Array


def sample_classes(key: Array, labels: ArrayLike, prototypes: Array, share: float) -> Sample:
    """The batch's classes and others, drawn alike, max(round(share C), min(B, C)) together.

    Args:
      key: of the draw, a new one for each step.
      labels: [B], integers in [0, C).
      prototypes: [C, D] or [C, K, D], of which only length and layout count. With n devices on the axis of the classes,
        C / n takes the place of C above.
      share: of the classes, 0 < share <= 1.

    Raises:
      ValueError: a share out of range; shapes or labels as in `margin_softmax_loss`; classes that do not divide by the
        devices; inside `shard_map`, labels that vary over the mesh.

    >>> sample = sample_classes(jax.random.key(0), jnp.array([7, 2, 7]), jnp.zeros((10, 4)), share=0.4)
    >>> len(sample.rows), sample.rows[sample.labels].tolist()
    (4, [7, 2, 7])
    """
    checks.positive(share=share)
    checks.share(share=share)
    prototypes = jnp.asarray(prototypes)
    labels = checked_labels(labels, jnp.size(labels), shard_of(prototypes, labels).total)

    def here(prototypes: Array, of_all: tuple[Array, Array]) -> tuple[Array, Array]:
        key, labels = of_all
        shard, count = shard_of(prototypes, labels), len(prototypes)
        size = min(max(round(share * count), len(labels)), count)
        device: Array | int = 0
        if shard.axis is not None:
            device = jax.lax.axis_index(shard.axis)
            key = jax.random.fold_in(key, device)
        place = labels - shard.first
        is_here = (place >= 0) & (place < count)
        # the batch's own come first; another device's are beyond the last row, where nothing is set
        priority = jax.random.uniform(key, (count,)).at[jnp.where(is_here, place, count)].set(2.0)
        rows = jnp.sort(jax.lax.top_k(priority, size)[1])
        found = shard.sum(jnp.where(is_here, device * size + jnp.searchsorted(rows, place), 0))
        return rows, jnp.where((labels >= 0) & (labels < shard.total), found, -1)

    return Sample(*on_each_part(here, prototypes, (key, labels), (True, False)))


def take_rows(tree: _Tree, sample: Sample) -> _Tree:
    """The sampled rows of each array [C, ...] of a tree, such as prototypes and bias: [N, ...].

    >>> take_rows(jnp.arange(10.0), Sample(jnp.array([2, 7]), jnp.array([1]))).tolist()
    [2.0, 7.0]
    """
    return on_each_part(lambda parts, _: jax.tree.map(lambda x: x[parts[1]], parts[0]), (tree, sample.rows), (), True)


def update_rows(
    optimizer: optax.GradientTransformation, gradients: _Tree, state: Any, params: _Tree, sample: Sample
) -> tuple[_Tree, Any]:
    """A step of the optimiser for the sampled rows alone.

    Args:
      optimizer: any of optax's that treats rows by themselves: what it takes of all, such as a global norm, is that of
        the sampled rows.
      gradients: by the sampled rows, a tree of arrays [N, ...].
      state: the optimiser's, of `optimizer.init(params)`. Of its arrays, those of the shape of a parameter are rows.
      params: a tree of arrays [C, ...].
      sample: of `sample_classes`.

    Returns:
      The new params and the new state. Rows that are not sampled are as they were.

    >>> w, sample = jnp.zeros((3, 1)), Sample(jnp.array([1]), jnp.array([0]))
    >>> optimizer = optax.sgd(0.5)
    >>> w, _ = update_rows(optimizer, jnp.ones((1, 1)), optimizer.init(w), w, sample)
    >>> w.ravel().tolist()
    [0.0, -0.5, 0.0]
    """
    shapes = {jnp.shape(x) for x in jax.tree.leaves(params)}
    is_rows = jax.tree.map(lambda x: jnp.shape(x) in shapes, state)

    def rows_of(memory: Any) -> Any:
        return jax.tree.map(lambda is_row, x: x if is_row else None, is_rows, memory)

    def with_rows(memory: Any, rows: Any) -> Any:
        return jax.tree.map(lambda x, row: x if row is None else row, memory, rows)

    def put(parts: Any, _: tuple) -> Any:
        whole, rows, places = parts
        return jax.tree.map(lambda x, new: x.at[places].set(new), whole, rows)

    rows, memory = take_rows((params, rows_of(state)), sample)
    updates, after = optimizer.update(gradients, with_rows(state, memory), rows)
    moved = optax.apply_updates(rows, updates), rows_of(after)
    params, memory = on_each_part(put, ((params, rows_of(state)), moved, sample.rows), (), True)
    return params, with_rows(after, memory)
