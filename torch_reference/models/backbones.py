"""From images to embeddings: LeNet++, ResNets and AirNet, each ended by ArcFace's embedding layer."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.errors import UserError, nearest

NAMES = ("lenet", "resnet20", "resnet18", "airnet")


class EmbeddingLayer(nn.Module):
    """From feature maps to embeddings: batch norm - dropout - flatten - linear - batch norm (ArcFace, section 3.1).

    Args:
      channels, height, width: of the feature maps.
      embedding_dim: D.
      dropout: the share of features that is dropped in training, 0 <= p < 1.
    """

    def __init__(self, channels: int, height: int, width: int, embedding_dim: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * height * width, embedding_dim, bias=False)
        self.bn2 = nn.BatchNorm1d(embedding_dim)

    def forward(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of feature maps [B, C, H, W].

        Args:
          keep: bool [B, C H W], the features that are not dropped; in training it is drawn where None, and in
            evaluation nothing is dropped.
        """
        x = self.bn1(features).flatten(1)
        if self.training and self.dropout > 0:
            if keep is None:
                keep = torch.rand_like(x, dtype=torch.float32) >= self.dropout
            x = torch.where(keep, x / (1 - self.dropout), 0.0)
        return self.bn2(self.fc(x))


class Backbone(nn.Module):
    """A network from images to embeddings; a subclass gives the layers below its `embedding`."""

    embedding: EmbeddingLayer

    def features(self, images: Tensor) -> Tensor:
        """Feature maps [B, C', H', W'] of images [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of normalised images [B, C, H, W]; `keep` as in `EmbeddingLayer.forward`."""
        return self.embedding(self.features(images), keep)


# ---- LeNet++


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


class LeNet(Backbone):
    """LeNet++ of Wen et al. ("A discriminative feature learning approach", ECCV 2016).

    Args:
      image_shape: (H, W, C), at least 8x8.
      embedding_dim: D. width: factor on the channels 32, 64 and 128. dropout: before the embedding's linear layer.

    >>> LeNet((28, 28, 1), 2)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 2])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        _check_size("lenet", image_shape, 8)
        height, columns, inputs = image_shape
        channels = [_scaled(n, width) for n in (32, 64, 128)]
        self.stages = nn.ModuleList(map(_LeNetStage, [inputs, *channels], channels))
        self.embedding = EmbeddingLayer(channels[-1], height // 8, columns // 8, embedding_dim, dropout)

    def features(self, images: Tensor) -> Tensor:
        """The last stage's feature maps [B, 128 width, H // 8, W // 8]."""
        for stage in self.stages:
            images = stage(images)
        return images


# ---- ResNets (He et al., "Deep residual learning for image recognition", CVPR 2016)


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


class ResNet(Backbone):
    """A ResNet for small images: a 3x3 convolution, stages of basic blocks, the mean over the pixels.

    Args:
      image_shape: (H, W, C), at least 4x4 for three stages, 8x8 for four.
      embedding_dim: D. width: factor on the channels. dropout: before the embedding's linear layer.
      stages: each stage's number of channels; the first convolution has the first stage's.
      blocks: basic blocks in a stage; the first of each stage but the first has stride 2.
      projection: whether a shortcut that changes the shape is a convolution (option B) or padding (option A).

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
        _check_size(f"resnet{2 + 2 * blocks * len(stages)}", image_shape, 2 ** (len(stages) - 1))
        channels = [_scaled(n, width) for n in stages]
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


# ---- AirNet (after Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024)


class _AirBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.bn2(self.conv2(x)))


class AirNet(Backbone):
    """A fixed whitening convolution, three blocks, and the maximum over the pixels.

    Args:
      image_shape: (H, W, C), at least 9x9.
      embedding_dim: D. width: factor on the channels 64, 256 and 256. dropout: before the embedding's linear layer.

    `whiten.weight` is not trained; `whitening_filters` gives it.

    >>> AirNet((32, 32, 3), 64)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        _check_size("airnet", image_shape, 9)
        inputs = image_shape[2]
        channels = [_scaled(n, width) for n in (64, 256, 256)]
        self.whiten = nn.Conv2d(inputs, 8 * inputs, 2, bias=False).requires_grad_(False)
        self.blocks = nn.ModuleList(map(_AirBlock, [8 * inputs, *channels], channels))
        self.embedding = EmbeddingLayer(channels[-1], 1, 1, embedding_dim, dropout)

    def features(self, images: Tensor) -> Tensor:
        """The last block's features [B, C', 1, 1], their maximum over the pixels."""
        x = F.gelu(self.whiten(images))
        for block in self.blocks:
            x = block(x)
        # as in `cosines`: a tie's gradient goes to the first
        return x.flatten(2).max(dim=2).values[:, :, None, None]


def whitening_filters(images: np.ndarray) -> np.ndarray:
    """AirNet's fixed filters: they give the 2x2 patches of these images uncorrelated channels of equal variance.

    Args:
      images: normalised, [N, C, H, W].

    Returns:
      float32 [8 C, C, 2, 2]: v / sqrt(l + 5e-4) for the eigenvectors v of the patches' second moments, by descending
      eigenvalue l, each with its entry of largest magnitude positive; and then their negatives.
    """
    channels, height, width = images.shape[1:]
    moment, patches = np.zeros((4 * channels, 4 * channels)), len(images) * (height - 1) * (width - 1)
    for start in range(0, len(images), 500):
        x = images[start : start + 500].astype(np.float64)
        corners = [x[:, :, r : r + height - 1, c : c + width - 1] for r in (0, 1) for c in (0, 1)]
        rows = np.stack(corners, axis=2).reshape(len(x), 4 * channels, -1)
        moment += np.einsum("nip,njp->ij", rows, rows, optimize=True)
    values, vectors = np.linalg.eigh(moment / patches)
    values, vectors = values[::-1], vectors.T[::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1, keepdims=True), axis=1)
    filters = np.sign(largest) * vectors / np.sqrt(values + 5e-4)[:, None]
    return np.concatenate([filters, -filters]).reshape(-1, channels, 2, 2).astype(np.float32)


# ----


def make_backbone(
    name: str, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0
) -> Backbone:
    """The backbone of that name, one of `NAMES`.

    Args:
      image_shape: (H, W, C).
      embedding_dim: D.
      width: factor on the numbers of channels.
      dropout: the share of features dropped before the embedding's linear layer.

    Raises:
      UserError: an unknown name, or images that are too small.

    >>> make_backbone("lenet", (4, 4, 1), 2)
    Traceback (most recent call last):
    ...
    torch_reference.errors.UserError: lenet needs images of at least 8x8 pixels; these have 4x4: give a larger
    --image-size
    """
    makers = {"lenet": LeNet, "resnet20": ResNet.resnet20, "resnet18": ResNet.resnet18, "airnet": AirNet}
    if name not in makers:
        raise UserError(f"no backbone is called {name!r}: {nearest(name, NAMES)}")
    return makers[name](image_shape, embedding_dim, width, dropout)


def _scaled(channels: int, width: float) -> int:
    return max(round(channels * width), 1)


def _check_size(name: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    height, width, _ = image_shape
    if min(height, width) < smallest:
        raise UserError(
            f"{name} needs images of at least {smallest}x{smallest} pixels; these have {height}x{width}: "
            "give a larger --image-size"
        )
