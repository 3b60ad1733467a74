"""Losses of the pairs and triplets within a batch; they need no prototypes.

c is the cosine of two embeddings of the batch, p another example of the anchor's class, n an example of another class.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_reference.losses import checks
from torch_reference.losses.margins import angles
from torch_reference.losses.softmax import bounded, checked_labels, inner_products, normalize, squared_distances

_DISTANCES = ("l2", "angular")
_MININGS = ("all", "hard", "semi_hard")


def contrastive_loss(embeddings: Tensor, labels: Tensor, m: float = 1.0, distance: str = "l2") -> Tensor:
    """The contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006, equation 4).

    The mean of d^2 / 2 over the pairs of one class, plus the mean of max(0, m - d)^2 / 2 over the other pairs; either
    is 0 where there is no such pair.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      m: the margin, >= 0, in the unit of the distance.
      distance: `"l2"`, d^2 = max(0, 2 - 2 c); or `"angular"`, d = arccos(c). At d = 0 the second part has no gradient.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, an unknown distance, or an m that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> contrastive_loss(x, y, m=2.0)  # d = sqrt(2), 2, sqrt(2): 2 / 2 + (2 - sqrt(2))^2 / 2 / 2
    tensor(1.0858)
    """
    checks.at_least_zero(m=m)
    cosine, positive, negative = _pairs(embeddings, labels)
    if _known("distance", distance, _DISTANCES) == "l2":
        squared = squared_distances(cosine)
        d = torch.where(squared > 0, squared, 1.0).sqrt()
    else:
        d = angles(cosine)
        squared = d.square()
    d = torch.where(squared > 0, d, 0.0)  # no gradient there: neither distance has a slope at 0
    return _mean(squared / 2, positive) + _mean(F.relu(m - d).square() / 2, negative)


def triplet_loss(
    embeddings: Tensor, labels: Tensor, m: float = 0.35, distance: str = "angular", mining: str = "all"
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

    Returns:
      A scalar, float32 (float64 for float64); 0 where there is no triplet.

    Raises:
      ValueError: shapes that do not fit, an unknown distance or mining, or an m that is negative or not finite.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> triplet_loss(x, y, m=0.5)  # of max(0, pi/2 + 0.5 - pi) and max(0, pi/2 + 0.5 - pi/2), one is positive
    tensor(0.5000)
    """
    checks.at_least_zero(m=m)
    cosine, positive, negative = _pairs(embeddings, labels)
    d = angles(cosine) if _known("distance", distance, _DISTANCES) == "angular" else squared_distances(cosine)
    _known("mining", mining, _MININGS)
    if d.numel() == 0:
        return d.sum()  # of no examples there is no nearest
    if mining == "hard":
        anchor = positive.any(dim=1) & negative.any(dim=1)
        to_positive = _largest(d, positive)[anchor]
        to_negative = _smallest(d, negative)[anchor]
        return _mean(F.relu(to_positive + m - to_negative))

    # a row for each anchor with one of its positives, [P, B]
    anchors, positives = (positive & negative.any(dim=1, keepdim=True)).nonzero(as_tuple=True)
    to_positive = d[anchors, positives].unsqueeze(1)
    to_others, negative = d[anchors], negative[anchors]
    if mining == "all":
        losses = F.relu(to_positive + m - to_others)
        return _mean(losses, negative & (losses > 0))
    farther = negative & (to_others > to_positive)
    to_negative = torch.where(farther.any(dim=1), _smallest(to_others, farther), _largest(to_others, negative))
    return _mean(F.relu(to_positive.squeeze(1) + m - to_negative))


def circle_loss(embeddings: Tensor, labels: Tensor, m: float = 0.25, gamma: float = 256.0) -> Tensor:
    """The circle loss (Sun et al., CVPR 2020, equations 6 to 8).

    The mean over the anchors with a positive and a negative of
    log(1 + sum_n exp(gamma a_n (c_n - m)) sum_p exp(-gamma a_p (c_p - 1 + m))), with a_n = max(0, c_n + m) and
    a_p = max(0, 1 + m - c_p), constants for the gradient.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      m: the margin, >= 0, in units of cosine.
      gamma: the scale, >= 0.

    Returns:
      A scalar, float32 (float64 for float64); 0 where there is no such anchor.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> circle_loss(x, y, m=0.0, gamma=1.0)  # c_p = 0, c_n = -1 and 0: log(1 + e^0 e^1), twice
    tensor(1.3133)
    """
    checks.at_least_zero(m=m, gamma=gamma)
    c, positive, negative = _pairs(embeddings, labels)
    anchor = positive.any(dim=1) & negative.any(dim=1)
    c, positive, negative = c[anchor], positive[anchor], negative[anchor]
    a_n, a_p = F.relu(c + m).detach(), F.relu(1 + m - c).detach()
    of_negatives = _log_sum_exp(gamma * a_n * (c - m), negative)
    of_positives = _log_sum_exp(-gamma * a_p * (c - 1 + m), positive)
    return _mean(torch.logaddexp(of_negatives + of_positives, c.new_zeros(())))


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 1.0,
    epsilon: float = 0.1,
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

    Returns:
      A scalar, float32 (float64 for float64); 0 for an empty batch.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> multi_similarity_loss(x, y, alpha=1.0, beta=1.0, base=0.0)  # only the second anchor's pairs count: 2 log(2) / 3
    tensor(0.4621)
    """
    checks.positive(alpha=alpha, beta=beta)
    checks.at_least_zero(epsilon=epsilon)
    c, positive, negative = _pairs(embeddings, labels)
    if c.numel() == 0:
        return c.sum()
    anchor = (positive.any(dim=1) & negative.any(dim=1)).unsqueeze(1)
    hard_positive = anchor & positive & (c < _largest(c, negative).unsqueeze(1) + epsilon)
    hard_negative = anchor & negative & (c > _smallest(c, positive).unsqueeze(1) - epsilon)
    of_positives = _log_1_plus_sum_exp(-alpha * (c - base), hard_positive)
    of_negatives = _log_1_plus_sum_exp(beta * (c - base), hard_negative)
    return (of_positives / alpha + of_negatives / beta).mean()


def supcon_loss(embeddings: Tensor, labels: Tensor, tau: float = 0.1) -> Tensor:
    """The supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2).

    The mean over the anchors with a positive of -(1 / |P|) sum_p log(exp(c_p / tau) / sum_{a != i} exp(c_a / tau)).

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      tau: the temperature, > 0.

    Returns:
      A scalar, float32 (float64 for float64); 0 where no class has two examples.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> supcon_loss(x, y, tau=1.0)  # the mean of log(e^0 + e^-1) and log(e^0 + e^0)
    tensor(0.5032)
    """
    checks.positive(tau=tau)
    c, positive, negative = _pairs(embeddings, labels)
    anchor = positive.any(dim=1)
    c, positive, negative = c[anchor], positive[anchor], negative[anchor]
    log_shares = c / tau - _log_sum_exp(c / tau, positive | negative).unsqueeze(1)
    of_positives = torch.where(positive, log_shares, 0.0).sum(dim=1) / positive.sum(dim=1)
    return _mean(-of_positives)


def marginal_loss(embeddings: Tensor, labels: Tensor, theta: float = 1.2, xi: float = 0.3) -> Tensor:
    """The marginal loss (Deng, Zhou and Zafeiriou, CVPR Workshops 2017).

    1 / (B^2 - B) sum_{i != j} max(0, xi - t_ij (theta - |u(x_i) - u(x_j)|^2)), where t_ij = 1 for a pair of one class
    and -1 for others.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      labels: [B], integers.
      theta: the squared distance between near and far, >= 0.
      xi: the margin to either side of it, >= 0.

    Returns:
      A scalar, float32 (float64 for float64); 0 for a batch of one.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> marginal_loss(x, y, theta=1.5, xi=0.25)  # of one class 0.25 - (1.5 - 2), of others 0.25 + (1.5 - 4 or 2): / 3
    tensor(0.2500)
    """
    checks.at_least_zero(theta=theta, xi=xi)
    cosine, positive, negative = _pairs(embeddings, labels)
    t = torch.where(positive, 1.0, -1.0).to(cosine.dtype)
    return _mean(F.relu(xi - t * (theta - squared_distances(cosine))), positive | negative)


def range_loss(
    embeddings: Tensor, labels: Tensor, k: int = 2, alpha: float = 5e-5, beta: float = 1e-4, margin: float = 2e4
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

    Returns:
      A scalar, float32 (float64 for float64); 0 for an empty batch.

    Raises:
      ValueError: shapes that do not fit, or a parameter out of range.
      TypeError: labels that are not integers.

    >>> x, y = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([0, 0, 0, 1])
    >>> range_loss(x, y, alpha=1.0, beta=1.0, margin=100.0)  # 2 / (1/9 + 1/4) + 100 - (10 - 4/3)^2
    tensor(30.4273)
    """
    checks.whole(k=k)
    checks.at_least_zero(alpha=alpha, beta=beta, margin=margin)
    labels = _checked(embeddings, labels)
    x = bounded(embeddings)
    if x.numel() == 0:
        return x.sum()
    classes = [x[labels == label] for label in labels.unique()]
    means = torch.stack([members.mean(dim=0) for members in classes])
    within = torch.stack([_harmonic_mean_of_largest(F.pdist(members).square(), k) for members in classes]).sum()
    between = F.pdist(means).square()
    # min with a dim sends a tie's gradient to the first
    too_near = F.relu(margin - between.min(dim=0).values) if len(means) > 1 else 0.0
    return alpha * within + beta * too_near


def _harmonic_mean_of_largest(squared: Tensor, k: int) -> Tensor:
    """n / sum(1 / d) of the k largest of [P], or of all n where there are fewer; 0 where there are none or one is 0."""
    largest = squared.sort(descending=True, stable=True).values[:k]
    if len(largest) == 0 or largest[-1] == 0:
        return squared[:0].sum()  # 0, and 0 for the gradient
    unit = largest[-1].detach()  # so that no inverse overflows
    return unit * len(largest) / (largest / unit).reciprocal().sum()


# ---- pairs


def _pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines of all pairs, [B, B], and which of them are positives and which negatives of the row's anchor."""
    labels = _checked(embeddings, labels)
    unit = normalize(embeddings)
    same = labels.unsqueeze(1) == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return inner_products(unit, unit), same & ~itself, ~same


def _checked(embeddings: Tensor, labels: Tensor) -> Tensor:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}; [B, D] is expected")
    return checked_labels(labels, len(embeddings))


def _known(name: str, word: str, known: tuple[str, ...]) -> str:
    if word not in known:
        raise ValueError(f"{name} is {word!r}; it must be one of {', '.join(map(repr, known))}")
    return word


def _mean(values: Tensor, chosen: Tensor | None = None) -> Tensor:
    """The mean of the chosen values, of all where None; 0 where there are none."""
    if chosen is None:
        return values.sum() / max(values.numel(), 1)
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


# Tensor.max and min with a dim send a tie's gradient to the first


def _largest(values: Tensor, chosen: Tensor) -> Tensor:
    """The largest chosen value of each row, -inf where there is none."""
    return torch.where(chosen, values, -math.inf).max(dim=1).values


def _smallest(values: Tensor, chosen: Tensor) -> Tensor:
    """The smallest chosen value of each row, inf where there is none."""
    return torch.where(chosen, values, math.inf).min(dim=1).values


def _log_sum_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """log sum exp of the chosen values of each row; every row has one."""
    return torch.where(chosen, values, -math.inf).logsumexp(dim=1)


def _log_1_plus_sum_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """log(1 + sum exp) of the chosen values of each row."""
    return F.pad(torch.where(chosen, values, -math.inf), (1, 0)).logsumexp(dim=1)  # e^0 = 1
