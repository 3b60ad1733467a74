"""From embeddings or logits to a scalar: the margin softmax losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_reference.margins import Margin, target_cosine

_ZERO = 2.0**-100  # a vector whose largest entry is below this counts as zero


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
    wide = _widened(vectors)
    largest = wide.detach().abs().amax(dim=-1, keepdim=True)
    is_zero = largest < _ZERO
    # v / |v| is the same for v / constant; and where v counts as zero the divisions are by 1, so that no 0/0 arises
    scaled = torch.where(is_zero, 0.0, wide) / torch.where(is_zero, 1.0, largest)
    squared = scaled.square().sum(dim=-1, keepdim=True)
    return scaled / torch.where(is_zero, 1.0, squared).sqrt()


def _widened(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float32, torch.float64):
        return vectors
    if not vectors.is_floating_point():
        return vectors.to(torch.float32)
    wide: Tensor = _Widen.apply(vectors)
    return wide


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
    fits = embeddings.ndim == 2 and prototypes.ndim in (2, 3) and embeddings.shape[-1] == prototypes.shape[-1]
    if not fits:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and prototypes {tuple(prototypes.shape)} do not fit: they must be "
            "[B, D] and [C, D] or [C, K, D]"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        x, w = normalize(embeddings), normalize(prototypes)
        dtype = torch.promote_types(x.dtype, w.dtype)
        cosine = x.to(dtype) @ w.to(dtype).flatten(0, -2).T
        if w.ndim == 3:
            # Tensor.max with a dim sends a tie's gradient to one element, the first; amax would share it out
            cosine = cosine.unflatten(1, w.shape[:2]).max(dim=2).values
        return cosine


def add_margin(cosine: Tensor, labels: Tensor, margin: Margin, scale: float = 64.0) -> Tensor:
    """Logits from cosines: s psi(theta_y) for each example's own class, s cos(theta_j) elsewhere.

    Args:
      cosine: [B, C], float32 or float64.
      labels, margin, scale: as in `margin_logits`, which tells what is raised.

    >>> add_margin(torch.tensor([[0.5, 0.25]]), torch.tensor([1]), Margin.cosface(0.25), scale=8.0)
    tensor([[4., 0.]])
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be > 0")
    own = _checked(labels, *cosine.shape).unsqueeze(1)
    return scale * cosine.scatter(1, own, target_cosine(cosine.gather(1, own), margin))


def margin_logits(
    embeddings: Tensor, prototypes: Tensor, labels: Tensor, margin: Margin, scale: float = 64.0
) -> Tensor:
    """Logits with the margin on each example's own class: ArcFace (Deng et al., CVPR 2019), equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class; only their direction counts.
      labels: [B], integers in [0, C).
      margin: see `Margin`.
      scale: s, > 0.

    Returns:
      [B, C] in float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, scale <= 0, or a label outside [0, C).
      TypeError: labels that are not integers.

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    >>> margin_logits(x, w, torch.tensor([0]), Margin.arcface(0.5), scale=10.0)  # 10 cos(pi/4 + 0.5), 0
    tensor([[2.8154, 0.0000]])
    """
    return add_margin(cosines(embeddings, prototypes), labels, margin, scale)


def softmax_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with integer labels, the mean over the batch.

    Args:
      logits: [B, C].
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
    labels = _checked(labels, *logits.shape)
    return F.cross_entropy(_widened(logits), labels, label_smoothing=label_smoothing)


def margin_softmax_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    margin: Margin,
    scale: float = 64.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The margin softmax loss: the mean cross entropy of `margin_logits` (ArcFace, equation 4).

    Args:
      embeddings, prototypes, labels, margin, scale: as in `margin_logits`.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> margin_softmax_loss(x, w, torch.tensor([0]), Margin.cosface(0.35), scale=1.0)  # log(1 + e^-0.65)
    tensor(0.4201)
    """
    return softmax_loss(margin_logits(embeddings, prototypes, labels, margin, scale), labels, label_smoothing)


def _checked(labels: Tensor, batch: int, classes: int) -> Tensor:
    """Labels as int64, once they are found to be good."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels have dtype {str(labels.dtype).removeprefix('torch.')}; they must be integers")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; one for each row of the batch is expected: ({batch},)"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"labels must lie in [0, {classes}); found {outside[0]}")
    return labels.long()
