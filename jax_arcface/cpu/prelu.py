"""PReLU, whose gradient oneDNN computes in one pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.cpu.onednn import DTYPES
from jax_arcface.cpu.operations import Implementation, Operation, Transpose, compute
from jax_arcface.cpu.sums import channel_sums


def prelu(x: Array, slope: Array, implementation: Implementation = "auto") -> Array:
    """max(x, 0) + slope min(x, 0) (He et al. 2015, equation 1).

    oneDNN can compute the gradients of images in float32 and bfloat16 with a slope in float32, where it can compute
    `convolve`.

    Args:
      x: [..., C].
      slope: [C].
      implementation: of the gradients: "onednn", "xla", or "auto", which takes oneDNN where it is installed and can.

    Returns:
      The shape and dtype of x.

    >>> prelu(jnp.array([[-4.0, 4.0]]), jnp.array([0.25, 0.25]))
    Array([[-1.,  4.]], dtype=float32)
    """
    return _prelu(jnp.asarray(x), jnp.asarray(slope), implementation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _prelu(x: Array, slope: Array, implementation: Implementation) -> Array:
    return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


@_prelu.defjvp
def _prelu_jvp(
    implementation: Implementation, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (tangent,) = compute(_Tangent(), *primals, *tangents, implementation=implementation)
    return _prelu(*primals, implementation), tangent


@dataclasses.dataclass(frozen=True)
class _Tangent(Operation):
    """From x, slope and their tangents to that of the result."""

    xla_only = True

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        x, slope, to_x, to_slope = arrays
        return (jnp.where(x > 0, to_x, slope.astype(x.dtype) * to_x + to_slope.astype(x.dtype) * x),)

    def transpose(self, unknown: Sequence[bool]) -> Transpose:
        return Transpose(_Gradient(), (0, 1, -1), (2, 3))


@dataclasses.dataclass(frozen=True)
class _Gradient(Operation):
    """From x, slope and the gradient of the result to those of x and slope."""

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        x, slope, gradient = arrays
        negative = jnp.where(x > 0, 0, x).astype(slope.dtype)
        to_x = jnp.where(x > 0, gradient, slope.astype(x.dtype) * gradient)
        return to_x, channel_sums(negative * gradient.astype(slope.dtype))

    def for_onednn(self, *arrays: jax.ShapeDtypeStruct) -> tuple[int, ...] | None:
        x, slope, _ = arrays
        if len(x.shape) != 4 or 0 in x.shape or x.dtype.name not in DTYPES or slope.dtype != jnp.float32:
            return None
        return (3, DTYPES[x.dtype.name], *x.shape)
