"""Losses of the pairs and triplets within a batch; they need no prototypes.

c is the cosine of two embeddings of the batch, p another example of the anchor's class, n an example of another class.

With weights a pair counts w_i w_j times, a triplet w_a w_p w_n times, and what is summed over the others of a batch is
weighted by their w. The part of an anchor i without reduction, w_i l_i, is such that sum(w l) / sum(w) is the loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_reference.losses import checks
from torch_reference.losses.margins import angles
from torch_reference.losses.vectors import bounded, inner_products, normalize, squared_distances
from torch_reference.losses.weighting import Batch, Reduction, counted, divided

_DISTANCES = ("l2", "angular")
_MININGS = ("all", "hard", "semi_hard")


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    m: float = 1.0,
    distance: str = "l2",
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006, equation 4).

    The mean of d^2 / 2 over the pairs of one class, plus the mean of max(0, m - d)^2 / 2 over the other pairs; either
    is 0 where there is no such pair.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      m: the margin, >= 0, in the unit of the distance.
      distance: `"l2"`, d^2 = max(0, 2 - 2 c); or `"angular"`, d = arccos(c). At d = 0 the second part has no gradient.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, an unknown distance, an m that is negative or not finite, or as
        `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> contrastive_loss(x, y, m=2.0)  # d = sqrt(2), 2, sqrt(2): 2 / 2 + (2 - sqrt(2))^2 / 2 / 2
    tensor(1.0858)
    """
    checks.at_least_zero(m=m)
    batch, cosine, positive, negative = _pairs(embeddings, labels, reduction, weights)
    if _known("distance", distance, _DISTANCES) == "l2":
        squared = squared_distances(cosine)
        d = torch.where(squared > 0, squared, 1.0).sqrt()
    else:
        d = angles(cosine)
        squared = d.square()
    d = torch.where(squared > 0, d, 0.0)  # no gradient there: neither distance has a slope at 0
    w = _pair_weights(batch, cosine)
    of_one_class = _mean(squared / 2, w * positive, batch)
    of_others = _mean(F.relu(m - d).square() / 2, w * negative, batch)
    return of_one_class + of_others


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    m: float = 0.35,
    distance: str = "angular",
    mining: str = "all",
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The triplet loss: the mean of max(0, d(a, p) + m - d(a, n)) over triplets of the batch.

    FaceNet (Schroff et al., CVPR 2015) with squared distances and m = 0.2; ArcFace (Deng et al., CVPR 2019), section
    2.3, with angles and, in its table 2, m = 0.35.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      m: the margin, >= 0, in the unit of the distance.
      distance: `"angular"`, d = arccos(c); or `"l2"`, FaceNet's squared distance max(0, 2 - 2 c).
      mining: `"all"` triplets, the mean being over those with a positive loss (Hermans et al. 2017); `"hard"`, for each
        anchor with a positive and a negative its farthest positive and its nearest negative; or `"semi_hard"`, for each
        anchor and positive the nearest negative that is farther than the positive, else the farthest negative.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 where there is no triplet.

    Raises:
      ValueError: shapes that do not fit, an unknown distance or mining, an m that is negative or not finite, or
        as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> triplet_loss(x, y, m=0.5)  # of max(0, pi/2 + 0.5 - pi) and max(0, pi/2 + 0.5 - pi/2), one is positive
    tensor(0.5000)
    """
    checks.at_least_zero(m=m)
    _known("mining", mining, _MININGS)
    batch, cosine, positive, negative = _pairs(embeddings, labels, reduction, weights)
    d = angles(cosine) if _known("distance", distance, _DISTANCES) == "angular" else squared_distances(cosine)
    w = batch.weights.to(d.dtype)
    if len(d) == 0:
        return batch.reduce(d.sum(dim=1))  # of no examples there is no nearest
    if mining == "hard":
        # a row for each anchor with a positive and a negative
        (anchors,) = (positive.any(dim=1) & negative.any(dim=1)).nonzero(as_tuple=True)
        to_positive, p = _largest(d[anchors], positive[anchors])
        to_negative, n = _smallest(d[anchors], negative[anchors])
        return _mean(F.relu(to_positive + m - to_negative), w[anchors] * w[p] * w[n], batch, anchors)

    # a row for each anchor with one of its positives, [P, B]
    anchors, p = (positive & negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    to_positive = d[anchors, p]
    to_others, negative = d[anchors], negative[anchors]
    if mining == "all":
        losses = F.relu(to_positive.unsqueeze(1) + m - to_others)
        w_apn = (w[anchors] * w[p]).unsqueeze(1) * w
        return _mean(losses, w_apn * (negative & (losses > 0)), batch, anchors)
    farther = negative & (to_others > to_positive.unsqueeze(1))
    any_farther = farther.any(dim=1)
    (nearest, first), (farthest, last) = _smallest(to_others, farther), _largest(to_others, negative)
    to_negative, n = torch.where(any_farther, nearest, farthest), torch.where(any_farther, first, last)
    return _mean(F.relu(to_positive + m - to_negative), w[anchors] * w[p] * w[n], batch, anchors)


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    m: float = 0.25,
    gamma: float = 256.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The circle loss (Sun et al., CVPR 2020, equations 6 to 8).

    The mean over the anchors with a positive and a negative of
    log(1 + sum_n exp(gamma a_n (c_n - m)) sum_p exp(-gamma a_p (c_p - 1 + m))), with a_n = max(0, c_n + m) and
    a_p = max(0, 1 + m - c_p), constants for the gradient.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      m: the margin, >= 0, in units of cosine.
      gamma: the scale, >= 0.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 where there is no such anchor.

    Raises:
      ValueError: shapes that do not fit, a parameter out of range, or as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> circle_loss(x, y, m=0.0, gamma=1.0)  # c_p = 0, c_n = -1 and 0: log(1 + e^0 e^1), twice
    tensor(1.3133)
    """
    checks.at_least_zero(m=m, gamma=gamma)
    batch, c, positive, negative = _pairs(embeddings, labels, reduction, weights)
    w = batch.weights.to(c.dtype)
    (anchors,) = (positive.any(dim=1) & negative.any(dim=1)).nonzero(as_tuple=True)
    c, positive, negative = c[anchors], positive[anchors], negative[anchors]
    a_n, a_p = F.relu(c + m).detach(), F.relu(1 + m - c).detach()
    of_negatives = _log_sum_exp(gamma * a_n * (c - m), negative, w)
    of_positives = _log_sum_exp(-gamma * a_p * (c - 1 + m), positive, w)
    return _mean(torch.logaddexp(of_negatives + of_positives, c.new_zeros(())), w[anchors], batch, anchors)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 1.0,
    epsilon: float = 0.1,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The multi-similarity loss with its mining (Wang et al., CVPR 2019, equations 11, 12 and 15).

    1/B times the sum over anchors of
    log(1 + sum_p exp(-alpha (c_p - base))) / alpha + log(1 + sum_n exp(beta (c_n - base))) / beta. A positive counts
    where c_p < max c_n + epsilon, a negative where c_n > min c_p - epsilon; an anchor without positives or without
    negatives contributes 0.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      alpha, beta: scales of positives and of negatives, > 0.
      base: the cosine that both are compared with.
      epsilon: how far easy pairs may be from the hardest and still count, >= 0.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, a parameter out of range, or as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> multi_similarity_loss(x, y, alpha=1.0, beta=1.0, base=0.0)  # only the second anchor's pairs count: 2 log(2) / 3
    tensor(0.4621)
    """
    checks.positive(alpha=alpha, beta=beta)
    checks.at_least_zero(epsilon=epsilon)
    batch, c, positive, negative = _pairs(embeddings, labels, reduction, weights)
    w = batch.weights.to(c.dtype)
    if len(c) == 0:
        return batch.reduce(c.sum(dim=1))  # of no examples there is no largest
    anchor = (positive.any(dim=1) & negative.any(dim=1)).unsqueeze(1)
    hard_positive = anchor & positive & (c < _largest(c, negative).values.unsqueeze(1) + epsilon)
    hard_negative = anchor & negative & (c > _smallest(c, positive).values.unsqueeze(1) - epsilon)
    of_positives = _log_1_plus_sum_exp(-alpha * (c - base), hard_positive, w)
    of_negatives = _log_1_plus_sum_exp(beta * (c - base), hard_negative, w)
    return batch.reduce(of_positives / alpha + of_negatives / beta)


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    tau: float = 0.1,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2).

    The mean over the anchors with a positive of -(1 / |P|) sum_p log(exp(c_p / tau) / sum_{a != i} exp(c_a / tau)).

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      tau: the temperature, > 0.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 where no class has two examples.

    Raises:
      ValueError: shapes that do not fit, a parameter out of range, or as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> supcon_loss(x, y, tau=1.0)  # the mean of log(e^0 + e^-1) and log(e^0 + e^0)
    tensor(0.5032)
    """
    checks.positive(tau=tau)
    batch, c, positive, negative = _pairs(embeddings, labels, reduction, weights)
    w = batch.weights.to(c.dtype)
    (anchors,) = positive.any(dim=1).nonzero(as_tuple=True)
    c, positive, negative = c[anchors], positive[anchors], negative[anchors]
    log_shares = c / tau - _log_sum_exp(c / tau, positive | negative, w).unsqueeze(1)
    of_positives = (w * torch.where(positive, log_shares, 0.0)).sum(dim=1) / (w * positive).sum(dim=1)
    return _mean(-of_positives, w[anchors], batch, anchors)


def marginal_loss(
    embeddings: Tensor,
    labels: Tensor,
    theta: float = 1.2,
    xi: float = 0.3,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The marginal loss (Deng, Zhou and Zafeiriou, CVPR Workshops 2017).

    1 / (B^2 - B) sum_{i != j} max(0, xi - t_ij (theta - |u(x_i) - u(x_j)|^2)), where t_ij = 1 for a pair of one class
    and -1 for others.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      theta: the squared distance between near and far, >= 0.
      xi: the margin to either side of it, >= 0.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 for a batch of one.

    Raises:
      ValueError: shapes that do not fit, a parameter out of range, or as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> marginal_loss(x, y, theta=1.5, xi=0.25)  # of one class 0.25 - (1.5 - 2), of others 0.25 + (1.5 - 4 or 2): / 3
    tensor(0.2500)
    """
    checks.at_least_zero(theta=theta, xi=xi)
    batch, cosine, positive, negative = _pairs(embeddings, labels, reduction, weights)
    t = torch.where(positive, 1.0, -1.0).to(cosine.dtype)
    losses = F.relu(xi - t * (theta - squared_distances(cosine)))
    return _mean(losses, _pair_weights(batch, cosine) * (positive | negative), batch)


def range_loss(
    embeddings: Tensor,
    labels: Tensor,
    k: int = 2,
    alpha: float = 5e-5,
    beta: float = 1e-4,
    margin: float = 2e4,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The range loss, for classes with few examples (Zhang et al., ICCV 2017).

    alpha times the sum over the batch's classes of the harmonic mean of their k largest squared distances, plus beta
    max(0, margin - the smallest squared distance of two class means). A class with fewer than k pairs takes those it
    has, and the mean is 0 where one of the distances is 0; without two classes there is no second part.

    Args:
      embeddings: [B, D], any float dtype; their length counts. Entries beyond +-2^40 count as that.
      labels: [B], integers.
      k: the number of distances of each class, a whole number, at least 1.
      alpha, beta: weights of the two parts, >= 0.
      margin: the squared distance that class means are to have, >= 0.
      reduction, weights: as in `softmax_loss`, the loss of an example being what it has as an anchor.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, a parameter out of range, or as `softmax_loss`.
      TypeError: labels that are not integers, or complex numbers.

    >>> x, y = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([0, 0, 0, 1])
    >>> range_loss(x, y, alpha=1.0, beta=1.0, margin=100.0)  # 2 / (1/9 + 1/4) + 100 - (10 - 4/3)^2
    tensor(30.4273)
    """
    checks.whole(k=k)
    checks.at_least_zero(alpha=alpha, beta=beta, margin=margin)
    labels, batch = _checked(embeddings, labels, reduction, weights)
    x = bounded(batch.rows(embeddings))
    w = batch.weights.to(x.dtype)
    if len(x) == 0:
        return batch.reduce(x.sum(dim=1))
    classes, of_example = labels.unique(return_inverse=True)
    members = [of_example == number for number in range(len(classes))]
    sizes = torch.stack([w[own].sum() for own in members])
    means = torch.stack([(w[own].unsqueeze(1) * x[own]).sum(dim=0) for own in members]) / sizes.unsqueeze(1)
    within = torch.stack([_harmonic_mean_of_largest(x[own], w[own], k) for own in members])
    between = F.pdist(means).square()
    # min with a dim sends a tie's gradient to the first
    too_near = F.relu(margin - between.min(dim=0).values) if len(means) > 1 else x.new_zeros(())
    if reduction == "mean":
        return alpha * within.sum() + beta * too_near
    return batch.reduce(alpha * w.sum() * (within / sizes)[of_example] + beta * too_near)


def _harmonic_mean_of_largest(members: Tensor, weights: Tensor, k: int) -> Tensor:
    """sum(v) / sum(v / d) of the k largest squared distances d of pairs of weights v = w_i w_j, or of all if fewer.

    0 where there are none, or one of them is 0.
    """
    largest, order = F.pdist(members).square().sort(descending=True, stable=True)
    largest = largest[:k]
    if len(largest) == 0 or largest[-1] == 0:
        return members[:0].sum()  # 0, and 0 for the gradient
    v = torch.combinations(weights).prod(dim=1)[order[:k]]
    unit = largest[-1].detach()  # so that no inverse overflows
    return unit * v.sum() / (v * (largest / unit).reciprocal()).sum()


# ---- pairs


def _pairs(
    embeddings: Tensor, labels: Tensor, reduction: Reduction, weights: Tensor | None
) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """The examples that count, the cosines of their pairs [A, A], and which are a row's positives and negatives."""
    labels, batch = _checked(embeddings, labels, reduction, weights)
    unit = normalize(batch.rows(embeddings))
    same = labels.unsqueeze(1) == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return batch, inner_products(unit, unit), same & ~itself, ~same


def _checked(embeddings: Tensor, labels: Tensor, reduction: Reduction, weights: Tensor | None) -> tuple[Tensor, Batch]:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}; [B, D] is expected")
    return counted(labels, len(embeddings), None, weights, reduction)


def _known(name: str, word: str, known: tuple[str, ...]) -> str:
    if word not in known:
        raise ValueError(f"{name} is {word!r}; it must be one of {', '.join(map(repr, known))}")
    return word


def _pair_weights(batch: Batch, cosine: Tensor) -> Tensor:
    """w_i w_j of each pair, [A, A]."""
    w = batch.weights.to(cosine.dtype)
    return w.unsqueeze(1) * w


def _mean(values: Tensor, weights: Tensor, batch: Batch, anchors: Tensor | None = None) -> Tensor:
    """sum(v l) / sum(v) over pairs or triplets of losses l and weights v [R, ...], 0 where there are none.

    Without reduction each anchor's part of it, times sum(w): [B]. A row belongs to the anchor of its index, or to that
    in `anchors` [R].
    """
    weighted = weights * torch.where(weights > 0, values, 0.0)
    if batch.reduction == "mean":
        return divided(weighted.sum(), weights.sum())
    rows = weighted.flatten(1).sum(dim=1) if weighted.ndim > 1 else weighted
    if anchors is not None:
        rows = rows.new_zeros(len(batch.weights)).index_add(0, anchors, rows)
    return batch.spread(divided(rows * batch.weights.to(rows.dtype).sum(), weights.sum()))


# Tensor.max and min with a dim send a tie's gradient to the first; where no value is chosen the index means nothing


def _largest(values: Tensor, chosen: Tensor) -> torch.return_types.max:
    """The largest chosen value of each row and its index, -inf where there is none."""
    return torch.where(chosen, values, -math.inf).max(dim=1)


def _smallest(values: Tensor, chosen: Tensor) -> torch.return_types.min:
    """The smallest chosen value of each row and its index, inf where there is none."""
    return torch.where(chosen, values, math.inf).min(dim=1)


def _log_sum_exp(values: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """log sum w exp of the chosen values of each row; every row has one."""
    return torch.where(chosen, values + weights.log(), -math.inf).logsumexp(dim=1)


def _log_1_plus_sum_exp(values: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """log(1 + sum w exp) of the chosen values of each row."""
    return F.pad(torch.where(chosen, values + weights.log(), -math.inf), (1, 0)).logsumexp(dim=1)  # e^0 = 1
