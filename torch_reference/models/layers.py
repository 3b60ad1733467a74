"""What all backbones share: normalised images, ArcFace's embedding layer, and the class that they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_reference.errors import UserError


class Dropout(nn.Module):
    """Dropout whose mask may be given.

    Args:
      rate: the share of features that is dropped in training, 0 <= p < 1.
      features: how many there are.
    """

    def __init__(self, rate: float, features: int):
        super().__init__()
        self.rate, self.features = rate, features

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features [B, F]: in training those that `keep`, bool [B, F], marks, or that are drawn where it is None."""
        if not self.training or self.rate == 0:
            return x
        if keep is None:
            keep = torch.rand_like(x, dtype=torch.float32) >= self.rate
        return torch.where(keep, x / (1 - self.rate), 0.0)


class EmbeddingLayer(nn.Module):
    """From feature maps to embeddings: batch norm - dropout - flatten - linear - batch norm (ArcFace, section 3.1).

    Args:
      channels, height, width: of the feature maps.
      embedding_dim: D.
      dropout: the share of features that is dropped in training, 0 <= p < 1.
    """

    def __init__(self, channels: int, height: int, width: int, embedding_dim: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = Dropout(dropout, channels * height * width)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * height * width, embedding_dim, bias=False)
        self.bn2 = nn.BatchNorm1d(embedding_dim)

    def forward(self, features: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of feature maps [B, C, H, W].

        Args:
          keep: bool [B, C H W], the features that are not dropped; in training it is drawn where None, and in
            evaluation nothing is dropped.
        """
        return self.bn2(self.fc(self.dropout(self.bn1(features).flatten(1), keep)))


class Backbone(nn.Module):
    """A network from normalised images [B, C, H, W] to embeddings [B, D]."""

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings; `keep` as in `Dropout.forward`."""
        raise NotImplementedError


def dropout_of(backbone: Backbone) -> Dropout:
    """The dropout layer that each of `BACKBONES` has."""
    return next(module for module in backbone.modules() if isinstance(module, Dropout))


class EmbeddedFeatures(Backbone):
    """A backbone that ends in the embedding layer; a subclass gives the layers below its `embedding`."""

    embedding: EmbeddingLayer

    def features(self, images: Tensor) -> Tensor:
        """Feature maps [B, C', H', W'] of images [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings [B, D] of normalised images [B, C, H, W]; `keep` as in `EmbeddingLayer.forward`."""
        return self.embedding(self.features(images), keep)


def scaled(channels: int, width: float) -> int:
    """The number of channels at a width, at least 1 (ties round to even).

    >>> scaled(16, 5 / 32)
    2
    """
    return max(round(channels * width), 1)


def check_size(name: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    """Raises UserError where images (H, W, C) are smaller than `smallest`."""
    height, width, _ = image_shape
    if min(height, width) < smallest:
        raise UserError(
            f"{name} needs images of at least {smallest}x{smallest} pixels; these have {height}x{width}: "
            "give a larger image size"
        )


def normalise(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """What a network sees: (pixel - mean) * scale, as [B, C, H, W].

    Args:
      images: [B, H, W, C], grey levels from 0 to 255, uint8 or the dtype of `mean`.
      mean, scale: [C], each channel's mean and 1 / standard deviation; their dtype is the result's.
    """
    return ((images.to(mean.dtype) - mean) * scale).permute(0, 3, 1, 2).contiguous()
