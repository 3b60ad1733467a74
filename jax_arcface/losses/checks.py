"""Numbers out of range are refused, in a line that says what would be right.

Each function takes numbers by their names: Python's, NumPy's, or arrays of them, of which all entries are looked at.
What a transformation of JAX stands in for (inside jit, grad, vmap) cannot be looked at.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def finite(**values: Any) -> None:
    """Refuses what is not a finite number.

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> finite(m3=1j)
    Traceback (most recent call last):
    ...
    TypeError: m3 is 1j; it must be a real number
    """
    _require(lambda value: abs(value) < np.inf, "finite", values)


def positive(**values: Any) -> None:
    """Refuses what is not > 0 and finite.

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> positive(scale=64.0, tau=0.0)
    Traceback (most recent call last):
    ...
    ValueError: tau is 0.0; it must be > 0 and finite
    """
    _require(lambda value: (value > 0) & (value < np.inf), "> 0 and finite", values)


def at_least_zero(**values: Any) -> None:
    """Refuses what is not >= 0 and finite.

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> at_least_zero(m=-1)
    Traceback (most recent call last):
    ...
    ValueError: m is -1; it must be at least 0 and finite
    """
    _require(lambda value: (value >= 0) & (value < np.inf), "at least 0 and finite", values)


def share(**values: Any) -> None:
    """Refuses what does not lie in [0, 1].

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> share(rate=3)
    Traceback (most recent call last):
    ...
    ValueError: rate is 3; it must be between 0 and 1
    """
    _require(lambda value: (value >= 0) & (value <= 1), "between 0 and 1", values)


def below_one(**values: Any) -> None:
    """Refuses what does not lie in [0, 1).

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> below_one(label_smoothing=1.0)
    Traceback (most recent call last):
    ...
    ValueError: label_smoothing is 1.0; it must be at least 0 and below 1
    """
    _require(lambda value: (value >= 0) & (value < 1), "at least 0 and below 1", values)


def angle(**values: Any) -> None:
    """Refuses what does not lie in (-pi, pi), in radians.

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> angle(low=45)
    Traceback (most recent call last):
    ...
    ValueError: low is 45; it must be in radians, between -pi and pi
    """
    _require(lambda value: abs(value) < np.pi, "in radians, between -pi and pi", values)


def whole(**values: Any) -> None:
    """Refuses what is not 1, 2, 3, ...

    Raises:
      ValueError: naming the number.
      TypeError: naming what is no real number.

    >>> whole(k=1.5)
    Traceback (most recent call last):
    ...
    ValueError: k is 1.5; it must be a whole number of at least 1
    """
    _require(
        lambda value: (value >= 1) & (value < np.inf) & (value == np.floor(value)),
        "a whole number of at least 1",
        values,
    )


def _require(holds: Callable[[np.ndarray], Any], what: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, jax.Array | np.ndarray):
            if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
                raise TypeError(f"{name} has dtype {value.dtype}; it must be a real number")
            if isinstance(value, jax.core.Tracer):
                continue
        elif not isinstance(value, numbers.Real):
            raise TypeError(f"{name} is {value!r}; it must be a real number")
        found = _floats(value)
        is_wrong = ~np.asarray(holds(found), bool)
        if is_wrong.any():
            first = value if np.ndim(value) == 0 and np.isfinite(found) else found[is_wrong][0]
            raise ValueError(f"{name} is {first}; it must be {what}")


def _floats(value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except OverflowError:  # a whole number of more than 308 digits
        return np.asarray(np.inf if value > 0 else -np.inf)
