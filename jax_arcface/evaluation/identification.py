"""Identification: whose embedding is this, among those of a gallery?"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from jax_arcface.evaluation.pairs import check_dimensions, cosines64, labelled, unit64
from jax_arcface.evaluation.verification import FEWEST_ACCEPTS


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
    """What `identify` found.

    Args:
      cmc: float64 [G'], at r - 1 the share of mated probes whose rank is at most r.
      tpir_at_fpir: by false positive identification rate, the true positive identification rate; None where fewer than
        10 false alarms are expected.
      mated, unmated: probes with and without their identity in the gallery.
    """

    cmc: np.ndarray
    tpir_at_fpir: dict[float, float | None]
    mated: int
    unmated: int

    def rank(self, r: int) -> float:
        """The share of mated probes of which the gallery's r most similar identities hold the right one."""
        return float(self.cmc[min(r, len(self.cmc)) - 1])


def identify(
    gallery: tuple[ArrayLike, ArrayLike],
    probes: tuple[ArrayLike, ArrayLike],
    *,
    fpirs: tuple[float, ...] = (0.1, 0.01, 0.001),
    block_size: int = 256,
) -> Identification:
    """Searches for each probe in the gallery.

    An identity's score is the largest cosine (`cosines64`) of its gallery entries with the probe. A mated probe's rank
    is 1 plus the number of other identities that score at least as high as its own: ties count against it. Open set:
    the threshold is the lowest score at which the share of unmated probes that some identity reaches (FPIR) is at most
    the wished one; TPIR is the share of mated probes of rank 1 whose score reaches it.

    Args:
      gallery, probes: embeddings [G, D] and integer labels [G].
      fpirs: wished false positive identification rates.
      block_size: probes searched at a time.

    Raises:
      ValueError: an empty side, embeddings that are zero or not finite, labels that do not fit, or no mated probe.

    Reference: Grother, Ngan and Hanaoka, NIST FRVT part 2 (identification), sections on FNIR and FPIR.

    >>> found = identify((np.eye(2), [0, 1]), (np.array([[0.9, 0.1], [0.6, 0.5]]), [0, 1]))
    >>> found.rank(1), found.rank(2)
    (0.5, 1.0)
    """
    (entries, names), (asked, labels) = (labelled(*side, unit64) for side in (gallery, probes))
    check_dimensions(entries, asked)
    identities, owner = np.unique(names, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    entries, starts = entries[order], np.searchsorted(owner[order], np.arange(len(identities)))
    own = np.searchsorted(identities, labels)
    mated = identities[np.minimum(own, len(identities) - 1)] == labels
    if not mated.any():
        raise ValueError("no probe has its identity in the gallery")
    ranks, tops, best = np.zeros(len(asked), int), np.zeros(len(asked)), np.zeros(len(asked))
    for start in range(0, len(asked), block_size):
        rows = slice(start, start + block_size)
        scores = np.maximum.reduceat(cosines64(asked[rows], entries), starts, axis=1)
        tops[rows] = scores.max(axis=1)
        of_own = np.take_along_axis(scores, np.where(mated[rows], own[rows], 0)[:, None], axis=1)
        best[rows], ranks[rows] = of_own[:, 0], (scores >= of_own).sum(axis=1)
    cmc = np.cumsum(np.bincount(ranks[mated] - 1, minlength=len(identities))) / mated.sum()
    alarms = np.sort(tops[~mated])[::-1]
    candidates = np.unique(np.concatenate([best[mated], alarms]))
    rates: dict[float, float | None] = {}
    for wished in fpirs:
        if wished * len(alarms) < FEWEST_ACCEPTS * (1 - 1e-12):
            rates[wished] = None
            continue
        false = len(alarms) - np.searchsorted(alarms[::-1], candidates, side="left")
        allowed = candidates[false <= wished * len(alarms) * (1 + 1e-12)]
        threshold = allowed[0] if len(allowed) else np.inf
        rates[wished] = float(np.mean((ranks[mated] == 1) & (best[mated] >= threshold)))
    return Identification(cmc, rates, int(mated.sum()), int((~mated).sum()))


def first_of_each(labels: ArrayLike) -> np.ndarray:
    """Which examples make a gallery of one entry for each class, its first: bool [N].

    >>> first_of_each([3, 3, 1, 3]).tolist()
    [True, False, True, False]
    """
    labels = np.asarray(labels)
    mask = np.zeros(len(labels), bool)
    mask[np.unique(labels, return_index=True)[1]] = True
    return mask
