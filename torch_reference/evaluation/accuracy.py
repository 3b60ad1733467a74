"""Closed-set classification by the nearest prototype, or by the largest linear logit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from torch_reference.losses.registry import Batch, Objective
from torch_reference.losses.softmax import linear_logits
from torch_reference.losses.vectors import checked_labels, cosines, normalize

Array = Tensor | np.ndarray


@torch.no_grad()
def predict(embeddings: Array, prototypes: Array, bias: Array | None = None, block_size: int = 1000) -> Tensor:
    """The class whose prototype has the largest cosine with each embedding; the first of equals.

    Args:
      embeddings: [N, D]. prototypes: [C, D], or [C, K, D] with sub-centres. Tensors or arrays.
      bias: [C], of a classifier that is linear: the class is then that with the largest W x + b.
      block_size: embeddings compared at a time; the memory needed is block_size x C (x K).

    Returns:
      int64 [N].

    >>> x, w = torch.tensor([[2.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> predict(x, w).tolist(), predict(x, w, bias=torch.tensor([3.0, 0.0])).tolist()
    ([1, 1], [0, 0])
    """
    x, w = (_in_floats(torch.as_tensor(vectors)) for vectors in (embeddings, prototypes))
    b = None if bias is None else torch.as_tensor(bias)
    logits = (cosines(block, w) if b is None else linear_logits(block, w, b) for block in x.split(block_size))
    return torch.cat([block.argmax(dim=1) for block in logits])


def _in_floats(vectors: Tensor) -> Tensor:
    return vectors if vectors.is_floating_point() else vectors.double()  # float32 would change large integers


def accuracy(embeddings: Array, prototypes: Array, labels: Array, bias: Array | None = None) -> float:
    """The share of embeddings [N, D] that `predict` gives the class of their label [N].

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    0.5
    """
    return (predict(embeddings, prototypes, bias) == torch.as_tensor(labels)).double().mean().item()


@torch.no_grad()
def class_means(embeddings: Array, labels: Array, num_classes: int) -> Tensor:
    """The mean of each class's normalised embeddings: the prototypes of a model that was trained without any.

    Args:
      embeddings: [N, D]. labels: [N], integers in [0, C). Tensors or arrays.
      num_classes: C.

    Returns:
      [C, D], float32 (float64 for float64); 0 for a class without examples.

    Raises:
      ValueError: a label outside [0, C), or not one for each embedding.
      TypeError: labels that are not integers.

    >>> class_means(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 1]), num_classes=2)
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    unit = normalize(torch.as_tensor(embeddings))
    y = checked_labels(torch.as_tensor(labels), len(unit), num_classes)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add(0, y, unit)
    return sums / y.bincount(minlength=num_classes).clamp(min=1).unsqueeze(1)


@torch.no_grad()
def mean_loss(
    objective: Objective,
    owned: Mapping[str, Array],
    embeddings: Array,
    labels: Array,
    step: int = 0,
    block_size: int = 1000,
) -> float | None:
    """The mean of the classification loss, times its weight, with its whole margin and no label smoothing.

    Args:
      objective: the losses, of which the classification loss counts.
      owned: `prototypes` [C, D] or [C, K, D], and with `softmax` a `bias` [C].
      embeddings: [N, D]. labels: [N], integers in [0, C). Tensors or arrays.
      step: optimiser steps done, which `a_softmax` looks at.
      block_size: embeddings computed at a time.

    Returns:
      None where there is no classification loss, or one that remembers or draws something: what it is depends on the
      batch.

    >>> from torch_reference import cosface
    >>> mean_loss(cosface(m=1.0, scale=1.0), {"prototypes": torch.eye(2)}, torch.eye(2), torch.tensor([0, 1]))  # log 2
    0.6931...
    """
    term = objective.classifier
    if term is None or term.loss.draws or term.loss.remembers:
        return None
    options = dict(term.options) | ({"label_smoothing": 0.0} if "label_smoothing" in term.options else {})
    compute = term.loss.make(**options)
    x, y = torch.as_tensor(embeddings), torch.as_tensor(labels)
    w, b = torch.as_tensor(owned["prototypes"]), owned.get("bias")
    total = 0.0
    for xs, ys in zip(x.split(block_size), y.split(block_size), strict=True):
        loss = compute(Batch(xs, ys, w, None if b is None else torch.as_tensor(b), step=step))
        assert isinstance(loss, Tensor)
        total += loss.item() * len(ys)
    weight = next(weight for weight, other in objective if other is term)
    return weight * total / len(y)
