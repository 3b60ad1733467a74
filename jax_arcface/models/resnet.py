"""Residual networks for small images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.models.images import ImageShape, check_size
from jax_arcface.models.layers import BatchNorm, Conv, Embedding, scaled


class _Projection(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, **kwargs):
        self.conv = Conv(inputs, outputs, 1, stride=stride, **kwargs)
        self.bn = BatchNorm(outputs)

    def __call__(self, x: Array) -> Array:
        return self.bn(self.conv(x))


class _ResidualBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, project: bool, **kwargs):
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, **kwargs)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, **kwargs)
        self.bn2 = BatchNorm(outputs)
        self.stride, self.new_channels = stride, outputs - inputs
        changes = stride != 1 or inputs != outputs
        self.shortcut = _Projection(inputs, outputs, stride, **kwargs) if project and changes else None

    def __call__(self, x: Array) -> Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
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
        check_size(f"resnet{2 + 2 * blocks * len(stages)}", image_shape, 2 ** (len(stages) - 1))
        kwargs: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        channels = [scaled(c, width) for c in stages]
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

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]."""
        x = jax.nn.relu(self.bn(self.conv(images)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.embedding(jnp.mean(x, axis=(1, 2), keepdims=True), dropout_mask)
