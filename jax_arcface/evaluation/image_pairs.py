"""Verification on a list of image pairs, as face recognition exchanges them: LFW, CFP-FP, AgeDB-30."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_arcface.data.images import Encoded, bar, read_files
from jax_arcface.data.pairs import ImagePairs
from jax_arcface.evaluation.pairs import STEPS, Pairs, pair_scores
from jax_arcface.evaluation.verification import Tally, Verification, cross_validated, tally, verify
from jax_arcface.models.trained import Model

_BLOCK = 1000  # images decoded at a time, a multiple of the batch that a model embeds


def embed_images(
    model: Model,
    images: Sequence[Path | Encoded],
    *,
    image_fit: str = "crop",
    flip: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """Embeddings, float32 [N, D], of image files, each decoded and fitted to the model's size.

    Args:
      model: what embeds.
      images: one or more, files or encoded. They are decoded 1,000 at a time.
      image_fit: `crop`, `pad` or `stretch`, as for `data.load`.
      flip: whether to sum the embeddings of an image and its mirror image, which is how face recognition is scored.
      progress: whether to show a bar on standard error.

    Raises:
      UserError: an image that cannot be read.
    """
    parts = []
    for start in bar(range(0, len(images), _BLOCK), "images / 1,000", progress):
        block = read_files(images[start : start + _BLOCK], model.image_shape, image_fit, "", progress=False)
        parts.append(model.embed(block, flip=flip))
    return np.concatenate(parts)


def verify_pairs(embeddings: np.ndarray, pairs: ImagePairs) -> tuple[Verification, Tally]:
    """Verification on the listed pairs, in the list's folds, and what it is computed from.

    A score is a cosine, rounded to a multiple of 2**-20 as over all pairs. A false accept rate is measured from one
    expected false accept on: the field reports 1e-3 on LFW's 3,000 pairs of two people.

    Args:
      embeddings: [N, D], of `pairs.images`.
      pairs: the list. With fewer than two folds there is no accuracy by LFW's protocol.

    Raises:
      ValueError: embeddings that are zero or not finite, pairs of one kind alone, or folds without one of the kinds.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> pairs = ImagePairs((), np.array([0, 1]), np.array([1, 2]), np.array([True, False]), np.array([0, 0]))
    >>> verify_pairs(x, pairs)[0].auc
    1.0
    """
    scores = pair_scores(embeddings, Pairs(pairs.first, pairs.second, pairs.same, pairs.fold))
    scores = np.rint(np.clip(scores, -1, 1) * STEPS) / STEPS
    found = tally(scores, pairs.same)
    folds = None if len(np.unique(pairs.fold)) < 2 else cross_validated(scores, pairs.same, pairs.fold)
    return verify(found, folds, fewest=1), found
