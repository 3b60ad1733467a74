"""From embeddings and prototypes to logits, and from logits to a scalar."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import Margin, target_cosine
from jax_arcface.losses.vectors import (
    checked_labels,
    checked_vectors,
    cosines,
    lengths,
    one_or_nan,
    own_class,
    upcast,
    with_own_class,
)


def margin_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    filter_above: float | None = None,
) -> Array:
    """Logits with the margin on each example's own class: s psi(theta_y), and s cos(theta_j) elsewhere.

    Pure; works under jit, vmap and grad. ArcFace (Deng et al., CVPR 2019), equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class; only their direction counts.
      labels: [B], integers in [0, C).
      margin: see `Margin`; its numbers may be arrays [B], one for each example.
      scale: s, > 0, a scalar (checked where it is known outside jit).
      filter_above: a wrong class whose cosine exceeds this gets the logit 0 and no gradient: likely the same person
        under another name (inter-class filtering, as in the training code of ArcFace's authors). None filters nothing.

    Returns:
      [B, C] in float32 (float64 for float64). Inside jit and vmap labels cannot be looked at: an
      example whose label lies outside [0, C) gets NaN logits, never a wrong number.

    Raises:
      ValueError: shapes that do not fit, a scale that is not > 0 and finite, or, outside jit, a label outside [0, C).
      TypeError: labels that are not integers.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0], [0.0, -1.0]])
    >>> print(margin_logits(x, w, jnp.array([0]), Margin.arcface(0.5), scale=10.0).round(3))  # 10 cos(pi/4 + 0.5), 0
    [[2.815 0.   ]]
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    labels = checked_labels(labels, len(embeddings), len(prototypes))
    checks.positive(scale=scale)
    return _margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)


@jax.jit
def _margin_logits(
    embeddings: Array, prototypes: Array, labels: Array, margin: Margin, scale: Array, filter_above: Array | None
) -> Array:
    cosine = cosines(embeddings, prototypes)
    margin = jax.tree.map(lambda m: jnp.broadcast_to(m, labels.shape), margin)
    psi = target_cosine(own_class(cosine, labels), margin)
    if filter_above is not None:
        cosine = jnp.where(cosine > filter_above, 0, cosine)
    return with_own_class(cosine, labels, psi) * one_or_nan(labels, cosine.shape[1])[:, None] * scale


def margin_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    label_smoothing: float = 0.0,
    filter_above: float | None = None,
) -> Array:
    """The margin softmax loss, the mean over the batch: cross entropy of `margin_logits` (ArcFace, equation 4).

    Args:
      embeddings, prototypes, labels, margin, scale, filter_above: as in `margin_logits`.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(margin_softmax_loss(x, w, jnp.array([0]), Margin.cosface(0.35), scale=1.0).round(4))  # log(1 + e^-0.65)
    0.4201
    """
    logits = margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)
    return softmax_loss(logits, labels, label_smoothing)


def softmax_loss(logits: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0) -> Array:
    """Cross entropy with integer labels, the mean over the batch.

    Args:
      logits: [B, C], any float dtype.
      labels: [B], integers in [0, C).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).

    Returns:
      A scalar, float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError: shapes that do not fit, a label smoothing outside [0, 1), or, outside jit, a label outside [0, C).
      TypeError: labels that are not integers.

    >>> print(softmax_loss(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4))  # log 4
    1.3863
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    logits = upcast(jnp.asarray(logits))
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; they must be [B, C]")
    classes = logits.shape[1]
    labels = checked_labels(labels, *logits.shape)
    # none is larger: this keeps XLA from taking a product and its difference to the largest, rounded, as one, which for
    # large logits would be far from 0
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logits = jnp.where(logits > largest, largest, logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.clip(0, classes - 1))
    if label_smoothing:
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    return jnp.mean(losses * one_or_nan(labels, classes))


def linear_softmax_loss(
    embeddings: ArrayLike, weights: ArrayLike, bias: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0
) -> Array:
    """Softmax loss of a linear layer, nothing normalised: cross entropy of W_j . x + b_j (ArcFace, equation 1).

    Args:
      embeddings: [B, D], any float dtype.
      weights: W, [C, D]. bias: b, [C].
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.

    Returns:
      A scalar, float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(linear_softmax_loss(x, w, jnp.zeros(2), jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    return softmax_loss(linear_logits(embeddings, weights, bias), labels, label_smoothing)


def linear_logits(embeddings: ArrayLike, weights: ArrayLike, bias: ArrayLike) -> Array:
    """W_j . x + b_j, [B, C], of embeddings x [B, D], weights W [C, D] and bias b [C].

    Raises:
      ValueError: shapes that do not fit.

    >>> linear_logits(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0.0, 0.5]))
    Array([[2. , 0.5]], dtype=float32)
    """
    embeddings, weights = checked_vectors(embeddings, weights)
    bias = jnp.asarray(bias)
    if weights.ndim != 2 or bias.shape != weights.shape[:1]:
        raise ValueError(f"weights {weights.shape} and bias {bias.shape} do not fit: they must be [C, D] and [C]")
    return jnp.matmul(upcast(embeddings), upcast(weights).T, precision=jax.lax.Precision.HIGHEST) + upcast(bias)


def modified_softmax_loss(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0
) -> Array:
    """Modified softmax loss: cross entropy of |x| cos(theta_j) (SphereFace, Liu et al., CVPR 2017, equation 5).

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.

    Returns:
      A scalar, float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[9.0, 0.0], [0.0, 9.0]])
    >>> print(modified_softmax_loss(x, w, jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    return softmax_loss(lengths(embeddings)[:, None] * cosines(embeddings, prototypes), labels, label_smoothing)


def a_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    m: int = 4,
    lam: ArrayLike = 5.0,
    label_smoothing: float = 0.0,
) -> Array:
    """A-Softmax: cross entropy with |x| (lambda cos(theta) + psi(theta)) / (1 + lambda) for the example's own class.

    psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]; the other classes have
    |x| cos(theta_j). SphereFace (Liu et al., CVPR 2017), equation 7, with the annealing of its published training.

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.
      m: the multiplicative margin, a whole number.
      lam: lambda, >= 0 and finite; see `annealed_lambda`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits`; and an m or a lambda out of range.

    >>> x, w = jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(a_softmax_loss(x, w, jnp.array([0]), m=4, lam=0.0).round(3))  # psi(pi/2) = 1 - 4: log(1 + e^8)
    8.0
    """
    checks.whole(m=m)
    checks.at_least_zero(lam=lam)
    psi = margin_logits(embeddings, prototypes, labels, Margin.sphereface(m), scale=1.0)
    annealed = (lam * cosines(embeddings, prototypes) + psi) / (1 + lam)
    return softmax_loss(lengths(embeddings)[:, None] * annealed, labels, label_smoothing)


def annealed_lambda(step: ArrayLike, first: float = 1000.0, last: float = 5.0, decay: float = 0.12) -> Array:
    """lambda of A-Softmax in step t, from 0: max(last, first / (1 + decay t)), as in SphereFace's published training.

    The published code starts one step later, at first / (1 + decay).

    >>> print(annealed_lambda(jnp.array([0, 75, 10000])))
    [1000.  100.    5.]
    """
    return jnp.maximum(last, first / (1 + decay * jnp.asarray(step, float)))
