"""The modules that own the classes' prototypes: `Head` with any losses, `ArcFaceHead` with a margin softmax."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from torch_reference.losses import checks
from torch_reference.losses.margins import Margin
from torch_reference.losses.registry import Batch, Objective
from torch_reference.losses.softmax import add_margin, linear_logits
from torch_reference.losses.terms import margin_softmax
from torch_reference.losses.vectors import cosines


class Head(nn.Module):
    """What classifies embeddings and computes the loss of a training: the prototypes, and what the losses need.

    Args:
      objective: the losses, such as `arcface(m=0.5) + 0.01 * center()`.
      embedding_dim: D.
      num_classes: C.

    `prototypes` are [C, D], or [C, K, D] with K sub-centres, at first uniform in +-sqrt(3 / D); a parameter, or with
    pair losses alone a buffer, which is to hold the class means. `bias` [C] (with `softmax`) and `centers` [C, D] (with
    `center_learnt`) are parameters that start at 0, and None elsewhere. The losses' states are buffers of `objective`,
    and are no part of the `state_dict`.

    Raises:
      ValueError: a dimension or a class count that is not 1, 2, 3 and so on, or too few classes for a loss.
      UserError: losses that cannot be trained together.

    >>> from torch_reference import arcface, center
    >>> head = Head(arcface(m=0.5) + 0.01 * center(), embedding_dim=8, num_classes=10)
    >>> embeddings, labels = torch.ones(4, 8, requires_grad=True), torch.tensor([0, 1, 2, 3])
    >>> head.loss(embeddings, labels).backward()
    >>> head(embeddings).shape
    torch.Size([4, 10])
    """

    def __init__(self, objective: Objective, embedding_dim: int, num_classes: int):
        super().__init__()
        checks.whole(embedding_dim=embedding_dim, num_classes=num_classes)
        objective.check()
        self.objective = copy.deepcopy(objective)
        self.objective.build(num_classes, embedding_dim)
        classifier = objective.classifier
        subcenters = 1 if classifier is None else classifier.options.get("subcenters", 1)
        shape = (num_classes, embedding_dim) if subcenters == 1 else (num_classes, subcenters, embedding_dim)
        prototypes = torch.empty(shape).uniform_(-1, 1) * math.sqrt(3 / embedding_dim)
        self.prototypes = nn.Buffer(prototypes) if classifier is None else nn.Parameter(prototypes)
        owns = objective.owns
        self.bias = nn.Parameter(torch.zeros(num_classes)) if "bias" in owns else None
        self.centers = nn.Parameter(torch.zeros(num_classes, embedding_dim)) if "centers" in owns else None

    def forward(self, embeddings: Tensor) -> Tensor:
        """What is largest for an example's class, [B, C] of embeddings [B, D]: W x + b with a bias, else cosines."""
        if self.bias is None:
            return cosines(embeddings, self.prototypes)
        return linear_logits(embeddings, self.prototypes, self.bias)

    def loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        growth: float = 1.0,
        step: int = 0,
        normal: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, and in training mode moves what the losses remember.

        Args:
          embeddings: [B, D], any float dtype. labels: [B], integers in [0, C).
          growth: the share of the margins that has grown, in (0, 1].
          step: optimiser steps done before, which `a_softmax` looks at.
          normal: standard normal draws [B] for `elasticface` and `elastic_cosface`; drawn here where None.
          weights: [B], >= 0, the examples' weights; None weighs them alike.

        Returns:
          A scalar, float32 (float64 for float64).
        """
        if normal is None and self.objective.draws:
            # in evaluation the margin is its mean
            normal = torch.randn(len(labels), device=labels.device) * self.training
        batch = Batch(embeddings, labels, self.prototypes, self.bias, self.centers, step, normal, weights)
        loss: Tensor = self.objective(batch, growth)
        return loss


class ArcFaceHead(Head):
    """The ArcFace head: prototypes, a margin and a scale (Deng et al., CVPR 2019, equations 3 and 4).

    It is a `Head` with one margin softmax, for any `Margin`, whose logits can be had as well.

    Args:
      embedding_dim: D.
      num_classes: C.
      margin: any `Margin`; ArcFace's where None.
      scale: s, > 0.
      subcenters: K, prototypes a class, of which the nearest counts (Sub-center ArcFace, Deng et al., ECCV 2020).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).

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
        label_smoothing: float = 0.0,
    ):
        checks.whole(subcenters=subcenters)
        checks.positive(scale=scale)
        if margin is not None and not isinstance(margin, Margin):
            raise TypeError(f"margin is {margin!r}; it must be a Margin, such as Margin.arcface(0.5)")
        margin = Margin.arcface() if margin is None else margin
        objective = margin_softmax(margin, scale=scale, subcenters=subcenters, label_smoothing=label_smoothing)
        super().__init__(objective, embedding_dim, num_classes)
        self.margin, self.scale = margin, scale

    def cosines(self, embeddings: Tensor) -> Tensor:
        """cos(theta) [B, C] between embeddings [B, D] and classes."""
        return cosines(embeddings, self.prototypes)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, C] of embeddings [B, D]: with the margin on `labels` [B], or without any where None."""
        cosine = self.cosines(embeddings)
        return self.scale * cosine if labels is None else add_margin(cosine, labels, self.margin, self.scale)


class Classifier(nn.Module):
    """A backbone and a head: what is trained.

    Args:
      backbone: from images to embeddings [B, D].
      head: from embeddings to classes.
    """

    def __init__(self, backbone: nn.Module, head: Head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """What is largest for an image's class: [B, C]."""
        scores: Tensor = self.head(self.backbone(images))
        return scores
