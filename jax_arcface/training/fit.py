"""Training from top to bottom: model, data, optimiser, step, epoch, fit.

The data set lies on the device as uint8. What is random in an epoch is drawn on the host (`data/sampling.py`); a
step gathers its batch, augments, normalises and updates inside one jitted function whose state is donated. On an
accelerator an epoch is one `lax.scan` over that step. On a CPU the same step is called by itself: XLA runs a
convolution inside a loop tens of times slower there.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jax_arcface.data import Dataset, Split, channel_statistics
from jax_arcface.data.sampling import augment, balanced_order, dropout_mask, epoch_batches, normal_draws, normalise
from jax_arcface.errors import UserError
from jax_arcface.evaluation import accuracy, class_means
from jax_arcface.losses.fused import has_many_cosines, nearest_class
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.registry import Inputs, State, initial_states, total_loss
from jax_arcface.losses.softmax import linear_logits
from jax_arcface.losses.vectors import cosines
from jax_arcface.models import backbones, weights
from jax_arcface.models.backbones import ImageShape
from jax_arcface.models.heads import Head
from jax_arcface.training.config import TrainConfig

Batch = Mapping[str, Any]


# ---- model


class Classifier(nnx.Module):
    """A backbone, and a head that owns what the losses need.

    Args:
      config: says which backbone, its width, the losses and the sub-centres.
      image_shape: (H, W, C).
      num_classes: C.
      rngs: for initial weights (a training draws its own, `initial_state`).
    """

    def __init__(self, config: TrainConfig, image_shape: ImageShape, num_classes: int, *, rngs: nnx.Rngs):
        self.backbone = backbones.BACKBONES[config.backbone](
            image_shape,
            config.embedding_dim,
            config.width,
            config.dropout,
            dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
            rngs=rngs,
        )
        self.head = Head(config.objective, config.embedding_dim, num_classes, config.subcenters, rngs=rngs)


class Metrics(NamedTuple):
    """Of each step: the loss, and the share of the batch that was classified rightly, without margin.

    With pair losses alone, classified as the nearest other example of the batch.
    """

    loss: Array
    accuracy: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "stats", "optimizer", "losses", "totals"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    These are the steps taken, the weights, the optimiser's memory, the losses' states by name, and the sums of the
    epoch's metrics.
    """

    step: Array
    params: nnx.State
    stats: nnx.State
    optimizer: optax.OptState
    losses: dict[str, State]
    totals: Metrics


class DeviceData(NamedTuple):
    """A split on the device, and how its pixels are normalised: (pixel - mean) * scale."""

    images: Array  # uint8 [N, H, W, C]
    labels: Array  # int32 [N]
    mean: Array  # [C], grey levels
    scale: Array  # [C]


def device_data(split: Split, mean: np.ndarray, std: np.ndarray) -> DeviceData:
    """Puts a split on the device, with each channel's mean and standard deviation in grey levels, [C]."""
    constants = (jnp.asarray(c.astype(np.float32)) for c in (mean, 1 / std))
    return DeviceData(jnp.asarray(split.images), jnp.asarray(split.labels), *constants)


def abstract_model(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of the model, and its state with shapes in place of arrays.

    Raises:
      UserError: images that are too small for the backbone.
    """
    try:
        model = nnx.eval_shape(lambda: Classifier(config, image_shape, num_classes, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise UserError(str(error)) from None
    return nnx.split(model)


def initial_weights(config: TrainConfig, dataset: Dataset) -> weights.Weights:
    """The model's weights before the first step, under PyTorch names: a function of seed, config and data alone."""
    _, state = abstract_model(config, dataset.image_shape, dataset.num_classes)
    values = weights.draw(weights.pytorch_shapes(state), config.seed)
    if config.backbone == "airnet":
        mean, std = channel_statistics(dataset.train.images)
        data = device_data(Split(dataset.train.images[:5000], dataset.train.labels[:5000]), mean, std)
        first = np.asarray(normalise(data.images, data.mean, data.scale))
        values["backbone.whiten.weight"] = backbones.whitening_filters(first)
    return values


def initial_state(config: TrainConfig, dataset: Dataset, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    _, abstract = abstract_model(config, dataset.image_shape, dataset.num_classes)
    state = weights.from_pytorch(abstract, initial_weights(config, dataset))
    params, stats = nnx.split_state(state, nnx.Param, ...)
    totals = Metrics(jnp.zeros(()), jnp.zeros(()))
    losses = initial_states(config.objective, dataset.num_classes, config.embedding_dim)
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), losses, totals)


# ---- optimiser


def learning_rate_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of step t, from 0: linear warm-up, then cosine, linear or constant (`docs/recipe.md`).

    >>> schedule = learning_rate_schedule(TrainConfig(epochs=4, warmup_epochs=1, learning_rate=1.0), steps_per_epoch=4)
    >>> print([round(float(schedule(t)), 3) for t in (0, 3, 4, 10, 15)])
    [0.2, 0.8, 1.0, 0.5, 0.017]
    """
    total, warmup = config.epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)

    def schedule(step):
        step = jnp.asarray(step, float)
        x = (step - warmup) / max(total - warmup, 1)
        decay = {"cosine": (1 + jnp.cos(jnp.pi * x)) / 2, "linear": 1 - x, "constant": 1.0}[config.schedule]
        return config.learning_rate * jnp.where(step < warmup, (step + 1) / (warmup + 1), decay)

    return schedule


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, then SGD, Nesterov or AdamW, with weight decay on arrays of two axes or more but the centres."""
    schedule = learning_rate_schedule(config, steps_per_epoch)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.optimizer == "adamw":
        adamw = optax.adamw(schedule, b1=config.momentum, weight_decay=config.weight_decay, mask=_decayed)
        return optax.chain(clip, adamw)
    sgd = optax.sgd(schedule, momentum=config.momentum, nesterov=config.optimizer == "nesterov")
    return optax.chain(clip, optax.add_decayed_weights(config.weight_decay, mask=_decayed), sgd)


def _decayed(params: nnx.State) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and "centers" not in jax.tree_util.keystr(path), params
    )


# ---- step and epoch


Step = Callable[[TrainState, DeviceData, Batch, Margin], tuple[TrainState, Metrics]]


def warmed_up(margin: Margin, step: Array, warmup: int) -> Margin:
    """The margin of step t: it grows linearly from none, and is whole from step `warmup` on.

    An angular margin from the first step on can hold a network at the point where all embeddings coincide, since there
    it costs least.

    >>> print([round(float(warmed_up(Margin.arcface(0.5), t, warmup=4).m2), 3) for t in (0, 3, 4, 10)])
    [0.1, 0.4, 0.5, 0.5]
    """
    share = grown(step, warmup)
    return dataclasses.replace(margin, m1=1 + share * (margin.m1 - 1), m2=share * margin.m2, m3=share * margin.m3)


def grown(step: Array, warmup: int) -> Array:
    """The share of the margin that there is in step t: it grows linearly, and is 1 from step `warmup` on."""
    return jnp.minimum(1.0, (jnp.asarray(step, float) + 1) / (warmup + 1))


def make_step(
    config: TrainConfig, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, steps_per_epoch: int
) -> Step:
    """One training step, pure: (state, data, batch, margin) to (state, metrics).

    `batch` is one row of `host_batches`. The margin is an argument so that `jax.vmap` can train several at once.
    """
    margin_warmup = round(config.margin_warmup_epochs * steps_per_epoch)

    def loss_of(params: nnx.State, state: TrainState, images: Array, labels: Array, batch: Batch, margin: Margin):
        model = nnx.merge(graphdef, params, state.stats, copy=True)
        embeddings = model.backbone(images, train=True, dropout_mask=batch.get("dropout"))
        inputs = Inputs(
            embeddings,
            labels,
            **_owned(model.head),
            margin=warmed_up(margin, state.step, margin_warmup),
            growth=grown(state.step, margin_warmup),
            scale=config.scale_value,
            label_smoothing=config.label_smoothing,
            beyond_pi=config.beyond_pi,
            step=state.step,
            normal=batch.get("normal"),
        )
        loss, losses, correct = total_loss(config.objective, inputs, state.losses)
        accuracy = _batch_accuracy(config, inputs) if correct is None else jnp.mean(correct)
        return loss, (nnx.state(model, nnx.Not(nnx.Param)), losses, accuracy)

    def step(state: TrainState, data: DeviceData, batch: Batch, margin: Margin) -> tuple[TrainState, Metrics]:
        index = batch["index"]
        images = augment(data.images[index], batch, data.mean, data.scale, config.augmentation)
        (loss, (stats, losses, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state, images, data.labels[index], batch, margin
        )
        updates, memory = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(loss, correct)
        first = state.step % steps_per_epoch == 0
        totals = jax.tree.map(lambda total, new: jnp.where(first, 0, total) + new, state.totals, metrics)
        return TrainState(state.step + 1, params, stats, memory, losses, totals), metrics

    return step


def _owned(head: Head) -> dict[str, Array]:
    """Those of prototypes, bias and centres that a head has."""
    return {name: getattr(head, name)[...] for name in ("prototypes", "bias", "centers") if hasattr(head, name)}


def _batch_accuracy(config: TrainConfig, inputs: Inputs) -> Array:
    """The share of a batch that is classified rightly, without margin."""
    if config.objective.classifier is None:
        others = cosines(inputs.embeddings, inputs.embeddings)
        others = jnp.where(jnp.eye(len(others), dtype=bool), -jnp.inf, others)
        predicted = inputs.labels[jnp.argmax(others, axis=1)]
    elif inputs.bias is not None:
        predicted = jnp.argmax(linear_logits(inputs.embeddings, inputs.prototypes, inputs.bias), axis=1)
    elif has_many_cosines(inputs.embeddings, inputs.prototypes):
        predicted = nearest_class(inputs.embeddings, inputs.prototypes)
    else:
        predicted = jnp.argmax(cosines(inputs.embeddings, inputs.prototypes), axis=1)
    return jnp.mean(predicted == inputs.labels)


def make_epoch(
    step: Step, replicas: int = 1, scan: bool | None = None
) -> Callable[..., Iterator[tuple[TrainState, Metrics]]]:
    """Runs a step over batches: one `lax.scan` on an accelerator, step by step on a CPU.

    Args:
      step: from `make_step`.
      replicas: with more than one, states, batches and margins have a leading axis, mapped over by `jax.vmap`.
      scan: overrides the choice.

    Returns:
      A function (state, data, batches, margin) that yields (state, metrics) as they come; metrics are of one step, or
      stacked over the steps of a scan. Each state it is given or has yielded is used up by the next.
    """
    if replicas > 1:
        step = jax.vmap(step, in_axes=(0, None, 0, 0))
    if jax.default_backend() != "cpu" if scan is None else scan:

        @functools.partial(jax.jit, donate_argnums=0)
        def scanned(state, data, batches, margin):
            return jax.lax.scan(lambda state, batch: step(state, data, batch, margin), state, batches)

        def epoch(state, data, batches, margin):
            yield scanned(state, data, batches, margin)
    else:
        jitted = jax.jit(step, donate_argnums=0)

        def epoch(state, data, batches, margin):
            for number in range(len(batches["index"])):
                state, metrics = jitted(state, data, {name: array[number] for name, array in batches.items()}, margin)
                yield state, metrics

    return epoch


def host_batches(config: TrainConfig, dataset: Dataset, epoch: int, features: int) -> dict[str, np.ndarray]:
    """What is random in an epoch, by name, each array [steps, B, ...].

    These are what `epoch_batches` gives (order and augmentation), and where they are used, `dropout`, masks of this
    many `features`, and `normal`, the draws of random margins.
    """
    labels, size, seed = dataset.train.labels, config.batch_size, config.seed
    order = None
    if config.classes_per_batch:
        order = balanced_order(seed, epoch, labels, dataset.num_classes, size, config.classes_per_batch)
    batches = epoch_batches(config.augmentation, seed, epoch, len(labels), size, *dataset.image_shape[:2], order)
    count = len(batches["index"])
    steps = range(epoch * count, (epoch + 1) * count)
    if config.dropout > 0:
        batches["dropout"] = np.stack([dropout_mask(seed, step, size, features, config.dropout) for step in steps])
    if config.objective.needs_normal:
        batches["normal"] = np.stack([normal_draws(seed, step, size) for step in steps])
    return batches


# ---- evaluation


def make_embed(graphdef: nnx.GraphDef) -> Callable[[nnx.State, DeviceData], np.ndarray]:
    """A function from weights (parameters and statistics) and data to the embeddings of all its images [N, D]."""

    @jax.jit
    def embed_batch(state: nnx.State, data: DeviceData, index: Array) -> Array:
        model = nnx.merge(graphdef, state)
        return model.backbone(normalise(data.images[index], data.mean, data.scale)).astype(jnp.float32)

    def embed(state: nnx.State, data: DeviceData, batch_size: int = 500) -> np.ndarray:
        n = len(data.images)
        batch_size = min(batch_size, n)
        parts = []
        for start in range(0, n, batch_size):
            # the last batch is filled up from the front, so that one compiled shape serves all
            parts.append(embed_batch(state, data, np.arange(start, start + batch_size) % n))
        return np.concatenate(parts)[:n]

    return embed


def with_class_means(
    config: TrainConfig, embed: Callable[[nnx.State, DeviceData], np.ndarray], data: DeviceData, state: TrainState
) -> TrainState:
    """With pair losses alone, the state with the class means of `data` for prototypes; else the state as it is."""
    if config.objective.classifier:
        return state
    stats = nnx.State(dict(state.stats))
    variable: Any = stats["head"]["prototypes"]
    means = class_means(embed(model_state(state), data), np.asarray(data.labels), variable.shape[0])
    stats["head"] = nnx.State({"prototypes": variable.replace(jnp.asarray(means))})
    return dataclasses.replace(state, stats=stats)


def _first_of_each(dataset: Dataset, images: int = 10_000) -> Split:
    """The first training images of each class, about so many together."""
    labels = np.asarray(dataset.train.labels)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=dataset.num_classes)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
    chosen = np.sort(order[place < -(-images // dataset.num_classes)])
    return Split(dataset.train.images[chosen], labels[chosen])


# ---- fit


class Diverged(Exception):
    """The loss of a step was not finite."""


class Record(NamedTuple):
    """One line of `metrics.jsonl`.

    Epochs count from 1. The learning rate is that of the epoch's last step. `seconds` are those of drawing and
    training, compilation included and evaluation not; replicas trained as one program share them, and
    `images_per_second` counts the images of all.
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
    """What `fit` tells while it runs; the methods do nothing here."""

    def on_step(self, replica: int, epoch: int, step: int, metrics: Metrics) -> None:
        """After each step (or scan of steps); `step` counts those of this epoch that are done."""

    def on_epoch(self, replica: int, record: Record, state: TrainState) -> None:
        """After each epoch's evaluation. `state` is used up by the next step: what is to be kept must be copied now."""


def check_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Raises UserError where the data set has too few images or classes for the configuration."""
    n, classes = len(dataset.train.labels), dataset.num_classes
    if config.batch_size > n:
        raise UserError(f"--batch-size is {config.batch_size}, but there are only {n} training images")
    if config.classes_per_batch > classes:
        raise UserError(
            f"--classes-per-batch is {config.classes_per_batch}, but there are only {classes} classes"
            f"{config.about_classes}"
        )
    if "adacos" in config.objective.names and classes < 3:
        raise UserError(f"--loss adacos needs at least 3 classes, but there are only {classes}")


def fit_one_program(configs: Sequence[TrainConfig]) -> bool:
    """Whether `fit` can train these as one program: they differ in the seed, and in the margin of a margin softmax.

    The margins of all other losses are part of the program.

    >>> config = TrainConfig(loss="arcface")
    >>> fit_one_program([dataclasses.replace(config, margin=m) for m in (0.3, 0.5)])
    True
    >>> fit_one_program([TrainConfig(loss="adaface", margin=m) for m in (0.3, 0.5)])
    False
    """
    free: dict[str, Any] = {"seed": 0}
    if configs[0].objective.margin() is not None:
        free["margin"] = None
    return len({dataclasses.replace(config, **free) for config in configs}) == 1


def fit(
    configs: Sequence[TrainConfig],
    dataset: Dataset,
    states: Sequence[TrainState] | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[TrainState]:
    """Trains one model for each configuration; several as one vmapped program.

    Args:
      configs: several must be such that `fit_one_program` holds.
      dataset: see `jax_arcface.data.load`.
      states: where to go on from, the same number of steps done in each; None starts anew. They are used up.
      reporter: is told of steps and epochs.
      stop: asked after each step (or scan of steps); true ends the training early.

    Returns:
      The states reached.

    Raises:
      UserError: too few training images or classes.
      ValueError: configurations that do not fit one program.
      Diverged: a loss that is not finite, with the step, the loss and what to try.
    """
    config, reporter = configs[0], reporter or Reporter()
    if not fit_one_program(configs):
        raise ValueError("these configurations differ in more than the seed and the margin of a margin softmax")
    check_fit(config, dataset)
    steps = len(dataset.train.labels) // config.batch_size
    optimizer = make_optimizer(config, steps)
    graphdef, abstract = abstract_model(config, dataset.image_shape, dataset.num_classes)
    features = nnx.merge(graphdef, abstract).backbone.embedding.features
    if states is None:
        states = [initial_state(c, dataset, optimizer) for c in configs]
    mean, std = channel_statistics(dataset.train.images)
    train, test = device_data(dataset.train, mean, std), device_data(dataset.test, mean, std)
    schedule = learning_rate_schedule(config, steps)
    run_epoch, embed = make_epoch(make_step(config, graphdef, optimizer, steps), len(configs)), make_embed(graphdef)
    measured = functools.partial(with_class_means, config, embed, device_data(_first_of_each(dataset), mean, std))

    state, margin = stack(states), stack([c.margin_value for c in configs])
    while (done := int(np.ravel(state.step)[0])) < config.epochs * steps:
        epoch, first = divmod(done, steps)
        start = time.perf_counter()
        batches = [host_batches(c, dataset, epoch, features) for c in configs]
        batches = stack([{name: array[first:] for name, array in b.items()} for b in batches], axis=1)
        for reached, metrics in run_epoch(state, train, batches, margin):
            state = reached
            losses, accuracies = (np.asarray(metric).reshape(-1, len(configs)) for metric in metrics)
            done += len(losses)
            _check_finite(losses, done, configs)
            for replica in range(len(configs)):
                last = Metrics(losses[-1, replica], accuracies[-1, replica])
                reporter.on_step(replica, epoch, done - epoch * steps, last)
            if stop():
                break
        seconds = time.perf_counter() - start
        if done < (epoch + 1) * steps:
            break
        images = (steps - first) * config.batch_size * len(configs)
        for replica, one in enumerate(map(measured, _unstack(state, len(configs)))):
            whole = model_state(one)
            embeddings = embed(whole, test)
            head: Any = whole["head"]
            bias = head["bias"][...] if "bias" in head else None
            record = Record(
                epoch=epoch + 1,
                step=done,
                train_loss=float(one.totals.loss) / steps,
                train_accuracy=float(one.totals.accuracy) / steps,
                test_accuracy=accuracy(embeddings, head["prototypes"][...], test.labels, bias),
                learning_rate=float(schedule(done - 1)),
                images_per_second=images / seconds,
                seconds=seconds,
            )
            reporter.on_epoch(replica, record, one)
        if stop():
            break
    return list(map(measured, _unstack(state, len(configs))))


def model_state(state: TrainState) -> nnx.State:
    """The model's part of a training state: parameters and statistics."""
    return nnx.merge_state(state.params, state.stats)


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """One tree with a new axis for the replicas; a single one stays as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def _unstack(tree: Any, replicas: int) -> list[Any]:
    return [tree] if replicas == 1 else [jax.tree.map(operator.itemgetter(i), tree) for i in range(replicas)]


def _check_finite(losses: np.ndarray, done: int, configs: Sequence[TrainConfig]) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        row, replica = bad[0]
        config = configs[replica]
        which = f" with seed {config.seed} and margin {config.margin}" if len(configs) > 1 else ""
        raise Diverged(
            f"the loss of step {done - len(losses) + row + 1}{which} is {losses[row, replica]}; try a smaller "
            f"--learning-rate (now {config.learning_rate:g}), more --warmup-epochs (now {config.warmup_epochs:g}) or "
            "--clip-norm 1"
        )
