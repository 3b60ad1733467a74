"""The training loop: `fit` takes objects, `fit_config` makes them from a configuration."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_reference.data import Dataset, channel_statistics
from torch_reference.errors import UserError
from torch_reference.evaluation import accuracy, class_means, mean_loss
from torch_reference.models.airnet import AirNet
from torch_reference.models.heads import Classifier, Head
from torch_reference.models.trained import network_precision
from torch_reference.training import step as schedules
from torch_reference.training.batches import Batches, Images, first_images, first_of_each_class
from torch_reference.training.config import TrainConfig
from torch_reference.training.state import TrainState, make_model, make_optimizer
from torch_reference.training.step import Metrics, train_step

Loader = Iterable[tuple[Tensor, Tensor]]


class Record(NamedTuple):
    """A line of `metrics.jsonl`: the epoch (from 1) and its results.

    The training's loss and accuracy are means over the epoch's batches, the learning rate is that of its last step, and
    the time is what its training took, in seconds, without the evaluation. The test split's loss is that of the
    classification loss alone, with its whole margin, and None where `mean_loss` is. Both are None without a test split.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


class Reporter:
    """What hears of a training while it runs; does nothing by itself."""

    def on_step(self, epoch: int, step: int, metrics: Metrics) -> None:
        """After each step: its epoch (from 0) and the steps done in it."""

    def on_epoch(self, record: Record, state: TrainState) -> None:
        """After each epoch."""


def fit(
    backbone: nn.Module,
    head: Head,
    optimizer: torch.optim.Optimizer,
    batches: Batches | Loader,
    epochs: int,
    *,
    test: Loader | None = None,
    class_examples: Loader | None = None,
    learning_rate: Callable[[int], float] | None = None,
    margin_growth: Callable[[int], float] = lambda step: 1.0,
    clip_norm: float = 0.0,
    precision: str = "float32",
    seed: int | None = None,
    state: TrainState | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains a network of any kind with any head.

    Args:
      backbone: from what `batches` gives as images to embeddings [B, D].
      head: with the losses.
      optimizer: of the parameters of both.
      batches: of images and labels [B], by the recipe or from a `torch.utils.data.DataLoader`.
      epochs: how often to go through `batches`.
      test: batches that each epoch ends with a test on.
      class_examples: batches whose class means become the prototypes where pair losses alone train none.
      learning_rate: of each step (from 0); the optimiser's own where None.
      margin_growth: the share of the margin that has grown, of each step.
      clip_norm: the largest norm of the gradient; 0 is no limit.
      precision: of the network, float32 or bfloat16.
      seed: of the recipe's draws for dropout and random margins; where None they are PyTorch's.
      state: where to go on from, of the same backbone, head and optimizer; from the beginning where None.
      reporter: what hears of it.
      stop: asked before every step whether to end there.

    Returns:
      The state after the last step, or after the one at which `stop` said so.

    Raises:
      Diverged: a loss that is not finite.

    >>> from torch_reference import Head, arcface
    >>> network, head = nn.Linear(4, 2), Head(arcface(scale=16.0), embedding_dim=2, num_classes=3)
    >>> optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1)
    >>> fit(network, head, optimizer, [(torch.eye(4)[:3], torch.arange(3))], epochs=20).step
    20
    """
    state = state or TrainState(Classifier(backbone, head), optimizer)
    reporter = reporter or Reporter()
    model = state.model
    per_epoch = len(batches)  # type: ignore[arg-type]

    for epoch in range(state.step // per_epoch, epochs):
        done = state.step - epoch * per_epoch
        began, seen, rate = time.perf_counter(), 0, 0.0
        for number, (images, labels) in enumerate(_epoch(batches, epoch, done), done + 1):
            if stop():
                break
            rate = _rate(optimizer) if learning_rate is None else learning_rate(state.step)
            metrics = train_step(
                state,
                images,
                labels,
                learning_rate=rate,
                margin_growth=margin_growth(state.step),
                clip_norm=clip_norm,
                precision=precision,
                seed=seed,
            )
            state.loss_sum += metrics.loss
            state.accuracy_sum += metrics.accuracy
            seen += len(labels)
            reporter.on_step(epoch, number, metrics)
        if state.step < (epoch + 1) * per_epoch:
            break
        seconds = time.perf_counter() - began

        take_class_means(model, class_examples, precision)
        test_loss, test_accuracy = (None, None) if test is None else evaluate(model, test, precision, state.step)
        record = Record(
            epoch=epoch + 1,
            step=state.step,
            train_loss=state.loss_sum / per_epoch,
            train_accuracy=state.accuracy_sum / per_epoch,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            learning_rate=rate,
            images_per_second=seen / seconds,
            seconds=seconds,
        )
        state.loss_sum = state.accuracy_sum = 0.0
        reporter.on_epoch(record, state)
    if state.step % per_epoch or state.step == 0:
        take_class_means(model, class_examples, precision)
    return state


def _epoch(batches: Batches | Loader, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    return batches.epoch(number, start) if isinstance(batches, Batches) else iter(batches)


def _rate(optimizer: torch.optim.Optimizer) -> float:
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


# ---- evaluation


@torch.no_grad()
def embed_all(backbone: nn.Module, batches: Loader, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """The embeddings of some batches, [N, D], and their labels [N], on the CPU, in evaluation mode."""
    backbone.eval()
    embeddings, labels = [], []
    for images, its_labels in batches:
        with network_precision(precision, images.device):
            embeddings.append(backbone(images).to(images.dtype).cpu())
        labels.append(its_labels.cpu())
    return torch.cat(embeddings), torch.cat(labels)


@torch.no_grad()
def take_class_means(model: Classifier, examples: Loader | None, precision: str = "float32") -> None:
    """Makes the class means of some examples the prototypes, where the head does not train them."""
    if examples is not None and model.head.objective.classifier is None:
        embeddings, labels = embed_all(model.backbone, examples, precision)
        model.head.prototypes.copy_(class_means(embeddings, labels, len(model.head.prototypes)))


def evaluate(
    model: Classifier, batches: Loader, precision: str = "float32", step: int = 0
) -> tuple[float | None, float]:
    """The mean loss (see `mean_loss`) and the accuracy of some batches."""
    embeddings, labels = embed_all(model.backbone, batches, precision)
    head = model.head
    prototypes, bias = head.prototypes.detach().cpu(), None if head.bias is None else head.bias.detach().cpu()
    owned = {"prototypes": prototypes} | ({} if bias is None else {"bias": bias})
    return mean_loss(head.objective, owned, embeddings, labels, step), accuracy(embeddings, prototypes, labels, bias)


# ---- from a configuration


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and how the arithmetic is done; none of it changes what is computed but for rounding.

    Args:
      device: cpu, cuda or mps.
      channels_last: lays images out channel by channel within a pixel, which some convolutions are faster on.
      compile: compiles the backbone with `torch.compile`.
    """

    device: str = "cpu"
    channels_last: bool = False
    compile: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and convolutions lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def check_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Raises UserError where the data set has too few images or classes for the configuration, or holds out none."""
    if config.held_out and dataset.unseen is None:
        raise UserError(f"the data set still has the classes to hold out, {config.holdout_classes}: see data.hold_out")
    examples, classes = len(dataset.train.labels), dataset.num_classes
    if config.batch_size > examples:
        raise UserError(f"the batch size is {config.batch_size}, but there are only {examples} training images")
    if config.classes_per_batch > classes:
        raise UserError(f"the classes per batch are {config.classes_per_batch}, but there are only {classes} classes")
    try:
        make_model(config, dataset.image_shape, classes)
    except ValueError as error:
        raise UserError(str(error)) from None


def initial_state(config: TrainConfig, dataset: Dataset, machine: Machine | None = None) -> TrainState:
    """A training before its first step: a function of the seed, and for `airnet` of the training images."""
    machine = machine or Machine()
    model = make_model(config, dataset.image_shape, dataset.num_classes)
    if isinstance(model.backbone, AirNet):
        model.backbone.whiten_for(first_images(dataset))
    model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    embed = torch.compile(model.backbone) if machine.compile else None
    return TrainState(model, make_optimizer(config, model), embed=embed)


def fit_config(
    config: TrainConfig,
    dataset: Dataset,
    *,
    state: TrainState | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
    machine: Machine | None = None,
) -> TrainState:
    """Trains what a configuration describes, by the recipe.

    Args:
      config: what to train, and how.
      dataset: what on.
      state: where to go on from, by `initial_state`; from the beginning where None. It is changed.
      reporter, stop: as in `fit`.
      machine: where to compute.

    Raises:
      UserError: too few training images or classes, or images that are too small.
      Diverged: a loss that is not finite.
    """
    check_fit(config, dataset)
    machine = machine or Machine()
    state = state or initial_state(config, dataset, machine)
    statistics = channel_statistics(dataset.train.images)
    train, test, few = (
        Images.of(split, *statistics, machine.device, memory_format=machine.memory_format)
        for split in (dataset.train, dataset.test, first_of_each_class(dataset.train, dataset.num_classes))
    )
    batches = Batches(train, config.batch_size, config.seed, config.augmentation, config.classes_per_batch)
    return fit(
        state.model.backbone,
        state.model.head,
        state.optimizer,
        batches,
        config.epochs,
        test=test,
        class_examples=few,
        learning_rate=lambda step: schedules.learning_rate(config, step, len(batches)),
        margin_growth=lambda step: schedules.margin_growth(config, step, len(batches)),
        clip_norm=config.clip_norm,
        precision=config.precision,
        seed=config.seed,
        state=state,
        reporter=reporter,
        stop=stop,
    )
