"""The one exception for what a user can mend."""

import difflib


class UserError(ValueError):
    """A user's mistake: its message says, in one line, what is wrong and what would be right."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """The end of a message about an unknown word: the known ones, and the nearest spelling where there is one.

    >>> nearest("resnet2", ["lenet", "resnet20"])
    "did you mean 'resnet20'? known: lenet, resnet20"
    """
    close = difflib.get_close_matches(word.lower(), known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(known)}"
