"""Matrix products of large factors: oneDNN's on a CPU where it is installed, XLA's elsewhere."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.cpu import onednn
from jax_arcface.cpu.onednn import Product


def product(a: Array, b: Array, dtype: DTypeLike = jnp.float32, *, transposed: bool = False) -> Array:
    """a b, or a^T b, computed by oneDNN where that can do it, else by XLA, which takes up to twice as long.

    oneDNN can where `jax_arcface.cpu.convolution.convolve` takes it, with the same limits, but for forward-mode
    differentiation, which is there.

    Args:
      a: [m, k]; where it is transposed, [k, m].
      b: [k, n], of the same dtype, which is that of the multiplication.
      dtype: of sums and product.
      transposed: whether it is a^T that b is multiplied by.

    Returns:
      [m, n].

    >>> a = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> product(a, jnp.eye(2)).tolist(), product(a, jnp.eye(2), transposed=True).tolist()
    ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 3.0], [2.0, 4.0]])
    """
    fits = a.ndim == b.ndim == 2 and a.shape[0 if transposed else 1] == b.shape[0]  # else XLA tells what is wrong
    if fits and a.dtype == b.dtype and jnp.dtype(dtype) == jnp.float32:
        described = Product(a.shape, b.shape, a.dtype.name, transposed)
        if onednn.supports(described):
            return _by_onednn(described, a, b)
    return _by_xla(a, b, dtype, transposed)


def _by_xla(a: Array, b: Array, dtype: DTypeLike, transposed: bool) -> Array:
    precision = jax.lax.Precision.HIGHEST
    return jnp.matmul(a.T if transposed else a, b, precision=precision, preferred_element_type=dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_onednn(described: Product, a: Array, b: Array) -> Array:
    return onednn.apply("product", described, a, b)[0]


@_by_onednn.defjvp
def _by_onednn_jvp(
    described: Product, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (a, b), (d_a, d_b) = primals, tangents
    plain = functools.partial(_by_xla, dtype=jnp.float32, transposed=described.transposed)
    return _by_onednn(described, a, b), plain(d_a, b) + plain(a, d_b)
