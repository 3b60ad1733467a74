"""What is added to a classification loss: center and intra for compact classes, inter and energy for classes apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_reference.losses.margins import angles
from torch_reference.losses.vectors import (
    bounded,
    check_shapes,
    inner_products,
    normalize,
    squared_distances,
    upcast,
)
from torch_reference.losses.weighting import Batch, Reduction, counted

_NEAREST = 2.0**-20  # the squared distance that nearer prototypes count as in the energy


def center_loss(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The center loss, 1/2 mean |x - c_y|^2 (Wen et al., ECCV 2016, equation 2).

    Args:
      embeddings: [B, D], any float dtype. Entries beyond +-2^40 count as that, here as in the centres.
      centers: [C, D], which `center_displacements` moves.
      labels: [B], integers in [0, C).
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit, a label outside [0, C), a negative weight, or an unknown reduction.
      TypeError: labels that are not integers, or complex numbers.

    >>> center_loss(torch.tensor([[3.0, 4.0]]), torch.zeros(2, 2), torch.tensor([1]))
    tensor(12.5000)
    """
    difference, _, batch = _from_center(embeddings, centers, labels, weights, reduction)
    return batch.reduce(difference.square().sum(dim=1) / 2)


def center_displacements(
    embeddings: Tensor, centers: Tensor, labels: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """What each example contributes to the step of its class's centre, w (c_y - x) / (1 + n_y).

    n_y is the number of examples of class y in the batch, the sum of their weights w. A centre moves by -rate times the
    sum over its examples (Wen et al., ECCV 2016, equation 4).

    Args:
      embeddings, centers, labels, weights: as in `center_loss`, which says what is raised.

    Returns:
      [B, D], float32 (float64 for float64).

    >>> center_displacements(torch.tensor([[3.0], [5.0]]), torch.ones(2, 1), torch.tensor([0, 0]))  # (1 - x) / 3
    tensor([[-0.6667],
            [-1.3333]])
    """
    difference, labels, batch = _from_center(embeddings, centers, labels, weights, "none")
    w = batch.weights.to(difference.dtype)
    count = w.new_zeros(len(centers)).index_add(0, labels, w)[labels]
    return batch.spread(w.unsqueeze(1) * -difference / (1 + count).unsqueeze(1))


def _from_center(
    embeddings: Tensor, centers: Tensor, labels: Tensor, weights: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Tensor, Batch]:
    """x - c_y [A, D] and y [A] of the examples that count, and which these are."""
    if embeddings.ndim != 2 or centers.ndim != 2 or embeddings.shape[1] != centers.shape[1]:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and centers {tuple(centers.shape)} do not fit: they must be [B, D] "
            "and [C, D]"
        )
    labels, batch = counted(labels, len(embeddings), len(centers), weights, reduction)
    return bounded(batch.rows(embeddings)) - bounded(centers)[labels], labels, batch


def intra_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The mean angle between an embedding and its class, (1 / pi) mean theta_y (ArcFace, equation 5).

    Args:
      embeddings: [B, D], any float dtype.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, of which the nearest counts.
      labels: [B], integers in [0, C).
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `center_loss`.

    >>> intra_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
    tensor(0.5000)
    """
    check_shapes(embeddings, prototypes)
    labels, batch = counted(labels, len(embeddings), len(prototypes), weights, reduction)
    x = batch.rows(embeddings)
    subcenters = prototypes if prototypes.ndim == 3 else prototypes.unsqueeze(1)
    own = normalize(upcast(subcenters)[labels])  # [A, K, D]
    cosine = (normalize(x).unsqueeze(1) * own).sum(dim=2)
    return batch.reduce(angles(cosine.max(dim=1).values)) / math.pi


def inter_loss(
    prototypes: Tensor,
    labels: Tensor,
    block_size: int = 4096,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """The mean angle between the batch's classes and all others, to be made large.

    ArcFace (Deng et al., CVPR 2019), equation 6: -(1 / (pi (C - 1))) mean over the batch of
    sum_{j != y} arccos(u(W_y) . u(W_j)).

    Args:
      prototypes: [C, D], any float dtype and any length.
      labels: [B], integers in [0, C).
      block_size: classes compared at a time: it takes [B, block_size] of memory, with the gradient too.
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 for a single class.

    Raises:
      ValueError, TypeError: as `center_loss`; a block size below 1.

    >>> inter_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]), torch.tensor([0]))  # (pi/2 + pi) / (2 pi)
    tensor(-0.7500)
    """
    return -_over_other_classes(angles, prototypes, labels, block_size, reduction, weights) / math.pi


def hyperspherical_energy(
    prototypes: Tensor,
    labels: Tensor,
    block_size: int = 4096,
    *,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
) -> Tensor:
    """How much the batch's classes repel all others: the minimum hyperspherical energy, to be made small.

    MHE (Liu et al., NeurIPS 2018) with s = 2: 1 / (C - 1) mean over the batch of sum_{j != y} 1 / |u(W_y) - u(W_j)|^2.
    Squared distances below 2^-20 count as 2^-20, without gradient.

    Args:
      prototypes, labels, block_size, reduction, weights: as in `inter_loss`.

    Returns:
      A scalar, or [B] without reduction, float32 (float64 for float64); 0 for a single class.

    Raises:
      ValueError, TypeError: as `inter_loss`.

    >>> hyperspherical_energy(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]), torch.tensor([0]))  # (1/2 + 1/4) / 2
    tensor(0.3750)
    """
    return _over_other_classes(_energy, prototypes, labels, block_size, reduction, weights)


def _energy(cosine: Tensor) -> Tensor:
    return 1 / squared_distances(cosine).clamp(min=_NEAREST)


def _over_other_classes(
    function: Callable[[Tensor], Tensor],
    prototypes: Tensor,
    labels: Tensor,
    block_size: int,
    reduction: Reduction,
    weights: Tensor | None,
) -> Tensor:
    """1 / (C - 1) mean over the batch of sum_{j != y} function(u(W_y) . u(W_j))."""
    if prototypes.ndim != 2:
        raise ValueError(f"prototypes have shape {tuple(prototypes.shape)}; [C, D] is expected, without sub-centres")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    classes = len(prototypes)
    labels, batch = counted(labels, len(labels), classes, weights, reduction)
    unit = normalize(prototypes)
    own = unit[labels]

    def of_block(own: Tensor, others: Tensor, first: int) -> Tensor:
        is_own = labels.unsqueeze(1) == first + torch.arange(len(others), device=labels.device)
        return function(inner_products(own, others)).masked_fill(is_own, 0.0).sum(dim=1)

    # a checkpoint keeps a block's inputs, not its [B, block_size] products, which are made again for the gradient
    sums = [
        checkpoint(of_block, own, others, first, use_reentrant=False, preserve_rng_state=False)
        for first, others in zip(range(0, classes, block_size), unit.split(block_size), strict=True)
    ]
    return batch.reduce(torch.stack(sums).sum(dim=0)) / max(classes - 1, 1)
