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
from jax_arcface.losses.softmax import margin_logits, margin_softmax_loss, softmax_loss
from jax_arcface.losses.vectors import checked_labels, cosines, lengths, own_class, with_own_class

_ARCFACE = Margin.arcface()


def adacos_loss(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, scale: float | Array, label_smoothing: float = 0.0
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
      label_smoothing: as in `softmax_loss`.

    Returns:
      The loss and the new s, scalars in float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and fewer than 3 classes.

    >>> x, w = jnp.eye(3), jnp.eye(3)
    >>> _, s = adacos_loss(x, w, jnp.arange(3), scale=1.0)
    >>> print(s.round(4))  # log(2 e^0) / cos(0)
    0.6931
    """
    checks.positive(scale=scale)
    cosine = cosines(embeddings, prototypes)
    labels = checked_labels(labels, *cosine.shape)
    batch, classes = cosine.shape
    initial_adacos_scale(classes)  # refuses what has none
    constant = jax.lax.stop_gradient(cosine)
    theta = jnp.median(angles(own_class(constant, labels)))
    others = with_own_class(scale * constant, labels, jnp.full(batch, -jnp.inf, cosine.dtype))
    log_b = jax.nn.logsumexp(others) - math.log(batch)
    scale = jax.lax.stop_gradient(log_b / jnp.cos(jnp.minimum(math.pi / 4, theta)))
    scale = jnp.maximum(scale, math.log(classes - 1) / 2)
    return softmax_loss(scale * cosine, labels, label_smoothing), scale


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
) -> tuple[Array, Array]:
    """CurricularFace: a class harder than the own one has s cos(theta_j) (t + cos(theta_j)).

    Harder is cos(theta_j) > psi(theta_y), and t is the running mean of cos(theta_y): first rate * mean(cos(theta_y)) +
    (1 - rate) t, then the logits with the new t. CurricularFace (Huang et al., CVPR 2020, arXiv 2004.00288), equations
    10 to 13.

    Args:
      embeddings, prototypes, labels, margin, scale, label_smoothing: as in `margin_softmax_loss`.
      t: of the step before, a scalar; 0 at first.
      rate: the share of the batch in the new t, in [0, 1].

    Returns:
      The loss and the new t, scalars in float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and a rate outside [0, 1].

    >>> x, w = jnp.array([[0.6, 0.8]]), jnp.eye(2)
    >>> loss, t = curricularface_loss(x, w, jnp.array([0]), 0.5, Margin.softmax(), scale=1.0, rate=0.5)
    >>> print(f"{t:.2f} {loss:.4f}")  # (0.6 + 0.5) / 2, log(1 + exp(0.8 (t + 0.8) - 0.6))
    0.55 0.9617
    """
    checks.positive(scale=scale)
    checks.share(rate=rate)
    logits = margin_logits(embeddings, prototypes, labels, margin, scale=1.0)
    labels = checked_labels(labels, *logits.shape)
    target = own_class(cosines(embeddings, prototypes), labels)
    t = jax.lax.stop_gradient(rate * jnp.mean(target) + (1 - rate) * jnp.asarray(t, target.dtype))
    is_harder = logits > own_class(logits, labels)[:, None]
    return softmax_loss(scale * jnp.where(is_harder, logits * (t + logits), logits), labels, label_smoothing), t


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
) -> Array:
    """MagFace: ArcFace with a margin that grows with the embedding's length a, plus weight * mean g(a).

    The own class has s cos(theta + m(a)), a = |x| clipped to [shortest, longest], m(a) linear from low to high, and
    g(a) = a / longest^2 + 1 / a draws lengths up. MagFace (Meng et al., CVPR 2021, arXiv 2103.06627), section 3.

    Args:
      embeddings: [B, D], any float dtype; their length counts. Outside [shortest, longest] it has no gradient.
      prototypes, labels, scale, label_smoothing: as in `margin_softmax_loss`.
      low, high: the margins in radians at the shortest and at the longest length.
      shortest, longest: 0 < shortest < longest.
      weight: of g, >= 0.
      beyond_pi: as in `Margin`.

    Returns:
      A scalar, float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

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
    a = jnp.clip(lengths(embeddings), shortest, longest)
    margin = Margin(m2=low + (high - low) * (a - shortest) / (longest - shortest), beyond_pi=beyond_pi)
    g = a / longest**2 + 1 / a
    loss = margin_softmax_loss(embeddings, prototypes, labels, margin, scale, label_smoothing)
    return loss + weight * jnp.mean(g)


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
) -> tuple[Array, Array, Array]:
    """AdaFace: the own class has s (cos(theta - m z) - m z - m), z in [-1, 1] from the embedding's length.

    n = |x|, clipped to [0.001, 100] and a constant for the gradient, stands for the image's quality, and
    z = clip(h (n - mean) / (std + 0.001), -1, 1) with running mean and std. AdaFace (Kim et al., CVPR 2022, arXiv
    2204.00964), section 3; theta - m z is clipped to [0, pi] here.

    Args:
      embeddings: [B, D], any float dtype.
      prototypes, labels, scale, label_smoothing: as in `margin_softmax_loss`.
      mean, std: of the lengths, scalars, as the step before left them; 20 and 100 at first.
      m: the margin, >= 0.
      h: how many standard deviations 1 / h make z = 1; >= 0.
      rate: the share of the batch in the new mean and std, in [0, 1].

    Returns:
      The loss, the new mean and the new std, scalars in float32 (float64 for float64). The standard deviation is that
      of a sample (B - 1), and 0 for a batch of 1. The loss is NaN inside jit if a label lies outside [0, C).

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
    cosine = cosines(embeddings, prototypes)
    labels = checked_labels(labels, *cosine.shape)
    n = jax.lax.stop_gradient(jnp.clip(lengths(embeddings), 0.001, 100))
    of_batch = jnp.sqrt(jnp.sum((n - jnp.mean(n)) ** 2) / max(1, len(n) - 1))
    mean = jax.lax.stop_gradient(rate * jnp.mean(n) + (1 - rate) * jnp.asarray(mean, n.dtype))
    std = jax.lax.stop_gradient(rate * of_batch + (1 - rate) * jnp.asarray(std, n.dtype))
    z = jnp.clip((n - mean) / (std + 0.001) * h, -1, 1)
    theta = jnp.clip(angles(own_class(cosine, labels)) - m * z, 0, math.pi)
    own = jnp.cos(theta) - m * z - m
    return softmax_loss(scale * with_own_class(cosine, labels, own), labels, label_smoothing), mean, std
