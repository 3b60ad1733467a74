"""Checks that raise where a number is out of range; the number is given by its name, as in `positive(tau=0.1)`.

What is no number raises TypeError. Tensors pass unseen, so that nothing waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch import Tensor


def positive(**values: Any) -> None:
    """Raises ValueError where a number is not above 0, or not finite.

    >>> positive(alpha=0)
    Traceback (most recent call last):
    ...
    ValueError: alpha is 0; it must be > 0 and finite
    """
    _check(values, lambda value: 0 < value < math.inf, "> 0 and finite")


def at_least_zero(**values: Any) -> None:
    """Raises ValueError where a number is below 0, or not finite.

    >>> at_least_zero(theta=1.2, xi=math.nan)
    Traceback (most recent call last):
    ...
    ValueError: xi is nan; it must be at least 0 and finite
    """
    _check(values, lambda value: 0 <= value < math.inf, "at least 0 and finite")


def share(**values: Any) -> None:
    """Raises ValueError where a number is not in [0, 1].

    >>> share(rate=5)
    Traceback (most recent call last):
    ...
    ValueError: rate is 5; it must be between 0 and 1
    """
    _check(values, lambda value: 0 <= value <= 1, "between 0 and 1")


def below_one(**values: Any) -> None:
    """Raises ValueError where a number is not in [0, 1).

    >>> below_one(label_smoothing=1)
    Traceback (most recent call last):
    ...
    ValueError: label_smoothing is 1; it must be at least 0 and below 1
    """
    _check(values, lambda value: 0 <= value < 1, "at least 0 and below 1")


def angle(**values: Any) -> None:
    """Raises ValueError where an angle in radians is not in (-pi, pi).

    >>> angle(high=90.0)
    Traceback (most recent call last):
    ...
    ValueError: high is 90.0; it must be in radians, between -pi and pi
    """
    _check(values, lambda value: -math.pi < value < math.pi, "in radians, between -pi and pi")


def whole(**values: Any) -> None:
    """Raises ValueError where a number is not 1, 2, 3 and so on.

    >>> whole(m=2.5)
    Traceback (most recent call last):
    ...
    ValueError: m is 2.5; it must be a whole number of at least 1
    """
    _check(values, lambda value: value >= 1 and value.is_integer(), "a whole number of at least 1")


def as_float(number: Real) -> float:
    """A number as a float, which is infinite where the number is too large for one.

    >>> as_float(-(10**400))
    -inf
    """
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf  # type: ignore[operator]


def _check(values: dict[str, Any], is_right: Callable[[float], bool], what: str) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            continue
        if not isinstance(value, Real):
            raise TypeError(f"{name} is {value!r}; it must be a number")
        number = as_float(value)
        if not is_right(number):
            # an integer of hundreds of digits is shown as inf
            raise ValueError(f"{name} is {value if math.isfinite(number) else number}; it must be {what}")
