"""The module that owns the classes' prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torch_reference.losses import add_margin, cosines
from torch_reference.margins import Margin


class ArcFaceHead(nn.Module):
    """The ArcFace head: prototypes, a margin and a scale (Deng et al., CVPR 2019, equations 3 and 4).

    Args:
      embedding_dim: D.
      num_classes: C.
      margin: any `Margin`; ArcFace's where None.
      scale: s, > 0.
      subcenters: K, prototypes a class, of which the nearest counts (Sub-center ArcFace, Deng et al., ECCV 2020).

    `prototypes` is the parameter, [C, D], or [C, K, D] for K > 1; at first uniform in +-sqrt(3 / D).

    Raises:
      ValueError: a dimension, class count, scale or K that is not positive.

    >>> head = ArcFaceHead(8, 10)
    >>> head(torch.ones(4, 8), torch.tensor([0, 1, 2, 3])).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        margin: Margin | None = None,
        scale: float = 64.0,
        subcenters: int = 1,
    ):
        super().__init__()
        for name, value in (
            ("embedding_dim", embedding_dim),
            ("num_classes", num_classes),
            ("scale", scale),
            ("subcenters", subcenters),
        ):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be > 0")
        self.margin = Margin.arcface() if margin is None else margin
        self.scale = scale
        shape = (num_classes, embedding_dim) if subcenters == 1 else (num_classes, subcenters, embedding_dim)
        self.prototypes = nn.Parameter(torch.empty(shape).uniform_(-1, 1) * math.sqrt(3 / embedding_dim))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """cos(theta) [B, C] between embeddings [B, D] and classes."""
        return cosines(embeddings, self.prototypes)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, C] of embeddings [B, D]: with the margin on `labels` [B], or without any where None."""
        cosine = self.cosines(embeddings)
        return self.scale * cosine if labels is None else add_margin(cosine, labels, self.margin, self.scale)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{list(self.prototypes.shape)}, margin={self.margin}, scale={self.scale:g}"
