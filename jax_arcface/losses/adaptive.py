"""Margin softmax losses whose scale or margin follows the training: from the batch, or from the embeddings' lengths.

A loss with a state takes it as an argument and returns the new one, a constant for the gradient, which it already uses.
"""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import BeyondPi, Margin, angles
from jax_arcface.losses.mesh import Shard, gathered, shard_of
from jax_arcface.losses.reduction import Reduction, checked_weights, is_empty, reduce, without_ignored
from jax_arcface.losses.softmax import margin_logits, margin_softmax_loss, sharded_softmax_loss
from jax_arcface.losses.vectors import checked_labels, checked_vectors, cosines, lengths, own_class, with_own_class

_ARCFACE = Margin.arcface()


def adacos_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    scale: float | Array,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """AdaCos: cross entropy of s cos(theta_j) with an s that is computed from each batch.

    s = log(B) / cos(min(pi / 4, M)) with B the mean over the batch of sum_{j != y} exp(s cos(theta_j)) at the former s,
    and M the median of theta_y. AdaCos (Zhang et al., CVPR 2019, arXiv 1905.00292), section 4, the dynamic scale. Here
    s is at least log(C - 1) / 2: no fixed point of the rule is smaller, but one step may otherwise end below 0.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, C >= 3.
      labels: [B], integers in [0, C).
      scale: s of the step before, > 0, a scalar; at first `initial_adacos_scale`.
      label_smoothing, reduction, weights: as in `softmax_loss`. The mean in B is the weighted one, and M the median of
        the examples whose weight is above 0; of none, s stays as it was.

    Returns:
      The loss, a scalar, or [B] with `reduction="none"`, and the new s, a scalar; float32 (float64 for float64). NaN
      inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and fewer than 3 classes.

    >>> x, w = jnp.eye(3), jnp.eye(3)
    >>> _, s = adacos_loss(x, w, jnp.arange(3), scale=1.0)
    >>> print(s.round(4))  # log(2 e^0) / cos(0)
    0.6931
    """
    checks.positive(scale=scale)
    embeddings, prototypes, labels, weights, shard = _batch(embeddings, prototypes, labels, weights)
    cosine = cosines(embeddings, prototypes)
    batch, classes = len(cosine), shard.total
    initial_adacos_scale(classes)  # refuses what has none
    scale = jnp.asarray(scale, cosine.dtype)
    if batch:
        constant = jax.lax.stop_gradient(cosine)
        own = own_class(constant, labels, shard)
        others = with_own_class(scale * constant, labels, jnp.full_like(own, -jnp.inf), shard)
        theta = gathered(angles(own))
        if weights is None:
            log_b, median = _log_sum_exp(others, shard) - math.log(batch), jnp.median(theta)
        else:
            weights = gathered(weights)
            log_weights = jnp.log(weights.astype(others.dtype))
            log_b = _log_sum_exp(others + log_weights[:, None], shard) - jax.nn.logsumexp(log_weights)
            median = jnp.nanmedian(jnp.where(weights > 0, theta, jnp.nan)) + 0 * jnp.sum(theta)  # NaN stays NaN
        new = jnp.maximum(log_b / jnp.cos(jnp.minimum(math.pi / 4, median)), math.log(classes - 1) / 2)
        scale = jax.lax.stop_gradient(jnp.where(is_empty(batch, weights), scale, new))
    return sharded_softmax_loss(scale * cosine, labels, label_smoothing, reduction, weights, shard), scale


def _log_sum_exp(values: Array, shard: Shard) -> Array:
    """Of all values, a scalar."""
    largest = shard.max(jnp.max(values))
    return largest + jnp.log(shard.sum(jnp.sum(jnp.exp(values - largest))))


def initial_adacos_scale(num_classes: int) -> float:
    """The s before the first step: sqrt(2) log(C - 1) (AdaCos, Zhang et al., CVPR 2019, section 4, the fixed scale).

    Raises:
      ValueError: fewer than 3 classes, for which it would not be above 0.

    >>> print(f"{initial_adacos_scale(10):.4f}")
    3.1073
    """
    if num_classes < 3:
        raise ValueError(f"there are {num_classes} classes; AdaCos needs at least 3")
    return math.sqrt(2) * math.log(num_classes - 1)


def curricularface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    t: float | Array,
    margin: Margin = _ARCFACE,
    scale: float | Array = 64.0,
    rate: float | Array = 0.01,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """CurricularFace: a class harder than the own one has s cos(theta_j) (t + cos(theta_j)).

    Harder is cos(theta_j) > psi(theta_y), and t is the running mean of cos(theta_y): first rate * mean(cos(theta_y)) +
    (1 - rate) t, then the logits with the new t. CurricularFace (Huang et al., CVPR 2020, arXiv 2004.00288), equations
    10 to 13.

    Args:
      embeddings, prototypes, labels, margin, scale, label_smoothing, reduction, weights: as in `margin_softmax_loss`.
      t: of the step before, a scalar; 0 at first.
      rate: the share of the batch in the new t, in [0, 1]. The batch's mean is the weighted one; of no example of a
        weight above 0, t stays as it was.

    Returns:
      The loss, a scalar, or [B] with `reduction="none"`, and the new t, a scalar; float32 (float64 for float64). NaN
      inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and a rate outside [0, 1].

    >>> x, w = jnp.array([[0.6, 0.8]]), jnp.eye(2)
    >>> loss, t = curricularface_loss(x, w, jnp.array([0]), 0.5, Margin.softmax(), scale=1.0, rate=0.5)
    >>> print(f"{t:.2f} {loss:.4f}")  # (0.6 + 0.5) / 2, log(1 + exp(0.8 (t + 0.8) - 0.6))
    0.55 0.9617
    """
    checks.positive(scale=scale)
    checks.share(rate=rate)
    embeddings, prototypes, labels, weights, shard = _batch(embeddings, prototypes, labels, weights)
    logits = margin_logits(embeddings, prototypes, labels, margin, scale=1.0)
    target = own_class(cosines(embeddings, prototypes), labels, shard)
    rate = _rate(rate, len(labels), weights)
    t = jax.lax.stop_gradient(rate * reduce(target, weights, "mean") + (1 - rate) * jnp.asarray(t, target.dtype))
    is_harder = logits > own_class(logits, labels, shard)[:, None]
    logits = scale * jnp.where(is_harder, logits * (t + logits), logits)
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard), t


def magface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    low: float | Array = 0.45,
    high: float | Array = 0.8,
    shortest: float | Array = 10.0,
    longest: float | Array = 110.0,
    weight: float | Array = 35.0,
    scale: float | Array = 64.0,
    beyond_pi: BeyondPi = "monotone",
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """MagFace: ArcFace with a margin that grows with the embedding's length a, plus weight * mean g(a).

    The own class has s cos(theta + m(a)), a = |x| clipped to [shortest, longest], m(a) linear from low to high, and
    g(a) = a / longest^2 + 1 / a draws lengths up. MagFace (Meng et al., CVPR 2021, arXiv 2103.06627), section 3.

    Args:
      embeddings: [B, D], any float dtype; their length counts. Outside [shortest, longest] it has no gradient.
      prototypes, labels, scale, label_smoothing, reduction, weights: as in `margin_softmax_loss`.
      low, high: the margins in radians at the shortest and at the longest length.
      shortest, longest: 0 < shortest < longest.
      weight: of g, >= 0.
      beyond_pi: as in `Margin`.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label outside
      [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and lengths, margins or a weight out of range.

    >>> x, w = jnp.array([[60.0, 0.0]]), jnp.eye(2)
    >>> print(f"{magface_loss(x, w, jnp.array([0]), weight=0.0, scale=1.0):.4f}")  # log(1 + exp(-cos 0.625))
    0.3677
    """
    checks.positive(shortest=shortest, longest=longest)
    checks.at_least_zero(weight=weight)
    checks.angle(low=low, high=high)
    if isinstance(shortest, numbers.Real) and isinstance(longest, numbers.Real) and not shortest < longest:
        raise ValueError(f"shortest is {shortest}; it must be below longest, {longest}")
    embeddings, prototypes, labels, weights, _ = _batch(embeddings, prototypes, labels, weights)
    a = jnp.clip(lengths(embeddings), shortest, longest)
    margin = Margin(m2=low + (high - low) * (a - shortest) / (longest - shortest), beyond_pi=beyond_pi)
    g = a / longest**2 + 1 / a
    loss = margin_softmax_loss(
        embeddings, prototypes, labels, margin, scale, label_smoothing, reduction=reduction, weights=weights
    )
    return loss + weight * reduce(g, weights, reduction)


def adaface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    mean: float | Array,
    std: float | Array,
    m: float | Array = 0.4,
    h: float | Array = 0.333,
    rate: float | Array = 0.01,
    scale: float | Array = 64.0,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """AdaFace: the own class has s (cos(theta - m z) - m z - m), z in [-1, 1] from the embedding's length.

    n = |x|, clipped to [0.001, 100] and a constant for the gradient, stands for the image's quality, and
    z = clip(h (n - mean) / (std + 0.001), -1, 1) with running mean and std. AdaFace (Kim et al., CVPR 2022, arXiv
    2204.00964), section 3; theta - m z is clipped to [0, pi] here.

    Args:
      embeddings: [B, D], any float dtype.
      prototypes, labels, scale, label_smoothing, reduction, weights: as in `margin_softmax_loss`.
      mean, std: of the lengths, scalars, as the step before left them; 20 and 100 at first.
      m: the margin, >= 0.
      h: how many standard deviations 1 / h make z = 1; >= 0.
      rate: the share of the batch in the new mean and std, in [0, 1]. With weights w these are the weighted mean and
        the root of sum w (n - mean)^2 / (sum w - sum w^2 / sum w); of no example of a weight above 0, mean and std stay
        as they were.

    Returns:
      The loss, a scalar, or [B] with `reduction="none"`, the new mean and the new std, scalars; float32 (float64 for
      float64). The standard deviation is that of a sample (B - 1), and 0 for a batch of 1. The loss is NaN inside jit
      if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and m, h or a rate out of range.

    >>> x, w = jnp.array([[5.0, 0.0], [0.0, 7.0]]), jnp.eye(2)
    >>> loss, mean, std = adaface_loss(x, w, jnp.array([0, 1]), mean=6.0, std=100.0, h=0.0, rate=0.5, scale=1.0)
    >>> print(loss.round(4), mean, std.round(4))  # log(1 + exp(0.4 - 1)), 6, (sqrt(2) + 100) / 2
    0.4375 6.0 50.7071
    """
    checks.positive(scale=scale)
    checks.at_least_zero(m=m, h=h)
    checks.share(rate=rate)
    embeddings, prototypes, labels, weights, shard = _batch(embeddings, prototypes, labels, weights)
    cosine = cosines(embeddings, prototypes)
    n = jax.lax.stop_gradient(jnp.clip(lengths(embeddings), 0.001, 100))
    mean_n = reduce(n, weights, "mean")
    std_n = jnp.sqrt(_sample_variance(n, mean_n, weights))
    rate = _rate(rate, len(n), weights)
    mean = jax.lax.stop_gradient(rate * mean_n + (1 - rate) * jnp.asarray(mean, n.dtype))
    std = jax.lax.stop_gradient(rate * std_n + (1 - rate) * jnp.asarray(std, n.dtype))
    z = jnp.clip((n - mean) / (std + 0.001) * h, -1, 1)
    theta = jnp.clip(angles(own_class(cosine, labels, shard)) - m * z, 0, math.pi)
    own = jnp.cos(theta) - m * z - m
    logits = scale * with_own_class(cosine, labels, own, shard)
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard), mean, std


def _sample_variance(values: Array, mean: Array, weights: Array | None) -> Array:
    """sum w (v - mean)^2 / (sum w - sum w^2 / sum w), with weights 1 by B - 1; 0 of a single value."""
    if weights is None:
        return jnp.sum((values - mean) ** 2) / max(1, len(values) - 1)
    w = weights.astype(values.dtype)
    largest = jnp.max(w, initial=0)
    w = w / jnp.where(largest == 0, 1, largest)  # whose squares fit
    total = jnp.sum(w)
    freedom = total - jnp.sum(w**2) / jnp.where(total == 0, 1, total)
    is_single = freedom <= 0
    return jnp.where(is_single, 0, jnp.sum(w * (values - mean) ** 2) / jnp.where(is_single, 1, freedom))


def _rate(rate: float | Array, batch: int, weights: Array | None) -> float | Array:
    """The share of a batch in a running statistic: 0 of a batch without examples."""
    return rate if batch and weights is None else jnp.where(is_empty(batch, weights), 0, rate)


def _batch(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array, Array | None, Shard]:
    """All of them checked, and which classes the prototypes are; what has the weight 0 is 0."""
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    shard = shard_of(prototypes, embeddings, labels, weights)
    labels = checked_labels(labels, len(embeddings), shard.total, weights)
    return without_ignored(embeddings, weights), prototypes, labels, weights, shard
