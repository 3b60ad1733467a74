"""What a data set is: two splits of arrays in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_arcface.errors import UserError, nearest
from jax_arcface.philox import generator


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Args:
      images: uint8 [N, H, W, C], grey levels from 0 to 255; `load` may give a memory-mapped array, which is read-only.
      labels: int32 [N], each example's class, counted from 0; as above.
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
    """Takes classes out of a data set, to test embeddings on classes that the training never saw.

    Args:
      dataset: with every class.
      names: of the classes to hold out; their order does not matter.

    Returns:
      A data set whose train and test splits hold the other classes and whose `unseen` split holds the test examples of
      those held out. Labels count from 0 in each, in the order of the classes in `dataset`; examples keep their order.

    Raises:
      UserError: an unknown or repeated name, or fewer than two classes left.

    >>> from jax_arcface.data import load
    >>> digits = hold_out(load("digits"), ("7", "8", "9"))
    >>> digits.class_names, len(digits.train.labels), len(digits.unseen.labels)
    (('0', '1', '2', '3', '4', '5', '6'), 1012, 107)
    """
    for name in names:
        if name not in dataset.class_names:
            raise UserError(f"{dataset.name} has no class {name!r}: {nearest(name, dataset.class_names)}")
    if len(set(names)) < len(names):
        raise UserError(f"a class is held out twice: {', '.join(names)}")
    if len(dataset.class_names) - len(names) < 2:
        raise UserError(f"{len(names)} of {len(dataset.class_names)} classes held out leave fewer than two to train on")
    held = np.isin(dataset.class_names, names)

    def part(split: Split, wanted: np.ndarray) -> Split:
        rows = np.flatnonzero(wanted[split.labels])
        return Split(split.images[rows], (np.cumsum(wanted) - 1)[split.labels[rows]].astype(np.int32))

    def chosen(wanted: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, one in zip(dataset.class_names, wanted, strict=True) if one)

    return dataclasses.replace(
        dataset,
        train=part(dataset.train, ~held),
        test=part(dataset.test, ~held),
        class_names=chosen(~held),
        unseen=part(dataset.test, held),
        unseen_names=chosen(held),
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and standard deviation over all images and pixels, from exact integer sums.

    Args:
      images: uint8 [N, H, W, C]; it is read in pieces, never copied whole.

    Returns:
      Two float64 [C], in grey levels from 0 to 255: mean = S1 / n and std = sqrt(S2 / n - mean**2), with 1 where that
      is 0 (`docs/recipe.md`, section Data).

    Raises:
      ValueError: images of another type or number of axes, or none at all.

    >>> images = np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1)
    >>> channel_statistics(images)
    (array([127.5]), array([127.5]))
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(f"images must be uint8 [N, H, W, C] and not empty, not {images.dtype} {list(images.shape)}")
    channels = images.shape[-1]
    values = images[0].size
    # at most 2**16 rows: 2**16 * 255**2 is still below 2**32
    rows = min(max(2**22 // values, 1), 2**16)
    sums, squares = np.zeros(values, np.uint64), np.zeros(values, np.uint64)
    for start in range(0, len(images), rows):
        piece = images[start : start + rows].reshape(-1, values)
        sums += piece.sum(axis=0, dtype=np.uint32)
        squares += np.square(piece, dtype=np.uint16).sum(axis=0, dtype=np.uint32)

    n = images.size // channels
    mean, std = np.empty(channels), np.empty(channels)
    for channel in range(channels):
        mean[channel] = int(sums[channel::channels].sum()) / n
        variance = int(squares[channel::channels].sum()) / n - mean[channel] ** 2
        std[channel] = np.sqrt(variance) if variance > 0 else 1.0
    return mean, std


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which examples of an unsplit data set are its test split: bool [N], a fifth of each class, drawn with seed 0."""
    draw = generator(0, "split", 0)
    mask = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")
    for examples in np.split(by_class, np.cumsum(np.bincount(labels))[:-1]):
        n = len(examples)
        smallest = np.argsort(draw.random(n), kind="stable")
        mask[examples[smallest[: min(max(round(n / 5), 1), n - 1)]]] = True
    return mask
