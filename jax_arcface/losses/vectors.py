"""Vectors, their lengths and cosines; labels; and what a row [C] of numbers holds at its own class.

What all losses are made of.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses.mesh import Shard, varying_as

# Vectors whose largest entry is smaller than this count as zero: one over it still fits float32.
_SMALLEST = 2.0**-100
# Entries beyond this count as this where squared lengths are taken: sums of their squares fit float32.
_LARGEST = 2.0**40


def normalize(vectors: ArrayLike) -> Array:
    """Scales vectors to length 1.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [..., D] in float32 (float64 for float64). A zero vector (largest magnitude below 2^-100) stays zero and takes no
      gradient. Gradients that do not fit the dtype of `vectors` saturate at its largest number.

    >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = upcast(jnp.asarray(vectors))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    is_zero = largest < _SMALLEST  # false for NaN, which goes on
    # now at most 4, so that squares stay in range; one over a divisor above 1 / tiny would be flushed to zero
    tiny = float(jnp.finfo(jnp.result_type(x, jnp.float32)).tiny)
    x = jnp.where(is_zero, 0, x / jnp.clip(largest, _SMALLEST, 1 / tiny))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(is_zero, 1, squares))


def lengths(vectors: ArrayLike) -> Array:
    """The lengths |v| of vectors.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [...] in float32 (float64 for float64). A zero vector (largest magnitude below 2^-100) has length 0 and takes no
      gradient.

    >>> lengths(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([5., 0.], dtype=float32)
    """
    x = upcast(jnp.asarray(vectors))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    is_zero = largest < _SMALLEST
    tiny = float(jnp.finfo(jnp.result_type(x, jnp.float32)).tiny)
    largest = jnp.clip(largest, _SMALLEST, 1 / tiny)  # as in `normalize`
    scaled = jnp.where(is_zero, 0, x / largest)
    squares = jnp.sum(scaled * scaled, axis=-1)
    return jnp.where(is_zero, 0, largest)[..., 0] * jnp.sqrt(jnp.where(is_zero[..., 0], 1, squares))


def cosines(embeddings: ArrayLike, prototypes: ArrayLike) -> Array:
    """cos(theta) between every embedding and every class.

    Args:
      embeddings: [B, D], any float dtype and any length.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, of which the nearest counts (Deng et al.,
        "Sub-center ArcFace", ECCV 2020); a tie's gradient goes to the first.

    Returns:
      [B, C] in float32 (float64 where either is float64).

    Raises:
      ValueError: shapes that do not fit.

    >>> cosines(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    Array([[ 1.,  0., -1.]], dtype=float32)
    """
    return _cosines(*checked_vectors(embeddings, prototypes))


@jax.jit
def _cosines(embeddings: Array, prototypes: Array) -> Array:
    x, w = normalize(embeddings), normalize(prototypes)
    # full precision also where accelerators would round float32 inputs: an angle near 0 has no digits to lose
    if prototypes.ndim == 2:
        return jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST)
    cosine = jnp.einsum("bd,ckd->bck", x, w, precision=jax.lax.Precision.HIGHEST)
    nearest = jnp.argmax(cosine, axis=-1, keepdims=True)
    return jnp.sum(jnp.where(jnp.arange(cosine.shape[-1]) == nearest, cosine, 0), axis=-1)


def checked_vectors(embeddings: ArrayLike, prototypes: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays, once they are found to be [B, D] and [C, D] or [C, K, D].

    Raises:
      ValueError: they are not.

    >>> checked_vectors(jnp.ones((5, 4)), jnp.ones((6, 3)))
    Traceback (most recent call last):
    ...
    ValueError: embeddings (5, 4) and prototypes (6, 3) do not fit: they must be [B, D] and [C, D] or [C, K, D]
    """
    embeddings, prototypes = jnp.asarray(embeddings), jnp.asarray(prototypes)
    if embeddings.ndim != 2 or prototypes.ndim not in (2, 3) or embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"embeddings {embeddings.shape} and prototypes {prototypes.shape} do not fit: "
            "they must be [B, D] and [C, D] or [C, K, D]"
        )
    return embeddings, prototypes


def checked_labels(labels: ArrayLike, batch: int, classes: int | None = None, weights: Array | None = None) -> Array:
    """Labels as an array, once they are found to be integers [B] and, where C is given, to lie in [0, C).

    Inside jit they cannot be looked at: what lies outside stays outside, as int32. Without C any integers will do, and
    the result may number them anew. The label of an example whose weight is 0 may be any integer, and becomes 0.

    Raises:
      ValueError, TypeError: they are not.

    >>> checked_labels([0, 3], batch=2, classes=3)
    Traceback (most recent call last):
    ...
    ValueError: labels must lie in [0, 3); found 3
    """
    if not isinstance(labels, Array):
        labels = np.asarray(labels)  # looked at before 64 bits become 32
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels have dtype {labels.dtype}; they must be integers")
    if labels.shape != (batch,):
        raise ValueError(f"labels have shape {labels.shape}; one for each row of the batch is expected: ({batch},)")
    if classes is None:
        # where 64 bits become 32, two labels must not become one
        return labels if isinstance(labels, Array) else jnp.asarray(np.unique(labels, return_inverse=True)[1])
    if isinstance(labels, jax.core.Tracer):
        narrow = labels.astype(jnp.int32)
        narrow = jnp.where(narrow.astype(labels.dtype) == labels, narrow, -1)  # 2^32 must not become class 0
    else:
        found = np.asarray(labels)
        is_wrong = (found < 0) | (found >= classes)
        if not isinstance(weights, jax.core.Tracer):
            if weights is not None:
                is_wrong &= np.asarray(weights) != 0
            if is_wrong.any():
                raise ValueError(f"labels must lie in [0, {classes}); found {found[is_wrong][0]}")
        narrow = jnp.asarray(np.where((found < 0) | (found >= classes), -1, found), jnp.int32)
        if isinstance(labels, Array) and not jax.typeof(labels).sharding.mesh.empty:
            narrow = jax.device_put(narrow, labels.sharding)  # on the mesh as they were
    return narrow if weights is None else jnp.where(weights == 0, 0, narrow)


def one_or_nan(labels: Array, classes: int) -> Array:
    """1 for a label in [0, C), else NaN, [B]; a factor, so that the gradient becomes NaN as well.

    >>> print(one_or_nan(jnp.array([0, 3]), classes=3))
    [ 1. nan]
    """
    return jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan)


def own_class(values: Array, labels: Array, shard: Shard | None = None) -> Array:
    """What stands in each row [B, C] at the example's own class, [B]; NaN for a label outside [0, C).

    Args:
      shard: the classes that the columns are; None where they are all.

    >>> own_class(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0]))
    Array([2., 3.], dtype=float32)
    """
    shard = shard or Shard(values.shape[1])
    # a sum, not a look-up, which would gather columns that lie on many devices
    own = jnp.sum(jnp.where(is_own_class(values, labels, shard), values, 0), axis=1)
    return shard.sum(own) * one_or_nan(labels, shard.total)


def with_own_class(values: Array, labels: Array, own: Array, shard: Shard | None = None) -> Array:
    """`values` [B, C] with `own` [B] at each example's own class.

    Args:
      shard: the classes that the columns are; None where they are all.

    >>> with_own_class(jnp.zeros((2, 3)), jnp.array([2, 0]), jnp.array([7.0, 8.0]))
    Array([[0., 0., 7.],
           [8., 0., 0.]], dtype=float32)
    """
    own = varying_as(values, own)  # before it is spread out, so that gradients are added up after they are, too
    return jnp.where(is_own_class(values, labels, shard or Shard(values.shape[1])), own[:, None], values)


def is_own_class(values: Array, labels: Array, shard: Shard) -> Array:
    """Which of the classes is each example's own, [B, C]."""
    return shard.numbers(values.shape[1]) == labels[:, None]


def squared_distances(cosine: Array) -> Array:
    """|u - v|^2 = 2 - 2c of vectors of length 1, from their cosine c of any shape; never below 0.

    >>> squared_distances(jnp.array([1.0, 0.0, -1.0]))
    Array([0., 2., 4.], dtype=float32)
    """
    return jax.nn.relu(2 - 2 * cosine)  # whose derivative at 0 is 0


def bounded(vectors: ArrayLike) -> Array:
    """`upcast`, with entries beyond +-2^40 set to that, without gradient, so that sums of squares do not overflow.

    >>> bounded(jnp.array([1.0, 1e30])) == jnp.array([1.0, 2.0**40])
    Array([ True,  True], dtype=bool)
    """
    return jnp.clip(upcast(jnp.asarray(vectors)), -_LARGEST, _LARGEST)


def upcast(x: Array) -> Array:
    """Numbers of any shape in float32 (float64 stays), with a gradient that saturates where a narrow dtype ends.

    Raises:
      TypeError: complex numbers.

    >>> upcast(jnp.ones(2, jnp.bfloat16))
    Array([1., 1.], dtype=float32)
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"the numbers have dtype {x.dtype}; they must be real")
    return saturated(x) if x.dtype in (jnp.float16, jnp.bfloat16) else x


@jax.custom_vjp
def saturated(x: Array) -> Array:
    """Numbers of any shape in float32; a gradient that their dtype cannot hold becomes its largest number.

    >>> float(jax.grad(lambda x: 1e9 * saturated(x))(jnp.ones((), jnp.float16)))
    65504.0
    """
    return x.astype(jnp.float32)


def _saturated_forward(x: Array) -> tuple[Array, Array]:
    return x.astype(jnp.float32), jnp.zeros((), x.dtype)


def _saturated_backward(like: Array, gradient: Array) -> tuple[Array]:
    largest = float(jnp.finfo(like.dtype).max)
    return (jnp.clip(gradient, -largest, largest).astype(like.dtype),)


saturated.defvjp(_saturated_forward, _saturated_backward)
