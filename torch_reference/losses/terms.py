"""Every loss by its name: its options with their ranges, its equation, and the function that computes it.

`arcface(m=0.4) + 0.01 * center()` is an `Objective`, which a `Head` trains; `--loss arcface:m=0.4+center:0.01` is the
same. What each does exactly, and when to use it, is in docs/losses.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from torch_reference.errors import UserError
from torch_reference.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from torch_reference.losses.margins import Margin
from torch_reference.losses.pairs import (
    circle_loss,
    contrastive_loss,
    marginal_loss,
    multi_similarity_loss,
    range_loss,
    supcon_loss,
    triplet_loss,
)
from torch_reference.losses.registry import Batch, Compute, Grows, Result, loss
from torch_reference.losses.regularizers import (
    center_displacements,
    center_loss,
    hyperspherical_energy,
    inter_loss,
    intra_loss,
)
from torch_reference.losses.softmax import (
    a_softmax_loss,
    annealed_lambda,
    linear_softmax_loss,
    margin_softmax_loss,
    modified_softmax_loss,
)
from torch_reference.ranges import Range

AngularMargin = Annotated[float, Range(0, math.pi, "in radians"), Grows()]
CosineMargin = Annotated[float, Range(0, 2, "in units of cosine"), Grows()]
Spread = Annotated[float, Range(0, 0.5), Grows()]
Filter = Annotated[float | None, Range(-1, 1, "a cosine")]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0.001)]
Share = Annotated[float, Range(0, 1, closed=True)]
UpTo4 = Annotated[float, Range(0, 4)]
Count = Annotated[int, Range(1)]

# what many classification losses share
Scale = Annotated[float, Range(0, open_low=True)]
Smoothing = Annotated[float, Range(0, 1)]
BeyondPi = Literal["monotone", "linear", "wrap"]
Gradient = Literal["exact", "straight_through"]


# ---- classification losses


@loss("classification", owns=["bias"])
def softmax(label_smoothing: Smoothing = 0.0) -> Compute:
    """CE(W_j . x + b_j)."""

    def compute(batch: Batch) -> Tensor:
        assert batch.bias is not None
        return linear_softmax_loss(
            batch.embeddings, batch.prototypes, batch.bias, batch.labels, label_smoothing, weights=batch.weights
        )

    return compute


@loss("classification")
def modified_softmax(label_smoothing: Smoothing = 0.0) -> Compute:
    """CE(|x| cos theta_j)."""
    return lambda batch: modified_softmax_loss(
        batch.embeddings, batch.prototypes, batch.labels, label_smoothing, weights=batch.weights
    )


@loss("classification")
def norm_softmax(scale: Scale = 64.0, subcenters: Count = 1, label_smoothing: Smoothing = 0.0) -> Compute:
    """CE(s cos theta_j)."""
    return _margin_softmax(Margin.softmax(), scale, label_smoothing)


@loss("classification")
def a_softmax(
    m: Annotated[int, Range(1, 9)] = 4,
    first: NotNegative = 1000.0,
    last: NotNegative = 5.0,
    decay: NotNegative = 0.12,
    label_smoothing: Smoothing = 0.0,
) -> Compute:
    """own class |x| (lambda cos theta + psi) / (1 + lambda), psi = (-1)^k cos(m theta) - 2k,
    lambda = max(last, first / (1 + decay step))."""
    _ordered(last=last, first=first, equal=True)

    def compute(batch: Batch) -> Tensor:
        lam = annealed_lambda(batch.step, first, last, decay)
        return a_softmax_loss(
            batch.embeddings, batch.prototypes, batch.labels, m, lam, label_smoothing, weights=batch.weights
        )

    return compute


@loss("classification")
def sphereface(
    m: Annotated[float, Range(1, 8, "a factor"), Grows(1.0)] = 1.35,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: Literal["monotone", "wrap"] = "monotone",
    gradient: Gradient = "exact",
) -> Compute:
    """own class s psi(theta), psi = (-1)^k cos(m theta) - 2k."""
    margin = Margin.sphereface(m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, label_smoothing)


@loss("classification")
def cosface(
    m: CosineMargin = 0.35,
    filter: Filter = None,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
) -> Compute:
    """own class s (cos theta - m)."""
    return _margin_softmax(Margin.cosface(m), scale, label_smoothing, filter)


@loss("classification")
def arcface(
    m: AngularMargin = 0.5,
    filter: Filter = None,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Compute:
    """own class s cos(theta + m)."""
    margin = Margin.arcface(m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, label_smoothing, filter)


@loss("classification")
def combined(
    m1: Annotated[float, Range(0.1, 8, "a factor"), Grows(1.0)] = 1.0,
    m2: Annotated[float, Range(-math.pi, math.pi, "in radians"), Grows()] = 0.3,
    m3: Annotated[float, Range(-2, 2, "in units of cosine"), Grows()] = 0.2,
    filter: Filter = None,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Compute:
    """own class s (cos(m1 theta + m2) - m3)."""
    return _margin_softmax(Margin(m1, m2, m3, beyond_pi, gradient), scale, label_smoothing, filter)


@loss("classification")
def subcenter(
    m: AngularMargin = 0.5,
    filter: Filter = None,
    scale: Scale = 64.0,
    subcenters: Annotated[int, Range(2)] = 3,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
    gradient: Gradient = "exact",
) -> Compute:
    """arcface with K prototypes a class (--subcenters, 3 where not given), the nearest counts."""
    margin = Margin.arcface(m, beyond_pi=beyond_pi, gradient=gradient)
    return _margin_softmax(margin, scale, label_smoothing, filter)


@loss("classification", listed=False)
def margin_softmax(
    margin: Annotated[Margin, Grows()],
    filter: Filter = None,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
) -> Compute:
    """own class s psi(theta) with any `Margin`."""
    return _margin_softmax(margin, scale, label_smoothing, filter)


def _margin_softmax(margin: Margin, scale: float, label_smoothing: float, filter: float | None = None) -> Compute:
    def compute(batch: Batch) -> Tensor:
        return margin_softmax_loss(
            batch.embeddings,
            batch.prototypes,
            batch.labels,
            margin,
            scale,
            label_smoothing,
            filter,
            weights=batch.weights,
        )

    return compute


def _adacos_state(classes: int, dim: int) -> dict[str, Tensor]:
    return {"scale": torch.tensor(initial_adacos_scale(classes))}


@loss("classification", state=_adacos_state)
def adacos(subcenters: Count = 1, label_smoothing: Smoothing = 0.0) -> Compute:
    """CE(s_t cos theta_j), s_t = log(mean sum exp(s cos theta_j)) / cos(min(pi/4, median theta_y))."""

    def compute(batch: Batch) -> Result:
        loss, scale = adacos_loss(
            batch.embeddings,
            batch.prototypes,
            batch.labels,
            batch.state["scale"],
            label_smoothing,
            weights=batch.weights,
        )
        return Result(loss, {"scale": scale})

    return compute


@loss("classification", state=lambda classes, dim: {"t": torch.tensor(0.0)})
def curricularface(
    m: AngularMargin = 0.5,
    rate: Share = 0.01,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Compute:
    """own class s cos(theta + m), harder ones s cos theta_j (t + cos theta_j), t the running mean of cos theta_y."""
    margin = Margin.arcface(m, beyond_pi=beyond_pi)

    def compute(batch: Batch) -> Result:
        loss, t = curricularface_loss(
            batch.embeddings,
            batch.prototypes,
            batch.labels,
            batch.state["t"],
            margin,
            scale,
            rate,
            label_smoothing,
            weights=batch.weights,
        )
        return Result(loss, {"t": t})

    return compute


@loss("classification")
def magface(
    low: AngularMargin = 0.45,
    high: AngularMargin = 0.8,
    shortest: Positive = 10.0,
    longest: Positive = 110.0,
    weight: NotNegative = 35.0,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Compute:
    """own class s cos(theta + m(a)), m from low to high as a = |x| goes from shortest to longest;
    + weight (a / longest^2 + 1 / a)."""
    _ordered(low=low, high=high)
    _ordered(shortest=shortest, longest=longest)
    return lambda batch: magface_loss(
        batch.embeddings,
        batch.prototypes,
        batch.labels,
        low=low,
        high=high,
        shortest=shortest,
        longest=longest,
        weight=weight,
        scale=scale,
        beyond_pi=beyond_pi,
        label_smoothing=label_smoothing,
        weights=batch.weights,
    )


@loss("classification", state=lambda classes, dim: {"mean": torch.tensor(20.0), "std": torch.tensor(100.0)})
def adaface(
    m: Annotated[float, Range(0, 1), Grows()] = 0.4,
    h: NotNegative = 0.333,
    rate: Share = 0.01,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
) -> Compute:
    """own class s (cos(theta - m z) - m z - m), z = clip(h (|x| - mean) / std, -1, 1)."""

    def compute(batch: Batch) -> Result:
        loss, mean, std = adaface_loss(
            batch.embeddings,
            batch.prototypes,
            batch.labels,
            batch.state["mean"],
            batch.state["std"],
            m=m,
            h=h,
            rate=rate,
            scale=scale,
            label_smoothing=label_smoothing,
            weights=batch.weights,
        )
        return Result(loss, {"mean": mean, "std": std})

    return compute


@loss("classification", draws=True)
def elasticface(
    m: AngularMargin = 0.5,
    std: Spread = 0.0125,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
    beyond_pi: BeyondPi = "monotone",
) -> Compute:
    """own class s cos(theta + m_i), m_i from N(m, std^2)."""
    return lambda batch: _margin_softmax(Margin(m2=_drawn(batch, m, std), beyond_pi=beyond_pi), scale, label_smoothing)(
        batch
    )


@loss("classification", draws=True)
def elastic_cosface(
    m: CosineMargin = 0.35,
    std: Spread = 0.0125,
    scale: Scale = 64.0,
    subcenters: Count = 1,
    label_smoothing: Smoothing = 0.0,
) -> Compute:
    """own class s (cos theta - m_i), m_i from N(m, std^2)."""
    return lambda batch: _margin_softmax(Margin(m3=_drawn(batch, m, std)), scale, label_smoothing)(batch)


def _drawn(batch: Batch, m: float, std: float) -> Tensor:
    """Each example's margin, [B]."""
    assert batch.normal is not None
    return m + std * batch.normal.to(batch.embeddings.dtype)


# ---- regularisers


@loss(
    "regulariser",
    weight=0.003,
    state=lambda classes, dim: {"centers": torch.zeros(classes, dim)},
)
def center(rate: Share = 0.5) -> Compute:
    """1/2 mean |x - c_y|^2, c_y moved by -rate sum (c_y - x) / (1 + n_y)."""

    def compute(batch: Batch) -> Result:
        centers = batch.state["centers"]
        loss = center_loss(batch.embeddings, centers, batch.labels, weights=batch.weights)
        moves = center_displacements(batch.embeddings.detach(), centers, batch.labels, weights=batch.weights)
        return Result(loss, {"centers": centers.to(moves.dtype).index_add(0, batch.labels, moves, alpha=-rate)})

    return compute


@loss("regulariser", weight=0.003, owns=["centers"])
def center_learnt() -> Compute:
    """1/2 mean |x - c_y|^2, c_y moved by the optimiser."""

    def compute(batch: Batch) -> Result:
        assert batch.centers is not None
        loss = center_loss(batch.embeddings, batch.centers.detach(), batch.labels, weights=batch.weights)
        # 0, but its gradient by the centres is the sum of their displacements, whatever the loss's weight
        moves = center_displacements(batch.embeddings, batch.centers, batch.labels, weights=batch.weights).detach()
        own = batch.centers[batch.labels]
        return Result(loss, unweighted=(moves * (own - own.detach())).sum())

    return compute


@loss("regulariser")
def intra() -> Compute:
    """mean theta_y / pi."""
    return lambda batch: intra_loss(batch.embeddings, batch.prototypes, batch.labels, weights=batch.weights)


@loss("regulariser", one_prototype=True)
def inter() -> Compute:
    """-mean sum_j arccos(W_y . W_j) / (pi (C - 1))."""
    return lambda batch: inter_loss(batch.prototypes, batch.labels, weights=batch.weights)


@loss("regulariser", one_prototype=True)
def mhe() -> Compute:
    """mean sum_j 1 / |W_y - W_j|^2 / (C - 1)."""
    return lambda batch: hyperspherical_energy(batch.prototypes, batch.labels, weights=batch.weights)


@loss("regulariser")
def range(k: Count = 2, alpha: NotNegative = 5e-5, beta: NotNegative = 1e-4, margin: NotNegative = 2e4) -> Compute:
    """alpha sum of harmonic means of the k largest |x_i - x_j|^2 within a class
    + beta max(0, margin - smallest |mean - mean|^2)."""
    return _of_pairs(range_loss, k=k, alpha=alpha, beta=beta, margin=margin)


@loss("regulariser")
def marginal(theta: UpTo4 = 1.2, xi: UpTo4 = 0.3) -> Compute:
    """mean max(0, xi -+ (theta - |x_i - x_j|^2)), minus for a pair of one class."""
    return _of_pairs(marginal_loss, theta=theta, xi=xi)


# ---- pair losses


@loss("pairs")
def contrastive(m: UpTo4 = 1.0, distance: Literal["l2", "angular"] = "l2") -> Compute:
    """mean d^2 / 2 of pairs of one class + mean max(0, m - d)^2 / 2 of others."""
    return _of_pairs(contrastive_loss, m=m, distance=distance)


@loss("pairs")
def triplet(
    m: UpTo4 = 0.35,
    distance: Literal["angular", "l2"] = "angular",
    mining: Literal["all", "hard", "semi_hard"] = "all",
) -> Compute:
    """mean max(0, d(a, p) + m - d(a, n))."""
    return _of_pairs(triplet_loss, m=m, distance=distance, mining=mining)


@loss("pairs")
def circle(m: Annotated[float, Range(0, 1)] = 0.25, gamma: Positive = 256.0) -> Compute:
    """mean log(1 + sum exp(gamma [c_n + m]_+ (c_n - m)) sum exp(-gamma [1 + m - c_p]_+ (c_p - 1 + m)))."""
    return _of_pairs(circle_loss, m=m, gamma=gamma)


@loss("pairs")
def multi_similarity(
    alpha: Positive = 2.0,
    beta: Positive = 50.0,
    base: Annotated[float, Range(-1, 2)] = 1.0,
    epsilon: Annotated[float, Range(0, 2)] = 0.1,
) -> Compute:
    """mean log(1 + sum exp(-alpha (c_p - base))) / alpha + log(1 + sum exp(beta (c_n - base))) / beta,
    mined by epsilon."""
    return _of_pairs(multi_similarity_loss, alpha=alpha, beta=beta, base=base, epsilon=epsilon)


@loss("pairs")
def supcon(tau: Positive = 0.1) -> Compute:
    """mean -1/|P| sum_p log(exp(c_p / tau) / sum_a exp(c_a / tau))."""
    return _of_pairs(supcon_loss, tau=tau)


def _of_pairs(function: Callable[..., Tensor], **options: float | str) -> Compute:
    return lambda batch: function(batch.embeddings, batch.labels, **options, weights=batch.weights)


def _ordered(equal: bool = False, **values: float) -> None:
    """Raises UserError where the first of two options is not below the second, or equal to it where that is allowed."""
    (low, below), (high, above) = values.items()
    if below > above or (below == above and not equal):
        raise UserError(f"{low} is {below:g}; it must be {'at most' if equal else 'below'} {high}, {above:g}")
