"""Vectors of any length, the cosines between them, and the labels of a batch: what the losses are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    Raises:
      TypeError: complex numbers.

    >>> upcast(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    if vectors.dtype in (torch.float32, torch.float64):
        return vectors
    if vectors.is_complex():
        raise TypeError(f"the numbers have dtype {_name(vectors)}; they must be real")
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


def checked_labels(labels: Tensor, batch: int, classes: int | None = None) -> Tensor:
    """Labels as int64, once they are found to be integers [B] and, where C is given, to lie in [0, C).

    Args:
      labels: [B], of any integer dtype.

    Raises:
      ValueError, TypeError: they are not.

    >>> checked_labels(torch.tensor([0, 3]), batch=2, classes=3)
    Traceback (most recent call last):
    ...
    ValueError: labels must lie in [0, 3); found 3
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels have dtype {_name(labels)}; they must be integers")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; one for each row of the batch is expected: ({batch},)"
        )
    labels = labels.long()  # uint16, uint32 and uint64 cannot be compared
    if classes is not None:
        outside = labels[(labels < 0) | (labels >= classes)]
        if len(outside):
            raise ValueError(f"labels must lie in [0, {classes}); found {outside[0]}")
    return labels


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
