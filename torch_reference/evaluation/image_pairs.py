"""Lists of image pairs, such as LFW's: what a model's embeddings of them are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from torch_reference.data.images import Record
from torch_reference.data.listed import decoded
from torch_reference.data.pairs import ImagePairs
from torch_reference.evaluation.pairs import STEPS, Pairs, pair_scores
from torch_reference.evaluation.verification import Folds, Tally, cross_validated, tally
from torch_reference.models.trained import Model

FEWEST_LISTED = 1.0  # false accepts, from which a rate is given for a list: LFW's 3,000 negatives stand for FAR 1e-3


def embed_images(
    model: Model, images: Sequence[Path | Record], fit: str = "crop", flip: bool = False, at_a_time: int = 1000
) -> np.ndarray:
    """The embeddings of image files, float32 [N, D].

    Args:
      images: at least one.
      fit: how an image is brought to the model's size: `crop`, `pad` or `stretch`.
      flip: sum those of the image and of its mirror image, as published results do.
      at_a_time: images in memory.

    Raises:
      UserError: one that cannot be read.
    """
    found = []
    for start in range(0, len(images), at_a_time):
        pixels = decoded(images[start : start + at_a_time], model.image_shape, fit)
        found.append(model.embed(pixels, flip=flip))
    return np.concatenate(found)


def score_pairs(embeddings: np.ndarray, pairs: ImagePairs) -> tuple[Tally, Folds | None]:
    """Counts of the pairs' cosines, to 2**-20, and LFW's accuracies in the folds, if there are two or more.

    Args:
      embeddings: [N, D], of `pairs.images`.

    Raises:
      ValueError: embeddings without a direction, or pairs of one kind alone, in all or outside a fold.

    >>> pairs = ImagePairs((), *(np.array(row) for row in ([0, 1], [1, 2], [True, False], [0, 0])))
    >>> score_pairs(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), pairs)[0].positives
    tensor([0, 1])
    """
    listed = Pairs(*(torch.from_numpy(column) for column in pairs[1:]))
    scores = (pair_scores(embeddings, listed).clamp(-1, 1) * STEPS).round() / STEPS
    folds = cross_validated(scores, listed.same, listed.fold) if len(listed.fold.unique()) > 1 else None
    return tally(scores, listed.same), folds
