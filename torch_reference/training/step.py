"""One step of a training, and the schedules of its learning rate and margin (docs/recipe.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from torch_reference.data.sampling import dropout_mask, elastic_normal
from torch_reference.losses.vectors import cosines
from torch_reference.models.heads import Head
from torch_reference.models.layers import Backbone, dropout_of
from torch_reference.models.trained import network_precision
from torch_reference.training.config import TrainConfig
from torch_reference.training.state import TrainState


class Diverged(ArithmeticError):
    """A training whose loss is not finite any more."""


class Metrics(NamedTuple):
    """The results of a step: the batch's mean loss, and its accuracy without the margin."""

    loss: float
    accuracy: float


def train_step(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float | None = None,
    margin_growth: float = 1.0,
    clip_norm: float = 0.0,
    precision: str = "float32",
    seed: int | None = None,
) -> Metrics:
    """One step of the optimiser, on normalised images [B, C, H, W] with labels [B]; changes `state`.

    Args:
      learning_rate: of this step; the optimiser's own where None.
      margin_growth: the share of the margin that has grown.
      clip_norm: the largest norm of the gradient; 0 is no limit.
      precision: of the network, float32 or bfloat16.
      seed: of the recipe's random draws; where None they are PyTorch's.

    Raises:
      Diverged: a loss that is not finite; the weights and the optimiser are then as before.
    """
    model, step = state.model.train(), state.step
    with network_precision(precision, images.device):
        embeddings = _embed(state, images, seed)
    normal = None
    if seed is not None and model.head.objective.draws:
        normal = torch.from_numpy(elastic_normal(seed, step, len(images))).to(images.device)
    loss = model.head.loss(embeddings, labels, growth=margin_growth, step=step, normal=normal)
    if not math.isfinite(value := loss.item()):
        raise Diverged(
            f"the loss of step {step + 1} is {value}; try a smaller learning rate, more warm-up epochs, or 1 as the "
            "largest norm of the gradient"
        )
    accuracy = _batch_accuracy(model.head, embeddings.detach(), labels)  # by the weights of the loss

    state.optimizer.zero_grad()
    loss.backward()
    if clip_norm > 0:
        clip_gradients(model.parameters(), clip_norm)
    if learning_rate is not None:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
    state.optimizer.step()
    state.step += 1
    return Metrics(value, accuracy)


def _embed(state: TrainState, images: Tensor, seed: int | None) -> Tensor:
    """The backbone's embeddings, with the dropout mask of the recipe where there is a seed."""
    backbone = state.model.backbone
    embed = backbone if state.embed is None else state.embed
    if seed is None or not isinstance(backbone, Backbone) or (layer := dropout_of(backbone)).rate == 0:
        return embed(images)
    keep = dropout_mask(seed, state.step, len(images), layer.features, layer.rate)
    return embed(images, torch.from_numpy(keep).to(images.device))


@torch.no_grad()
def _batch_accuracy(head: Head, embeddings: Tensor, labels: Tensor) -> float:
    """The share of a batch that is given its class by the head, or by the nearest other example under pair losses."""
    if head.objective.classifier is not None:
        predicted = head(embeddings).argmax(dim=1)
    else:
        predicted = labels[cosines(embeddings, embeddings).fill_diagonal_(-math.inf).argmax(dim=1)]
    return (predicted == labels).float().mean().item()


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], largest: float) -> None:
    """Scales all gradients together by largest / norm where their norm exceeds `largest`.

    Written out, because `torch.nn.utils.clip_grad_norm_` divides by norm + 1e-6.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    factor = torch.where(norm > largest, largest / norm, 1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0): a linear warm-up, then the schedule.

    >>> config = TrainConfig(epochs=3, warmup_epochs=1, learning_rate=0.5, schedule="linear")
    >>> [learning_rate(config, step, steps_per_epoch=1) for step in range(3)]
    [0.25, 0.5, 0.25]
    """
    total, warmup = config.epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    x = (step - warmup) / (total - warmup)
    factor = {"cosine": (1 + math.cos(math.pi * x)) / 2, "linear": 1 - x, "constant": 1.0}[config.schedule]
    return config.learning_rate * factor


def margin_growth(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The share of the margin that has grown in a step (from 0); it rises linearly to 1.

    >>> [margin_growth(TrainConfig(margin_warmup_epochs=1), step, steps_per_epoch=1) for step in range(3)]
    [0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (round(config.margin_warmup_epochs * steps_per_epoch) + 1))
