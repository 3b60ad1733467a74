"""From the values of the examples of a batch to one number: their mean, with weights or without.

Every loss takes `reduction` and `weights`, and ends here. With losses l [B] and weights w [B],

    reduction   without weights   with weights
    "mean"      mean l            sum(w l) / sum(w), 0 where all w are 0
    "none"      l                 w l

An example of weight 0 counts as if it were not in the batch: not as another's partner, not in a count or a running
mean; it may hold NaN or a label of no class. A batch of no examples has the loss 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Reduction = Literal["mean", "none"]


def reduce(losses: Array, weights: Array | None, reduction: Reduction) -> Array:
    """The mean of losses [B], or each of them, as above.

    Args:
      losses: l, [B].
      weights: of `checked_weights`, [B], or None.
      reduction: `"mean"` or `"none"`.

    Returns:
      A scalar, or [B]; in the dtype of `losses`.

    Raises:
      ValueError: an unknown reduction.

    >>> print(reduce(jnp.array([1.0, 2.0, 9.0]), jnp.array([3.0, 1.0, 0.0]), "mean"))  # (3 + 2) / 4
    1.25
    """
    if weights is None:
        checked_reduction(reduction)
        if reduction == "none":
            return losses
        return jnp.mean(losses) if losses.size else jnp.sum(losses)
    weights = weights.astype(losses.dtype)
    return share_out(jnp.where(weights == 0, 0, weights * losses), jnp.sum(weights), weights, reduction)


def share_out(parts: Array, total: Array, weights: Array | None, reduction: Reduction) -> Array:
    """The sum of parts over a total; or what each example has of it, [B], so that the same follows by `reduce`.

    Args:
      parts: [B] or [B, ...], the first axis that of the examples; weighted, where there are weights.
      total: a scalar. Where it is 0, so are all parts.
      weights: of `checked_weights`, [B], or None.
      reduction: `"mean"` or `"none"`.

    Raises:
      ValueError: an unknown reduction.

    >>> parts = jnp.array([[0.0, 2.0], [4.0, 0.0]])  # 2 pairs
    >>> print(share_out(parts, jnp.array(2.0), None, "mean"), share_out(parts, jnp.array(2.0), None, "none"))
    3.0 [2. 4.]
    """
    checked_reduction(reduction)
    total = jnp.where(total == 0, 1, total).astype(parts.dtype)
    if reduction == "mean":
        return jnp.sum(parts) / total
    size = len(parts) if weights is None else jnp.sum(weights.astype(parts.dtype))
    return jnp.sum(parts, axis=tuple(range(1, parts.ndim))) * (size / total)


def checked_reduction(reduction: Reduction) -> None:
    """Refuses an unknown reduction.

    Raises:
      ValueError: it is none of `Reduction`.

    >>> checked_reduction("sum")
    Traceback (most recent call last):
    ...
    ValueError: reduction is 'sum'; it must be 'mean' or 'none'
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'none'")


def checked_weights(weights: ArrayLike | None, batch: int) -> Array | None:
    """Weights as an array of floats, once they are found to be numbers >= 0 or bools, [B]; None stays None.

    Inside jit they cannot be looked at: one that is below 0 becomes NaN. The derivative by a weight of 0 is 0.

    Raises:
      ValueError: a shape other than [B], or, outside jit, a weight that is below 0 or not finite.
      TypeError: weights that are not real numbers.

    >>> checked_weights([True, False], batch=2)
    Array([1., 0.], dtype=float32)
    """
    if weights is None:
        return None
    if not isinstance(weights, Array):
        weights = np.asarray(weights)
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if not any(jnp.issubdtype(weights.dtype, kind) for kind in kinds):
        raise TypeError(f"weights have dtype {weights.dtype}; they must be numbers or bools")
    if weights.shape != (batch,):
        raise ValueError(f"weights have shape {weights.shape}; one for each row of the batch is expected: ({batch},)")
    if not isinstance(weights, jax.core.Tracer):
        found = np.asarray(weights, np.float64)
        wrong = found[~((found >= 0) & (found < np.inf))]
        if wrong.size:
            raise ValueError(f"weights must be at least 0 and finite; found {wrong[0]}")
    w = jnp.asarray(weights)
    w = w.astype(jnp.result_type(w, jnp.float32) if jnp.issubdtype(w.dtype, jnp.floating) else float)
    return jnp.where(w == 0, 0, jnp.where(w < 0, jnp.nan, w))


def without_ignored(rows: ArrayLike, weights: Array | None) -> Array:
    """`rows` [B, ...] with 0 in those of weight 0, so that nothing there, NaN neither, reaches a loss or a gradient.

    >>> print(without_ignored(jnp.array([[1.0], [jnp.nan]]), jnp.array([2.0, 0.0])).ravel())
    [1. 0.]
    """
    rows = jnp.asarray(rows)
    if weights is None:
        return rows
    return jnp.where(weights.reshape(-1, *(1 for _ in rows.shape[1:])) == 0, 0, rows)


def is_empty(batch: int, weights: Array | None) -> Array | bool:
    """Whether a batch has no example, or none of a weight above 0; a running statistic then stays as it is.

    >>> is_empty(4, None), bool(is_empty(2, jnp.zeros(2)))
    (False, True)
    """
    return batch == 0 if weights is None else jnp.all(weights == 0)
