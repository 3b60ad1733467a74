"""Which example, in which order, under which augmentation: a function of the seed alone (`docs/recipe.md`)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from torch_reference.models.layers import normalise
from torch_reference.philox import generator


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of the training examples in an epoch (from 0): int64 [N], a permutation."""
    return np.argsort(generator(seed, "order", epoch).random(examples), kind="stable")


def class_batches(seed: int, epoch: int, labels: np.ndarray, batch_size: int, classes_per_batch: int) -> np.ndarray:
    """The batches of an epoch (from 0) that hold P classes with K examples each: int64 [N // B, B], class by class.

    Each step takes the P classes with the smallest draws. A class's examples are taken in the order of `epoch_order`,
    one after the other from step to step, and from the beginning again where they end.

    Args:
      labels: [N], those of the training examples; every class from 0 to the largest has one.
      batch_size: B. classes_per_batch: P, which divides B and is at most the number of classes C; K = B / P.

    Raises:
      ValueError: a class without examples, or a P that does not fit.

    >>> labels = np.array([0, 0, 1, 2, 2, 2])
    >>> labels[class_batches(seed=0, epoch=0, labels=labels, batch_size=4, classes_per_batch=2)].tolist()
    [[1, 1, 0, 0]]
    """
    steps, classes, each = len(labels) // batch_size, labels.max() + 1, batch_size // classes_per_batch
    if classes_per_batch > classes or batch_size % classes_per_batch:
        raise ValueError(f"{classes_per_batch} of {classes} classes cannot make a batch of {batch_size}")
    order = epoch_order(seed, epoch, len(labels))
    members = [order[labels[order] == j] for j in range(classes)]
    if empty := [j for j in range(classes) if len(members[j]) == 0]:
        raise ValueError(f"class {empty[0]} has no example")
    drawn = generator(seed, "classes", epoch).random((steps, classes)).argsort(axis=1, kind="stable")
    taken = np.zeros(classes, np.int64)
    batches = np.empty((steps, classes_per_batch, each), np.int64)
    for step, place in np.ndindex(steps, classes_per_batch):
        j = drawn[step, place]
        batches[step, place] = members[j][(taken[j] + np.arange(each)) % len(members[j])]
        taken[j] += each
    return batches.reshape(steps, batch_size)


def elastic_normal(seed: int, step: int, batch_size: int) -> np.ndarray:
    """A step's standard normal draws (from 0): float32 [B], by Box and Muller.

    >>> elastic_normal(seed=0, step=0, batch_size=3).dtype
    dtype('float32')
    """
    u = generator(seed, "elastic", step).random((batch_size, 2))
    return (np.sqrt(-2 * np.log(1 - u[:, 0])) * np.cos(2 * math.pi * u[:, 1])).astype(np.float32)


def dropout_mask(seed: int, step: int, batch_size: int, features: int, dropout: float) -> np.ndarray:
    """Which features a step (from 0) keeps: bool [B, F], F flattened as channel, row, column."""
    return generator(seed, "dropout", step).random((batch_size, features)) >= dropout


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are varied; what is 0 or False is left out.

    Args:
      rotate: largest rotation to either side, in radians.
      zoom: largest magnification minus 1.
      shift: largest shift along each axis, in pixels.
      flip: left-right flips, alternating from epoch to epoch.
      cutout: side of the square set to the mean colour, in pixels.
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: int = 0
    flip: bool = False
    cutout: int = 0


@dataclasses.dataclass(frozen=True)
class Draws:
    """What was drawn for each of N training examples; None where the augmentation leaves it out.

    Args:
      matrix: float32 [N, 2, 2], from an output pixel's (row, column) to the one it is read at, about the centre.
      window: int64 [N, 2], first row and column of the window in the padded image.
      flipped: bool [N].
      hole: int64 [N, 2], first row and column of the square; they may lie outside the image.
    """

    matrix: Tensor | None = None
    window: Tensor | None = None
    flipped: Tensor | None = None
    hole: Tensor | None = None

    def take(self, examples: Tensor) -> Draws:
        """What was drawn for these examples, int64 [B]."""
        drawn = {name: value for name, value in vars(self).items() if value is not None}
        return Draws(**{name: value[examples] for name, value in drawn.items()})


def draw_augmentation(
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    examples: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Draws:
    """Draws an epoch's augmentation for each of the training examples, by its number in the training split.

    Args:
      epoch: from 0.
      examples: N.
      height, width: of the images, in pixels.
      device: where the draws are put.

    >>> draw_augmentation(Augmentation(shift=2), seed=0, epoch=0, examples=3, height=8, width=8).window.tolist()
    [[0, 2], [4, 2], [0, 1]]
    """
    drawn: dict[str, np.ndarray] = {}
    if augmentation.rotate > 0 or augmentation.zoom > 0:
        u = generator(seed, "affine", epoch).random((examples, 2))
        angle = (2 * u[:, 0] - 1) * augmentation.rotate
        zoom = np.exp((2 * u[:, 1] - 1) * math.log1p(augmentation.zoom))
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        drawn["matrix"] = np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2).astype(np.float32)
    if augmentation.shift > 0:
        u = generator(seed, "shift", epoch).random((examples, 2))
        drawn["window"] = np.floor(u * (2 * augmentation.shift + 1)).astype(np.int64)
    if augmentation.flip:
        coin = generator(seed, "flip").random(examples) < 0.5
        drawn["flipped"] = coin if epoch % 2 == 0 else ~coin
    if augmentation.cutout > 0:
        u = generator(seed, "cutout", epoch).random((examples, 2))
        drawn["hole"] = np.floor(u * (height, width)).astype(np.int64) - augmentation.cutout // 2
    return Draws(**{name: torch.from_numpy(values).to(device) for name, values in drawn.items()})


def augment(images: Tensor, draws: Draws, augmentation: Augmentation, mean: Tensor, scale: Tensor) -> Tensor:
    """Augmented and normalised training images.

    Args:
      images: uint8 [B, H, W, C].
      draws: what was drawn for these B examples.
      augmentation: the sizes that go with the draws.
      mean, scale: as in `normalise`.

    Returns:
      [B, C, H, W] in the dtype of `mean`.
    """
    if draws.matrix is not None:
        images = _affine(images.to(mean.dtype), draws.matrix.to(mean.dtype))
    if draws.window is not None or draws.flipped is not None:
        images = _shift_and_flip(images, draws.window, draws.flipped, augmentation.shift)
    normalised = normalise(images, mean, scale)
    return normalised if draws.hole is None else _cut_out(normalised, draws.hole, augmentation.cutout)


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Reads each output pixel bilinearly at `matrix` (pixel - centre) + centre; outside the image it is 0.

    Written out, because grid_sample wants coordinates from -1 to 1, which round differently.
    """
    batch, height, width, _ = images.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype).view(1, -1, 1) - centre_y
    x = torch.arange(width, device=images.device, dtype=images.dtype).view(1, 1, -1) - centre_x
    (yy, yx), (xy, xx) = matrix.view(batch, 2, 2, 1, 1).permute(1, 2, 0, 3, 4)
    row, column = centre_y + (yy * y + yx * x), centre_x + (xy * y + xx * x)
    top, left = row.floor(), column.floor()
    down, right = (row - top).unsqueeze(-1), (column - left).unsqueeze(-1)
    example = torch.arange(batch, device=images.device).view(-1, 1, 1)

    def pixel(r: Tensor, c: Tensor) -> Tensor:
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        values = images[example, r.clamp(0, height - 1).long(), c.clamp(0, width - 1).long()]
        return torch.where(inside.unsqueeze(-1), values, 0.0)

    upper = (1 - right) * pixel(top, left) + right * pixel(top, left + 1)
    lower = (1 - right) * pixel(top + 1, left) + right * pixel(top + 1, left + 1)
    return (1 - down) * upper + down * lower


def _shift_and_flip(images: Tensor, window: Tensor | None, flipped: Tensor | None, pad: int) -> Tensor:
    """Cuts a window of the image's size out of the image padded by reflection, then flips it left to right."""
    batch, height, width, _ = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, -1)
    columns = torch.arange(width, device=device).expand(batch, -1)
    if flipped is not None:
        columns = torch.where(flipped.unsqueeze(1), width - 1 - columns, columns)
    if window is not None:
        rows = _reflected(rows + window[:, :1] - pad, height)
        columns = _reflected(columns + window[:, 1:] - pad, width)
    example = torch.arange(batch, device=device).view(-1, 1, 1)
    return images[example, rows.unsqueeze(2), columns.unsqueeze(1)]


def _reflected(index: Tensor, size: int) -> Tensor:
    """The pixel that stands at an index outside 0 ... size - 1 under numpy's padding mode `reflect`."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.abs().remainder(2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)


def _cut_out(images: Tensor, hole: Tensor, side: int) -> Tensor:
    """Sets a square of normalised images [B, C, H, W] to 0, the mean colour."""

    def inside(size: int, first: Tensor) -> Tensor:
        place = torch.arange(size, device=images.device) - first.unsqueeze(1)
        return (place >= 0) & (place < side)

    rows, columns = inside(images.shape[2], hole[:, 0]), inside(images.shape[3], hole[:, 1])
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)
