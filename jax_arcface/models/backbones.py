"""From images to embeddings: `lenet`, `resnet20`, `resnet18` and `airnet`.

Each is an nnx module called as `backbone(images, train=False, dropout_mask=None)`: normalised images [B, H, W, C] to
embeddings [B, D]. Their definitions are written down in `docs/recipe.md`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.cpu import convolve
from jax_arcface.models.layers import BatchNorm, Conv, Embedding, PReLU, global_max_pool, max_pool

ImageShape = tuple[int, int, int]


class WhiteningFilters(nnx.Variable):
    """Weights that are computed from the training images and not trained."""


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class _LeNetStage(nnx.Module):
    def __init__(self, inputs: int, outputs: int, **kwargs):
        self.conv1 = Conv(inputs, outputs, 5, **kwargs)
        self.prelu1 = PReLU(outputs)
        self.conv2 = Conv(outputs, outputs, 5, **kwargs)
        self.prelu2 = PReLU(outputs)

    def __call__(self, x: Array) -> Array:
        return max_pool(self.prelu2(self.conv2(self.prelu1(self.conv1(x)))))


class LeNet(nnx.Module):
    """LeNet++ (Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, table 1).

    Three stages of two 5x5 convolutions with PReLU and a pooling, then the embedding layer. Images of at least 8x8.
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
        height, breadth, inputs = image_shape
        _check_size("lenet", image_shape, 8)
        channels = [_scaled(c, width) for c in (32, 64, 128)]
        stages = zip([inputs, *channels], channels, strict=False)
        self.stages = nnx.List([_LeNetStage(i, o, dtype=dtype, rngs=rngs) for i, o in stages])
        shape = (height // 8, breadth // 8, channels[-1])
        self.embedding = Embedding(shape, embedding_dim, dropout, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, train: bool = False, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = images
        for stage in self.stages:
            x = stage(x)
        return self.embedding(x, train, dropout_mask)


class _Projection(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, **kwargs):
        self.conv = Conv(inputs, outputs, 1, stride=stride, **kwargs)
        self.bn = BatchNorm(outputs)

    def __call__(self, x: Array, train: bool) -> Array:
        return self.bn(self.conv(x), train)


class _ResidualBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, project: bool, **kwargs):
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, **kwargs)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, **kwargs)
        self.bn2 = BatchNorm(outputs)
        self.stride, self.new_channels = stride, outputs - inputs
        changes = stride != 1 or inputs != outputs
        self.shortcut = _Projection(inputs, outputs, stride, **kwargs) if project and changes else None

    def __call__(self, x: Array, train: bool) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        if self.shortcut is not None:
            x = self.shortcut(x, train)
        else:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.new_channels)))
        return jax.nn.relu(y + x)


class ResNet(nnx.Module):
    """Residual network for small images (He et al., "Deep Residual Learning", CVPR 2016, section 4.2).

    A 3x3 convolution, stages of basic blocks, each but the first halving the image, the mean over the pixels, and the
    embedding layer. `project` chooses a 1x1 convolution as shortcut where the shape changes (option B of that paper)
    instead of zero channels (option A).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        stages: tuple[int, ...],
        blocks: int,
        project: bool,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        # a ResNet is called after its layers with weights, and each stage but the first halves the image
        _check_size(f"resnet{2 + 2 * blocks * len(stages)}", image_shape, 2 ** (len(stages) - 1))
        kwargs: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        channels = [_scaled(c, width) for c in stages]
        self.conv = Conv(image_shape[2], channels[0], 3, **kwargs)
        self.bn = BatchNorm(channels[0])
        self.stages: nnx.List = nnx.List()
        inputs = channels[0]
        for number, outputs in enumerate(channels):
            stage: nnx.List = nnx.List()
            for block in range(blocks):
                stride = 2 if number > 0 and block == 0 else 1
                stage.append(_ResidualBlock(inputs, outputs, stride, project, **kwargs))
                inputs = outputs
            self.stages.append(stage)
        self.embedding = Embedding((1, 1, inputs), embedding_dim, dropout, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, train: bool = False, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = jax.nn.relu(self.bn(self.conv(images), train))
        for stage in self.stages:
            for block in stage:
                x = block(x, train)
        return self.embedding(jnp.mean(x, axis=(1, 2), keepdims=True), train, dropout_mask)


class _AirBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, **kwargs):
        self.conv1 = Conv(inputs, outputs, 3, **kwargs)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, **kwargs)
        self.bn2 = BatchNorm(outputs)

    def __call__(self, x: Array, train: bool) -> Array:
        x = _gelu(self.bn1(max_pool(self.conv1(x)), train))
        return _gelu(self.bn2(self.conv2(x), train))


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
        _check_size("airnet", image_shape, 9)
        self.dtype = dtype
        filters = 8 * image_shape[2]
        self.whiten = _Whitening(image_shape[2], filters)
        kwargs = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        channels = [_scaled(c, width) for c in (64, 256, 256)]
        sizes = zip([filters, *channels], channels, strict=False)
        self.blocks = nnx.List([_AirBlock(i, o, **kwargs) for i, o in sizes])
        self.embedding = Embedding((1, 1, channels[-1]), embedding_dim, dropout, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, train: bool = False, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = _gelu(self.whiten(images if self.dtype is None else images.astype(self.dtype)))
        for block in self.blocks:
            x = block(x, train)
        return self.embedding(global_max_pool(x)[:, None, None], train, dropout_mask)


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


def _check_size(name: str, image_shape: ImageShape, smallest: int) -> None:
    if min(image_shape[:2]) < smallest:
        raise ValueError(
            f"{name} needs images of at least {smallest}x{smallest} pixels; "
            f"these have {image_shape[0]}x{image_shape[1]}: give a larger --image-size"
        )


BACKBONES: dict[str, Callable[..., Any]] = {
    "lenet": LeNet,
    "resnet20": functools.partial(ResNet, stages=(16, 32, 64), blocks=3, project=False),
    "resnet18": functools.partial(ResNet, stages=(64, 128, 256, 512), blocks=2, project=True),
    "airnet": AirNet,
}
