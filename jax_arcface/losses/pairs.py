"""Losses of pairs and triplets of a batch: embeddings of one class are drawn together, those of two pushed apart.

Throughout, c is the cosine of two embeddings of the batch; an anchor's positives are the other examples of its class,
its negatives those of other classes. With weights w, what is summed up or averaged over pairs i, j has the weights
w_i w_j, over triplets w_a w_p w_n, and over the others of an anchor w_j; an example of weight 0 is in no pair. With
`reduction="none"` a pair or a triplet belongs to its anchor.
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
from jax_arcface.losses.memory import Memory
from jax_arcface.losses.mesh import gathered
from jax_arcface.losses.reduction import (
    Reduction,
    checked_reduction,
    checked_weights,
    reduce,
    share_out,
    without_ignored,
)
from jax_arcface.losses.vectors import bounded, checked_labels, cosines, squared_distances, upcast

Distance = Literal["l2", "angular"]
Mining = Literal["all", "hard", "semi_hard"]


def contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    m: float | Array = 1.0,
    distance: Distance = "l2",
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
) -> Array:
    """Contrastive loss: mean d^2 / 2 over pairs of one class + mean max(0, m - d)^2 / 2 over pairs of two.

    Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      m: the distance beyond which two classes are let alone, >= 0, in units of d.
      distance: of the normalised embeddings; `"l2"`, d = sqrt(2 - 2c), or `"angular"`, d = arccos c in radians.
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). Either mean is 0 where there is no such
      pair. Two classes' embeddings that coincide have no gradient.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and an unknown distance, or an m that is negative or not finite.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> print(contrastive_loss(x, jnp.array([0, 0, 1]), m=1.0).round(4))  # 2 / 2 + (0.1056^2 + 0.3675^2) / 4
    1.0366
    """
    _known(distance, Distance, "distance")
    checks.at_least_zero(m=m)
    cosine, positive, negative, weights, others = _pairs(embeddings, labels, weights, memory)
    squared = squared_distances(cosine) if distance == "l2" else angles(cosine) ** 2
    too_near = jax.nn.relu(m - _root(squared)) ** 2
    pair = None if weights is None or others is None else weights[:, None] * others
    return _mean(squared / 2, positive, pair, weights, reduction) + _mean(
        too_near / 2, negative, pair, weights, reduction
    )


def triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    m: float | Array = 0.35,
    distance: Distance = "angular",
    mining: Mining = "all",
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
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
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64); 0 without a triplet.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and an unknown distance or mining, or an m that is not >= 0 and finite.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> print(triplet_loss(x, jnp.array([0, 0, 1]), m=0.5).round(4))  # only the second is as near to the third
    0.5
    """
    _known(distance, Distance, "distance")
    _known(mining, Mining, "mining")
    checks.at_least_zero(m=m)
    cosine, positive, negative, w, others = _pairs(embeddings, labels, weights, memory)
    if cosine.size == 0:
        return reduce(cosine.ravel(), None, reduction)  # of no examples there is no nearest
    d = angles(cosine) if distance == "angular" else squared_distances(cosine)
    if mining == "all":
        sums, counts = _all_triplets(d, positive, negative, m, w, others)
        return share_out(sums, jnp.sum(counts), w, reduction)
    has_negative = jnp.any(negative, axis=1)
    if mining == "hard":
        p = jnp.argmax(jnp.where(positive, d, -jnp.inf), axis=1)
        n = jnp.argmin(jnp.where(negative, d, jnp.inf), axis=1)
        losses = jax.nn.relu(_take(d, p[:, None]) + m - _take(d, n[:, None]))[:, 0]
        triplet = None if w is None or others is None else w * others[p] * others[n]
        return _mean(losses, jnp.any(positive, axis=1) & has_negative, triplet, w, reduction)
    n = jax.vmap(_semi_hard)(d, negative)
    triplet = None if w is None or others is None else w[:, None] * others * others[n]
    return _mean(jax.nn.relu(d + m - _take(d, n)), positive & has_negative[:, None], triplet, w, reduction)


@jax.jit
def _all_triplets(
    d: Array, positive: Array, negative: Array, m: Array, w: Array | None, others: Array | None
) -> tuple[Array, Array]:
    """Of each anchor the sum of its positive losses, and their number; weighted, where there are weights."""

    @jax.checkpoint
    def of_anchor(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        d, positive, negative = row
        losses = jax.nn.relu(d[:, None] + m - d)
        counts = positive[:, None] & negative & (losses != 0)  # NaN counts
        if others is None:
            return jnp.sum(jnp.where(counts, losses, 0)), jnp.sum(counts)
        pair = others[:, None] * others
        return jnp.sum(jnp.where(counts, pair * losses, 0)), jnp.sum(jnp.where(counts, pair, 0))

    sums, counts = jax.lax.map(of_anchor, (d, positive, negative))  # [B, B] at a time, not [B, B, B]
    counts = counts.astype(d.dtype)  # there may be more than 2^31
    return (sums, counts) if w is None else (w * sums, w * counts)


def _semi_hard(d: Array, negative: Array) -> Array:
    """For an anchor and each positive, [B]: the nearest negative that is farther, else the farthest."""
    negatives = jnp.where(negative, d, jnp.inf)
    nearest_first = jnp.argsort(negatives)
    place = jnp.searchsorted(negatives[nearest_first], d, side="right")
    farthest = jnp.argmax(jnp.where(negative, d, -jnp.inf))
    return jnp.where(place < jnp.sum(negative), nearest_first[place.clip(max=len(d) - 1)], farthest)


def circle_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    m: float | Array = 0.25,
    gamma: float | Array = 256.0,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
) -> Array:
    """Circle loss: mean log(1 + sum_n exp(gamma a_n (c_n - m)) sum_p exp(-gamma a_p (c_p - 1 + m))).

    a_n = max(0, c_n + m) and a_p = max(0, 1 + m - c_p) are constants for the gradient. Circle Loss (Sun et al., CVPR
    2020, arXiv 2002.10857), equations 6 to 8.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      m: the margin, >= 0, in units of cosine.
      gamma: the scale, >= 0.
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64): the mean over anchors that have a
      positive and a negative; 0 without one.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and an m or gamma that is negative or not finite.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(circle_loss(x, jnp.array([0, 0, 1]), gamma=1.0).round(4))  # log(1 + exp(-2 m^2))
    0.6326
    """
    checks.at_least_zero(m=m, gamma=gamma)
    cosine, positive, negative, weights, others = _pairs(embeddings, labels, weights, memory)
    constant = jax.lax.stop_gradient(cosine)
    a_n, a_p = jax.nn.relu(constant + m), jax.nn.relu(1 + m - constant)
    push = _log_sum_exp(gamma * a_n * (cosine - m), negative, others)
    pull = _log_sum_exp(-gamma * a_p * (cosine - 1 + m), positive, others)
    counts = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
    return _mean(jax.nn.softplus(push + pull), counts, weights, weights, reduction)


def multi_similarity_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    alpha: float | Array = 2.0,
    beta: float | Array = 50.0,
    base: float | Array = 1.0,
    epsilon: float | Array = 0.1,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
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
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). An anchor without positives or without
      negatives contributes 0.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and a parameter out of range.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> print(multi_similarity_loss(x, jnp.array([0, 0, 1]), 1.0, 1.0, base=0.0).round(4))  # (3 log 2 + log(1 + e)) / 3
    1.1309
    """
    checks.positive(alpha=alpha, beta=beta)
    checks.at_least_zero(epsilon=epsilon)
    cosine, positive, negative, weights, others = _pairs(embeddings, labels, weights, memory)
    if cosine.size == 0:
        return reduce(cosine.ravel(), None, reduction)
    nearest_negative = jnp.max(jnp.where(negative, cosine, -jnp.inf), axis=1, keepdims=True)
    farthest_positive = jnp.min(jnp.where(positive, cosine, jnp.inf), axis=1, keepdims=True)
    is_easy = jnp.where(positive, cosine >= nearest_negative + epsilon, cosine <= farthest_positive - epsilon)
    pull = _log_sum_exp(-alpha * (cosine - base), positive & ~is_easy, others)  # not `is_hard`: NaN counts
    push = _log_sum_exp(beta * (cosine - base), negative & ~is_easy, others)
    return reduce(jax.nn.softplus(pull) / alpha + jax.nn.softplus(push) / beta, weights, reduction)


def supcon_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    tau: float | Array = 0.1,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
) -> Array:
    """Supervised contrastive loss: -(1 / |P|) sum_p log(exp(c_p / tau) / sum_{a != i} exp(c_a / tau)).

    The mean over anchors i that have a positive; P are the anchor's positives. SupCon (Khosla et al., NeurIPS 2020,
    arXiv 2004.11362), equation 2.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      tau: the temperature, > 0.
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64); 0 where no class has two examples.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and a tau that is not > 0 and finite.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{supcon_loss(x, jnp.array([0, 0, 1]), tau=1.0):.4f}")  # log(1 + 1 / e)
    0.3133
    """
    checks.positive(tau=tau)
    cosine, positive, negative, weights, others = _pairs(embeddings, labels, weights, memory)
    logits = cosine / tau
    log_share = logits - _log_sum_exp(logits, positive | negative, others)[:, None]
    share = jnp.where(positive, 1 if others is None else others, 0)
    count = jnp.sum(share, axis=1)
    of_anchor = -jnp.sum(jnp.where(positive, share * log_share, 0), axis=1) / jnp.where(count == 0, 1, count)
    return _mean(of_anchor, jnp.any(positive, axis=1), weights, weights, reduction)


def marginal_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    theta: float | Array = 1.2,
    xi: float | Array = 0.3,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
    memory: Memory | None = None,
) -> Array:
    """Marginal loss: the mean over pairs of max(0, xi - t (theta - d^2)), t = 1 in one class and -1 in two.

    d^2 = 2 - 2c is the squared distance of the normalised embeddings: pairs of one class are to be closer than
    theta - xi, others farther than theta + xi. Marginal Loss (Deng et al., CVPR Workshops 2017), equation 3.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], any integers.
      theta: the threshold of d^2, >= 0.
      xi: the margin on either side of it, >= 0.
      reduction, weights: as in `softmax_loss`.
      memory: embeddings of earlier batches, which are positives and negatives, too (`memory.py`).

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64); 0 for a batch of 1.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and a parameter that is negative or not finite.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(marginal_loss(x, jnp.array([0, 0])).round(4), marginal_loss(x, jnp.array([0, 1])))  # 0.3 + 0.8, 0.3 - 0.8
    1.1 0.0
    """
    checks.at_least_zero(theta=theta, xi=xi)
    cosine, positive, negative, weights, others = _pairs(embeddings, labels, weights, memory)
    beyond = squared_distances(cosine) - theta
    losses = jax.nn.relu(xi + jnp.where(positive, beyond, -beyond))
    pair = None if weights is None or others is None else weights[:, None] * others
    return _mean(losses, positive | negative, pair, weights, reduction)


def range_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    k: int = 2,
    alpha: float | Array = 5e-5,
    beta: float | Array = 1e-4,
    margin: float | Array = 2e4,
    *,
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """Range loss: large distances within classes and small ones between their means, over the classes in the batch.

    alpha * sum over classes of the harmonic mean of the k largest squared distances within the class
    + beta * max(0, margin - the smallest squared distance of two class means). Range Loss (Zhang et al., ICCV 2017,
    arXiv 1611.08976), equations 3 to 7. With weights w the harmonic mean is the weighted one, a pair's weight w_i w_j,
    and so are the class means.

    Args:
      embeddings: [B, D], any float dtype; not normalised. Entries beyond +-2^40 count as that, without gradient.
      labels: [B], any integers.
      k: pairs of a class, each pair counting once, >= 1; a class that has fewer takes those.
      alpha, beta: weights, >= 0.
      margin: between class means, >= 0, a squared distance.
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] with `reduction="none"`, where each example has an equal share of its class's part and of the
      second part; float32 (float64 for float64). A class without a pair adds nothing, nor does one with a
      distance of 0 among its k largest; with one class there is no second part.

    Raises:
      ValueError, TypeError: as `softmax_loss`; and a parameter out of range.

    >>> x = jnp.array([[0.0], [1.0], [3.0], [9.0]])
    >>> print(range_loss(x, jnp.array([7, 7, 7, 8]), alpha=1.0, beta=0.0).round(4))  # 2 / (1 / 9 + 1 / 4)
    5.5385
    """
    checks.whole(k=k)
    checks.at_least_zero(alpha=alpha, beta=beta, margin=margin)
    embeddings, labels, weights = _checked(embeddings, labels, weights)
    checked_reduction(reduction)
    x = bounded(embeddings)
    if len(x) == 0:
        return reduce(jnp.sum(x, axis=1), None, reduction)
    w = jnp.ones(len(x), x.dtype) if weights is None else weights.astype(x.dtype)
    class_, within, between = _range_parts(x, labels, w, int(k), margin)
    if reduction == "mean":
        return alpha * jnp.sum(within) + beta * between
    of_class = jnp.zeros_like(w).at[class_].add(w)  # the weight of the class that an example is the first of
    of_class = jnp.where(of_class == 0, 1, of_class)
    return w * (alpha * jnp.sum(w) * (within / of_class)[class_] + beta * between)


@functools.partial(jax.jit, static_argnums=3)
def _range_parts(x: Array, labels: Array, w: Array, k: int, margin: Array) -> tuple[Array, Array, Array]:
    """The class of each example, by the number of its first one, [B]; for each such number the class's part; and the
    part of the two nearest means.
    """
    class_ = jnp.argmax(labels[:, None] == labels, axis=1)
    i, j, exists = _farthest_pairs(x, class_, w > 0, k)
    within = _harmonic_mean(jnp.sum((x[i] - x[j]) ** 2, axis=-1), w[i] * w[j], exists)
    same = class_[:, None] == class_
    of_class = jnp.where(same, w, 0)
    means = jnp.matmul(of_class, x, precision=jax.lax.Precision.HIGHEST)
    total = jnp.sum(of_class, axis=1, keepdims=True)
    means = means / jnp.where(total == 0, 1, total)  # of each example's class
    counts = ~same & (w > 0) & (w > 0)[:, None]
    i, j = jnp.divmod(jnp.argmin(jnp.where(counts, _constant_squared_distances(means), jnp.inf)), len(x))
    between = jnp.where(counts[i, j], jax.nn.relu(margin - jnp.sum((means[i] - means[j]) ** 2)), 0)
    return class_, within, between


def _farthest_pairs(x: Array, class_: Array, is_present: Array, k: int) -> tuple[Array, Array, Array]:
    """For each class the k pairs i, j with the largest distance, and whether there are as many; all [B, k]."""
    number = jnp.arange(len(x))
    is_pair = (class_[:, None] == class_) & (number[:, None] < number) & is_present[:, None] & is_present
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


def _harmonic_mean(values: Array, weights: Array, counts: Array) -> Array:
    """Of those that count, along the last axis; 0 where one of them is 0 and where there are none."""
    unit = jax.lax.stop_gradient(jnp.min(jnp.where(counts, values, jnp.inf), axis=-1, keepdims=True))
    is_zero = (unit < jnp.finfo(values.dtype).tiny) | (unit == jnp.inf)
    unit = jnp.where(is_zero, 1, unit)
    in_units = jnp.where(is_zero, 1, jnp.where(counts, values / unit, jnp.inf))  # at least 1: reciprocals fit
    weights = jnp.where(is_zero, 1, jnp.where(counts, weights, 0))
    mean = unit * jnp.sum(weights, axis=-1, keepdims=True) / jnp.sum(weights / in_units, axis=-1, keepdims=True)
    return jnp.where(is_zero, 0, mean)[..., 0]


# What they share ---------------------------------------------------------------------------------------------------


def _pairs(
    embeddings: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, memory: Memory | None
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """The cosine of each two examples, whether they are two of one class, and whether they are of two, all [B, B + M].

    The others of an anchor are the batch and then the memory, M = 0 where there is none. Two of which one has the
    weight 0 are neither. The checked weights come last, of the anchors and of the others.
    """
    if memory is not None:
        labels = jnp.asarray(labels)  # not numbered anew: the memory's are as they were given
    embeddings, labels, weights = _checked(embeddings, labels, weights)
    embeddings = upcast(embeddings)  # once, so that a gradient that saturates does so as a whole
    everyone, of_everyone, others = embeddings, labels, weights
    if memory is not None:
        everyone = jnp.concatenate([embeddings, jax.lax.stop_gradient(upcast(memory.embeddings))])
        of_everyone = jnp.concatenate([labels, memory.labels])
        if weights is not None:
            others = jnp.concatenate([weights, jnp.ones(len(memory.labels), weights.dtype)])
    cosine = cosines(embeddings, everyone)
    same = labels[:, None] == of_everyone
    positive, negative = same & ~jnp.eye(len(labels), same.shape[1], dtype=bool), ~same
    if memory is not None:
        is_there = jnp.concatenate([jnp.ones(len(labels), bool), memory.is_taken])
        positive, negative = positive & is_there, negative & is_there
    if weights is not None and others is not None:
        weights, others = weights.astype(cosine.dtype), others.astype(cosine.dtype)
        both = (weights != 0)[:, None] & (others != 0)
        positive, negative = positive & both, negative & both
    return cosine, positive, negative, weights, others


def _checked(embeddings: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    """All of them checked, and whole on each device; an embedding whose weight is 0 is 0."""
    embeddings = jnp.asarray(embeddings)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {embeddings.shape}; they must be [B, D]")
    weights = checked_weights(weights, len(embeddings))
    embeddings, labels = without_ignored(embeddings, weights), checked_labels(labels, len(embeddings))
    return gathered(embeddings), gathered(labels), None if weights is None else gathered(weights)


def _known(value: str, kind: object, name: str) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(kind)))}")


def _mean(values: Array, counts: Array, share: Array | None, weights: Array | None, reduction: Reduction) -> Array:
    """Of those that count, [B] or [B, B], each with its share (None: all alike); 0 where there are none."""
    if share is None:
        return share_out(jnp.where(counts, values, 0), jnp.sum(counts), weights, reduction)
    parts, total = jnp.where(counts, share * values, 0), jnp.sum(jnp.where(counts, share, 0))
    return share_out(parts, total, weights, reduction)


def _log_sum_exp(values: Array, counts: Array, weights: Array | None) -> Array:
    """Of those that count in each row, weighted; minus infinity, without gradient, where there are none."""
    if weights is not None:
        values = values + jnp.log(jnp.where(weights == 0, 1, weights))
    none = ~jnp.any(counts, axis=1)
    sums = jax.nn.logsumexp(jnp.where(counts | none[:, None], values, -jnp.inf), axis=1)
    return jnp.where(none, -jnp.inf, sums)


def _root(values: Array) -> Array:
    """The square root, without gradient at 0, where its derivative is infinite."""
    return jnp.where(values == 0, 0, jnp.sqrt(jnp.where(values == 0, 1, values)))


def _take(values: Array, columns: Array) -> Array:
    return jnp.take_along_axis(values, columns, axis=1)
