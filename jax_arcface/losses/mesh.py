"""Losses on a mesh of devices: which of the classes a device holds, and what the devices tell each other.

The classes' prototypes lie over one axis of the mesh, the batch over another. Nothing is said to a loss: it reads in
the types of its arguments how they lie.

    mesh = jax.make_mesh((2, 4), ("data", "classes"))
    embeddings = jax.device_put(embeddings, NamedSharding(mesh, P("data")))
    prototypes = jax.device_put(prototypes, NamedSharding(mesh, P("classes")))
    jax.jit(margin_softmax_loss)(embeddings, prototypes, labels, Margin.arcface())

With Explicit axes, `jax.make_mesh`'s default, the prototypes' type names the axis. With Auto axes it does not: then it
is the axis called `classes`. Inside `jax.shard_map` a loss sees one device's rows; the axis of the classes is the one
over which the prototypes vary and the embeddings and labels do not, and the batch is that of this device (`gathered`
makes it that of all). Pair losses and regularisers, and the centres of a class, lie and are gathered likewise.

Each device normalises and multiplies its own prototypes. What goes over the mesh has the size of the batch: of each
example the largest logit, the sum over all classes and the own class's cosine; backwards the embeddings' gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, PartitionSpec
from jax.typing import ArrayLike

CLASSES = "classes"  # the axis of the classes where types do not tell
_Result = TypeVar("_Result")


class Shard(NamedTuple):
    """The classes that rows of prototypes, or columns of logits, stand for.

    Args:
      total: C, the classes of all devices.
      first: the number of the first of these.
      axis: of the mesh, over which they lie; None where all are here.
    """

    total: int
    first: Array | int = 0
    axis: str | None = None

    def is_padded(self, rows: int) -> bool:
        """Whether the devices have more rows together, `rows` each, than there are classes."""
        return self.axis is not None and rows * jax.lax.axis_size(self.axis) > self.total

    def numbers(self, count: int) -> Array:
        """The numbers of the classes here, [count]."""
        return self.first + jnp.arange(count)

    def sum(self, x: Array) -> Array:
        """The sum over the devices."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def max(self, x: Array) -> Array:
        """The largest of the devices, a constant to differentiation."""
        return x if self.axis is None else jax.lax.pmax(jax.lax.stop_gradient(x), self.axis)

    def min(self, x: Array) -> Array:
        """The smallest of the devices, a constant to differentiation."""
        return x if self.axis is None else jax.lax.pmin(jax.lax.stop_gradient(x), self.axis)


def shard_of(prototypes: ArrayLike, *of_examples: ArrayLike | None, total: int | None = None) -> Shard:
    """Which classes prototypes [C, ...] are: inside `shard_map` those of this device, else all.

    Args:
      prototypes: or anything else that has a row for each class.
      of_examples: embeddings and labels, which do not differ between the devices that share the classes.
      total: C; None where no row is padding.

    Raises:
      ValueError: inside `shard_map`, prototypes that lie over two axes.

    >>> shard_of(jnp.zeros((10, 4)), jnp.zeros((2, 4)))
    Shard(total=10, first=0, axis=None)
    """
    rows = jnp.shape(prototypes)[0]
    axes = _varying(prototypes).difference(*map(_varying, of_examples))
    if not axes:
        return Shard(rows if total is None else total)
    if len(axes) > 1:
        raise ValueError(f"the prototypes lie over the axes {', '.join(sorted(axes))} of the mesh; it must be one")
    (axis,) = axes
    total = rows * jax.lax.axis_size(axis) if total is None else total
    return Shard(total, rows * jax.lax.axis_index(axis), axis)


def gathered(x: ArrayLike, axis: str | None = None) -> Array:
    """An array [B, ...] whole on each device, the rows of all in their order; gradients go back to where they belong.

    Pair losses and regularisers gather by themselves what lies over a mesh. Inside `shard_map`, where a loss sees the
    batch of one device, this is how it sees that of all:

        loss = triplet_loss(gathered(embeddings, "data"), gathered(labels, "data"))

    Args:
      x: what to gather, such as embeddings.
      axis: inside `shard_map`, the axis of the mesh over which the rows lie; None leaves `x` there as it is.

    Returns:
      [n B, ...] with n devices on the axis; inside `shard_map` it does not vary over the axis.

    >>> gathered(jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    x = jnp.asarray(x)
    if axis is not None:
        # a sum, not `all_gather`, whose result would count as another on each device
        room = varying_as(x, jnp.zeros((jax.lax.axis_size(axis), *x.shape), x.dtype))
        return jax.lax.psum(room.at[jax.lax.axis_index(axis)].set(x), axis).reshape(-1, *x.shape[1:])
    lies = jax.typeof(x).sharding
    if all(axis is None for axis in lies.spec):
        return x
    return jax.sharding.reshard(x, jax.NamedSharding(lies.mesh, PartitionSpec()))


def own_rows(rows: Array, labels: Array, total: int | None = None) -> Array:
    """rows[labels], each example's own of a class; NaN, with its gradient, for a label outside [0, C).

    Args:
      rows: [C, ...], such as prototypes.
      labels: [B].
      total: as in `shard_of`.

    >>> own_rows(jnp.array([1.0, 2.0]), jnp.array([1, 2])).tolist()
    [2.0, nan]
    """

    def here(labels: Array, rows: Array, _: Any, padded_from: int | None) -> Array:
        shard = shard_of(rows, labels, total=total or padded_from)
        place = labels - shard.first
        own = rows[place.clip(0, len(rows) - 1)]
        spread = (-1, *(1 for _ in own.shape[1:]))
        if shard.axis is not None:
            is_here = (place >= 0) & (place < len(rows))
            own = shard.sum(jnp.where(is_here.reshape(spread), own, 0))
        return own * jnp.where((labels >= 0) & (labels < shard.total), 1, jnp.nan).reshape(spread)

    return on_each_device(here, labels, rows)


def moved(rows: Array, labels: Array, moves: Array) -> Array:
    """rows [C, ...] with moves [B, ...] added to the rows of their labels; what lies over a mesh stays there.

    >>> moved(jnp.zeros(3), jnp.array([1, 1]), jnp.array([1.0, 2.0])).tolist()
    [0.0, 3.0, 0.0]
    """
    lies = jax.typeof(rows).sharding
    where = None if all(axis is None for axis in lies.spec) else lies
    shard = shard_of(rows, labels, moves)
    if shard.axis is not None:
        place = labels - shard.first
        labels = jnp.where((place >= 0) & (place < len(rows)), place, len(rows))  # beyond them nothing is added
    return rows.at[gathered(labels)].add(gathered(moves), out_sharding=where)


def on_each_device(function: Callable[..., _Result], of_examples: Any, prototypes: Array, of_all: Any = ()) -> _Result:
    """`function(of_examples, prototypes, of_all, total)`; where they lie over a mesh, by `shard_map`.

    Args:
      function: from what each device has, and C or None (`shard_of`), to arrays whose first axis is that of the
        examples.
      of_examples: a tree of arrays [B, ...], the embeddings first. Where the batch lies over the axis of the classes,
        too, that part is gathered.
      prototypes: [C, ...]. With Auto axes that do not divide C, the last device's rows are padded with zeros.
      of_all: a tree of arrays that all devices have.
    """
    total = len(prototypes)
    embeddings = jax.tree.leaves(of_examples)[0]
    found = _layout(embeddings, prototypes)
    if found is None:
        return function(of_examples, prototypes, of_all, None)
    mesh, batch, classes = found
    examples, rows, everywhere = PartitionSpec(batch), PartitionSpec(classes), PartitionSpec()
    if classes is not None and (rest := -total % mesh.shape[classes]):
        prototypes = jnp.pad(prototypes, ((0, rest), *((0, 0) for _ in prototypes.shape[1:])))

    return jax.shard_map(
        lambda of_examples, prototypes, of_all: function(of_examples, prototypes, of_all, total),
        mesh=mesh,
        in_specs=(examples, rows, everywhere),
        out_specs=examples,
    )(_placed(of_examples, mesh, examples), _placed(prototypes, mesh, rows), _placed(of_all, mesh, everywhere))


def on_each_part(function: Callable[..., _Result], of_classes: Any, of_all: Any, gives_rows: Any) -> _Result:
    """`function(of_classes, of_all)`; where the classes lie over a mesh, by `shard_map`, on each device for its own.

    Args:
      of_classes: a tree of arrays [C, ...], or [N, ...] where rows of the devices were taken.
      of_all: a tree of arrays that all devices have.
      gives_rows: a tree of bools, of which results are rows of classes; the others are alike on all devices.

    Raises:
      ValueError: rows that do not divide by the devices.
    """
    first = jax.tree.leaves(of_classes)[0]
    found = _layout(None, first)
    if found is None or found[2] is None:
        return function(of_classes, jax.tree.map(gathered, of_all))
    mesh, _, classes = found
    if len(first) % mesh.shape[classes]:
        raise ValueError(f"{len(first)} classes do not divide by the {mesh.shape[classes]} devices of the mesh")
    rows, everywhere = PartitionSpec(classes), PartitionSpec()
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(rows, everywhere),
        out_specs=jax.tree.map(lambda is_rows: rows if is_rows else everywhere, gives_rows),
    )(_placed(of_classes, mesh, rows), _placed(of_all, mesh, everywhere))


def _placed(tree: Any, mesh: Any, spec: PartitionSpec) -> Any:
    if AxisType.Explicit not in mesh.axis_types:
        return tree  # `shard_map` itself places it
    return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.NamedSharding(mesh, spec)), tree)


def _layout(embeddings: Array | None, prototypes: Array) -> tuple[Any, tuple[str, ...], str | None] | None:
    """The mesh and the axes of batch and classes; None without a mesh, and where the arrays are a device's own."""
    of_arrays = (jax.typeof(x).sharding.mesh for x in (prototypes, embeddings) if x is not None)
    mesh = next((mesh for mesh in of_arrays if not mesh.empty), jax.sharding.get_abstract_mesh())
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if mesh.empty or AxisType.Manual in kinds.values():
        return None
    own = _axes(jax.typeof(prototypes).sharding.spec[0])
    if not own and kinds.get(CLASSES) is AxisType.Auto:
        own = (CLASSES,)
    if len(own) > 1:
        raise ValueError(f"the prototypes lie over the axes {', '.join(own)} of the mesh; it must be one")
    batch = () if embeddings is None else _axes(jax.typeof(embeddings).sharding.spec[0])
    if embeddings is not None and own and kinds[own[0]] is AxisType.Auto:
        batch = tuple(axis for axis, kind in kinds.items() if kind is AxisType.Auto)
    batch = tuple(axis for axis in batch if axis not in own)
    if embeddings is not None and len(embeddings) % math.prod(mesh.shape[axis] for axis in batch):
        batch = ()
    return (mesh, batch, own[0] if own else None) if own or batch else None


def _axes(of_dimension: Any) -> tuple[str, ...]:
    if of_dimension is None:
        return ()
    return of_dimension if isinstance(of_dimension, tuple) else (of_dimension,)


def equally_varying(*arrays: Any) -> list[Array]:
    """Inside `shard_map`, arrays that vary over the same axes of the mesh, as JAX's own operations have them."""
    union = frozenset[str]().union(*map(_varying, arrays))
    return [jax.lax.pcast(x, tuple(union - own), to="varying") if union - (own := _varying(x)) else x for x in arrays]


def varying_as(like: Array, tree: _Result) -> _Result:
    """A tree of arrays that vary over the axes over which `like` does, at least: what a loop begins with."""
    return jax.tree.map(lambda x: equally_varying(like, x)[1], tree)


def _varying(x: ArrayLike | None) -> frozenset[str]:
    """The axes of the mesh over which an array varies inside `shard_map`."""
    if not isinstance(x, Array):
        return frozenset()
    known = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset() if known is None else known.varying
