"""IResNet: ArcFace's residual networks for faces."""

from __future__ import annotations

import math

from torch import Tensor, nn

from torch_reference.models.layers import Backbone, Dropout, check_size, scaled

# How many blocks the four layers have.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


class _IBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(Backbone):
    """The residual network of ArcFace (Deng et al., CVPR 2019, section 3.1), with arcface_torch's parameter names.

    Args:
      image_shape: (H, W, C), at least 16x16.
      embedding_dim: D. width: factor on the channels 64, 128, 256 and 512. dropout: before the linear layer.
      depth: one of `DEPTHS`.

    >>> import torch
    >>> IResNet((32, 32, 3), 8, 0.1, depth=18).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        width: float = 1.0,
        dropout: float = 0.0,
        *,
        depth: int,
    ):
        super().__init__()
        check_size(f"iresnet{depth}", image_shape, 16)
        height, columns, colours = image_shape
        channels = [scaled(n, width) for n in (64, 64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(colours, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.prelu = nn.PReLU(channels[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(_IBlock(inputs, outputs, 2), *(_IBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
            for inputs, outputs, blocks in zip(channels, channels[1:], DEPTHS[depth], strict=False)
        )
        self.bn2 = nn.BatchNorm2d(channels[-1])
        features = channels[-1] * math.ceil(height / 16) * math.ceil(columns / 16)
        self.dropout = Dropout(dropout, features)
        self.fc = nn.Linear(features, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)  # it stays 1

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of normalised images [B, C, H, W]; `keep`, bool [B, F], as in `Dropout`."""
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1), keep)))
