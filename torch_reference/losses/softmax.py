"""From embeddings or logits to a scalar: cross entropies of inner products, of cosines, and of angles with a margin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_reference.losses import checks
from torch_reference.losses.margins import Margin, target_cosine

_ZERO = 2.0**-100  # a vector whose largest entry is below this counts as zero
_LARGEST = 2.0**40  # an entry beyond this counts as this where squared lengths are taken


def normalize(vectors: Tensor) -> Tensor:
    """Scales vectors to length 1.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [..., D] in float32 (float64 for float64). A zero vector (largest entry below 2^-100) stays zero and takes no
      gradient. A gradient that does not fit the dtype of `vectors` saturates at its largest number.

    >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    wide = upcast(vectors)
    largest = wide.detach().abs().amax(dim=-1, keepdim=True)
    is_zero = largest < _ZERO
    # v / |v| is the same for v / constant; and where v counts as zero the divisions are by 1, so that no 0/0 arises
    scaled = torch.where(is_zero, 0.0, wide) / torch.where(is_zero, 1.0, largest)
    squared = scaled.square().sum(dim=-1, keepdim=True)
    return scaled / torch.where(is_zero, 1.0, squared).sqrt()


def lengths(vectors: Tensor) -> Tensor:
    """The lengths |v| of vectors.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [...] in float32 (float64 for float64). A zero vector (largest entry below 2^-100) has the length 0 and takes no
      gradient.

    >>> lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([5., 0.])
    """
    wide = upcast(vectors)
    return (normalize(wide) * wide).sum(dim=-1)  # |v| = u(v) . v


def upcast(vectors: Tensor) -> Tensor:
    """Numbers in float32, or as they are in float64; a gradient that their dtype cannot hold saturates.

    >>> upcast(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    if vectors.dtype in (torch.float32, torch.float64):
        return vectors
    if not vectors.is_floating_point():
        return vectors.to(torch.float32)
    wide: Tensor = _Widen.apply(vectors)
    return wide


def bounded(vectors: Tensor) -> Tensor:
    """`upcast`, with entries beyond +-2^40 set to that, without gradient, so that sums of squares do not overflow.

    >>> bounded(torch.tensor([1.0, 1e30]))
    tensor([1.0000e+00, 1.0995e+12])
    """
    return upcast(vectors).clamp(-_LARGEST, _LARGEST)


class _Widen(torch.autograd.Function):
    """To float32; on the way back a gradient too large for the narrow dtype becomes its largest number, not inf."""

    @staticmethod
    def forward(narrow: Tensor) -> Tensor:
        return narrow.to(torch.float32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        largest = torch.finfo(ctx.dtype).max
        return gradients[0].clamp(-largest, largest).to(ctx.dtype)


def cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """cos(theta) between every embedding and every class.

    Args:
      embeddings: [B, D], any float dtype and any length.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, of which the nearest counts (Deng et al.,
        "Sub-center ArcFace", ECCV 2020); a tie's gradient goes to the first.

    Returns:
      [B, C] in float32 (float64 where either is float64), under `torch.autocast` too.

    Raises:
      ValueError: shapes that do not fit.

    >>> cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    tensor([[ 1.,  0., -1.]])
    """
    check_shapes(embeddings, prototypes)
    cosine = inner_products(normalize(embeddings), normalize(prototypes.flatten(0, -2)))
    if prototypes.ndim == 3:
        # Tensor.max with a dim sends a tie's gradient to one element, the first; amax would share it out
        cosine = cosine.unflatten(1, prototypes.shape[:2]).max(dim=2).values
    return cosine


def check_shapes(embeddings: Tensor, prototypes: Tensor) -> None:
    """Raises ValueError where they are not [B, D] and [C, D] or [C, K, D]."""
    fits = embeddings.ndim == 2 and prototypes.ndim in (2, 3) and embeddings.shape[-1] == prototypes.shape[-1]
    if not fits:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and prototypes {tuple(prototypes.shape)} do not fit: they must be "
            "[B, D] and [C, D] or [C, K, D]"
        )


def inner_products(x: Tensor, w: Tensor) -> Tensor:
    """x . w of every row of [B, D] with every row of [C, D], in their dtype under `torch.autocast` too: [B, C].

    >>> inner_products(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, w.dtype)
        return x.to(dtype) @ w.to(dtype).T


# ---- logits


def add_margin(
    cosine: Tensor, labels: Tensor, margin: Margin, scale: float = 64.0, filter_above: float | None = None
) -> Tensor:
    """Logits from cosines: s psi(theta_y) for each example's own class, s cos(theta_j) elsewhere.

    Args:
      cosine: [B, C], float32 or float64.
      labels, margin, scale, filter_above: as in `margin_logits`, which tells what is raised.

    >>> add_margin(torch.tensor([[0.5, 0.25]]), torch.tensor([1]), Margin.cosface(0.25), scale=8.0)
    tensor([[4., 0.]])
    """
    checks.positive(scale=scale)
    labels = checked_labels(labels, *cosine.shape)
    psi = target_cosine(own_class(cosine, labels), margin)
    if filter_above is not None:
        cosine = cosine.masked_fill(cosine > filter_above, 0.0)
    return scale * with_own_class(cosine, labels, psi)


def squared_distances(cosine: Tensor) -> Tensor:
    """|u - v|^2 of vectors of length 1, max(0, 2 - 2 c), from their cosine c of any shape.

    >>> squared_distances(torch.tensor([1.0, 0.0, -1.0]))
    tensor([0., 2., 4.])
    """
    return F.relu(2 - 2 * cosine)


def own_class(values: Tensor, labels: Tensor) -> Tensor:
    """What stands in each row [B, C] at the example's own class: [B]."""
    return values.gather(1, labels.unsqueeze(1)).squeeze(1)


def with_own_class(values: Tensor, labels: Tensor, own: Tensor) -> Tensor:
    """`values` [B, C] with `own` [B] at each example's own class.

    >>> with_own_class(torch.zeros(2, 3), torch.tensor([2, 0]), torch.tensor([7.0, 8.0]))
    tensor([[0., 0., 7.],
            [8., 0., 0.]])
    """
    return values.scatter(1, labels.unsqueeze(1), own.unsqueeze(1))


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


def linear_logits(embeddings: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """The logits W_j . x + b_j of the plain softmax, [B, C] in float32 (float64 for float64).

    Args:
      embeddings: [B, D], any float dtype.
      weights: W, [C, D]. bias: b, [C].

    Raises:
      ValueError: shapes that do not fit.

    >>> linear_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0]))
    tensor([[2., 1.]])
    """
    if embeddings.ndim != 2 or weights.shape[1:] != embeddings.shape[1:] or bias.shape != weights.shape[:1]:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)}, weights {tuple(weights.shape)} and bias {tuple(bias.shape)} do not "
            "fit: they must be [B, D], [C, D] and [C]"
        )
    return inner_products(upcast(embeddings), upcast(weights)) + upcast(bias)


# ---- losses


def softmax_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with integer labels, the mean over the batch.

    Args:
      logits: [B, C], any float dtype.
      labels: [B], integers in [0, C).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, a label outside [0, C), or a label smoothing outside [0, 1).
      TypeError: labels that are not integers.

    >>> softmax_loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # log 4
    tensor(1.3863)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; [B, C] is expected")
    labels = checked_labels(labels, *logits.shape)
    return F.cross_entropy(upcast(logits), labels, label_smoothing=label_smoothing)


def margin_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    margin: Margin,
    scale: float = 64.0,
    label_smoothing: float = 0.0,
    filter_above: float | None = None,
) -> Tensor:
    """The margin softmax loss: the mean cross entropy of `margin_logits` (ArcFace, equation 4).

    Args:
      embeddings, prototypes, labels, margin, scale, filter_above: as in `margin_logits`.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> margin_softmax_loss(x, w, torch.tensor([0]), Margin.cosface(0.35), scale=1.0)  # log(1 + e^-0.65)
    tensor(0.4201)
    """
    logits = margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)
    return softmax_loss(logits, labels, label_smoothing)


def linear_softmax_loss(
    embeddings: Tensor, weights: Tensor, bias: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The plain softmax loss: the mean cross entropy of the logits W_j . x + b_j (ArcFace, equation 1).

    Args:
      embeddings, weights, bias: as in `linear_logits`.
      labels, label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `linear_logits` and `softmax_loss`.

    >>> x, w, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
    >>> linear_softmax_loss(x, w, b, torch.tensor([0]))  # log(1 + e^-1)
    tensor(0.3133)
    """
    return softmax_loss(linear_logits(embeddings, weights, bias), labels, label_smoothing)


def modified_softmax_loss(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The modified softmax loss: the mean cross entropy of the logits |x| cos(theta_j).

    It is the baseline of A-Softmax: SphereFace (Liu et al., CVPR 2017), equation 5.

    Args:
      embeddings, prototypes, labels: as in `margin_logits`, but the embeddings' length counts.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    >>> modified_softmax_loss(x, w, torch.tensor([0]))  # log(1 + e^-2)
    tensor(0.1269)
    """
    x = upcast(embeddings)
    logits = lengths(x).unsqueeze(1) * cosines(x, prototypes)
    return softmax_loss(logits, labels, label_smoothing)


def a_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    m: int = 4,
    lam: float = 5.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The A-Softmax loss of SphereFace (Liu et al., CVPR 2017, equation 7), annealed as in its published training.

    The logits are |x| cos(theta_j), but that of the own class |x| (lambda cos(theta) + psi(theta)) / (1 + lambda), with
    psi(theta) = (-1)^k cos(m theta) - 2k and k = floor(m theta / pi).

    Args:
      embeddings, prototypes, labels: as in `margin_logits`, but the embeddings' length counts.
      m: a whole number, at least 1.
      lam: lambda, at least 0 and finite; see `annealed_lambda`.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: m or lambda out of range, or as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> a_softmax_loss(x, w, torch.tensor([0]), m=4, lam=0.0)  # own logit 2 (cos(2 pi) - 4), other 0: log(1 + e^6)
    tensor(6.0025)
    """
    checks.whole(m=m)
    checks.at_least_zero(lam=lam)
    x = upcast(embeddings)
    cosine = cosines(x, prototypes)
    labels = checked_labels(labels, *cosine.shape)
    cos_theta = own_class(cosine, labels)
    psi = target_cosine(cos_theta, Margin.sphereface(m))
    cosine = with_own_class(cosine, labels, (lam * cos_theta + psi) / (1 + lam))
    return softmax_loss(lengths(x).unsqueeze(1) * cosine, labels, label_smoothing)


def annealed_lambda(step: int, first: float = 1000.0, last: float = 5.0, decay: float = 0.12) -> float:
    """lambda of `a_softmax_loss` at a step (from 0): max(last, first / (1 + decay step)), as SphereFace was trained.

    SphereFace's code starts one step later: it counts a step before it computes lambda.

    >>> [annealed_lambda(step) for step in (0, 100, 10_000)]
    [1000.0, 76.92..., 5.0]
    """
    return max(last, first / (1 + decay * step))


def checked_labels(labels: Tensor, batch: int, classes: int | None = None) -> Tensor:
    """Labels as int64, once they are found to be integers [B] and, where C is given, to lie in [0, C).

    Raises:
      ValueError, TypeError: they are not.

    >>> checked_labels(torch.tensor([0, 3]), batch=2, classes=3)
    Traceback (most recent call last):
    ...
    ValueError: labels must lie in [0, 3); found 3
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels have dtype {str(labels.dtype).removeprefix('torch.')}; they must be integers")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; one for each row of the batch is expected: ({batch},)"
        )
    if classes is not None:
        outside = labels[(labels < 0) | (labels >= classes)]
        if len(outside):
            raise ValueError(f"labels must lie in [0, {classes}); found {outside[0]}")
    return labels.long()
