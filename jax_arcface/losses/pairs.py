"""Losses of pairs and triplets of a batch: embeddings of one class are drawn together, those of two pushed apart.

Throughout, c is the cosine of two embeddings of the batch; an anchor's positives are the other examples of its class,
its negatives those of other classes.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import angles
from jax_arcface.losses.vectors import bounded, checked_labels, cosines, squared_distances, upcast

Distance = Literal["l2", "angular"]
Mining = Literal["all", "hard", "semi_hard"]


def contrastive_loss(
    embeddings: ArrayLike, labels: ArrayLike, m: float | Array = 1.0, distance: Distance = "l2"
) -> Array:
    """Contrastive loss: mean d^2 / 2 over pairs of one class + mean max(0, m - d)^2 / 2 over pairs of two.

    Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      m: the distance beyond which two classes are let alone, >= 0, in units of d.
      distance: of the normalised embeddings; `"l2"`, d = sqrt(2 - 2c), or `"angular"`, d = arccos c in radians.

    Returns:
      A scalar, float32 (float64 for float64). Either mean is 0 where there is no such pair. Two classes' embeddings
      that coincide have no gradient.

    Raises:
      ValueError: shapes that do not fit, an unknown distance, or an m that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> print(contrastive_loss(x, jnp.array([0, 0, 1]), m=1.0).round(4))  # 2 / 2 + (0.1056^2 + 0.3675^2) / 4
    1.0366
    """
    _known(distance, Distance, "distance")
    checks.at_least_zero(m=m)
    cosine, positive, negative = _pairs(embeddings, labels)
    squared = squared_distances(cosine) if distance == "l2" else angles(cosine) ** 2
    return _mean(squared / 2, positive) + _mean(jax.nn.relu(m - _root(squared)) ** 2 / 2, negative)


def triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    m: float | Array = 0.35,
    distance: Distance = "angular",
    mining: Mining = "all",
) -> Array:
    """Triplet loss: max(0, d(a, p) + m - d(a, n)), p of the anchor's class and n of another.

    FaceNet (Schroff et al., CVPR 2015, arXiv 1503.03832), equation 1, with squared distances and m = 0.2; ArcFace (Deng
    et al., CVPR 2019), section 2.3, with angles and, in its table 2, m = 0.35; "In Defense of the Triplet Loss"
    (Hermans et al. 2017, arXiv 1703.07737), equations 5 and 6, for the mean over the positive losses and for the
    hardest pairs.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      m: the margin, >= 0, in units of d.
      distance: of the normalised embeddings; `"angular"`, d = arccos c in radians, or `"l2"`, d = 2 - 2c, squared.
      mining: `"all"`: the mean over the triplets whose loss is positive;
        `"hard"`: for each anchor its farthest positive and its nearest negative;
        `"semi_hard"`: for each anchor and positive the nearest negative that is farther than the positive, else the
        farthest negative. A tie's gradient goes to the first.

    Returns:
      A scalar, float32 (float64 for float64); 0 without a triplet.

    Raises:
      ValueError: shapes that do not fit, an unknown distance or mining, or an m that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> print(triplet_loss(x, jnp.array([0, 0, 1]), m=0.5).round(4))  # only the second is as near to the third
    0.5
    """
    _known(distance, Distance, "distance")
    _known(mining, Mining, "mining")
    checks.at_least_zero(m=m)
    cosine, positive, negative = _pairs(embeddings, labels)
    if cosine.size == 0:
        return jnp.sum(cosine)  # of no examples there is no nearest
    d = angles(cosine) if distance == "angular" else squared_distances(cosine)
    if mining == "all":
        return _all_triplets(d, positive, negative, m)
    has_negative = jnp.any(negative, axis=1)
    if mining == "hard":
        farthest = _take(d, jnp.argmax(jnp.where(positive, d, -jnp.inf), axis=1, keepdims=True))
        nearest = _take(d, jnp.argmin(jnp.where(negative, d, jnp.inf), axis=1, keepdims=True))
        return _mean(jax.nn.relu(farthest + m - nearest)[:, 0], jnp.any(positive, axis=1) & has_negative)
    semi_hard = _take(d, jax.vmap(_semi_hard)(d, negative))
    return _mean(jax.nn.relu(d + m - semi_hard), positive & has_negative[:, None])


@jax.jit
def _all_triplets(d: Array, positive: Array, negative: Array, m: Array) -> Array:
    @jax.checkpoint
    def of_anchor(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        d, positive, negative = row
        losses = jax.nn.relu(d[:, None] + m - d)
        counts = positive[:, None] & negative & (losses != 0)  # NaN counts
        return jnp.sum(jnp.where(counts, losses, 0)), jnp.sum(counts)

    sums, counts = jax.lax.map(of_anchor, (d, positive, negative))  # [B, B] at a time, not [B, B, B]
    return jnp.sum(sums) / jnp.maximum(1, jnp.sum(counts.astype(d.dtype)))  # there may be more than 2^31


def _semi_hard(d: Array, negative: Array) -> Array:
    """For an anchor and each positive, [B]: the nearest negative that is farther, else the farthest."""
    negatives = jnp.where(negative, d, jnp.inf)
    nearest_first = jnp.argsort(negatives)
    place = jnp.searchsorted(negatives[nearest_first], d, side="right")
    farthest = jnp.argmax(jnp.where(negative, d, -jnp.inf))
    return jnp.where(place < jnp.sum(negative), nearest_first[place.clip(max=len(d) - 1)], farthest)


def circle_loss(
    embeddings: ArrayLike, labels: ArrayLike, m: float | Array = 0.25, gamma: float | Array = 256.0
) -> Array:
    """Circle loss: mean log(1 + sum_n exp(gamma a_n (c_n - m)) sum_p exp(-gamma a_p (c_p - 1 + m))).

    a_n = max(0, c_n + m) and a_p = max(0, 1 + m - c_p) are constants for the gradient. Circle Loss (Sun et al., CVPR
    2020, arXiv 2002.10857), equations 6 to 8.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      m: the margin, >= 0, in units of cosine.
      gamma: the scale, >= 0.

    Returns:
      A scalar, float32 (float64 for float64): the mean over anchors that have a positive and a negative; 0 without one.

    Raises:
      ValueError: shapes that do not fit, or an m or gamma that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(circle_loss(x, jnp.array([0, 0, 1]), gamma=1.0).round(4))  # log(1 + exp(-2 m^2))
    0.6326
    """
    checks.at_least_zero(m=m, gamma=gamma)
    cosine, positive, negative = _pairs(embeddings, labels)
    constant = jax.lax.stop_gradient(cosine)
    a_n, a_p = jax.nn.relu(constant + m), jax.nn.relu(1 + m - constant)
    push = _log_sum_exp(gamma * a_n * (cosine - m), negative)
    pull = _log_sum_exp(-gamma * a_p * (cosine - 1 + m), positive)
    return _mean(jax.nn.softplus(push + pull), jnp.any(positive, axis=1) & jnp.any(negative, axis=1))


def multi_similarity_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    alpha: float | Array = 2.0,
    beta: float | Array = 50.0,
    base: float | Array = 1.0,
    epsilon: float | Array = 0.1,
) -> Array:
    """Multi-similarity loss: soft maxima of the distances to positives and of the nearness of negatives.

    The mean over all anchors of log(1 + sum_p exp(-alpha (c_p - base))) / alpha + log(1 + sum_n exp(beta (c_n -
    base))) / beta. A positive counts where c_p < max c_n + epsilon, a negative where c_n > min c_p -
    epsilon. Multi-Similarity Loss (Wang et al., CVPR 2019, arXiv 1904.06627), equations 11, 12 and 15.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      alpha, beta: how sharply positives and negatives are weighted, > 0.
      base: lambda of the paper, a cosine.
      epsilon: of the mining, >= 0, in units of cosine.

    Returns:
      A scalar, float32 (float64 for float64). An anchor without positives or without negatives contributes 0,
      and an empty batch has the loss 0.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> print(multi_similarity_loss(x, jnp.array([0, 0, 1]), 1.0, 1.0, base=0.0).round(4))  # (3 log 2 + log(1 + e)) / 3
    1.1309
    """
    checks.positive(alpha=alpha, beta=beta)
    checks.at_least_zero(epsilon=epsilon)
    cosine, positive, negative = _pairs(embeddings, labels)
    if cosine.size == 0:
        return jnp.sum(cosine)
    nearest_negative = jnp.max(jnp.where(negative, cosine, -jnp.inf), axis=1, keepdims=True)
    farthest_positive = jnp.min(jnp.where(positive, cosine, jnp.inf), axis=1, keepdims=True)
    is_easy = jnp.where(positive, cosine >= nearest_negative + epsilon, cosine <= farthest_positive - epsilon)
    pull = _log_sum_exp(-alpha * (cosine - base), positive & ~is_easy)  # not `is_hard`: NaN counts
    push = _log_sum_exp(beta * (cosine - base), negative & ~is_easy)
    return jnp.mean(jax.nn.softplus(pull) / alpha + jax.nn.softplus(push) / beta)


def supcon_loss(embeddings: ArrayLike, labels: ArrayLike, tau: float | Array = 0.1) -> Array:
    """Supervised contrastive loss: -(1 / |P|) sum_p log(exp(c_p / tau) / sum_{a != i} exp(c_a / tau)).

    The mean over anchors i that have a positive; P are the anchor's positives. SupCon (Khosla et al., NeurIPS 2020,
    arXiv 2004.11362), equation 2.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      tau: the temperature, > 0.

    Returns:
      A scalar, float32 (float64 for float64); 0 where no class has two examples.

    Raises:
      ValueError: shapes that do not fit, or a tau that is not > 0 and finite.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{supcon_loss(x, jnp.array([0, 0, 1]), tau=1.0):.4f}")  # log(1 + 1 / e)
    0.3133
    """
    checks.positive(tau=tau)
    cosine, positive, negative = _pairs(embeddings, labels)
    logits = cosine / tau
    log_share = logits - _log_sum_exp(logits, positive | negative)[:, None]
    count = jnp.sum(positive, axis=1)
    of_anchor = -jnp.sum(jnp.where(positive, log_share, 0), axis=1) / jnp.maximum(1, count)
    return _mean(of_anchor, count > 0)


def marginal_loss(
    embeddings: ArrayLike, labels: ArrayLike, theta: float | Array = 1.2, xi: float | Array = 0.3
) -> Array:
    """Marginal loss: the mean over pairs of max(0, xi - t (theta - d^2)), t = 1 in one class and -1 in two.

    d^2 = 2 - 2c is the squared distance of the normalised embeddings: pairs of one class are to be closer than
    theta - xi, others farther than theta + xi. Marginal Loss (Deng et al., CVPR Workshops 2017), equation 3.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      theta: the threshold of d^2, >= 0.
      xi: the margin on either side of it, >= 0.

    Returns:
      A scalar, float32 (float64 for float64); 0 for a batch of 1.

    Raises:
      ValueError: shapes that do not fit, or a parameter that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(marginal_loss(x, jnp.array([0, 0])).round(4), marginal_loss(x, jnp.array([0, 1])))  # 0.3 + 0.8, 0.3 - 0.8
    1.1 0.0
    """
    checks.at_least_zero(theta=theta, xi=xi)
    cosine, positive, negative = _pairs(embeddings, labels)
    beyond = squared_distances(cosine) - theta
    return _mean(jax.nn.relu(xi + jnp.where(positive, beyond, -beyond)), positive | negative)


def range_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    k: int = 2,
    alpha: float | Array = 5e-5,
    beta: float | Array = 1e-4,
    margin: float | Array = 2e4,
) -> Array:
    """Range loss: large distances within classes and small ones between their means, over the classes in the batch.

    alpha * sum over classes of the harmonic mean of the k largest squared distances within the class
    + beta * max(0, margin - the smallest squared distance of two class means). Range Loss (Zhang et al., ICCV 2017,
    arXiv 1611.08976), equations 3 to 7.

    Args:
      embeddings: [B, D], any float dtype; not normalised. Entries beyond +-2^40 count as that, without gradient.
      labels: [B], any integers.
      k: pairs of a class, each pair counting once, >= 1; a class that has fewer takes those.
      alpha, beta: weights, >= 0.
      margin: between class means, >= 0, a squared distance.

    Returns:
      A scalar, float32 (float64 for float64). A class without a pair adds nothing, nor does one with a distance of 0
      among its k largest; with one class there is no second part. An empty batch has the loss 0.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x = jnp.array([[0.0], [1.0], [3.0], [9.0]])
    >>> print(range_loss(x, jnp.array([7, 7, 7, 8]), alpha=1.0, beta=0.0).round(4))  # 2 / (1 / 9 + 1 / 4)
    5.5385
    """
    checks.whole(k=k)
    checks.at_least_zero(alpha=alpha, beta=beta, margin=margin)
    embeddings, labels = _checked(embeddings, labels)
    if embeddings.size == 0:
        return jnp.sum(bounded(embeddings))
    return _range_loss(embeddings, labels, int(k), alpha, beta, margin)


@functools.partial(jax.jit, static_argnums=2)
def _range_loss(x: Array, labels: Array, k: int, alpha: Array, beta: Array, margin: Array) -> Array:
    x = bounded(x)
    class_ = jnp.argmax(labels[:, None] == labels, axis=1)  # a class goes by the number of its first example
    i, j, exists = _farthest_pairs(x, class_, k)
    within = _harmonic_mean(jnp.sum((x[i] - x[j]) ** 2, axis=-1), exists)
    same = class_[:, None] == class_
    means = jnp.matmul(same.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST)
    means = means / jnp.sum(same, axis=1, keepdims=True)  # of each example's class
    i, j = jnp.divmod(jnp.argmin(jnp.where(same, jnp.inf, _constant_squared_distances(means))), len(x))
    between = jnp.where(same[i, j], 0, jax.nn.relu(margin - jnp.sum((means[i] - means[j]) ** 2)))
    return alpha * jnp.sum(within) + beta * between


def _farthest_pairs(x: Array, class_: Array, k: int) -> tuple[Array, Array, Array]:
    """For each class the k pairs i, j with the largest distance, and whether there are as many; all [B, k]."""
    number = jnp.arange(len(x))
    is_pair = (class_[:, None] == class_) & (number[:, None] < number)
    of_class = jnp.where(is_pair, class_[:, None], len(x)).ravel()  # what is no pair comes last
    order = jnp.lexsort((-_constant_squared_distances(x).ravel(), of_class))
    start = jnp.searchsorted(of_class[order], number)
    pair = order[(start[:, None] + jnp.arange(k)).clip(max=len(order) - 1)]
    i, j = jnp.divmod(pair, len(x))
    return i, j, of_class[pair] == number[:, None]


def _constant_squared_distances(x: Array) -> Array:
    """[B, B], without gradient: which pair is the farthest is a constant."""
    x = jax.lax.stop_gradient(x)
    return jnp.sum((x[:, None] - x) ** 2, axis=-1)  # not from products, which lose what is small


def _harmonic_mean(values: Array, counts: Array) -> Array:
    """Of those that count, along the last axis; 0 where one of them is 0 and where there are none."""
    unit = jax.lax.stop_gradient(jnp.min(jnp.where(counts, values, jnp.inf), axis=-1, keepdims=True))
    is_zero = (unit < jnp.finfo(values.dtype).tiny) | (unit == jnp.inf)
    unit = jnp.where(is_zero, 1, unit)
    in_units = jnp.where(is_zero, 1, jnp.where(counts, values / unit, jnp.inf))  # at least 1: reciprocals fit
    mean = unit * jnp.sum(counts, axis=-1, keepdims=True) / jnp.sum(1 / in_units, axis=-1, keepdims=True)
    return jnp.where(is_zero, 0, mean)[..., 0]


# What they share ---------------------------------------------------------------------------------------------------


def _pairs(embeddings: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    """The cosine of each two examples, whether they are two of one class, and whether they are of two; all [B, B]."""
    embeddings, labels = _checked(embeddings, labels)
    embeddings = upcast(embeddings)  # once, so that a gradient that saturates does so as a whole
    same = labels[:, None] == labels
    return cosines(embeddings, embeddings), same & ~jnp.eye(len(labels), dtype=bool), ~same


def _checked(embeddings: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    embeddings = jnp.asarray(embeddings)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {embeddings.shape}; they must be [B, D]")
    return embeddings, checked_labels(labels, len(embeddings))


def _known(value: str, kind: object, name: str) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(kind)))}")


def _mean(values: Array, counts: Array) -> Array:
    """Of those that count; 0 where there are none."""
    return jnp.sum(jnp.where(counts, values, 0)) / jnp.maximum(1, jnp.sum(counts))


def _log_sum_exp(values: Array, counts: Array) -> Array:
    """Of those that count in each row; minus infinity, without gradient, where there are none."""
    return jax.nn.logsumexp(jnp.where(counts, values, -jnp.inf), axis=1)


def _root(values: Array) -> Array:
    """The square root, without gradient at 0, where its derivative is infinite."""
    return jnp.where(values == 0, 0, jnp.sqrt(jnp.where(values == 0, 1, values)))


def _take(values: Array, columns: Array) -> Array:
    return jnp.take_along_axis(values, columns, axis=1)
