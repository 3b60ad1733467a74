"""Modules that own the class prototypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jax_arcface.losses import checks
from jax_arcface.losses.fused import chosen_loss
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import margin_logits
from jax_arcface.losses.vectors import cosines

if TYPE_CHECKING:
    from jax_arcface.losses.registry import Objective


class ArcFaceHead(nnx.Module):
    """The ArcFace head: normalised prototypes, a margin and a scale (Deng et al., CVPR 2019, equations 3 and 4).

    Args:
      embedding_dim: D.
      num_classes: C.
      margin: any `Margin`.
      scale: s, > 0.
      subcenters: K, prototypes a class, of which the nearest counts (Sub-center ArcFace, Deng et al., ECCV 2020).
      rngs: initial prototypes are uniform in +-sqrt(3 / D), from its stream `params`.

    Raises:
      ValueError: a dimension, class count or K below 1, or a scale that is not > 0 and finite.
      TypeError: a margin that is no `Margin`, such as a number.

    >>> import jax.numpy as jnp
    >>> head = ArcFaceHead(8, 10, rngs=nnx.Rngs(0))
    >>> head.prototypes.shape
    (10, 8)
    >>> head(jnp.ones((4, 8)), jnp.array([0, 1, 2, 3])).shape
    (4, 10)
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        margin: Margin | None = None,
        scale: float = 64.0,
        subcenters: int = 1,
        rngs: nnx.Rngs,
    ):
        checks.whole(embedding_dim=embedding_dim, num_classes=num_classes, subcenters=subcenters)
        checks.positive(scale=scale)
        if not isinstance(margin, Margin | None):
            raise TypeError(f"margin is {margin!r}; it must be a Margin, such as Margin.arcface(0.5)")
        self.margin = Margin.arcface() if margin is None else margin
        self.scale = scale
        shape = (num_classes, embedding_dim) if subcenters == 1 else (num_classes, subcenters, embedding_dim)
        bound = (3 / embedding_dim) ** 0.5
        self.prototypes = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

    def __call__(self, embeddings: Array, labels: Array | None = None) -> Array:
        """Logits [B, C] of embeddings [B, D]: with the margin on `labels` [B], or without any where None."""
        if labels is None:
            return self.scale * cosines(embeddings, self.prototypes[...])
        return margin_logits(embeddings, self.prototypes[...], labels, self.margin, self.scale)

    def loss(self, embeddings: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
        """`margin_softmax_loss` of embeddings [B, D] and labels [B] with this head's prototypes: a scalar.

        Where there are many cosines, it is the fused one.
        """
        prototypes = self.prototypes[...]
        loss_of = chosen_loss(embeddings, prototypes)
        return loss_of(embeddings, prototypes, labels, self.margin, self.scale, label_smoothing)


class ClassMeans(nnx.Variable):
    """Prototypes that are measured, not trained: the classes' mean embeddings."""


class Head(nnx.Module):
    """What the losses of a training own: prototypes, and with `softmax` a bias, with `center_learnt` the centres.

    Args:
      objective: which losses. Where there are pair losses alone, the prototypes are `ClassMeans`.
      embedding_dim: D.
      num_classes: C.
      subcenters: K, prototypes a class.
      rngs: initial prototypes are uniform in +-sqrt(3 / D), from its stream `params`.

    >>> from jax_arcface.losses.registry import parse
    >>> head = Head(parse("softmax"), 8, 10, rngs=nnx.Rngs(0))
    >>> head.prototypes.shape, head.bias.shape
    ((10, 8), (10,))
    """

    def __init__(
        self, objective: Objective, embedding_dim: int, num_classes: int, subcenters: int = 1, *, rngs: nnx.Rngs
    ):
        prototypes = ArcFaceHead(embedding_dim, num_classes, subcenters=subcenters, rngs=rngs).prototypes
        self.prototypes = prototypes if objective.classifier else ClassMeans(prototypes[...])
        if "softmax" in objective.names:
            self.bias = nnx.Param(jnp.zeros(num_classes))
        if "center_learnt" in objective.names:
            self.centers = nnx.Param(jnp.zeros((num_classes, embedding_dim)))
