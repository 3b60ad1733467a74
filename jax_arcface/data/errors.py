"""What is said of a user's mistake with data."""

import textwrap

from jax_arcface.errors import UserError


class DataError(UserError):
    """A user's mistake with data; its message is one line that says what was wrong and what would be right."""


def brief(error: Exception) -> str:
    """An error on one line, not too long."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
