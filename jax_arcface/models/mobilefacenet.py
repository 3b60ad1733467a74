"""MobileFaceNets: small networks for faces."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.models.images import ImageShape, check_size
from jax_arcface.models.layers import BatchNorm, Conv, Dropout, PReLU, flattened, scaled


class _Separable(nnx.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int, **kwargs: Any):
        self.depthwise = Conv(channels, channels, 3, groups=channels, **kwargs)
        self.bn1 = BatchNorm(channels)
        self.pointwise = Conv(channels, channels, 1, **kwargs)
        self.bn2 = BatchNorm(channels)

    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(self.bn1(self.depthwise(x)))
        return jax.nn.relu(self.bn2(self.pointwise(x)))


class _Inverted(nnx.Module):
    """MobileNetV2's block: 1x1 to more channels, depthwise 3x3, 1x1 back, plus the input where the shapes agree."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, **kwargs: Any):
        self.adds = stride == 1 and inputs == outputs
        self.conv = nnx.List(
            [
                nnx.List([Conv(inputs, inner, 1, **kwargs), BatchNorm(inner)]),
                nnx.List([Conv(inner, inner, 3, stride=stride, groups=inner, **kwargs), BatchNorm(inner)]),
                Conv(inner, outputs, 1, **kwargs),
                BatchNorm(outputs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        layers: Any = self.conv
        (expand, norm1), (depthwise, norm2), project, norm3 = layers
        y = jax.nn.relu6(norm1(expand(x)))
        y = norm3(project(jax.nn.relu6(norm2(depthwise(y)))))
        return x + y if self.adds else y


class _GlobalDepthwise(nnx.Module):
    def __init__(self, channels: int, size: tuple[int, int], **kwargs: Any):
        self.depthwise = Conv(channels, channels, size, padding=0, groups=channels, **kwargs)
        self.bn = BatchNorm(channels)

    def __call__(self, x: Array) -> Array:
        return self.bn(self.depthwise(x))


class MobileFaceNetReLU6(nnx.Module):
    """MobileFaceNet (Chen et al. 2018, table 1) with ReLU6, as `mobilefacenet.pt` has it (`docs/recipe.md`).

    Its parameters' names are those of that file. Images of at least 16x16; at 112x112 the last feature map is 7x7.
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
        check_size("mobilefacenet_relu6", image_shape, 16)
        height, breadth, colours = image_shape
        first, last = scaled(64, width), scaled(512, width)
        kwargs: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.conv1 = nnx.List([Conv(colours, first, 3, stride=2, **kwargs), BatchNorm(first)])
        self.dw_conv = _Separable(first, **kwargs)
        self.features: nnx.List = nnx.List()
        inputs = first
        for factor, channels, blocks, stride in _STAGES:
            outputs = scaled(channels, width)
            for block in range(blocks):
                self.features.append(_Inverted(inputs, factor * inputs, outputs, stride if block == 0 else 1, **kwargs))
                inputs = outputs
        self.conv2 = nnx.List([Conv(inputs, last, 1, **kwargs), BatchNorm(last)])
        self.gdconv = _GlobalDepthwise(last, (-(-height // 16), -(-breadth // 16)), **kwargs)
        self.dropout = Dropout(dropout, last, rngs=rngs)
        self.conv3 = Conv(last, embedding_dim, 1, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(embedding_dim)

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]; `dropout_mask`, bool [B, 512], as in `Dropout`."""
        conv, norm = self.conv1
        x = self.dw_conv(jax.nn.relu6(norm(conv(images))))
        for block in self.features:
            x = block(x)
        conv, norm = self.conv2
        x = self.gdconv(jax.nn.relu6(norm(conv(x))))
        x = self.dropout(x[:, 0, 0], dropout_mask)
        return self.bn(self.conv3(x[:, None, None]))[:, 0, 0]


# Of each run of blocks: the factor on the channels inside, the channels, how many, the first one's stride.
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class _ConvBlock(nnx.Module):
    """A convolution, batch norm, and PReLU where it is not linear."""

    def __init__(self, inputs: int, outputs: int, size: Any, *, linear: bool = False, **kwargs: Any):
        parts = [Conv(inputs, outputs, size, **kwargs), BatchNorm(outputs), *([] if linear else [PReLU(outputs)])]
        self.layers: nnx.List = nnx.List(parts)

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class _Bottleneck(nnx.Module):
    """1x1 to `inner` channels, depthwise 3x3, and 1x1 to `outputs`, plus the input where the stride is 1."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, **kwargs: Any):
        self.adds = stride == 1
        self.layers = nnx.List(
            [
                _ConvBlock(inputs, inner, 1, **kwargs),
                _ConvBlock(inner, inner, 3, stride=stride, groups=inner, **kwargs),
                _ConvBlock(inner, outputs, 1, linear=True, **kwargs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y if self.adds else y


class _Bottlenecks(nnx.Module):
    def __init__(self, channels: int, inner: int, count: int, **kwargs: Any):
        self.layers: nnx.List = nnx.List([_Bottleneck(channels, inner, channels, 1, **kwargs) for _ in range(count)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x


class _Flatten(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return flattened(x)


class _GlobalEmbedding(nnx.Module):
    """A depthwise convolution over the whole feature map, a linear layer and a batch norm."""

    def __init__(self, channels: int, size: tuple[int, int], dim: int, dropout: float, dtype: Any, rngs: nnx.Rngs):
        kwargs = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.dropout = Dropout(dropout, channels, rngs=rngs)
        self.layers = nnx.List(
            [
                _ConvBlock(channels, channels, size, linear=True, padding=0, groups=channels, **kwargs),
                _Flatten(),
                nnx.Linear(channels, dim, **kwargs),
                BatchNorm(dim),
            ]
        )

    def __call__(self, x: Array, dropout_mask: Array | None) -> Array:
        layers: Any = self.layers
        convolve, flatten, linear, norm = layers
        return norm(linear(self.dropout(flatten(convolve(x)), dropout_mask)))


class MobileFaceNet(nnx.Module):
    """MobileFaceNet (Chen et al. 2018) with twice its channels, as arcface_torch has it under the name `mbf`.

    Its parameters' names are those of weights published for it. Images of at least 16x16.
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
        check_size("mobilefacenet", image_shape, 16)
        height, breadth, colours = image_shape
        kwargs: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        small, large, last = (scaled(n, width) for n in (128, 256, 512))
        groups = small // 2 if small % 2 == 0 else small
        self.layers = nnx.List(
            [
                _ConvBlock(colours, small, 3, stride=2, **kwargs),
                _ConvBlock(small, small, 3, groups=groups, **kwargs),
                _Bottleneck(small, small, small, 2, **kwargs),
                _Bottlenecks(small, small, 4, **kwargs),
                _Bottleneck(small, large, large, 2, **kwargs),
                _Bottlenecks(large, large, 6, **kwargs),
                _Bottleneck(large, last, large, 2, **kwargs),
                _Bottlenecks(large, large, 2, **kwargs),
            ]
        )
        self.conv_sep = _ConvBlock(large, last, 1, **kwargs)
        size = (-(-height // 16), -(-breadth // 16))
        self.features = _GlobalEmbedding(last, size, embedding_dim, dropout, dtype, rngs)

    def __call__(self, images: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D]; `dropout_mask`, bool [B, 512], as in `Dropout`."""
        x = images
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x), dropout_mask)
