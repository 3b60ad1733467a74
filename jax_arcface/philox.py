"""Random numbers that depend on the seed alone: numpy's Philox, one generator for each purpose (`docs/recipe.md`)."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, index: int | str = 0) -> np.random.Generator:
    """The random generator for one purpose: numpy's Philox, keyed by SHA-256 of `arcface/purpose/index/seed`.

    Only its `random` is used, so that the numbers can be drawn anywhere (`docs/recipe.md`).

    >>> generator(0, "order", 3).random(2).round(3).tolist()
    [0.806, 0.837]
    """
    digest = hashlib.sha256(f"arcface/{purpose}/{index}/{seed}".encode("ascii")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
