"""Which example, in which order, under which augmentation: a function of the seed alone.

The recipe is written down in `docs/recipe.md`; everything random is drawn here, on the host, with numpy's Philox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_arcface.models.images import normalise
from jax_arcface.philox import generator

Draws = dict[str, np.ndarray]


def permutation(seed: int, purpose: str, index: int, n: int) -> np.ndarray:
    """A permutation of 0 ... n - 1 (int64 [n]): the stable argsort of n uniform draws.

    >>> permutation(0, "order", 3, n=4).tolist()
    [3, 0, 1, 2]
    """
    return np.argsort(generator(seed, purpose, index).random(n), kind="stable")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in this order; the defaults do nothing.

    Args:
      rotate: largest rotation to either side, in radians.
      zoom: largest magnification minus one; magnifications lie between 1 / (1 + zoom) and 1 + zoom.
      shift: largest shift along each axis, in pixels.
      flip: left-right flips, by a coin for each example in the first epoch and alternating from then on.
      cutout: side of the square that is set to the mean colour, in pixels.
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: int = 0
    flip: bool = False
    cutout: int = 0


def draw_augmentation(augmentation: Augmentation, seed: int, epoch: int, n: int, height: int, width: int) -> Draws:
    """Draws one epoch's augmentation for n examples of height x width pixels.

    Returns:
      One array for each part of the augmentation that is on, its first axis the example's number in the training split:
      `affine` float32 [n, 2, 2] (from output to input coordinates about the centre), `shift` int32 [n, 2] (first row
      and column of the window in the padded image), `flip` bool [n], `cutout` int32 [n, 2] (first row and column).
    """
    draws: Draws = {}
    if augmentation.rotate > 0 or augmentation.zoom > 0:
        u = generator(seed, "affine", epoch).random((n, 2))
        angle = (2 * u[:, 0] - 1) * augmentation.rotate
        magnification = np.exp((2 * u[:, 1] - 1) * np.log1p(augmentation.zoom))
        cos, sin = np.cos(angle) / magnification, np.sin(angle) / magnification
        draws["affine"] = np.stack([cos, sin, -sin, cos], axis=1).reshape(n, 2, 2).astype(np.float32)
    if augmentation.shift > 0:
        u = generator(seed, "shift", epoch).random((n, 2))
        draws["shift"] = np.floor(u * (2 * augmentation.shift + 1)).astype(np.int32)
    if augmentation.flip:
        coin = generator(seed, "flip").random(n) < 0.5
        draws["flip"] = coin ^ (epoch % 2 == 1)
    if augmentation.cutout > 0:
        centre = np.floor(generator(seed, "cutout", epoch).random((n, 2)) * (height, width)).astype(np.int32)
        draws["cutout"] = centre - augmentation.cutout // 2
    return draws


def balanced_order(
    seed: int, epoch: int, labels: np.ndarray, num_classes: int, batch_size: int, classes_per_batch: int
) -> np.ndarray:
    """An epoch's examples in batches of P classes with K = batch_size / P examples each (P x K sampling).

    Args:
      labels: [N], of the training examples; every class has one.
      classes_per_batch: P, which divides batch_size and is at most num_classes.

    Returns:
      int64 [N // batch_size, batch_size], numbers of examples, class by class.

    Raises:
      ValueError: a class without examples, or a P that does not fit.

    >>> balanced_order(0, 0, np.array([0, 1, 0, 1, 2, 2]), num_classes=3, batch_size=4, classes_per_batch=2).shape
    (1, 4)
    """
    if classes_per_batch > num_classes or batch_size % classes_per_batch:
        raise ValueError(f"{classes_per_batch} of {num_classes} classes cannot make a batch of {batch_size}")
    n, images = len(labels), batch_size // classes_per_batch
    order = permutation(seed, "order", epoch, n)
    by_class = order[np.argsort(labels[order], kind="stable")]  # each class's examples in the epoch's order
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class {counts.argmin()} has no example")
    starts, taken = np.cumsum(counts) - counts, np.zeros(num_classes, np.int64)
    drawn = generator(seed, "classes", epoch)
    batches = np.empty((n // batch_size, classes_per_batch, images), np.int64)
    for batch in batches:
        classes = np.argsort(drawn.random(num_classes), kind="stable")[:classes_per_batch]
        places = (taken[classes, None] + np.arange(images)) % counts[classes, None]
        batch[:] = by_class[starts[classes, None] + places]
        taken[classes] += images
    return batches.reshape(-1, batch_size)


def epoch_batches(
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    n: int,
    batch_size: int,
    height: int,
    width: int,
    order: np.ndarray | None = None,
) -> Draws:
    """One epoch's batches: which examples, and the augmentation of each.

    Args:
      n: the number of training examples.
      order: which examples, [steps, batch_size], such as `balanced_order`; a permutation of all where None.

    Returns:
      Arrays whose first two axes are [n // batch_size, batch_size]: `index` int32, the examples' numbers, and what
      `draw_augmentation` returns, in the batches' order.

    >>> batches = epoch_batches(Augmentation(flip=True), seed=0, epoch=0, n=10, batch_size=4, height=8, width=8)
    >>> {name: array.shape for name, array in batches.items()}
    {'index': (2, 4), 'flip': (2, 4)}
    """
    if order is None:
        steps = n // batch_size
        order = permutation(seed, "order", epoch, n)[: steps * batch_size].reshape(steps, batch_size)
    draws = draw_augmentation(augmentation, seed, epoch, n, height, width)
    return {"index": order.astype(np.int32)} | {name: array[order] for name, array in draws.items()}


def dropout_mask(seed: int, step: int, batch_size: int, features: int, rate: float) -> np.ndarray:
    """A step's dropout mask, bool [batch_size, features], true where a feature is kept."""
    return generator(seed, "dropout", step).random((batch_size, features)) >= rate


def normal_draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """A step's standard normal draws, float32 [batch_size], by the Box-Muller transform.

    >>> print(normal_draws(seed=0, step=0, batch_size=3).round(3))
    [ 0.551  0.482 -0.828]
    """
    u = generator(seed, "elastic", step).random((batch_size, 2))
    return (np.sqrt(-2 * np.log(1 - u[:, 0])) * np.cos(2 * np.pi * u[:, 1])).astype(np.float32)


def augment(images: Array, draws: Mapping[str, Array], mean: Array, scale: Array, augmentation: Augmentation) -> Array:
    """Augments and normalises a batch on the device.

    Args:
      images: uint8 [B, H, W, C].
      draws: the batch's part of `epoch_batches`, each array [B, ...].
      mean: each channel's mean, [C], in grey levels from 0 to 255.
      scale: one over each channel's standard deviation, [C]; its dtype is the result's.
      augmentation: what is on; it must be what `draws` were drawn for.

    Returns:
      [B, H, W, C] in the dtype of `scale`.
    """
    height, width = images.shape[1:3]
    pixels = images.astype(scale.dtype)
    if "affine" in draws:
        pixels = _affine(pixels, draws["affine"])
    if "shift" in draws:
        start = draws["shift"] - augmentation.shift
        rows = _reflected(start[:, :1] + jnp.arange(height), height)
        columns = _reflected(start[:, 1:] + jnp.arange(width), width)
        pixels = jax.vmap(lambda image, row, column: image[row][:, column])(pixels, rows, columns)
    if "flip" in draws:
        pixels = jnp.where(draws["flip"][:, None, None, None], pixels[:, :, ::-1], pixels)
    pixels = normalise(pixels, mean, scale)
    if "cutout" in draws:
        row = jnp.arange(height)[None, :] - draws["cutout"][:, :1]
        column = jnp.arange(width)[None, :] - draws["cutout"][:, 1:]
        inside_rows, inside_columns = (
            (0 <= row) & (row < augmentation.cutout),
            (0 <= column) & (column < augmentation.cutout),
        )
        pixels = jnp.where((inside_rows[:, :, None] & inside_columns[:, None, :])[..., None], 0, pixels)
    return pixels


def _reflected(index: Array, size: int) -> Array:
    """The pixel, in [0, size), at an index that may lie outside, under numpy's padding mode `reflect`."""
    last = size - 1
    return last - jnp.abs(last - index % max(2 * last, 1))


def _affine(images: Array, matrices: Array) -> Array:
    """Reads each image [H, W, C] bilinearly at matrix times the pixel's offset from the centre; 0 outside."""
    height, width, channels = images.shape[1:]
    (a, b), (c, d) = matrices.astype(images.dtype).transpose(1, 2, 0)[..., None, None]
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2], images.dtype)
    below, beside = (jnp.arange(height) - middle[0])[:, None], jnp.arange(width) - middle[1]
    # written out, not as a matrix product: accelerators would round its inputs
    row, column = a * below + b * beside + middle[0], c * below + d * beside + middle[1]
    top, left = jnp.floor(row), jnp.floor(column)
    # one index into all pixels: with an index for each of three axes XLA's CPU backend takes more than twice as long
    pixels, first = images.reshape(-1, channels), height * width * jnp.arange(len(images))[:, None, None]

    def corner(rows: Array, columns: Array) -> Array:
        inside = (0 <= rows) & (rows < height) & (0 <= columns) & (columns < width)
        index = first + width * rows.clip(0, height - 1) + columns.clip(0, width - 1)
        return jnp.where(inside[..., None], pixels[index], 0)

    result = jnp.zeros_like(images)
    for down in (0, 1):
        for right in (0, 1):
            weight = (row - top if down else 1 - (row - top)) * (column - left if right else 1 - (column - left))
            result += weight[..., None] * corner(top.astype(jnp.int32) + down, left.astype(jnp.int32) + right)
    return result
