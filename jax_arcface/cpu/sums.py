"""Sums over all axes but the last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def channel_sums(x: Array) -> Array:
    """[..., C] to [C]: on a CPU by a product with ones, which runs on all cores.

    >>> channel_sums(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([4., 6.], dtype=float32)
    """
    rows = x.reshape(-1, x.shape[-1])
    return jax.lax.platform_dependent(
        rows, cpu=lambda rows: jnp.ones(rows.shape[0], rows.dtype) @ rows, default=lambda rows: rows.sum(axis=0)
    )
