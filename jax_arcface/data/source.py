"""Batch sources: what a training takes its batches from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.data.dataset import Dataset, channel_statistics
from jax_arcface.data.sampling import Augmentation, augment, balanced_order, epoch_batches
from jax_arcface.errors import UserError

Batch = Mapping[str, Any]


class Source(Protocol):
    """What a training takes its batches from, on the host; `take` is traced inside the training step.

    Args:
      image_shape: (H, W, C) of the images that `take` gives.
      class_names: [C].
      batch_size: B.
      steps_per_epoch: batches in an epoch.
      resident: arrays that stay on the device, handed to every step; None where there are none.

    Two methods are optional: `sample()`, training images without augmentation, of which `fit` takes the class means
    where there are pair losses alone; and `split(images, labels)`, other images as `take` gives them. Both return a
    `Resident`.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def class_names(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def steps_per_epoch(self) -> int: ...  # noqa: D102

    @property
    def resident(self) -> Any: ...  # noqa: D102

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from batch `start` on: host arrays by name, always of the same shapes.

        There are `steps_per_epoch - start` of them.
        """
        ...

    def take(self, resident: Any, batch: Batch) -> tuple[Array, Array]:
        """Images [B, H, W, C], as the network takes them, and labels [B]; pure, under jit and vmap."""
        ...


class Resident(NamedTuple):
    """A split on the device, and how its pixels are normalised: (pixel - mean) * scale."""

    images: Array  # [N, H, W, C], uint8 or float
    labels: Array  # int32 [N]
    mean: Array  # [C]
    scale: Array  # [C]


def resident(images: ArrayLike, labels: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Resident:
    """Puts a split on the device, with each channel's mean and standard deviation, [C], in the images' units.

    Raises:
      ValueError: no images, or images and labels that are not [N, H, W, C] and integers [N].
    """
    _check_split(images, labels)
    constants = (jnp.asarray(np.asarray(c, np.float32)) for c in (mean, 1 / np.asarray(std)))
    return Resident(jnp.asarray(images), jnp.asarray(np.asarray(labels, np.int32)), *constants)


def _check_split(images: ArrayLike, labels: ArrayLike) -> None:
    shape, labels = np.shape(images), np.asarray(labels)
    if len(shape) != 4 or labels.shape != shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"images {shape} and labels {labels.shape} must be [N, H, W, C] and integers [N]")
    if not shape[0]:
        raise ValueError("there are no images")


class ArraySource:
    """Images and labels in memory, which lie on the device as a whole.

    Order and augmentation are a function of the seed alone (`docs/recipe.md`).

    Args:
      images: [N, H, W, C], uint8 (normalised by `mean` and `std`) or float (taken as they are).
      labels: [N], integers in [0, C).
      batch_size: B; what is left over of an epoch's order is not trained on in that epoch.
      class_names: [C]; the numbers of the classes where None.
      augmentation: what is done to each image.
      classes_per_batch: composes batches of so many classes with equally many images of each; 0 takes a random order.
      mean, std: of each channel, [C], in grey levels, both or neither; those of uint8 `images` where None.
      seed: of order and augmentation.

    Raises:
      UserError: too few images or classes, or a batch size below 1.
      ValueError: arrays that do not fit each other, or a label outside [0, C).

    >>> source = ArraySource(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10) % 2, batch_size=4)
    >>> source.image_shape, source.steps_per_epoch, [batch["index"].shape for batch in source.batches(epoch=0)]
    ((8, 8, 1), 2, [(4,), (4,)])
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        class_names: Sequence[str] | None = None,
        augmentation: Augmentation | None = None,
        classes_per_batch: int = 0,
        mean: np.ndarray | None = None,
        std: np.ndarray | None = None,
        seed: int = 0,
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        _check_split(images, labels)
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        if batch_size > len(labels):
            raise UserError(f"the batch size is {batch_size}, but there are only {len(labels)} training images")
        if class_names is None:
            class_names = tuple(map(str, range(int(labels.max()) + 1)))
        if labels.min() < 0 or labels.max() >= len(class_names):
            found = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(f"labels must lie in [0, {len(class_names)}), one for each class; found {found}")
        if (mean is None) != (std is None):
            raise ValueError("mean and std must be given together")
        if classes_per_batch > len(class_names):
            raise UserError(f"there are {classes_per_batch} classes per batch, but only {len(class_names)} classes")
        if mean is None or std is None:
            is_uint8 = images.dtype == np.uint8
            mean, std = channel_statistics(images) if is_uint8 else (np.zeros(1), np.ones(1))
        height, width, channels = images.shape[1:]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.class_names = tuple(class_names)
        self.batch_size = batch_size
        self.steps_per_epoch = len(labels) // batch_size
        self.augmentation = augmentation or Augmentation()
        self.classes_per_batch, self.seed = classes_per_batch, seed
        self._labels = labels
        self._split = images, labels, mean, std

    @classmethod
    def of_dataset(
        cls,
        dataset: Dataset,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        classes_per_batch: int = 0,
        seed: int = 0,
    ) -> ArraySource:
        """The training split of a data set."""
        return cls(
            dataset.train.images,
            dataset.train.labels,
            batch_size,
            class_names=dataset.class_names,
            augmentation=augmentation,
            classes_per_batch=classes_per_batch,
            seed=seed,
        )

    @functools.cached_property
    def resident(self) -> Resident:
        """The split on the device, put there when it is first asked for."""
        return resident(*self._split)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 0), from batch `start` on: numbers of examples, and their augmentation."""
        order = None
        if self.classes_per_batch:
            order = balanced_order(
                self.seed, epoch, self._labels, len(self.class_names), self.batch_size, self.classes_per_batch
            )
        height, width, _ = self.image_shape
        drawn = epoch_batches(
            self.augmentation, self.seed, epoch, len(self._labels), self.batch_size, height, width, order
        )
        for number in range(start, self.steps_per_epoch):
            yield {name: array[number] for name, array in drawn.items()}

    def take(self, resident: Resident, batch: Batch) -> tuple[Array, Array]:
        """Images [B, H, W, C], augmented and normalised, and labels [B]."""
        index = batch["index"]
        images = augment(resident.images[index], batch, resident.mean, resident.scale, self.augmentation)
        return images, resident.labels[index]

    def split(self, images: ArrayLike, labels: ArrayLike) -> Resident:
        """Other images, such as a test split, normalised as these are.

        Raises:
          ValueError: images of another kind (uint8 or float), or arrays that do not fit each other.
        """
        pixels, _, mean, std = self._split
        if (np.asarray(images).dtype == np.uint8) != (pixels.dtype == np.uint8):
            raise ValueError(f"the images have dtype {np.asarray(images).dtype}, the training images {pixels.dtype}")
        return resident(images, labels, mean, std)

    def sample(self, images: int = 10_000) -> Resident:
        """The first images of each class, about so many together, without augmentation."""
        labels, classes = self._labels, len(self.class_names)
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=classes)
        place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
        chosen = np.sort(order[place < -(-images // classes)])
        pixels, _, mean, std = self._split
        return resident(pixels[chosen], labels[chosen], mean, std)
