"""The one exception for what a user can mend."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A user's mistake: its message states, in one line, what is wrong and what would be right."""


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word: the known ones, and the nearest spelling where there is one.

    >>> nearest("resnet2", ["lenet", "resnet20"])
    "did you mean 'resnet20'? known: lenet, resnet20"
    """
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    return "".join(f"did you mean {guess!r}? " for guess in close) + f"known: {', '.join(known)}"
