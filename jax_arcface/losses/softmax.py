"""From embeddings and prototypes to logits, and from logits to a scalar."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import Margin, target_cosine
from jax_arcface.losses.mesh import Shard, shard_of, varying_as
from jax_arcface.losses.reduction import Reduction, checked_weights, reduce, without_ignored
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
    shard = shard_of(prototypes, embeddings, labels)
    labels = checked_labels(labels, len(embeddings), shard.total)
    checks.positive(scale=scale)
    return _margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)


@jax.jit
def _margin_logits(
    embeddings: Array, prototypes: Array, labels: Array, margin: Margin, scale: Array, filter_above: Array | None
) -> Array:
    shard = shard_of(prototypes, embeddings, labels)
    cosine = cosines(embeddings, prototypes)
    margin = jax.tree.map(lambda m: jnp.broadcast_to(m, labels.shape), margin)
    psi = target_cosine(own_class(cosine, labels, shard), margin)
    if filter_above is not None:
        cosine = jnp.where(cosine > filter_above, 0, cosine)
    return with_own_class(cosine, labels, psi, shard) * one_or_nan(labels, shard.total)[:, None] * scale


def margin_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    label_smoothing: float = 0.0,
    filter_above: float | None = None,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """The margin softmax loss: cross entropy of `margin_logits` (ArcFace, equation 4).

    Pure; works under jit, vmap and grad, and on a mesh (`losses/mesh.py`).

    Args:
      embeddings, prototypes, labels, margin, scale, filter_above: as in `margin_logits`.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label outside
      [0, C).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(margin_softmax_loss(x, w, jnp.array([0]), Margin.cosface(0.35), scale=1.0).round(4))  # log(1 + e^-0.65)
    0.4201
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    shard = shard_of(prototypes, embeddings, labels, weights)
    labels = checked_labels(labels, len(embeddings), shard.total, weights)
    embeddings = without_ignored(embeddings, weights)
    logits = margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard)


def softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Cross entropy with integer labels: log sum_j exp(z_j) - z_y, computed as log(1 + sum_{j != y} exp(z_j - z_y)).

    The second form loses no digits where the loss is small.

    Args:
      logits: z, [B, C], any float dtype.
      labels: [B], integers in [0, C).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).
      reduction: `"mean"`, the mean over the batch, or `"none"`, each example's loss.
      weights: w, [B], numbers >= 0 or bools. The mean is then sum(w l) / sum(w), 0 where all are 0, and `"none"` gives
        w l. An example of weight 0 counts as if it were not in the batch.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label outside
      [0, C). A batch of no examples has the loss 0.

    Raises:
      ValueError: shapes that do not fit, a label smoothing outside [0, 1), an unknown reduction, or, outside jit, a
        label outside [0, C) or a weight that is below 0 or not finite.
      TypeError: labels that are not integers, or weights that are not numbers.

    >>> print(softmax_loss(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4))  # log 4
    1.3863
    >>> print(softmax_loss(jnp.eye(2), jnp.array([0, 0]), reduction="none").round(2))  # log(1 + 1 / e), log(1 + e)
    [0.31 1.31]
    """
    logits = jnp.asarray(logits)
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; they must be [B, C]")
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, Shard(logits.shape[1]))


def sharded_softmax_loss(
    logits: Array,
    labels: ArrayLike,
    label_smoothing: float,
    reduction: Reduction,
    weights: ArrayLike | None,
    shard: Shard,
) -> Array:
    """`softmax_loss` of logits whose columns are a part of the classes, those of this device."""
    checks.below_one(label_smoothing=label_smoothing)
    weights = checked_weights(weights, len(logits))
    labels = checked_labels(labels, len(logits), shard.total, weights)
    logits = upcast(without_ignored(logits, weights))
    return reduce(_cross_entropy(logits, labels, label_smoothing, shard), weights, reduction)


def _cross_entropy(logits: Array, labels: Array, label_smoothing: float, shard: Shard) -> Array:
    """Of each example, [B]."""
    target = own_class(logits, labels, shard)
    others = with_own_class(logits, labels, jnp.full_like(target, -jnp.inf), shard)
    lowest = jnp.finfo(logits.dtype).min  # not -inf, which would make NaN of a lone class
    largest = shard.max(jax.lax.stop_gradient(jnp.max(others, axis=-1, initial=lowest)))
    total = shard.sum(jnp.sum(jnp.exp(others - largest[:, None]), axis=-1))
    none = total == 0  # no other class
    above = (largest - target) + jnp.log(jnp.where(none, 1, total))  # near numbers first: no digits are lost
    losses = jax.nn.softplus(jnp.where(none, -jnp.inf, above))
    if label_smoothing:
        losses += label_smoothing * shard.sum(jnp.sum(_spread(target, logits) - logits, axis=-1)) / shard.total
    return losses


def _spread(of_examples: Array, logits: Array) -> Array:
    """[B, 1], to go with logits [B, C] of this device: its gradient is added up here before it is over the mesh."""
    return varying_as(logits, of_examples)[:, None]


def linear_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    bias: ArrayLike,
    labels: ArrayLike,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Softmax loss of a linear layer, nothing normalised: cross entropy of W_j . x + b_j (ArcFace, equation 1).

    Args:
      embeddings: [B, D], any float dtype.
      prototypes: W, [C, D]. bias: b, [C].
      labels, label_smoothing, reduction, weights: as in `softmax_loss`, which also says what is raised.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(linear_softmax_loss(x, w, jnp.zeros(2), jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    logits = linear_logits(without_ignored(embeddings, weights), prototypes, bias)
    shard = shard_of(prototypes, embeddings, labels, weights)
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard)


def linear_logits(embeddings: ArrayLike, prototypes: ArrayLike, bias: ArrayLike) -> Array:
    """W_j . x + b_j, [B, C], of embeddings x [B, D], prototypes W [C, D] and bias b [C].

    Raises:
      ValueError: shapes that do not fit.

    >>> linear_logits(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0.0, 0.5]))
    Array([[2. , 0.5]], dtype=float32)
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    bias = jnp.asarray(bias)
    if prototypes.ndim != 2 or bias.shape != prototypes.shape[:1]:
        raise ValueError(f"prototypes {prototypes.shape} and bias {bias.shape} do not fit: they must be [C, D] and [C]")
    return jnp.matmul(upcast(embeddings), upcast(prototypes).T, precision=jax.lax.Precision.HIGHEST) + upcast(bias)


def modified_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Modified softmax loss: cross entropy of |x| cos(theta_j) (SphereFace, Liu et al., CVPR 2017, equation 5).

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing, reduction, weights: as in `softmax_loss`, which also says what is raised.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[9.0, 0.0], [0.0, 9.0]])
    >>> print(modified_softmax_loss(x, w, jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    embeddings = without_ignored(embeddings, weights)
    cosine = cosines(embeddings, prototypes)
    logits = _spread(lengths(embeddings), cosine) * cosine
    shard = shard_of(prototypes, embeddings, labels, weights)
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard)


def a_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    m: int = 4,
    lam: ArrayLike = 5.0,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """A-Softmax: cross entropy with |x| (lambda cos(theta) + psi(theta)) / (1 + lambda) for the example's own class.

    psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]; the other classes have
    |x| cos(theta_j). SphereFace (Liu et al., CVPR 2017), equation 7, with the annealing of its published training.

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing, reduction, weights: as in `softmax_loss`, which also says what is raised.
      m: the multiplicative margin, a whole number.
      lam: lambda, >= 0 and finite; see `annealed_lambda`.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits`; and an m or a lambda out of range.

    >>> x, w = jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(a_softmax_loss(x, w, jnp.array([0]), m=4, lam=0.0).round(3))  # psi(pi/2) = 1 - 4: log(1 + e^8)
    8.0
    """
    checks.whole(m=m)
    checks.at_least_zero(lam=lam)
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    weights = checked_weights(weights, len(embeddings))
    shard = shard_of(prototypes, embeddings, labels, weights)
    labels = checked_labels(labels, len(embeddings), shard.total, weights)
    embeddings = without_ignored(embeddings, weights)
    psi = margin_logits(embeddings, prototypes, labels, Margin.sphereface(m), scale=1.0)
    annealed = (lam * cosines(embeddings, prototypes) + psi) / (1 + lam)
    logits = _spread(lengths(embeddings), psi) * annealed
    return sharded_softmax_loss(logits, labels, label_smoothing, reduction, weights, shard)


def annealed_lambda(step: ArrayLike, first: float = 1000.0, last: float = 5.0, decay: float = 0.12) -> Array:
    """lambda of A-Softmax in step t, from 0: max(last, first / (1 + decay t)), as in SphereFace's published training.

    The published code starts one step later, at first / (1 + decay).

    >>> print(annealed_lambda(jnp.array([0, 75, 10000])))
    [1000.  100.    5.]
    """
    return jnp.maximum(last, first / (1 + decay * jnp.asarray(step, float)))
