"""The modules that own the classes' prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torch_reference.losses import checks
from torch_reference.losses.margins import Margin
from torch_reference.losses.softmax import add_margin, linear_logits, margin_softmax_loss
from torch_reference.losses.vectors import cosines


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
      ValueError: a dimension, a class count or K that is not 1, 2, 3 and so on; a scale that is not > 0 and finite.
      TypeError: a margin of another type, such as a number.

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
        checks.whole(embedding_dim=embedding_dim, num_classes=num_classes, subcenters=subcenters)
        checks.positive(scale=scale)
        if margin is not None and not isinstance(margin, Margin):
            raise TypeError(f"margin is {margin!r}; it must be a Margin, such as Margin.arcface(0.5)")
        self.margin = Margin.arcface() if margin is None else margin
        self.scale = scale
        self.prototypes = nn.Parameter(_drawn(embedding_dim, num_classes, subcenters))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """cos(theta) [B, C] between embeddings [B, D] and classes."""
        return cosines(embeddings, self.prototypes)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, C] of embeddings [B, D]: with the margin on `labels` [B], or without any where None."""
        cosine = self.cosines(embeddings)
        return self.scale * cosine if labels is None else add_margin(cosine, labels, self.margin, self.scale)

    def loss(self, embeddings: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """`margin_softmax_loss` of embeddings [B, D] and labels [B] with this head's prototypes: a scalar."""
        return margin_softmax_loss(embeddings, self.prototypes, labels, self.margin, self.scale, label_smoothing)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{list(self.prototypes.shape)}, margin={self.margin}, scale={self.scale:g}"


class ClassHead(nn.Module):
    """What a training's losses know of the classes, and what an example is classified by.

    Args:
      embedding_dim: D.
      num_classes: C.
      subcenters: K, prototypes a class, of which the nearest counts.
      trained: whether the prototypes are a parameter, or else a buffer that holds the class means.
      bias: whether classes are told apart by W x + b, as the plain softmax does, and not by angle.
      centers: whether there are centres that the optimiser moves (`center_learnt`).

    `prototypes` are [C, D], or [C, K, D] for K > 1, at first uniform in +-sqrt(3 / D); `bias` [C] and `centers` [C, D]
    start at 0, and are None where there are none.

    >>> head = ClassHead(8, 10, bias=True)
    >>> head(torch.ones(4, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        subcenters: int = 1,
        trained: bool = True,
        bias: bool = False,
        centers: bool = False,
    ):
        super().__init__()
        prototypes = _drawn(embedding_dim, num_classes, subcenters)
        self.prototypes = nn.Parameter(prototypes) if trained else nn.Buffer(prototypes)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        self.centers = nn.Parameter(torch.zeros(num_classes, embedding_dim)) if centers else None

    def forward(self, embeddings: Tensor) -> Tensor:
        """What is largest for an example's class, [B, C] of embeddings [B, D]: W x + b with a bias, else cosines."""
        if self.bias is None:
            return cosines(embeddings, self.prototypes)
        return linear_logits(embeddings, self.prototypes, self.bias)


def _drawn(embedding_dim: int, num_classes: int, subcenters: int) -> Tensor:
    shape = (num_classes, embedding_dim) if subcenters == 1 else (num_classes, subcenters, embedding_dim)
    return torch.empty(shape).uniform_(-1, 1) * math.sqrt(3 / embedding_dim)
