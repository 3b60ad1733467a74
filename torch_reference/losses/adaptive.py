"""Margin softmax losses whose margin or scale follows from the embeddings: AdaCos, CurricularFace, MagFace, AdaFace.

What one of them remembers from step to step goes in as an argument and comes out beside the loss, without a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_reference.losses import checks
from torch_reference.losses.margins import Margin, angles, target_cosine
from torch_reference.losses.softmax import cross_entropies, margin_logits
from torch_reference.losses.vectors import (
    check_shapes,
    cosines,
    lengths,
    own_class,
    upcast,
    with_own_class,
)
from torch_reference.losses.weighting import Batch, Reduction, counted

_ARCFACE = Margin.arcface()


def initial_adacos_scale(num_classes: int) -> float:
    """The scale that AdaCos starts with, s_0 = sqrt(2) log(C - 1) (Zhang et al., CVPR 2019).

    Raises:
      ValueError: fewer than three classes, for which it would be 0.

    >>> initial_adacos_scale(10)
    3.107...
    """
    if num_classes < 3:
        raise ValueError(f"there are {num_classes} classes; AdaCos needs at least 3")
    return math.sqrt(2) * math.log(num_classes - 1)


def adacos_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    scale: Tensor | float,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """AdaCos: the normalised softmax with a scale from the batch (Zhang et al., CVPR 2019).

    With B the weighted mean over the batch of sum_{j != y} exp(s cos(theta_j)), by the scale s of the step before, and
    M the median of theta_y over the examples of weight above 0, the new scale is log(B) / cos(min(pi / 4, M)), and here
    at least log(C - 1) / 2: no fixed point of the rule is smaller, but one step may otherwise end below 0. The logits
    take it as a constant.

    Args:
      embeddings: [B, D]. prototypes: [C, D] or [C, K, D], C >= 3. labels: [B], integers in [0, C).
      scale: s of the step before, > 0; `initial_adacos_scale` at first.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      The loss, [B] without reduction, and the new scale, a scalar: the old one where no example has a weight.

    Raises:
      ValueError, TypeError: as `margin_logits`; a scale that is not > 0, fewer than three classes.

    >>> x, w = torch.eye(3), torch.eye(3)
    >>> adacos_loss(x, w, torch.arange(3), scale=2.0)  # theta_y = 0, so s = log(2 e^0); log(1 + 2 e^-s) = log 2
    (tensor(0.6931), tensor(0.6931))
    """
    checks.positive(scale=scale)
    check_shapes(embeddings, prototypes)
    classes = len(prototypes)
    if classes < 3:
        raise ValueError(f"there are {classes} classes; AdaCos needs at least 3")
    labels, batch = counted(labels, len(embeddings), classes, weights, reduction)
    cosine = cosines(batch.rows(embeddings), prototypes)
    new_scale = _adacos_scale(cosine, labels, scale, batch.weights)
    return batch.reduce(cross_entropies(new_scale * cosine, labels, label_smoothing)), new_scale


@torch.no_grad()
def _adacos_scale(cosine: Tensor, labels: Tensor, scale: Tensor | float, weights: Tensor) -> Tensor:
    if len(labels) == 0:
        return torch.as_tensor(scale, dtype=cosine.dtype, device=cosine.device)
    w = weights.to(cosine.dtype)
    others = with_own_class(scale * cosine, labels, torch.full_like(cosine[:, 0], -math.inf))
    log_b = (others + w.log().unsqueeze(1)).logsumexp(dim=(0, 1)) - w.sum().log()
    median = angles(own_class(cosine, labels)).quantile(0.5)
    classes = cosine.shape[1]
    return (log_b / median.clamp(max=math.pi / 4).cos()).clamp(min=math.log(classes - 1) / 2)


def curricularface_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    t: Tensor | float,
    margin: Margin = _ARCFACE,
    scale: float = 64.0,
    rate: float = 0.01,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """CurricularFace: a margin softmax that stresses hard negatives the more, the further the training is.

    Huang et al., CVPR 2020, equations 10 to 13: the own class has the logit s psi(theta_y); a hard one, whose
    cos(theta_j) > psi(theta_y), has s cos(theta_j) (t + cos(theta_j)); and the others have s cos(theta_j). Before that
    t moves to rate mean(cos(theta_y)) + (1 - rate) t, the weighted mean of the batch, a constant for the gradient.

    Args:
      embeddings: [B, D]. prototypes: [C, D] or [C, K, D]. labels: [B], integers in [0, C).
      t: of the step before; 0 at first.
      margin: of psi.
      scale: s, > 0.
      rate: the share of the batch in the new t, in [0, 1].
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      The loss, [B] without reduction, and the new t, a scalar: the old one where no example has a weight.

    Raises:
      ValueError, TypeError: as `margin_logits`; a rate outside [0, 1].

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    >>> loss, t = curricularface_loss(x, w, torch.tensor([0]), t=0.5, scale=1.0)
    >>> loss, t  # cos(theta_y) = 0, so t = 0.99 x 0.5; logits -sin(0.5) and 0.6 (t + 0.6)
    (tensor(1.4148), tensor(0.4950))
    """
    checks.positive(scale=scale)
    checks.share(rate=rate)
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    cosine = cosines(batch.rows(embeddings), prototypes)
    own = own_class(cosine, labels)
    psi = target_cosine(own, batch.margins(margin))
    new_t = _moved(t, batch.mean(own.detach()), rate if len(own) else 0.0)
    is_hard = cosine > psi.unsqueeze(1)
    cosine = torch.where(is_hard, cosine * (new_t + cosine), cosine)
    logits = scale * with_own_class(cosine, labels, psi)
    return batch.reduce(cross_entropies(logits, labels, label_smoothing)), new_t


def magface_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    low: float = 0.45,
    high: float = 0.8,
    shortest: float = 10.0,
    longest: float = 110.0,
    weight: float = 35.0,
    scale: float = 64.0,
    beyond_pi: str = "monotone",
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """MagFace: an angular margin that grows with the embedding's length, and a reward for length.

    Meng et al., CVPR 2021: the own logit is s cos(theta + m(a)) with a = |x|, the margin
    m(a) = low + (high - low) (a - shortest) / (longest - shortest), and weight g(a), g(a) = a / longest^2 + 1 / a, is
    added. The gradient goes through a too, but not where |x| is clipped to [shortest, longest].

    Args:
      embeddings: [B, D], whose length counts. prototypes: [C, D] or [C, K, D]. labels: [B], integers in [0, C).
      low, high: margins of the shortest and of the longest embedding, in radians, between -pi and pi.
      shortest, longest: lengths, 0 < shortest < longest.
      weight: of g, >= 0; not to be confused with `weights`.
      scale: s, > 0.
      beyond_pi: as in `Margin`.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: margins, lengths or a weight out of range or order, or as `margin_logits`.

    >>> x, w = torch.tensor([[20.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> y = torch.tensor([0])
    >>> magface_loss(x, w, y, low=0.0, high=0.0, longest=100.0, weight=1.0)  # 20 / 100^2 + 1 / 20 and a CE of nearly 0
    tensor(0.0520)
    """
    checks.positive(shortest=shortest, longest=longest)
    checks.at_least_zero(weight=weight)
    checks.angle(low=low, high=high)
    if not shortest < longest:
        raise ValueError(f"shortest is {shortest}; it must be below longest, {longest}")
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    x = upcast(batch.rows(embeddings))
    a = lengths(x).clamp(shortest, longest)
    margin = low + (high - low) * (a - shortest) / (longest - shortest)
    g = a / longest**2 + 1 / a
    logits = margin_logits(x, prototypes, labels, Margin(m2=margin, beyond_pi=beyond_pi), scale)
    return batch.reduce(cross_entropies(logits, labels, label_smoothing) + weight * g)


def adaface_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    mean: Tensor | float,
    std: Tensor | float,
    m: float = 0.4,
    h: float = 0.333,
    rate: float = 0.01,
    scale: float = 64.0,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """AdaFace: a margin that stresses hard examples of good quality and easy ones of bad quality.

    Kim et al., CVPR 2022. The length n = |x|, clipped to [0.001, 100] and a constant for the gradient, stands for
    quality. Its running mean and standard deviation move by `rate` to those of the batch: with weights w and
    W = sum(w), the mean sum(w n) / W and the variance sum(w (n - mean)^2) / (W - sum(w^2) / W). Then
    z = clip((n - mean) / (std + 0.001) h, -1, 1), and the own logit is
    s (cos(clip(theta - m z, 0, pi)) - m z - m), the angle being clipped here.

    Args:
      embeddings: [B, D]. prototypes: [C, D] or [C, K, D]. labels: [B], integers in [0, C).
      mean, std: of the step before; 20 and 100 at first. Of a single example the standard deviation counts as 0.
      m: the margin, >= 0.
      h: how far the quality of an example changes it, >= 0.
      rate: the share of the batch in the new mean and standard deviation, in [0, 1].
      scale: s, > 0.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      The loss, [B] without reduction, the new mean and the new standard deviation, both scalars: the old ones where no
      example has a weight.

    Raises:
      ValueError, TypeError: as `margin_logits`; m, h or a rate out of range.

    >>> x, w = torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> adaface_loss(x, w, torch.tensor([0, 0]), mean=4.0, std=1.0, m=0.5, h=0.0, scale=1.0)  # z = 0: log(1 + e^0.5)
    (tensor(0.9741), tensor(4.), tensor(1.0041))
    """
    checks.positive(scale=scale)
    checks.at_least_zero(m=m, h=h)
    checks.share(rate=rate)
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    x = batch.rows(embeddings)
    cosine = cosines(x, prototypes)
    n = lengths(x.detach()).clamp(0.001, 100)
    rate = rate if len(n) else 0.0
    new_mean = _moved(mean, batch.mean(n), rate)
    new_std = _moved(std, _deviation(n, batch), rate)
    z = ((n - new_mean) / (new_std + 0.001) * h).clamp(-1, 1)
    theta = angles(own_class(cosine, labels))
    psi = (theta - m * z).clamp(0, math.pi).cos() - m * z - m
    losses = cross_entropies(scale * with_own_class(cosine, labels, psi), labels, label_smoothing)
    return batch.reduce(losses), new_mean, new_std


def _deviation(n: Tensor, batch: Batch) -> Tensor:
    """The standard deviation of the sample; 0 of a single example."""
    if len(n) < 2:
        return n.new_zeros(())
    w = batch.weights.to(n.dtype)
    squares = (w * (n - batch.mean(n)).square()).sum()
    return (squares / (w.sum() - w.square().sum() / w.sum())).sqrt()


def _moved(old: Tensor | float, new: Tensor, rate: float) -> Tensor:
    """A running value after a step."""
    return rate * new + (1 - rate) * old
