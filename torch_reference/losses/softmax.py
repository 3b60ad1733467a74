"""From embeddings to logits and to a loss: cross entropies of inner products, of cosines, of angles with a margin.

`arcface.py` has ArcFace in five lines, and what is added to them here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_reference.losses import checks
from torch_reference.losses.margins import Margin, target_cosine
from torch_reference.losses.vectors import (
    check_shapes,
    checked_labels,
    cosines,
    inner_products,
    lengths,
    own_class,
    upcast,
    with_own_class,
)
from torch_reference.losses.weighting import Reduction, counted

# ---- logits


def add_margin(
    cosine: Tensor, labels: Tensor, margin: Margin, scale: float = 64.0, filter_above: float | None = None
) -> Tensor:
    """Logits from cosines: s psi(theta_y) for each example's own class, s cos(theta_j) elsewhere.

    Args:
      cosine: [B, C], float32 or float64.
      labels, margin, scale, filter_above: as in `margin_logits`, which says what is raised.

    >>> add_margin(torch.tensor([[0.5, 0.25]]), torch.tensor([1]), Margin.cosface(0.25), scale=8.0)
    tensor([[4., 0.]])
    """
    checks.positive(scale=scale)
    labels = checked_labels(labels, *cosine.shape)
    psi = target_cosine(own_class(cosine, labels), margin)
    if filter_above is not None:
        cosine = cosine.masked_fill(cosine > filter_above, 0.0)
    return scale * with_own_class(cosine, labels, psi)


def margin_logits(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    margin: Margin,
    scale: float = 64.0,
    filter_above: float | None = None,
) -> Tensor:
    """Logits with the margin on each example's own class: ArcFace (Deng et al., CVPR 2019), equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class; only their direction counts.
      labels: [B], integers in [0, C).
      margin: see `Margin`.
      scale: s, > 0.
      filter_above: a wrong class whose cosine is larger gets the logit 0 and no gradient, since it is likely the same
        person under another name (inter-class filtering, as in the training code of ArcFace's authors).

    Returns:
      [B, C] in float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, a scale that is not > 0 and finite, or a label outside [0, C).
      TypeError: labels that are not integers.

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    >>> margin_logits(x, w, torch.tensor([0]), Margin.arcface(0.5), scale=10.0)  # 10 cos(pi/4 + 0.5), 0
    tensor([[2.8154, 0.0000]])
    """
    return add_margin(cosines(embeddings, prototypes), labels, margin, scale, filter_above)


def linear_logits(embeddings: Tensor, prototypes: Tensor, bias: Tensor) -> Tensor:
    """The logits W_j . x + b_j of the plain softmax, [B, C] in float32 (float64 for float64).

    Args:
      embeddings: [B, D], any float dtype.
      prototypes: W, [C, D]. bias: b, [C].

    Raises:
      ValueError: shapes that do not fit.
      TypeError: complex numbers.

    >>> linear_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0]))
    tensor([[2., 1.]])
    """
    if embeddings.ndim != 2 or prototypes.shape[1:] != embeddings.shape[1:] or bias.shape != prototypes.shape[:1]:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)}, prototypes {tuple(prototypes.shape)} and bias {tuple(bias.shape)} "
            "do not fit: they must be [B, D], [C, D] and [C]"
        )
    return inner_products(upcast(embeddings), upcast(prototypes)) + upcast(bias)


# ---- losses


def softmax_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy with integer labels.

    Args:
      logits: [B, C], any float dtype.
      labels: [B], integers in [0, C).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).
      reduction: `"mean"`, sum(w l) / sum(w) over the examples' losses l; or `"none"`, w l [B]. Without weights w = 1.
      weights: w [B], >= 0, or a bool mask. An example of weight 0 counts as if it were not in the batch, whatever its
        label and its numbers are.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64). The mean is 0 where all weights are 0 and
      where the batch is empty.

    Raises:
      ValueError: shapes that do not fit, a label outside [0, C), a label smoothing outside [0, 1), a negative weight,
        or an unknown reduction.
      TypeError: labels that are not integers, or complex numbers.

    >>> softmax_loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4
    tensor(1.3863)
    >>> softmax_loss(torch.zeros(2, 4), torch.tensor([0, 3]), reduction="none", weights=torch.tensor([1.0, 0.5]))
    tensor([1.3863, 0.6931])
    """
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; [B, C] is expected")
    labels, batch = counted(labels, len(logits), logits.shape[1], weights, reduction)
    return batch.reduce(cross_entropies(batch.rows(upcast(logits)), labels, label_smoothing))


def cross_entropies(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross entropy of each example, [B], from logits z [B, C], float32 or float64, and checked labels.

    -log softmax(z)_y = log(1 + sum_{j != y} exp(z_j - z_y)). Written so, a small loss keeps all its digits, and so does
    its gradient; log sum exp(z) - z_y is the difference of two nearly equal numbers.

    >>> cross_entropies(torch.tensor([[60.0, 0.0]]), torch.tensor([0]))  # e^-60
    tensor([8.7565e-27])
    """
    checks.below_one(label_smoothing=label_smoothing)
    own = own_class(logits, labels)
    if logits.shape[1] == 1:
        return own - own  # log 1, and no gradient
    others = with_own_class(logits, labels, torch.full_like(own, -math.inf)).logsumexp(dim=1)
    losses = torch.logaddexp(others - own, own.new_zeros(()))
    if label_smoothing:
        # (1 - e) l_y + e mean_j l_j, where l_j = l_y + z_y - z_j
        losses = losses + label_smoothing * (own.unsqueeze(1) - logits).mean(dim=1)
    return losses


def margin_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    margin: Margin,
    scale: float = 64.0,
    label_smoothing: float = 0.0,
    filter_above: float | None = None,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The margin softmax loss: the cross entropy of `margin_logits` (ArcFace, equation 4).

    Args:
      embeddings, prototypes, labels, margin, scale, filter_above: as in `margin_logits`.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> margin_softmax_loss(x, w, torch.tensor([0]), Margin.cosface(0.35), scale=1.0)  # log(1 + e^-0.65)
    tensor(0.4201)
    """
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    logits = margin_logits(batch.rows(embeddings), prototypes, labels, batch.margins(margin), scale, filter_above)
    return batch.reduce(cross_entropies(logits, labels, label_smoothing))


def linear_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    bias: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The plain softmax loss: the cross entropy of the logits W_j . x + b_j (ArcFace, equation 1).

    Args:
      embeddings, prototypes, bias: as in `linear_logits`.
      labels, label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `linear_logits` and `softmax_loss`.

    >>> x, w, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
    >>> linear_softmax_loss(x, w, b, torch.tensor([0]))  # log(1 + e^-1)
    tensor(0.3133)
    """
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    logits = linear_logits(batch.rows(embeddings), prototypes, bias)
    return batch.reduce(cross_entropies(logits, labels, label_smoothing))


def modified_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The modified softmax loss: the cross entropy of the logits |x| cos(theta_j).

    It is the baseline of A-Softmax: SphereFace (Liu et al., CVPR 2017), equation 5.

    Args:
      embeddings, prototypes, labels: as in `margin_logits`, but the embeddings' length counts.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    >>> modified_softmax_loss(x, w, torch.tensor([0]))  # log(1 + e^-2)
    tensor(0.1269)
    """
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    x = upcast(batch.rows(embeddings))
    logits = lengths(x).unsqueeze(1) * cosines(x, prototypes)
    return batch.reduce(cross_entropies(logits, labels, label_smoothing))


def a_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    m: int = 4,
    lam: float = 5.0,
    label_smoothing: float = 0.0,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The A-Softmax loss of SphereFace (Liu et al., CVPR 2017, equation 7), annealed as in its published training.

    The logits are |x| cos(theta_j), but that of the own class |x| (lambda cos(theta) + psi(theta)) / (1 + lambda), with
    psi(theta) = (-1)^k cos(m theta) - 2k and k = floor(m theta / pi).

    Args:
      embeddings, prototypes, labels: as in `margin_logits`, but the embeddings' length counts.
      m: a whole number, at least 1.
      lam: lambda, at least 0 and finite; see `annealed_lambda`.
      label_smoothing, reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: m or lambda out of range, or as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> a_softmax_loss(x, w, torch.tensor([0]), m=4, lam=0.0)  # own logit 2 (cos(2 pi) - 4), other 0: log(1 + e^6)
    tensor(6.0025)
    """
    checks.whole(m=m)
    checks.at_least_zero(lam=lam)
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    x = upcast(batch.rows(embeddings))
    cosine = cosines(x, prototypes)
    cos_theta = own_class(cosine, labels)
    psi = target_cosine(cos_theta, Margin.sphereface(m))
    cosine = with_own_class(cosine, labels, (lam * cos_theta + psi) / (1 + lam))
    return batch.reduce(cross_entropies(lengths(x).unsqueeze(1) * cosine, labels, label_smoothing))


def annealed_lambda(step: int, first: float = 1000.0, last: float = 5.0, decay: float = 0.12) -> float:
    """lambda of `a_softmax_loss` at a step (from 0): max(last, first / (1 + decay step)), as SphereFace was trained.

    SphereFace's code starts one step later: it counts a step before it computes lambda.

    >>> [annealed_lambda(step) for step in (0, 100, 10_000)]
    [1000.0, 76.92..., 5.0]
    """
    return max(last, first / (1 + decay * step))
