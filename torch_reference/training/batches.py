"""What a training sees: batches by the recipe's order and augmentation, and a split in evaluation (docs/recipe.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from torch_reference.data import Dataset, Split, channel_statistics
from torch_reference.data.sampling import Augmentation, augment, class_batches, draw_augmentation, epoch_order
from torch_reference.models.layers import normalise


@dataclasses.dataclass(frozen=True)
class Images:
    """A split where the arithmetic is done.

    Args:
      images: uint8 [N, H, W, C]. labels: int64 [N].
      mean, scale: each channel's mean and 1 / standard deviation, [C]; their dtype is that of a network's input.
      memory_format: of the batches.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor
    memory_format: torch.memory_format = torch.contiguous_format

    @classmethod
    def of(
        cls,
        split: Split,
        mean: np.ndarray,
        std: np.ndarray,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Images:
        """Puts a split on a device; `mean` and `std` [C] are the training images', in grey levels.

        Both constants are rounded to float32, whatever `dtype` is.
        """
        mean32, scale32 = (torch.from_numpy(np.float32(values)).to(device, dtype) for values in (mean, 1 / std))
        images = torch.tensor(split.images, device=device)
        labels = torch.tensor(split.labels, device=device, dtype=torch.int64)
        return cls(images, labels, mean32, scale32, memory_format)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images as they are in evaluation, in blocks: normalised [B, C, H, W], and labels [B]."""
        for images, labels in zip(self.images.split(500), self.labels.split(500), strict=True):
            normalised = normalise(images, self.mean, self.scale)
            yield normalised.contiguous(memory_format=self.memory_format), labels


@dataclasses.dataclass(frozen=True)
class Batches:
    """The recipe's training batches: their order, classes and augmentation follow from the seed and the epoch.

    Args:
      data: the training images.
      batch_size: B. seed: of order and augmentation.
      augmentation: how images are varied.
      classes_per_batch: composes batches of this many classes; 0 takes images in random order.
    """

    data: Images
    batch_size: int
    seed: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    classes_per_batch: int = 0

    def __len__(self) -> int:
        """The steps of an epoch; images that do not fill a batch sit it out."""
        return len(self.data.labels) // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (from 0), from its batch `start` on: images [B, C, H, W] and labels [B]."""
        data = self.data
        examples, height, width, _ = data.images.shape
        device = data.images.device
        if self.classes_per_batch:
            labels = data.labels.cpu().numpy()
            chosen = class_batches(self.seed, number, labels, self.batch_size, self.classes_per_batch)
        else:
            order = epoch_order(self.seed, number, examples)
            chosen = order[: len(self) * self.batch_size].reshape(-1, self.batch_size)
        draws = draw_augmentation(self.augmentation, self.seed, number, examples, height, width, device)
        for batch in torch.from_numpy(chosen[start:]).to(device):
            images = augment(data.images[batch], draws.take(batch), self.augmentation, data.mean, data.scale)
            yield images.contiguous(memory_format=data.memory_format), data.labels[batch]


def first_of_each_class(split: Split, num_classes: int, images: int = 10_000) -> Split:
    """The first ceil(images / C) images of each class, which class means are taken of."""
    order = np.argsort(split.labels, kind="stable")
    sorted_labels = split.labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    chosen = order[rank < math.ceil(images / num_classes)]
    return Split(split.images[chosen], split.labels[chosen])


def first_images(dataset: Dataset, count: int = 5000) -> Tensor:
    """The first normalised training images, [N, C, H, W], which `airnet` is whitened for."""
    first = Split(dataset.train.images[:count], dataset.train.labels[:count])
    data = Images.of(first, *channel_statistics(dataset.train.images))
    return normalise(data.images, data.mean, data.scale)
