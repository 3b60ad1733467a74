"""Random numbers that depend on the seed alone: numpy's Philox, one generator for each purpose (`docs/recipe.md`)."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, index: int | str = 0) -> np.random.Generator:
    """The random numbers for one purpose: Philox, keyed by SHA-256 of `arcface/purpose/index/seed`.

    >>> generator(0, "order").random(2).round(3).tolist()
    [0.103, 0.857]
    """
    digest = hashlib.sha256(f"arcface/{purpose}/{index}/{seed}".encode("ascii")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
