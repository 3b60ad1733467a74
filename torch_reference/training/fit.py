"""State, step, epoch, fit: how a model is trained (`docs/recipe.md`)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torch_reference.data import Dataset, Split, channel_statistics
from torch_reference.data.sampling import (
    augment,
    class_batches,
    draw_augmentation,
    dropout_mask,
    elastic_normal,
    epoch_order,
    normalise,
)
from torch_reference.errors import UserError
from torch_reference.evaluation import accuracy, class_means
from torch_reference.losses.margins import Margin
from torch_reference.losses.registry import Inputs, State, initial_states, total_loss
from torch_reference.losses.vectors import cosines
from torch_reference.models import weights
from torch_reference.models.backbones import make_backbone, whitening_filters
from torch_reference.models.heads import ClassHead
from torch_reference.training.config import TrainConfig


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


# ---- model


class Classifier(nn.Module):
    """A backbone and a head, as the configuration describes them.

    >>> model = Classifier(TrainConfig(), (8, 8, 1), num_classes=10)
    >>> model.head.prototypes.shape
    torch.Size([10, 128])
    """

    def __init__(self, config: TrainConfig, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.backbone = make_backbone(config.backbone, image_shape, config.embedding_dim, config.width, config.dropout)
        names = config.objective.names
        self.head = ClassHead(
            config.embedding_dim,
            num_classes,
            subcenters=config.subcenters,
            trained=config.objective.classifier is not None,
            bias="softmax" in names,
            centers="center_learnt" in names,
        )

    def forward(self, images: Tensor) -> Tensor:
        """What is largest for an image's class: [B, C] of normalised images [B, C, H, W]."""
        scores: Tensor = self.head(self.backbone(images))
        return scores


def initial_model(config: TrainConfig, dataset: Dataset) -> Classifier:
    """The model before its first step: a function of the seed, and for `airnet` of the training images."""
    model = Classifier(config, dataset.image_shape, dataset.num_classes)
    weights.initialise(model, config.seed)
    if config.backbone == "airnet":
        first = Split(dataset.train.images[:5000], dataset.train.labels[:5000])
        data = device_data(first, *channel_statistics(dataset.train.images))
        filters = whitening_filters(normalise(data.images, data.mean, data.scale).numpy())
        with torch.no_grad():
            model.get_parameter("backbone.whiten.weight").copy_(torch.from_numpy(filters))
    return model


# ---- data


class DeviceData(NamedTuple):
    """A split where the arithmetic is done: images uint8 [N, H, W, C], labels [N], mean and 1 / std [C]."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor


def device_data(
    split: Split,
    mean: np.ndarray,
    std: np.ndarray,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DeviceData:
    """Puts a split on the device; `mean` and `std` [C] are the training images', in grey levels.

    Both constants are rounded to float32 whatever `dtype`, that of the network's input, is.
    """
    constants = (torch.from_numpy(np.float32(values)).to(device, dtype) for values in (mean, 1 / std))
    return DeviceData(
        torch.tensor(split.images, device=device),
        torch.tensor(split.labels, device=device, dtype=torch.int64),
        *constants,
    )


def epoch_batches(config: TrainConfig, data: DeviceData, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch (from 0), from its batch `start` on: images [B, C, H, W], augmented, and labels [B]."""
    examples, height, width, _ = data.images.shape
    device, batch_size = data.images.device, config.batch_size
    if config.classes_per_batch:
        labels = data.labels.cpu().numpy()
        batches = class_batches(config.seed, epoch, labels, batch_size, config.classes_per_batch)
    else:
        order = epoch_order(config.seed, epoch, examples)
        batches = order[: examples // batch_size * batch_size].reshape(-1, batch_size)
    draws = draw_augmentation(config.augmentation, config.seed, epoch, examples, height, width, device)
    for chosen in torch.from_numpy(batches[start:]).to(device):
        images = augment(data.images[chosen], draws.take(chosen), config.augmentation, data.mean, data.scale)
        yield images, data.labels[chosen]


# ---- optimiser and schedules


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser, with weight decay on weights of two axes or more, but not on centres.

    Each step sets its learning rate.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and name != "head.centers" else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), eps=1e-8)
    # without momentum Nesterov's step is the plain one, and torch refuses the word
    nesterov = config.optimizer == "nesterov" and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


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


def warmed_up_margin(config: TrainConfig, step: int, steps_per_epoch: int) -> Margin:
    """The margin of a step (from 0), which grows linearly from none to its value.

    >>> config = TrainConfig(loss="arcface", margin=0.4, margin_warmup_epochs=1)
    >>> [warmed_up_margin(config, step, steps_per_epoch=1).m2 for step in range(2)]
    [0.2, 0.4]
    """
    return config.margin_value.grown(margin_growth(config, step, steps_per_epoch))


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


# ---- state and step


@dataclasses.dataclass
class TrainState:
    """A training after so many steps.

    Args:
      model: with its weights, which each step changes.
      optimizer: with its momenta.
      losses: what the losses remember, by the names of loss and value: `center` its centres, `adacos` its scale,
        `curricularface` t, `adaface` the mean and the standard deviation of the embeddings' lengths.
      step: how many.
      loss_sum, accuracy_sum: of the steps of the running epoch.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    losses: dict[str, State] = dataclasses.field(default_factory=dict)
    step: int = 0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name, for a checkpoint."""
        arrays = {f"model.{name}": array for name, array in weights.to_arrays(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    arrays[f"optimizer.{key}.{name}"] = value.detach().cpu().contiguous().numpy()
        for loss, state in self.losses.items():
            arrays |= {f"losses.{loss}.{name}": value.cpu().numpy() for name, value in state.items()}
        for key in ("step", "loss_sum", "accuracy_sum"):
            arrays[key] = np.array(getattr(self, key))
        return arrays

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over what `to_arrays` gave.

        Raises:
          ValueError: arrays that do not fit the model, its optimiser or its losses.
        """
        values = [f"losses.{loss}.{name}" for loss, state in self.losses.items() for name in state]
        if missing := {"step", "loss_sum", "accuracy_sum", *values} - arrays.keys():
            raise ValueError(f"it has no {min(missing)}")
        prefix = "model."
        model = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights.load_arrays(self.model, model)
        parameters = dict(self.model.named_parameters())
        memory = {name.split(".")[1] for name in arrays if name.startswith("optimizer.")}
        if memory != (_memory_of(self.optimizer) if arrays["step"] > 0 else set()):
            raise ValueError(f"its optimiser's memory is {sorted(memory)}, that of another optimiser")
        for name, array in arrays.items():
            if name.startswith("optimizer."):
                _, key, of = name.split(".", 2)
                if of not in parameters:
                    raise ValueError(f"it has {name}, which the model does not know")
                # AdamW counts its steps on the CPU
                device = parameters[of].device if array.ndim else "cpu"
                self.optimizer.state[parameters[of]][key] = torch.from_numpy(array).to(device)
        for loss, state in self.losses.items():
            for name, value in state.items():
                found = torch.from_numpy(arrays[f"losses.{loss}.{name}"])
                if found.shape != value.shape:
                    raise ValueError(f"its {name} of {loss} has shape {tuple(found.shape)}, not {tuple(value.shape)}")
                state[name] = found.to(value.device)
        self.step = int(arrays["step"])
        self.loss_sum, self.accuracy_sum = float(arrays["loss_sum"]), float(arrays["accuracy_sum"])


def _memory_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimiser keeps of each parameter after a step."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if optimizer.defaults["momentum"] > 0 else set()


def initial_state(config: TrainConfig, dataset: Dataset, machine: Machine | None = None) -> TrainState:
    """The state before the first step."""
    machine = machine or Machine()
    model = initial_model(config, dataset).to(machine.device)
    model = model.to(memory_format=machine.memory_format)  # type: ignore[call-overload]
    states = initial_states(config.objective, dataset.num_classes, config.embedding_dim)
    losses = {loss: {name: value.to(machine.device) for name, value in state.items()} for loss, state in states.items()}
    return TrainState(model, make_optimizer(config, model), losses)


class Metrics(NamedTuple):
    """What a step gave: the batch's mean loss, and its accuracy without the margin."""

    loss: float
    accuracy: float


def train_step(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    steps_per_epoch: int,
    embed: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Metrics:
    """One step of the optimiser, on normalised images [B, C, H, W] with labels [B]; changes `state`.

    Args:
      embed: the backbone, where it is to be another than the model's own, such as a compiled one.

    Raises:
      Diverged: a loss that is not finite; weights, optimiser and losses are then as before, running statistics not.
    """
    model, optimizer, step = state.model, state.optimizer, state.step
    model.train()
    keep = None
    if config.dropout > 0:
        features = model.backbone.embedding.fc.in_features
        drawn = dropout_mask(config.seed, step, len(images), features, config.dropout)
        keep = torch.from_numpy(drawn).to(images.device)
    with network_precision(config, images.device):
        embeddings = model.backbone(images, keep) if embed is None else embed(images, keep)
    normal = None
    if config.objective.needs_normal:
        normal = torch.from_numpy(elastic_normal(config.seed, step, len(images))).to(images.device)
    inputs = Inputs(
        embeddings,
        labels,
        model.head.prototypes,
        model.head.bias,
        model.head.centers,
        margin=warmed_up_margin(config, step, steps_per_epoch),
        growth=margin_growth(config, step, steps_per_epoch),
        scale=config.scale_value,
        label_smoothing=config.label_smoothing,
        beyond_pi=config.beyond_pi,
        step=step,
        normal=normal,
    )
    loss, losses = total_loss(config.objective, inputs, state.losses)
    if not math.isfinite(value := loss.item()):
        raise Diverged(
            f"the loss of step {step + 1} is {value}; try a smaller --learning-rate (now {config.learning_rate:g}), "
            f"more --warmup-epochs (now {config.warmup_epochs:g}) or --clip-norm 1"
        )

    batch_accuracy = _batch_accuracy(config, model.head, embeddings.detach(), labels)  # by the weights of the loss
    optimizer.zero_grad()
    loss.backward()
    if config.clip_norm > 0:
        clip_gradients(model.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps_per_epoch)
    optimizer.step()
    state.losses = losses
    state.step += 1
    return Metrics(value, batch_accuracy)


@torch.no_grad()
def _batch_accuracy(config: TrainConfig, head: ClassHead, embeddings: Tensor, labels: Tensor) -> float:
    """The share of a batch that is given its class by the head, or by the nearest other example under pair losses."""
    if config.objective.classifier is not None:
        predicted = head(embeddings).argmax(dim=1)
    else:
        predicted = labels[cosines(embeddings, embeddings).fill_diagonal_(-math.inf).argmax(dim=1)]
    return (predicted == labels).float().mean().item()


def network_precision(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where convolutions and linear layers are computed in the configuration's precision."""
    if config.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@torch.no_grad()
def embed_all(
    model: Classifier,
    config: TrainConfig,
    data: DeviceData,
    memory_format: torch.memory_format = torch.contiguous_format,
    batch_size: int = 500,
) -> Tensor:
    """The embeddings of a split, [N, D] on the CPU, in evaluation mode."""
    model.eval()
    embeddings = []
    for images in data.images.split(batch_size):
        normalised = normalise(images, data.mean, data.scale).contiguous(memory_format=memory_format)
        with network_precision(config, data.images.device):
            embeddings.append(model.backbone(normalised).to(data.mean.dtype).cpu())
    return torch.cat(embeddings)


@torch.no_grad()
def take_class_means(
    model: Classifier,
    config: TrainConfig,
    data: DeviceData,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> None:
    """Makes the class means of a split's embeddings the prototypes, where they are not trained."""
    embeddings = embed_all(model, config, data, memory_format)
    model.head.prototypes.copy_(class_means(embeddings, data.labels.cpu(), len(model.head.prototypes)))


# ---- fit


class Diverged(ArithmeticError):
    """A training whose loss is not finite any more; its message says what may help."""


class Record(NamedTuple):
    """A line of `metrics.jsonl`: the epoch (from 1) and what it gave.

    The losses and accuracies are means over the epoch's batches, the learning rate is that of its last step, and the
    time is what its training took, in seconds, without the evaluation.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float


class Reporter:
    """What is told of a training while it runs; does nothing by itself."""

    def on_step(self, epoch: int, step: int, metrics: Metrics) -> None:
        """After each step: its epoch (from 0) and the steps done in it."""

    def on_epoch(self, record: Record, state: TrainState) -> None:
        """After each epoch."""


def check_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Raises UserError where the data set has too few images or classes for the configuration."""
    examples, classes = len(dataset.train.labels), dataset.num_classes
    if config.batch_size > examples:
        raise UserError(f"--batch-size is {config.batch_size}, but there are only {examples} training images")
    if config.classes_per_batch > classes:
        raise UserError(
            f"--classes-per-batch is {config.classes_per_batch}, but there are only {classes} classes"
            f"{config.about_classes}"
        )
    if "adacos" in config.objective.names and classes < 3:
        raise UserError(f"--loss adacos needs at least 3 classes, but there are only {classes}")


def first_of_each_class(split: Split, num_classes: int, images: int = 10_000) -> Split:
    """The first ceil(images / C) images of each class, which class means are taken of."""
    order = np.argsort(split.labels, kind="stable")
    sorted_labels = split.labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)
    chosen = order[rank < math.ceil(images / num_classes)]
    return Split(split.images[chosen], split.labels[chosen])


def fit(
    config: TrainConfig,
    dataset: Dataset,
    state: TrainState | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
    machine: Machine | None = None,
) -> TrainState:
    """Trains a model.

    Args:
      config: what to train, and how.
      dataset: what on.
      state: where to go on from; from the beginning where None. It is changed.
      reporter: what to tell of it.
      stop: asked before every step whether to end there.
      machine: where to.

    Returns:
      The state after the last step, or after the one at which `stop` said so.

    Raises:
      UserError: too few training images or classes.
      Diverged: a loss that is not finite.
    """
    machine, reporter = machine or Machine(), reporter or Reporter()
    check_fit(config, dataset)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    state = state or initial_state(config, dataset, machine)
    statistics = channel_statistics(dataset.train.images)
    train = device_data(dataset.train, *statistics, machine.device)
    test = device_data(dataset.test, *statistics, machine.device)
    embed = torch.compile(state.model.backbone) if machine.compile else None
    few = None  # images of each class, where the class means take the place of trained prototypes
    if config.objective.classifier is None:
        few = device_data(first_of_each_class(dataset.train, dataset.num_classes), *statistics, machine.device)

    for epoch in range(state.step // steps_per_epoch, config.epochs):
        done = state.step - epoch * steps_per_epoch
        began = time.perf_counter()
        for number, (images, labels) in enumerate(epoch_batches(config, train, epoch, done), done + 1):
            if stop():
                if few is not None:
                    take_class_means(state.model, config, few, machine.memory_format)
                return state
            images = images.contiguous(memory_format=machine.memory_format)
            metrics = train_step(state, images, labels, config, steps_per_epoch, embed)
            state.loss_sum += metrics.loss
            state.accuracy_sum += metrics.accuracy
            reporter.on_step(epoch, number, metrics)
        seconds = time.perf_counter() - began

        if few is not None:
            take_class_means(state.model, config, few, machine.memory_format)
        embeddings = embed_all(state.model, config, test, machine.memory_format)
        head = state.model.head
        prototypes, bias = head.prototypes.detach().cpu(), None if head.bias is None else head.bias.detach().cpu()
        record = Record(
            epoch=epoch + 1,
            step=state.step,
            train_loss=state.loss_sum / steps_per_epoch,
            train_accuracy=state.accuracy_sum / steps_per_epoch,
            test_accuracy=accuracy(embeddings, prototypes, dataset.test.labels, bias),
            learning_rate=learning_rate(config, state.step - 1, steps_per_epoch),
            images_per_second=(steps_per_epoch - done) * config.batch_size / seconds,
            seconds=seconds,
        )
        state.loss_sum = state.accuracy_sum = 0.0
        reporter.on_epoch(record, state)
    if few is not None and state.step == 0:
        take_class_means(state.model, config, few, machine.memory_format)
    return state
