"""LeNet++."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.models.layers import EmbeddedFeatures, EmbeddingLayer, check_size, scaled


class _LeNetStage(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 5, padding=2)
        self.prelu1 = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 5, padding=2)
        self.prelu2 = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu1(self.conv1(x))
        x = self.prelu2(self.conv2(x))
        return F.max_pool2d(x, 2)


class LeNet(EmbeddedFeatures):
    """LeNet++ of Wen et al. ("A discriminative feature learning approach", ECCV 2016).

    Args:
      image_shape: (H, W, C), at least 8x8.
      embedding_dim: D. width: factor on the channels 32, 64 and 128. dropout: before the embedding's linear layer.

    >>> import torch
    >>> LeNet((28, 28, 1), 2)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 2])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check_size("lenet", image_shape, 8)
        height, columns, inputs = image_shape
        channels = [scaled(n, width) for n in (32, 64, 128)]
        self.stages = nn.ModuleList(map(_LeNetStage, [inputs, *channels], channels))
        self.embedding = EmbeddingLayer(channels[-1], height // 8, columns // 8, embedding_dim, dropout)

    def features(self, images: Tensor) -> Tensor:
        """The last stage's feature maps [B, 128 width, H // 8, W // 8]."""
        for stage in self.stages:
            images = stage(images)
        return images
