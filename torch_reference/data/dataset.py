"""What a data set is: two splits of arrays in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from torch_reference.errors import UserError, nearest
from torch_reference.philox import generator


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Args:
      images: uint8 [N, H, W, C], grey levels from 0 to 255.
      labels: int32 [N], each example's class, counted from 0.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
      name: of the data set; for a folder of images, the folder's own name.
      train: the examples to train on.
      test: the examples to test on.
      class_names: each class's name, at its label.
      unseen: the test examples of classes that were held out of the training, labelled from 0; see `hold_out`.
      unseen_names: the names of those classes.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    unseen: Split | None = None
    unseen_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def hold_out(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set without the classes of these names, whose test examples become its `unseen` split.

    Args:
      dataset: with every class.
      names: of the classes to hold out, in any order.

    Returns:
      Examples and classes keep their order; labels count from 0 among the classes left, and among those held out.

    Raises:
      UserError: a name that is unknown or stands twice, or fewer than two classes left.

    >>> from torch_reference.data import load
    >>> digits = hold_out(load("digits"), ("9", "7"))
    >>> digits.num_classes, digits.unseen_names, len(digits.unseen.labels)
    (8, ('7', '9'), 72)
    """
    if unknown := [name for name in names if name not in dataset.class_names]:
        raise UserError(
            f"{dataset.name} has no class called {unknown[0]!r}: {nearest(unknown[0], dataset.class_names)}"
        )
    if len(names) != len(set(names)):
        raise UserError(f"the classes held out, {', '.join(names)}, name one class twice")
    kept = [label for label, name in enumerate(dataset.class_names) if name not in names]
    if len(kept) < 2:
        raise UserError(f"at least two classes must be left to train on, and {len(kept)} would be")
    unseen = [label for label, name in enumerate(dataset.class_names) if name in names]

    def only(split: Split, classes: list[int]) -> Split:
        label_of = np.full(dataset.num_classes, -1, np.int32)
        label_of[classes] = np.arange(len(classes))
        labels = label_of[split.labels]
        return Split(split.images[labels >= 0], labels[labels >= 0])

    return Dataset(
        dataset.name,
        only(dataset.train, kept),
        only(dataset.test, kept),
        tuple(dataset.class_names[label] for label in kept),
        only(dataset.test, unseen),
        tuple(dataset.class_names[label] for label in unseen),
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and standard deviation over all images and pixels, from exact integer sums.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      Two float64 [C], in grey levels from 0 to 255: mean = S1 / n and std = sqrt(S2 / n - mean**2), with 1 where that
      is 0.

    Raises:
      ValueError: images of another type or number of axes, or none at all.

    >>> channel_statistics(np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1))
    (array([127.5]), array([127.5]))
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(f"images must be uint8 [N, H, W, C] and not empty, not {images.dtype} {list(images.shape)}")
    means, deviations = [], []
    for channel in np.moveaxis(images, -1, 0):
        histogram = [0] * 256  # exact, and 256 numbers are all that the sums need
        for start in range(0, len(channel), 4096):
            counts = np.bincount(channel[start : start + 4096].ravel(), minlength=256)
            histogram = [total + int(count) for total, count in zip(histogram, counts, strict=True)]
        n = sum(histogram)
        mean = sum(level * count for level, count in enumerate(histogram)) / n
        variance = sum(level**2 * count for level, count in enumerate(histogram)) / n - mean**2
        means.append(mean)
        deviations.append(math.sqrt(variance) if variance > 0 else 1.0)
    return np.array(means), np.array(deviations)


def test_mask(labels: np.ndarray) -> np.ndarray:
    """Which examples of an unsplit data set are its test split: bool [N], a fifth of each class, drawn with seed 0."""
    draws = generator(0, "split")
    test = np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    for examples in np.split(order, starts[1:]):
        n = len(examples)
        by_draw = examples[np.argsort(draws.random(n), kind="stable")]
        test[by_draw[: min(max(round(n / 5), 1), n - 1)]] = True
    return test
