"""AirNet (after Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.models.layers import EmbeddedFeatures, EmbeddingLayer, check_size, scaled


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


class AirNet(EmbeddedFeatures):
    """A fixed whitening convolution, three blocks, and the maximum over the pixels.

    Args:
      image_shape: (H, W, C), at least 9x9.
      embedding_dim: D. width: factor on the channels 64, 256 and 256. dropout: before the embedding's linear layer.

    `whiten.weight` is not trained; `whiten_for` sets it.

    >>> AirNet((32, 32, 3), 64)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0):
        super().__init__()
        check_size("airnet", image_shape, 9)
        inputs = image_shape[2]
        channels = [scaled(n, width) for n in (64, 256, 256)]
        self.whiten = nn.Conv2d(inputs, 8 * inputs, 2, bias=False).requires_grad_(False)
        self.blocks = nn.ModuleList(map(_AirBlock, [8 * inputs, *channels], channels))
        self.embedding = EmbeddingLayer(channels[-1], 1, 1, embedding_dim, dropout)

    @torch.no_grad()
    def whiten_for(self, images: Tensor) -> None:
        """Sets the fixed convolution to whiten these images, normalised, [N, C, H, W]."""
        self.whiten.weight.copy_(torch.from_numpy(whitening_filters(images.numpy())))

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
