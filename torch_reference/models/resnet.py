"""ResNets for small images (He et al., "Deep residual learning for image recognition", CVPR 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.models.layers import EmbeddedFeatures, EmbeddingLayer, check_size, scaled


class _PaddedShortcut(nn.Module):
    """He et al.'s option A: every second pixel, and channels of zeros after those that are there."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.more = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))


class _ProjectedShortcut(nn.Module):
    """He et al.'s option B: a 1x1 convolution and a batch norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(EmbeddedFeatures):
    """A ResNet for small images: a 3x3 convolution, stages of basic blocks, the mean over the pixels.

    Args:
      image_shape: (H, W, C), at least 4x4 for three stages, 8x8 for four.
      embedding_dim: D. width: factor on the channels. dropout: before the embedding's linear layer.
      stages: each stage's number of channels; the first convolution has the first stage's.
      blocks: basic blocks in a stage; the first of each stage but the first has stride 2.
      projection: whether a shortcut that changes the shape is a convolution (option B) or padding (option A).

    >>> import torch
    >>> ResNet.resnet20((32, 32, 3), 64)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        stages: tuple[int, ...],
        blocks: int,
        projection: bool,
    ):
        super().__init__()
        # a ResNet is called after its layers with weights, and each stage but the first halves the image
        check_size(f"resnet{2 + 2 * blocks * len(stages)}", image_shape, 2 ** (len(stages) - 1))
        channels = [scaled(n, width) for n in stages]
        shortcut = _ProjectedShortcut if projection else _PaddedShortcut
        self.conv = nn.Conv2d(image_shape[2], channels[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels[0])
        self.stages = nn.ModuleList()
        for number, (inputs, outputs) in enumerate(zip([channels[0], *channels], channels, strict=False)):
            first = _BasicBlock(inputs, outputs, 1 if number == 0 else 2, shortcut)
            others = [_BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *others))
        self.embedding = EmbeddingLayer(channels[-1], 1, 1, embedding_dim, dropout)

    @classmethod
    def resnet20(
        cls, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0
    ) -> ResNet:
        """Three stages of three blocks with 16, 32 and 64 channels, option A."""
        return cls(image_shape, embedding_dim, width, dropout, stages=(16, 32, 64), blocks=3, projection=False)

    @classmethod
    def resnet18(
        cls, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0
    ) -> ResNet:
        """Four stages of two blocks with 64, 128, 256 and 512 channels, option B."""
        return cls(image_shape, embedding_dim, width, dropout, stages=(64, 128, 256, 512), blocks=2, projection=True)

    def features(self, images: Tensor) -> Tensor:
        """The last stage's features [B, C', 1, 1], their mean over the pixels."""
        x = F.relu(self.bn(self.conv(images)))
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3), keepdim=True)
