"""Heads: what follows the embeddings in training, class prototypes and losses."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jax_arcface.losses import checks
from jax_arcface.losses.fused import classify
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.registry import Inputs, Objective, Outcome
from jax_arcface.losses.softmax import linear_logits, margin_logits
from jax_arcface.losses.terms import combined
from jax_arcface.losses.vectors import cosines


class ClassMeans(nnx.Variable):
    """Prototypes that are measured, not trained: the classes' mean embeddings."""


class LossState(nnx.Variable):
    """What a loss remembers from step to step, such as centres or a running mean."""


class Head(nnx.Module):
    """A weighted sum of losses, with the parameters that they own and the state that they keep.

    Args:
      objective: the losses, such as `arcface(m=0.5) + 0.01 * center()`.
      embedding_dim: D.
      num_classes: C.
      rngs: initial prototypes are uniform in +-sqrt(3 / D), from its stream `params`.

    `prototypes` are [C, D], or [C, K, D] with K sub-centres; where there are pair losses alone they are `ClassMeans`.
    `bias` [C] is there with `softmax`, `centers` [C, D] with `center_learnt`.

    Raises:
      UserError: a sum of losses that makes no sense, or too few classes for one of them.
      ValueError: a dimension or a class count below 1.

    >>> from jax_arcface.losses.terms import arcface, center
    >>> head = Head(arcface(m=0.5) + 0.01 * center(), 8, 10, rngs=nnx.Rngs(0))
    >>> head.loss(jnp.ones((4, 8)), jnp.array([0, 1, 2, 3])).shape, head.states["center"]["centers"].shape
    ((), (10, 8))
    """

    def __init__(self, objective: Objective, embedding_dim: int, num_classes: int, *, rngs: nnx.Rngs):
        checks.whole(embedding_dim=embedding_dim, num_classes=num_classes)
        self.objective = objective.checked()
        subcenters = objective.subcenters
        shape = (num_classes, embedding_dim) if subcenters == 1 else (num_classes, subcenters, embedding_dim)
        bound = math.sqrt(3 / embedding_dim)
        drawn = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.prototypes: nnx.Variable = nnx.Param(drawn) if objective.classifier else ClassMeans(drawn)
        if "bias" in objective.owns:
            self.bias = nnx.Param(jnp.zeros(num_classes))
        if "centers" in objective.owns:
            self.centers = nnx.Param(jnp.zeros((num_classes, embedding_dim)))
        states = objective.init(num_classes, embedding_dim)
        self.states = nnx.Dict({name: nnx.Dict(jax.tree.map(LossState, state)) for name, state in states.items()})

    @property
    def owned(self) -> dict[str, Array]:
        """The parameters by name: `prototypes`, and `bias` and `centers` where there are."""
        names = ("prototypes", "bias", "centers")
        return {name: getattr(self, name)[...] for name in names if hasattr(self, name)}

    def __call__(self, embeddings: Array) -> Array:
        """The score of each class, [B, C], of embeddings [B, D]: W x + b with a bias, cosines without."""
        if hasattr(self, "bias"):
            return linear_logits(embeddings, self.prototypes[...], self.bias[...])
        return cosines(embeddings, self.prototypes[...])

    def predict(self, embeddings: Array) -> Array:
        """The class with the largest score, [B], of embeddings [B, D]; the first of equals."""
        return classify(embeddings, self.prototypes[...], self.bias[...] if hasattr(self, "bias") else None)

    def outcome(
        self,
        embeddings: Array,
        labels: Array,
        *,
        step: Array | int = 0,
        objective: Objective | None = None,
        normal: Array | None = None,
        weights: Array | None = None,
    ) -> Outcome:
        """Loss, new states and what the loss found out on its way, of embeddings [B, D] and labels [B].

        Nothing is changed: `loss` also keeps the new states.

        Args:
          step: steps done, for losses that are annealed.
          objective: the head's own, or the same with other margins (`Objective.grown`).
          normal: standard normal draws [B], for losses that draw their margins.
          weights: of the examples, [B].
        """
        inputs = Inputs(embeddings, labels, self.owned, step, normal, weights)
        states = {name: {key: value[...] for key, value in state.items()} for name, state in self.states.items()}
        return (objective or self.objective).apply(inputs, states)

    def keep(self, states: dict[str, dict[str, Array]]) -> None:
        """Takes over the losses' states of an `outcome`."""
        for name, state in states.items():
            for key, value in state.items():
                self.states[name][key][...] = value

    def loss(
        self,
        embeddings: Array,
        labels: Array,
        *,
        step: Array | int = 0,
        objective: Objective | None = None,
        normal: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        """The loss of embeddings [B, D] and labels [B], a scalar; the losses' states move on.

        The arguments are those of `outcome`.
        """
        outcome = self.outcome(embeddings, labels, step=step, objective=objective, normal=normal, weights=weights)
        self.keep(outcome.state)
        return outcome.loss


class ArcFaceHead(Head):
    """The ArcFace head: normalised prototypes, a margin and a scale (Deng et al., CVPR 2019, equations 3 and 4).

    Args:
      embedding_dim: D.
      num_classes: C.
      margin: any `Margin`; ArcFace's where None.
      scale: s, > 0.
      subcenters: K, prototypes a class, of which the nearest counts (Sub-center ArcFace, Deng et al., ECCV 2020).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).
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
        label_smoothing: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if not isinstance(margin, Margin | None):
            raise TypeError(f"margin is {margin!r}; it must be a Margin, such as Margin.arcface(0.5)")
        checks.whole(subcenters=subcenters)
        checks.positive(scale=scale)
        m: Any = Margin.arcface() if margin is None else margin
        objective = combined(m.m1, m.m2, m.m3, None, scale, subcenters, label_smoothing, m.beyond_pi, m.gradient)
        super().__init__(objective, embedding_dim, num_classes, rngs=rngs)

    @property
    def margin(self) -> Margin:
        """The margin."""
        o = dict(self.objective.terms[0].options)
        return Margin(o["m1"], o["m2"], o["m3"], o["beyond_pi"], o["gradient"])

    @property
    def scale(self) -> float:
        """The scale s."""
        return dict(self.objective.terms[0].options)["scale"]

    def __call__(self, embeddings: Array, labels: Array | None = None) -> Array:
        """Logits [B, C] of embeddings [B, D]: with the margin on `labels` [B], or without any where None."""
        if labels is None:
            return self.scale * super().__call__(embeddings)
        return margin_logits(embeddings, self.prototypes[...], labels, self.margin, self.scale)
