"""Closed-set classification by the nearest prototype."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_reference.losses import cosines, margin_softmax_loss
from torch_reference.margins import Margin

Array = Tensor | np.ndarray


@torch.no_grad()
def predict(embeddings: Array, prototypes: Array, block_size: int = 1000) -> Tensor:
    """The class whose prototype has the largest cosine with each embedding; the first of equals.

    Args:
      embeddings: [N, D]. prototypes: [C, D], or [C, K, D] with sub-centres. Tensors or arrays.
      block_size: embeddings compared at a time; the memory needed is block_size x C (x K).

    Returns:
      int64 [N].

    >>> predict(torch.tensor([[2.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [1, 1]
    """
    x, w = torch.as_tensor(embeddings), torch.as_tensor(prototypes)
    return torch.cat([cosines(block, w).argmax(dim=1) for block in x.split(block_size)])


def accuracy(embeddings: Array, prototypes: Array, labels: Array) -> float:
    """The share of embeddings [N, D] whose nearest prototype is that of their label [N].

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    0.5
    """
    return (predict(embeddings, prototypes) == torch.as_tensor(labels)).double().mean().item()


@torch.no_grad()
def mean_loss(
    embeddings: Array, prototypes: Array, labels: Array, margin: Margin, scale: float, block_size: int = 1000
) -> float:
    """The mean margin softmax loss of embeddings [N, D] with labels [N], block_size at a time.

    >>> mean_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), Margin.cosface(1.0), scale=1.0)  # log 2
    0.6931...
    """
    x, w, y = map(torch.as_tensor, (embeddings, prototypes, labels))
    blocks = zip(x.split(block_size), y.split(block_size), strict=True)
    return sum(margin_softmax_loss(xs, w, ys, margin, scale).item() * len(ys) for xs, ys in blocks) / len(y)
