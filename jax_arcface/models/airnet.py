"""AirNet: a small wide network for colour images, with a fixed whitening layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.cpu import convolve
from jax_arcface.models.images import ImageShape, check_size
from jax_arcface.models.layers import BatchNorm, Conv, Embedding, global_max_pool, max_pool, scaled


class WhiteningFilters(nnx.Variable):
    """Weights that are computed from the training images and not trained."""


class _AirBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, **kwargs):
        self.conv1 = Conv(inputs, outputs, 3, **kwargs)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, **kwargs)
        self.bn2 = BatchNorm(outputs)

    def __call__(self, x: Array) -> Array:
        x = _gelu(self.bn1(max_pool(self.conv1(x))))
        return _gelu(self.bn2(self.conv2(x)))


_gelu = functools.partial(jax.nn.gelu, approximate=False)


class AirNet(nnx.Module):
    """A small wide net after Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498).

    A fixed whitening layer (see `whitening_filters`), three blocks of two 3x3 convolutions with a pooling in between,
    the maximum over the pixels, and the embedding layer; 2 M parameters. Images of at least 9x9. `whiten.kernel` is
    zero until it is set.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_size("airnet", image_shape, 9)
        self.dtype = dtype
        filters = 8 * image_shape[2]
        self.whiten = _Whitening(image_shape[2], filters)
        kwargs = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        channels = [scaled(c, width) for c in (64, 256, 256)]
        sizes = zip([filters, *channels], channels, strict=False)
        self.blocks = nnx.List([_AirBlock(i, o, **kwargs) for i, o in sizes])
        self.embedding = Embedding((1, 1, channels[-1]), embedding_dim, dropout, dtype=dtype, rngs=rngs)

    @staticmethod
    def measured(images: np.ndarray) -> dict[str, np.ndarray]:
        """The weights that are measured, not trained, by PyTorch's names, from normalised images [N, H, W, C]."""
        return {"whiten.weight": whitening_filters(images)}

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = _gelu(self.whiten(images if self.dtype is None else images.astype(self.dtype)))
        for block in self.blocks:
            x = block(x)
        return self.embedding(global_max_pool(x)[:, None, None], dropout_mask)


class _Whitening(nnx.Module):
    def __init__(self, inputs: int, filters: int):
        self.kernel = WhiteningFilters(jnp.zeros((2, 2, inputs, filters)))

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        return convolve(x, kernel, (1, 1), ((0, 0), (0, 0)))


def whitening_filters(images: np.ndarray) -> np.ndarray:
    """Filters that whiten 2x2 patches, and their negatives (Page 2018; Jordan 2024, section 3.1).

    Args:
      images: normalised, [N, H, W, C], any float dtype.

    Returns:
      float32 [8 C, C, 2, 2], in PyTorch's layout: eigenvectors of the patches' second moment, in descending order of
      eigenvalue, each divided by the root of its eigenvalue plus 5e-4, its largest entry positive; then their
      negatives.

    >>> whitening_filters(np.random.default_rng(0).normal(size=(4, 8, 8, 3))).shape
    (24, 3, 2, 2)
    """
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), axis=(1, 2))
    patches = windows.reshape(-1, 4 * images.shape[-1])  # channel, row, column
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    values, rows = values[::-1], vectors.T[::-1]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    filters = rows * np.sign(largest) / np.sqrt(values + 5e-4)[:, None]
    return np.concatenate([filters, -filters]).reshape(-1, images.shape[-1], 2, 2).astype(np.float32)
