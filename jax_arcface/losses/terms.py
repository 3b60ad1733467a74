"""The losses of the registry: a factory each, whose signature is the loss's options.

To add a loss, write its function beside its like (`softmax.py`, `adaptive.py`, `regularizers.py`, `pairs.py`) and its
factory here. `docs/losses.md` gives equations, sources and advice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.errors import UserError
from jax_arcface.losses import adaptive, fused, pairs, regularizers
from jax_arcface.losses import softmax as functions
from jax_arcface.losses.margins import BeyondPi, Gradient, Margin
from jax_arcface.losses.mesh import moved, own_rows
from jax_arcface.losses.pairs import Distance, Mining
from jax_arcface.losses.registry import (
    Cosine,
    Factor,
    Grows,
    Inputs,
    Loss,
    NonNegative,
    Outcome,
    Positive,
    Radians,
    Range,
    Share,
    State,
    loss,
)

# margins, which a training lets grow
RadianMargin = Annotated[Radians, Grows()]
CosineMargin = Annotated[Cosine, Grows()]
Smoothing = Annotated[float, Range(0.0, 1.0)]
Subcenters = Annotated[int, Range(1)]
Filter = Annotated[float | None, Range(-1.0, 1.0, unit="a cosine")]


# ---- classification losses


@loss("classification")
def softmax(label_smoothing: Smoothing = 0.0) -> Loss:
    """CE(W_j . x + b_j)."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(
            functions.linear_softmax_loss(
                i.embeddings, i.prototypes, i.owned["bias"], i.labels, label_smoothing, weights=i.weights
            ),
            state,
        )

    return Loss(apply, frozenset({"prototypes", "bias"}))


@loss("classification")
def modified_softmax(label_smoothing: Smoothing = 0.0) -> Loss:
    """CE(|x| cos theta_j)."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(
            functions.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, label_smoothing, weights=i.weights),
            state,
        )

    return Loss(apply)


def _margin_softmax(
    margin: Margin, scale: float, subcenters: int, label_smoothing: float, filter: float | None = None
) -> Loss:
    def apply(i: Inputs, state: State) -> Outcome:
        arguments = (i.embeddings, i.prototypes, i.labels, margin, scale, label_smoothing, filter)
        if not fused.has_many_cosines(i.embeddings, i.prototypes):
            return Outcome(functions.margin_softmax_loss(*arguments, weights=i.weights), state)
        value, correct = fused.loss_and_correct(*arguments, weights=i.weights)
        return Outcome(value, state, correct)

    return Loss(apply, subcenters=subcenters)


@loss("classification")
def norm_softmax(scale: Positive = 64.0, subcenters: Subcenters = 1, label_smoothing: Smoothing = 0.0) -> Loss:
    """CE(s cos theta_j)."""
    return _margin_softmax(Margin(), scale, subcenters, label_smoothing)


@loss("classification")
def a_softmax(
    m: Annotated[int, Range(1, 9)] = 4,
    first: NonNegative = 1000.0,
    last: NonNegative = 5.0,
    decay: NonNegative = 0.12,
    label_smoothing: Smoothing = 0.0,
) -> Loss:
    """own class |x| (lambda cos theta + psi) / (1 + lambda), psi = (-1)^k cos(m theta) - 2k.

    lambda = max(last, first / (1 + decay step)).
    """
    if last > first:
        raise UserError(f"last of a_softmax is {last:g}; it must be at most first, {first:g}")

    def apply(i: Inputs, state: State) -> Outcome:
        lam = functions.annealed_lambda(i.step, first, last, decay)
        return Outcome(
            functions.a_softmax_loss(i.embeddings, i.prototypes, i.labels, m, lam, label_smoothing, weights=i.weights),
            state,
        )

    return Loss(apply)


@loss("classification")
def sphereface(
    m: Annotated[Factor, Grows(1.0)] = 1.35,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Loss:
    """own class s psi(theta), psi = (-1)^k cos(m theta) - 2k."""
    margin = Margin(m1=m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, subcenters, label_smoothing)


@loss("classification")
def cosface(
    m: CosineMargin = 0.35,
    filter: Filter = None,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
) -> Loss:
    """own class s (cos theta - m)."""
    return _margin_softmax(Margin(m3=m), scale, subcenters, label_smoothing, filter)


@loss("classification")
def arcface(
    m: RadianMargin = 0.5,
    filter: Filter = None,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Loss:
    """own class s cos(theta + m)."""
    margin = Margin(m2=m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, subcenters, label_smoothing, filter)


@loss("classification")
def combined(
    m1: Annotated[Positive, Grows(1.0)] = 1.0,
    m2: Annotated[float, Range(-math.pi, math.pi, unit="radians"), Grows()] = 0.3,
    m3: Annotated[float, Range(-math.inf, math.inf, unit="a cosine"), Grows()] = 0.2,
    filter: Filter = None,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Loss:
    """own class s (cos(m1 theta + m2) - m3)."""
    margin = Margin(m1, m2, m3, beyond_pi, gradient)
    return _margin_softmax(margin, scale, subcenters, label_smoothing, filter)


@loss("classification")
def subcenter(
    m: RadianMargin = 0.5,
    filter: Filter = None,
    scale: Positive = 64.0,
    subcenters: Subcenters = 3,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Loss:
    """arcface with K prototypes for each class, of which the nearest counts."""
    margin = Margin(m2=m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, subcenters, label_smoothing, filter)


@loss("classification")
def adacos(subcenters: Subcenters = 1, label_smoothing: Smoothing = 0.0) -> Loss:
    """CE(s_t cos theta_j), s_t = log(mean sum exp(s cos theta_j)) / cos(min(pi/4, median theta_y))."""

    def apply(i: Inputs, state: State) -> Outcome:
        value, scale = adaptive.adacos_loss(
            i.embeddings, i.prototypes, i.labels, state["scale"], label_smoothing, weights=i.weights
        )
        return Outcome(value, {"scale": scale})

    def init(num_classes: int, embedding_dim: int) -> State:
        return {"scale": jnp.asarray(adaptive.initial_adacos_scale(num_classes))}

    return Loss(apply, init=init, subcenters=subcenters)


@loss("classification")
def curricularface(
    m: RadianMargin = 0.5,
    rate: Share = 0.01,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Loss:
    """own class s cos(theta + m), harder ones s cos theta_j (t + cos theta_j), t the running mean of cos theta_y."""
    margin = Margin(m2=m, beyond_pi=beyond_pi)

    def apply(i: Inputs, state: State) -> Outcome:
        value, t = adaptive.curricularface_loss(
            i.embeddings, i.prototypes, i.labels, state["t"], margin, scale, rate, label_smoothing, weights=i.weights
        )
        return Outcome(value, {"t": t})

    return Loss(apply, init=lambda num_classes, embedding_dim: {"t": jnp.zeros(())}, subcenters=subcenters)


@loss("classification")
def magface(
    low: RadianMargin = 0.45,
    high: RadianMargin = 0.8,
    shortest: Annotated[float, Range(1e-3)] = 10.0,
    longest: Annotated[float, Range(1e-3)] = 110.0,
    weight: NonNegative = 35.0,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Loss:
    """own class s cos(theta + m(a)), m from low to high as a = |x| goes from shortest to longest; + weight g(a)."""
    for small, large, of in ((low, high, ("low", "high")), (shortest, longest, ("shortest", "longest"))):
        if not isinstance(small, Array) and not small < large:
            raise UserError(f"{of[0]} of magface is {small:g}; it must be below {of[1]}, {large:g}")

    def apply(i: Inputs, state: State) -> Outcome:
        bounds = (low, high, shortest, longest)
        value = adaptive.magface_loss(
            i.embeddings,
            i.prototypes,
            i.labels,
            *bounds,
            weight,
            scale,
            beyond_pi,
            label_smoothing,
            weights=i.weights,
        )
        return Outcome(value, state)

    return Loss(apply, subcenters=subcenters)


@loss("classification")
def adaface(
    m: Annotated[float, Range(0.0, 1.0), Grows()] = 0.4,
    h: NonNegative = 0.333,
    rate: Share = 0.01,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
) -> Loss:
    """own class s (cos(theta - m z) - m z - m), z = clip(h (|x| - mean) / std, -1, 1)."""

    def apply(i: Inputs, state: State) -> Outcome:
        value, mean, std = adaptive.adaface_loss(
            i.embeddings,
            i.prototypes,
            i.labels,
            state["mean"],
            state["std"],
            m,
            h,
            rate,
            scale,
            label_smoothing,
            weights=i.weights,
        )
        return Outcome(value, {"mean": mean, "std": std})

    def init(num_classes: int, embedding_dim: int) -> State:
        return {"mean": jnp.asarray(20.0), "std": jnp.asarray(100.0)}

    return Loss(apply, init=init, subcenters=subcenters)


def _drawn(i: Inputs, m: float, std: float) -> Array:
    """The margin of each example, drawn from N(m, std^2), [B]."""
    if i.normal is None:
        raise UserError("elasticface and elastic_cosface draw their margins: give them `normal`, standard normal [B]")
    return m + std * i.normal.astype(i.embeddings.dtype)


@loss("classification")
def elasticface(
    m: RadianMargin = 0.5,
    std: Annotated[float, Range(0.0, 0.5), Grows()] = 0.0125,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Loss:
    """own class s cos(theta + m_i), m_i from N(m, std^2)."""

    def apply(i: Inputs, state: State) -> Outcome:
        margin = Margin(m2=_drawn(i, m, std), beyond_pi=beyond_pi)
        return _margin_softmax(margin, scale, subcenters, label_smoothing).apply(i, state)

    return Loss(apply, draws=frozenset({"normal"}), subcenters=subcenters)


@loss("classification")
def elastic_cosface(
    m: CosineMargin = 0.35,
    std: Annotated[float, Range(0.0, 0.5), Grows()] = 0.0125,
    scale: Positive = 64.0,
    subcenters: Subcenters = 1,
    label_smoothing: Smoothing = 0.0,
) -> Loss:
    """own class s (cos theta - m_i), m_i from N(m, std^2)."""

    def apply(i: Inputs, state: State) -> Outcome:
        margin = Margin(m3=_drawn(i, m, std))
        return _margin_softmax(margin, scale, subcenters, label_smoothing).apply(i, state)

    return Loss(apply, draws=frozenset({"normal"}), subcenters=subcenters)


# ---- regularizers


@loss("regulariser", weight=0.003)
def center(rate: Share = 0.5) -> Loss:
    """1/2 mean |x - c_y|^2, c_y moved by -rate sum (c_y - x) / (1 + n_y)."""

    def apply(i: Inputs, state: State) -> Outcome:
        centers = state["centers"]
        value = regularizers.center_loss(i.embeddings, centers, i.labels, weights=i.weights)
        moves = regularizers.center_displacements(
            jax.lax.stop_gradient(i.embeddings), centers, i.labels, weights=i.weights
        )
        return Outcome(value, {"centers": moved(centers, i.labels, -rate * moves)})

    def init(num_classes: int, embedding_dim: int) -> State:
        return {"centers": jnp.zeros((num_classes, embedding_dim))}

    return Loss(apply, frozenset(), init)


@loss("regulariser", weight=0.003)
def center_learnt() -> Loss:
    """1/2 mean |x - c_y|^2, c_y moved by the optimiser."""

    def apply(i: Inputs, state: State) -> Outcome:
        centers = i.owned["centers"]
        constants = jax.lax.stop_gradient((i.embeddings, centers))
        value = regularizers.center_loss(i.embeddings, constants[1], i.labels, weights=i.weights)
        # 0, whose gradient is the centres' displacements, whatever the term's weight
        moves = regularizers.center_displacements(*constants, i.labels, weights=i.weights)
        own = own_rows(centers, i.labels)
        return Outcome(value, state, unweighted=jnp.sum(moves * (own - jax.lax.stop_gradient(own))))

    return Loss(apply, frozenset({"centers"}))


@loss("regulariser")
def intra() -> Loss:
    """mean theta_y / pi."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(regularizers.intra_loss(i.embeddings, i.prototypes, i.labels, weights=i.weights), state)

    return Loss(apply)


@loss("regulariser")
def inter() -> Loss:
    """-mean sum_j arccos(W_y . W_j) / (pi (C - 1))."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(regularizers.inter_loss(i.prototypes, i.labels, weights=i.weights), state)

    return Loss(apply)


@loss("regulariser")
def mhe() -> Loss:
    """mean sum_j 1 / |W_y - W_j|^2 / (C - 1)."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(regularizers.hyperspherical_energy(i.prototypes, i.labels, weights=i.weights), state)

    return Loss(apply)


def _of_embeddings(function: Callable[..., Array], **options: Any) -> Loss:
    """A loss of embeddings and labels alone."""

    def apply(i: Inputs, state: State) -> Outcome:
        return Outcome(function(i.embeddings, i.labels, **options, weights=i.weights), state)

    return Loss(apply, frozenset())


@loss("regulariser", name="range")
def range_(
    k: Annotated[int, Range(1)] = 2,
    alpha: NonNegative = 5e-5,
    beta: NonNegative = 1e-4,
    margin: NonNegative = 2e4,
) -> Loss:
    """alpha sum of harmonic means of a class's k largest |x_i - x_j|^2 + beta [margin - smallest |mean - mean|^2]_+."""
    return _of_embeddings(pairs.range_loss, k=k, alpha=alpha, beta=beta, margin=margin)


@loss("regulariser")
def marginal(theta: Annotated[float, Range(0.0, 4.0)] = 1.2, xi: Annotated[float, Range(0.0, 4.0)] = 0.3) -> Loss:
    """mean max(0, xi -+ (theta - |x_i - x_j|^2)), minus for a pair of one class."""
    return _of_embeddings(pairs.marginal_loss, theta=theta, xi=xi)


# ---- pair losses


@loss("pairs")
def contrastive(m: Annotated[float, Range(0.0, 4.0)] = 1.0, distance: Distance = "l2") -> Loss:
    """mean d^2 / 2 of pairs of one class + mean max(0, m - d)^2 / 2 of others."""
    return _of_embeddings(pairs.contrastive_loss, m=m, distance=distance)


@loss("pairs")
def triplet(
    m: Annotated[float, Range(0.0, 4.0)] = 0.35, distance: Distance = "angular", mining: Mining = "all"
) -> Loss:
    """mean max(0, d(a, p) + m - d(a, n))."""
    return _of_embeddings(pairs.triplet_loss, m=m, distance=distance, mining=mining)


@loss("pairs")
def circle(m: Annotated[float, Range(0.0, 1.0)] = 0.25, gamma: Annotated[float, Range(1e-3)] = 256.0) -> Loss:
    """mean log(1 + sum exp(gamma [c_n + m]_+ (c_n - m)) sum exp(-gamma [1 + m - c_p]_+ (c_p - 1 + m)))."""
    return _of_embeddings(pairs.circle_loss, m=m, gamma=gamma)


@loss("pairs")
def multi_similarity(
    alpha: Annotated[float, Range(1e-3)] = 2.0,
    beta: Annotated[float, Range(1e-3)] = 50.0,
    base: Annotated[float, Range(-1.0, 2.0)] = 1.0,
    epsilon: Annotated[float, Range(0.0, 2.0)] = 0.1,
) -> Loss:
    """mean log(1 + sum exp(-alpha (c_p - base))) / alpha + log(1 + sum exp(beta (c_n - base))) / beta, mined."""
    return _of_embeddings(pairs.multi_similarity_loss, alpha=alpha, beta=beta, base=base, epsilon=epsilon)


@loss("pairs")
def supcon(tau: Annotated[float, Range(1e-3)] = 0.1) -> Loss:
    """mean -1/|P| sum_p log(exp(c_p / tau) / sum_a exp(c_a / tau))."""
    return _of_embeddings(pairs.supcon_loss, tau=tau)
