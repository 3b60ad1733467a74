"""The numbers that an option may take, written once beside the option's type or field."""

from __future__ import annotations

import dataclasses
import math

from torch_reference.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`.

    Args:
      low: the smallest number, which is allowed itself unless `open_low`.
      high: the end, which is not allowed itself unless `closed`.
      unit: what the number measures, for messages.

    >>> Range(0, 1).check(2, "dropout")
    Traceback (most recent call last):
    ...
    torch_reference.errors.UserError: dropout is 2; it must be at least 0 and below 1
    """

    low: float = 0.0
    high: float = math.inf
    unit: str = ""
    open_low: bool = False
    closed: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high or (self.closed and value == self.high))

    def __str__(self) -> str:
        low = f"> {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f" and {'at most' if self.closed else 'below'} {self.high:.4g}" if self.high < math.inf else ""
        return low + high + (f" ({self.unit})" if self.unit else "")

    def check(self, value: float, name: str) -> None:
        """Raises UserError where the value, called `name`, is outside."""
        if value not in self:
            finite = "" if math.isfinite(value) else "finite and "
            shown = value if isinstance(value, int) else f"{value:g}"
            raise UserError(f"{name} is {shown}; it must be {finite}{self}")
