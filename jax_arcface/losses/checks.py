"""Numbers out of range are refused, in a line that says what would be right.

Each function takes numbers by their names; what is no plain number, such as an array, is not looked at.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any


def positive(**values: Any) -> None:
    """Refuses what is not > 0 and finite.

    Raises:
      ValueError: naming the number.

    >>> positive(scale=64.0, tau=0.0)
    Traceback (most recent call last):
    ...
    ValueError: tau is 0.0; it must be > 0 and finite
    """
    _require(lambda value: 0 < value < math.inf, "> 0 and finite", values)


def at_least_zero(**values: Any) -> None:
    """Refuses what is not >= 0 and finite.

    Raises:
      ValueError: naming the number.

    >>> at_least_zero(m=-1)
    Traceback (most recent call last):
    ...
    ValueError: m is -1; it must be at least 0 and finite
    """
    _require(lambda value: 0 <= value < math.inf, "at least 0 and finite", values)


def share(**values: Any) -> None:
    """Refuses what does not lie in [0, 1].

    Raises:
      ValueError: naming the number.

    >>> share(rate=3)
    Traceback (most recent call last):
    ...
    ValueError: rate is 3; it must be between 0 and 1
    """
    _require(lambda value: 0 <= value <= 1, "between 0 and 1", values)


def angle(**values: Any) -> None:
    """Refuses what does not lie in (-pi, pi), in radians.

    Raises:
      ValueError: naming the number.

    >>> angle(low=45)
    Traceback (most recent call last):
    ...
    ValueError: low is 45; it must be in radians, between -pi and pi
    """
    _require(lambda value: abs(value) < math.pi, "in radians, between -pi and pi", values)


def whole(**values: Any) -> None:
    """Refuses what is not 1, 2, 3, ...

    Raises:
      ValueError: naming the number.

    >>> whole(k=1.5)
    Traceback (most recent call last):
    ...
    ValueError: k is 1.5; it must be a whole number of at least 1
    """
    _require(lambda value: value >= 1 and value % 1 == 0, "a whole number of at least 1", values)


def _require(holds: Callable[[float], bool], what: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, numbers.Real) and not holds(float(value)):
            raise ValueError(f"{name} is {value}; it must be {what}")
