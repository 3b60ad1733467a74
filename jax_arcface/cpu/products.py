"""Matrix products of large factors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.cpu.onednn import DTYPES
from jax_arcface.cpu.operations import Implementation, Operation, compute


def product(
    a: Array,
    b: Array,
    dtype: DTypeLike = jnp.float32,
    *,
    transposed: bool = False,
    implementation: Implementation = "auto",
) -> Array:
    """a b, or a^T b.

    oneDNN can compute a product in float32 of factors in float32 or bfloat16, where it can compute `convolve`. XLA
    takes up to twice as long.

    Args:
      a: [m, k]; where it is transposed, [k, m].
      b: [k, n], of the same dtype, which is that of the multiplication.
      dtype: of sums and product.
      transposed: whether it is a^T that b is multiplied by.
      implementation: "onednn", "xla", or "auto", which takes oneDNN where it is installed and can.

    Returns:
      [m, n].

    Raises:
      TypeError: shapes that do not fit.
      ValueError: "onednn" where that cannot compute it, when the program is lowered.

    >>> a = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> product(a, jnp.eye(2)).tolist(), product(a, jnp.eye(2), transposed=True).tolist()
    ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 3.0], [2.0, 4.0]])
    """
    operation = Product(transposed, jnp.dtype(dtype))
    return compute(operation, a, b, implementation=implementation)[0]


@dataclasses.dataclass(frozen=True)
class Product(Operation):
    """From a and b to a b, or a^T b, as `product` has it. Its derivatives are XLA's."""

    transposed: bool
    dtype: np.dtype

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        """The function, in JAX."""
        a, b = arrays
        highest = jax.lax.Precision.HIGHEST
        return (jnp.matmul(a.T if self.transposed else a, b, precision=highest, preferred_element_type=self.dtype),)

    def for_onednn(self, *arrays: jax.ShapeDtypeStruct) -> tuple[int, ...] | None:
        """The operation's integers for the handler."""
        a, b = arrays
        fits = len(a.shape) == len(b.shape) == 2 and a.dtype == b.dtype and self.dtype == jnp.float32
        if not fits or 0 in a.shape + b.shape or a.dtype.name not in DTYPES:
            return None
        rows, inner = reversed(a.shape) if self.transposed else a.shape
        return (4, DTYPES[a.dtype.name], rows, inner, b.shape[1], int(self.transposed))

    def maps_rows(self) -> bool:
        """Whether more rows of a are as good as `vmap` over them."""
        return not self.transposed
