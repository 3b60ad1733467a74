"""The one exception for what a user can mend."""

from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: its message states, in one line, what is wrong and what would be right."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """The end of a message about an unknown word: the known ones, and the one it is near, where there is one.

    >>> nearest("resnet2", ["lenet", "resnet20"])
    "did you mean 'resnet20'? known: lenet, resnet20"
    """
    guess = near(word, known)
    return f"{f'did you mean {guess!r}? ' if guess else ''}known: {', '.join(known)}"


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that a slip of the keyboard makes out of `word`: at most one edit in four letters; else None.

    >>> near("minst", ["digits", "mnist"]), near("m", ["zoom", "margin"]), near("gpu", ["cpu"])
    ('mnist', None, None)
    """
    distances = {name: edits(word.lower(), name) for name in known}
    best = min(distances, key=distances.__getitem__, default=None)
    return best if best is not None and distances[best] <= len(word) // 4 else None


def edits(one: str, other: str) -> int:
    """How many letters must be inserted, deleted, replaced or swapped with their neighbour, to turn one into the other.

    This is the restricted Damerau-Levenshtein distance (optimal string alignment).

    >>> edits("trian", "train"), edits("adam", "adamw"), edits("warp", "wrap")
    (1, 1, 1)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, b in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
