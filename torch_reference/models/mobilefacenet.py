"""MobileFaceNets: small networks for faces."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.models.layers import Backbone, Dropout, check_size, scaled


class _Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 one."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


def _with_relu6(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


class _InvertedBlock(nn.Module):
    """The block of MobileNetV2 (Sandler et al., CVPR 2018): wide inside, narrow outside."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Sequential(
            _with_relu6(nn.Conv2d(inputs, inner, 1, bias=False)),
            _with_relu6(nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class _GlobalDepthwise(nn.Module):
    """One weight for each channel and place, in place of a mean over the places."""

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class MobileFaceNetReLU6(Backbone):
    """MobileFaceNet (Chen et al., "MobileFaceNets", 2018, table 1) with ReLU6 for PReLU, under published names.

    Args:
      image_shape: (H, W, C), at least 16x16.
      embedding_dim: D. width: factor on the channels. dropout: before the last convolution.

    >>> import torch
    >>> MobileFaceNetReLU6((112, 112, 3), 128).eval()(torch.zeros(1, 3, 112, 112)).shape
    torch.Size([1, 128])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check_size("mobilefacenet_relu6", image_shape, 16)
        height, columns, colours = image_shape
        inputs, last = scaled(64, width), scaled(512, width)
        self.conv1 = _with_relu6(nn.Conv2d(colours, inputs, 3, stride=2, padding=1, bias=False))
        self.dw_conv = _Separable(inputs)
        blocks: list[nn.Module] = []
        # inner channels for each input, outputs, how many blocks, the stride of the first
        for factor, channels, count, stride in (
            (2, 64, 5, 2),
            (4, 128, 1, 2),
            (2, 128, 6, 1),
            (4, 128, 1, 2),
            (2, 128, 2, 1),
        ):
            for number in range(count):
                outputs = scaled(channels, width)
                blocks.append(_InvertedBlock(inputs, factor * inputs, outputs, stride if number == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _with_relu6(nn.Conv2d(inputs, last, 1, bias=False))
        self.gdconv = _GlobalDepthwise(last, (math.ceil(height / 16), math.ceil(columns / 16)))
        self.dropout = Dropout(dropout, last)
        self.conv3 = nn.Conv2d(last, embedding_dim, 1)
        self.bn = nn.BatchNorm2d(embedding_dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of normalised images [B, C, H, W]; `keep`, bool [B, 512], as in `Dropout`."""
        x = self.features(self.dw_conv(self.conv1(images)))
        x = self.dropout(self.gdconv(self.conv2(x)).flatten(1), keep)
        return self.bn(self.conv3(x[:, :, None, None])).flatten(1)


class _ConvBlock(nn.Module):
    def __init__(self, conv: nn.Conv2d, activation: bool = True):
        super().__init__()
        channels = conv.out_channels
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(channels), *([nn.PReLU(channels)] if activation else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            _ConvBlock(nn.Conv2d(inputs, inner, 1, bias=False)),
            _ConvBlock(nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)),
            _ConvBlock(nn.Conv2d(inner, outputs, 1, bias=False), activation=False),
        )
        self.has_shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


class _Bottlenecks(nn.Module):
    def __init__(self, channels: int, count: int):
        super().__init__()
        self.layers = nn.Sequential(*(_Bottleneck(channels, channels, channels, 1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _GlobalEmbedding(nn.Module):
    def __init__(self, channels: int, size: tuple[int, int], embedding_dim: int, dropout: float):
        super().__init__()
        self.dropout = Dropout(dropout, channels)
        self.layers = nn.Sequential(
            _ConvBlock(nn.Conv2d(channels, channels, size, groups=channels, bias=False), activation=False),
            nn.Flatten(),
            nn.Linear(channels, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        convolve, flatten, linear, norm = self.layers
        return norm(linear(self.dropout(flatten(convolve(x)), keep)))


class MobileFaceNet(Backbone):
    """The MobileFaceNet (Chen et al. 2018) that arcface_torch calls `mbf`, twice as wide as the paper's.

    Args:
      image_shape: (H, W, C), at least 16x16.
      embedding_dim: D. width: factor on the channels. dropout: before the linear layer.

    >>> import torch
    >>> MobileFaceNet((32, 32, 3), 8, 0.1).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check_size("mobilefacenet", image_shape, 16)
        height, columns, colours = image_shape
        c, d, e = (scaled(channels, width) for channels in (128, 256, 512))
        pairs = c if c % 2 else c // 2  # a group has two channels
        self.layers = nn.ModuleList(
            [
                _ConvBlock(nn.Conv2d(colours, c, 3, stride=2, padding=1, bias=False)),
                _ConvBlock(nn.Conv2d(c, c, 3, padding=1, groups=pairs, bias=False)),
                _Bottleneck(c, c, c, 2),
                _Bottlenecks(c, 4),
                _Bottleneck(c, d, d, 2),
                _Bottlenecks(d, 6),
                _Bottleneck(d, e, d, 2),
                _Bottlenecks(d, 2),
            ]
        )
        self.conv_sep = _ConvBlock(nn.Conv2d(d, e, 1, bias=False))
        size = (math.ceil(height / 16), math.ceil(columns / 16))
        self.features = _GlobalEmbedding(e, size, embedding_dim, dropout)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of normalised images [B, C, H, W]; `keep`, bool [B, 512], as in `Dropout`."""
        for layer in self.layers:
            images = layer(images)
        return self.features(self.conv_sep(images), keep)
