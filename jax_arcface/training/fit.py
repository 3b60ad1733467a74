"""The training loop: `fit` takes objects, `fit_config` makes them of a configuration.

    network = MyNetwork(rngs=rngs)                                    # any nnx.Module: images to embeddings [B, D]
    head = Head(arcface(m=0.5), 64, num_classes=10, rngs=rngs)
    fit(network, head, optax.adam(1e-3), ArraySource(images, labels, batch_size=64), epochs=5)

A step takes its batch from the source, augments, normalises and updates inside one jitted function whose state is
donated. What is random is drawn on the host, step by step (`data/sampling.py`).
"""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_arcface.data.dataset import Dataset, channel_statistics
from jax_arcface.data.sampling import dropout_mask, normal_draws
from jax_arcface.data.source import ArraySource, Batch, Resident, Source, resident
from jax_arcface.evaluation import accuracy, class_means, mean_loss
from jax_arcface.losses.registry import Objective
from jax_arcface.models import weights
from jax_arcface.models.backbones import backbone_factory, is_own
from jax_arcface.models.heads import Head, LossState
from jax_arcface.models.images import ImageShape, normalise
from jax_arcface.models.layers import dropout_of
from jax_arcface.models.trained import make_embed
from jax_arcface.training import state as states
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.optimizer import learning_rate_schedule, make_optimizer
from jax_arcface.training.state import Metrics, Model, Parts, TrainState
from jax_arcface.training.step import make_run, make_step


class Diverged(Exception):
    """The loss of a step was not finite."""


class Record(NamedTuple):
    """One line of `metrics.jsonl`.

    Epochs count from 1. `test_loss` is the test split's mean loss by the classification loss alone, with its full
    margin; None where it is not defined without a training step (`evaluation.mean_loss`). The learning rate is that of
    the epoch's last step, None where `fit` does not know it. `seconds` are those of drawing and training, compilation
    included and evaluation not; replicas trained as one program share them, and `images_per_second` counts the images
    of all.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    learning_rate: float | None
    images_per_second: float
    seconds: float


class Reporter:
    """What `fit` reports to while it runs; the methods do nothing here."""

    def on_step(self, epoch: int, step: int, metrics: Metrics) -> None:
        """After each step (or scan of steps); `epoch` counts from 0, `step` the steps of this epoch that are done."""

    def on_epoch(self, record: Record, state: TrainState) -> None:
        """After each epoch's evaluation. `state` is used up by the next step: what is to be kept must be copied now."""


def _never() -> bool:
    return False


# ---- objects


def fit(
    backbone: nnx.Module,
    head: Head,
    optimizer: optax.GradientTransformation,
    source: Source,
    *,
    epochs: int,
    test: tuple[np.ndarray, np.ndarray] | Resident | None = None,
    margin_warmup_epochs: float = 0.0,
    seed: int = 0,
    state: TrainState | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = _never,
    learning_rate: Callable[[int], Any] | None = None,
    draws: Callable[[int], Mapping[str, np.ndarray]] | None = None,
) -> TrainState:
    """Trains a backbone and a head.

    Args:
      backbone: any nnx module from images [B, H, W, C] to embeddings [B, D].
      head: the losses and what they own.
      optimizer: any of optax's, its learning-rate schedule inside.
      source: of the batches.
      epochs: passes over the source.
      test: images [N, H, W, C] and labels [N] to evaluate after each epoch, in the units of the arrays that an
        `ArraySource` was given; with another source, as its `take` gives images; or a `Resident`.
      margin_warmup_epochs: epochs in which the margins grow from none to their values.
      seed: of the random margins of losses that draw them.
      state: where to go on from; it is used up. None begins with the weights of `backbone` and `head`.
      reporter: is called after steps and epochs.
      stop: asked after each step (or scan of steps); true ends the training early.
      learning_rate: from steps to the learning rate, for the records.
      draws: from a step to what it draws: `normal` [B] and `dropout`, a mask for the backbone; where None, `normal` by
        docs/recipe.md for losses that need it. `nnx.Dropout` layers draw for themselves, anew in each step.

    Returns:
      The state reached. `backbone` and `head` hold its weights, too.

    Raises:
      Diverged: a loss that is not finite.
      ValueError: a head with fewer classes than the source, a test split that does not fit, pair losses alone with a
        test split but a source without `sample`, or a source that gives another number of batches than it says.

    >>> from jax_arcface.losses.terms import arcface
    >>> from jax_arcface.models.lenet import LeNet
    >>> rngs, images, labels = nnx.Rngs(0), np.zeros((8, 8, 8, 1), np.uint8), np.arange(8) % 2
    >>> backbone, head = LeNet((8, 8, 1), 4, 0.1, rngs=rngs), Head(arcface(), 4, 2, rngs=rngs)
    >>> int(fit(backbone, head, optax.sgd(0.1), ArraySource(images, labels, 4), epochs=2).step)
    4
    """
    classes = len(head.prototypes)
    if classes < len(source.class_names):
        raise ValueError(f"the head has {classes} classes, but the source has {len(source.class_names)}")
    model = Model(backbone, head)
    parts, params, stats = states.split(model)
    # copies, since the steps donate their arguments
    state = state or jax.tree.map(jnp.copy, states.start(params, stats, optimizer))
    step = make_step(parts, optimizer, source, round(margin_warmup_epochs * source.steps_per_epoch))
    if draws is None and "normal" in head.objective.draws:

        def draws(step: int) -> Mapping[str, np.ndarray]:
            return {"normal": normal_draws(seed, step, source.batch_size)}

    if test is not None and not isinstance(test, Resident):
        split = getattr(source, "split", None)
        test = split(*test) if split else resident(*test, np.zeros(1), np.ones(1))
    reporter, evaluation = reporter or Reporter(), _Evaluation(parts, head.objective, source, classes, test)

    def on_epoch(state: TrainState, seconds: float, steps: int) -> None:
        reporter.on_epoch(*_record(evaluation, state, source, learning_rate, seconds, steps * source.batch_size))

    state = _train(
        make_run(step),
        state,
        source,
        with_draws(source, draws),
        head.objective.margins,
        epochs,
        reporter.on_step,
        on_epoch,
        stop,
    )
    state = evaluation.with_class_means(state)
    nnx.update(model, jax.tree.map(jnp.copy, state.model))
    return state


def _train(
    run: Callable[..., Iterator[tuple[TrainState, Metrics]]],
    state: TrainState,
    source: Source,
    batches: Callable[[int, int], Iterable[Batch]],
    margins: Any,
    epochs: int,
    on_step: Callable[[int, int, Metrics], None],
    on_epoch: Callable[[TrainState, float, int], None],
    stop: Callable[[], bool],
) -> TrainState:
    """The loop: epochs of steps, until all are done or `stop` returns True. A state may be one of stacked replicas.

    `on_epoch` is given the state, and the seconds and steps that this epoch took here.
    """
    steps = source.steps_per_epoch
    while (done := int(np.ravel(state.step)[0])) < epochs * steps:
        epoch, first = divmod(done, steps)
        started = time.perf_counter()
        for reached, metrics in run(state, source.resident, batches(epoch, first), margins):
            state = reached
            losses = np.asarray(metrics.loss)
            done += len(losses)
            if done > (epoch + 1) * steps:
                raise ValueError(f"the source gave more batches in epoch {epoch} than its {steps} steps")
            _check_finite(losses, done)
            on_step(epoch, done - epoch * steps, jax.tree.map(operator.itemgetter(-1), metrics))
            if stop():
                break
        else:
            if done < (epoch + 1) * steps:
                given = done - epoch * steps - first
                raise ValueError(
                    f"the source gave {given} batches of epoch {epoch} from {first} on, not {steps - first}"
                )
        seconds = time.perf_counter() - started
        if done < (epoch + 1) * steps:
            break
        on_epoch(state, seconds, steps - first)
        if stop():
            break
    return state


def _check_finite(losses: np.ndarray, done: int) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        raise Diverged(
            f"the loss of step {done - len(losses) + bad[0][0] + 1} is {losses[tuple(bad[0])]}; a smaller learning "
            "rate, more warm-up epochs or a limit on the gradient's norm may help"
        )


def with_draws(
    source: Source, draws: Callable[[int], Mapping[str, np.ndarray]] | None
) -> Callable[[int, int], Iterable[Batch]]:
    """The source's batches, each with what its step draws."""

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        for number, batch in enumerate(source.batches(epoch, start), epoch * source.steps_per_epoch + start):
            yield batch if draws is None else {**batch, **draws(number)}

    return batches


class _Evaluation:
    """What is measured of a state: class means where prototypes are not trained, and the test split."""

    def __init__(self, parts: Parts, objective: Objective, source: Source, classes: int, test: Resident | None):
        self.objective, self.classes, self.test = objective, classes, test
        self.embed = make_embed(lambda whole: parts.merge(whole, nnx.State({})).backbone)
        sample = getattr(source, "sample", None)
        self.sample = sample() if sample and objective.classifier is None else None
        if test is not None and objective.classifier is None and sample is None:
            raise ValueError("pair losses alone have no prototypes to test by: the source needs `sample`")

    def with_class_means(self, state: TrainState) -> TrainState:
        """With pair losses alone, the state with the class means of training images for prototypes; else as it is."""
        if self.sample is None:
            return state
        stats = nnx.State(dict(state.stats))
        head = dict(stats["head"])
        embeddings = self.embed(state.model, self.sample.images, self.sample.mean, self.sample.scale)
        means = class_means(embeddings, self.sample.labels, self.classes)
        head["prototypes"] = head["prototypes"].replace(jnp.asarray(means))
        stats["head"] = nnx.State(head)
        return dataclasses.replace(state, stats=stats)

    def __call__(self, state: TrainState) -> tuple[TrainState, float | None, float | None]:
        """The state with class means, and the test split's mean loss and accuracy."""
        state = self.with_class_means(state)
        if self.test is None:
            return state, None, None
        whole = state.model
        embeddings = self.embed(whole, self.test.images, self.test.mean, self.test.scale)
        head: Any = whole["head"]
        owned = {name: head[name][...] for name in ("prototypes", "bias") if name in head}
        loss = mean_loss(self.objective, owned, embeddings, self.test.labels, step=int(state.step))
        return state, loss, accuracy(embeddings, owned["prototypes"], self.test.labels, owned.get("bias"))


def _record(
    evaluation: _Evaluation,
    state: TrainState,
    source: Source,
    learning_rate: Callable[[int], Any] | None,
    seconds: float,
    images: int,
) -> tuple[Record, TrainState]:
    state, test_loss, test_accuracy = evaluation(state)
    done = int(state.step)
    return Record(
        epoch=done // source.steps_per_epoch,
        step=done,
        train_loss=float(state.totals.loss) / source.steps_per_epoch,
        train_accuracy=float(state.totals.accuracy) / source.steps_per_epoch,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        learning_rate=None if learning_rate is None else float(learning_rate(done - 1)),
        images_per_second=images / seconds,
        seconds=seconds,
    ), state


# ---- names


def make_model(config: TrainConfig, image_shape: ImageShape, num_classes: int, *, rngs: nnx.Rngs) -> Model:
    """The backbone and the head that a configuration names.

    Raises:
      UserError: images that are too small for the backbone, or too few classes for a loss.
    """
    backbone = backbone_factory(config.backbone)(
        image_shape,
        config.embedding_dim,
        config.width,
        config.dropout,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        rngs=rngs,
    )
    return Model(backbone, Head(config.objective, config.embedding_dim, num_classes, rngs=rngs))


def abstract_model(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> Model:
    """`make_model` with shapes in place of arrays: nothing is computed."""
    return nnx.eval_shape(lambda: make_model(config, image_shape, num_classes, rngs=nnx.Rngs(config.seed)))


def initial_weights(config: TrainConfig, dataset: Dataset) -> weights.Weights:
    """The model's weights before the first step, by PyTorch's names: a function of seed, configuration and data."""
    model = abstract_model(config, dataset.image_shape, dataset.num_classes)
    values = weights.initial(states.exchanged(nnx.state(model)), config.seed)
    if is_own(config.backbone):  # starts as its factory makes it
        made = make_model(config, dataset.image_shape, dataset.num_classes, rngs=nnx.Rngs(config.seed)).backbone
        own = weights.to_pytorch(states.exchanged(nnx.state(made)))
        values |= {f"backbone.{name}": array for name, array in own.items()}
    if measured := getattr(model.backbone, "measured", None):
        mean, std = channel_statistics(dataset.train.images)
        first = resident(dataset.train.images[:5000], dataset.train.labels[:5000], mean, std)
        images = np.asarray(normalise(first.images, first.mean, first.scale))
        values |= {f"backbone.{name}": array for name, array in measured(images).items()}
    return values


def initial_model(config: TrainConfig, dataset: Dataset) -> Model:
    """The model before the first step: a function of seed, configuration and data."""
    model = abstract_model(config, dataset.image_shape, dataset.num_classes)
    own = nnx.Any(LossState, nnx.RngState)
    parts: Any = nnx.split(model, nnx.Not(own), own)
    graphdef, exchanged, rest = parts
    exchanged = weights.from_pytorch(exchanged, initial_weights(config, dataset))
    losses = config.objective.init(dataset.num_classes, config.embedding_dim)
    values: list[tuple[Any, Any]] = []
    for path, leaf in nnx.to_flat_state(rest):
        if isinstance(leaf, LossState):
            value = losses[str(path[-2])][str(path[-1])]
        else:
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            value = jax.random.key(config.seed) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
        values.append((path, leaf.replace(value)))
    return nnx.merge(graphdef, exchanged, nnx.from_flat_state(values))


def initial_state(config: TrainConfig, dataset: Dataset) -> TrainState:
    """The state before the first step of a configuration's training."""
    _, params, stats = states.split(initial_model(config, dataset))
    return states.start(params, stats, make_optimizer(config, _steps_per_epoch(config, dataset)))


def fit_config(
    config: TrainConfig,
    dataset: Dataset,
    *,
    state: TrainState | None = None,
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = _never,
) -> TrainState:
    """`fit` with the backbone, losses, optimiser and data that a configuration names.

    Args:
      config: what to train, and how.
      dataset: see `jax_arcface.data.load`.
      state, reporter, stop: as in `fit`.

    Raises:
      UserError: too few training images or classes, or images that are too small.
      Diverged: a loss that is not finite.
    """
    model, source, optimizer = make_objects(config, dataset)
    return fit(
        model.backbone,
        model.head,
        optimizer,
        source,
        epochs=config.epochs,
        test=(dataset.test.images, dataset.test.labels),
        margin_warmup_epochs=config.margin_warmup_epochs,
        state=state,
        reporter=reporter,
        stop=stop,
        learning_rate=learning_rate_schedule(config, source.steps_per_epoch),
        draws=config_draws(config, model),
    )


def fit_replicas(
    replicas: Sequence[TrainConfig],
    dataset: Dataset,
    *,
    reporters: Sequence[Reporter] | None = None,
    stop: Callable[[], bool] = _never,
) -> list[TrainState]:
    """Trains several configurations as one program, their steps mapped over by `jax.vmap`.

    Args:
      replicas: configurations that differ in the seed and in margins alone.
      dataset: see `jax_arcface.data.load`.
      reporters: one for each. stop: as in `fit`.

    Returns:
      The states reached, one for each.

    Raises:
      ValueError: no configurations, or some that differ in more.
      UserError, Diverged: as `fit_config`.
    """
    if not replicas:
        raise ValueError("there are no configurations to train")
    config = replicas[0]
    if not can_train_together(replicas):
        raise ValueError("these configurations differ in more than the seed and the margins")
    reporters = reporters or [Reporter() for _ in replicas]
    models = [make_objects(c, dataset)[:2] for c in replicas]
    (model, source), optimizer = models[0], make_optimizer(config, _steps_per_epoch(config, dataset))
    parts, _, _ = states.split(model)
    step = make_step(parts, optimizer, source, round(config.margin_warmup_epochs * source.steps_per_epoch))
    test = source.split(dataset.test.images, dataset.test.labels)
    evaluation = _Evaluation(parts, config.objective, source, dataset.num_classes, test)
    schedule = learning_rate_schedule(config, source.steps_per_epoch)
    batches = [with_draws(s, config_draws(c, m)) for c, (m, s) in zip(replicas, models, strict=True)]

    def stacked(epoch: int, start: int) -> Iterator[Batch]:
        return map(_stack, zip(*(of_one(epoch, start) for of_one in batches), strict=True))

    def on_step(epoch: int, step: int, metrics: Metrics) -> None:
        for replica, reporter in enumerate(reporters):
            reporter.on_step(epoch, step, jax.tree.map(operator.itemgetter(replica), metrics))

    def on_epoch(state: TrainState, seconds: float, steps: int) -> None:
        images = steps * source.batch_size * len(replicas)
        for one, reporter in zip(_unstack(state, len(replicas)), reporters, strict=True):
            reporter.on_epoch(*_record(evaluation, one, source, schedule, seconds, images))

    begin = (states.start(*states.split(m)[1:], optimizer) for m, _ in models)
    margins = _stack([c.objective.margins for c in replicas])
    mapped = make_run(jax.vmap(step, in_axes=(0, None, 0, 0)))
    state = _train(mapped, _stack(list(begin)), source, stacked, margins, config.epochs, on_step, on_epoch, stop)
    return [evaluation.with_class_means(one) for one in _unstack(state, len(replicas))]


def can_train_together(replicas: Sequence[TrainConfig]) -> bool:
    """Whether `fit_replicas` can train these as one program: they differ in the seed and in margins alone.

    >>> can_train_together([TrainConfig(margin=m, seed=seed) for m, seed in ((0.3, 0), (0.5, 1))])
    True
    >>> can_train_together([TrainConfig(scale=s) for s in (16.0, 32.0)])
    False
    """
    first = replicas[0]

    def rest(config: TrainConfig) -> tuple[TrainConfig, Any]:
        neutral = config.objective.with_margins(dict.fromkeys(config.objective.margins, 0.0))
        return dataclasses.replace(config, seed=0, margin=first.margin, loss=first.loss), neutral

    return len({rest(config) for config in replicas}) == 1


def make_objects(config: TrainConfig, dataset: Dataset) -> tuple[Model, ArraySource, optax.GradientTransformation]:
    """The initial model, the source and the optimiser that a configuration names."""
    if config.held_out and dataset.unseen is None:
        raise ValueError(f"the data set still has the classes {config.holdout_classes}: data.hold_out takes them out")
    source = ArraySource.of_dataset(
        dataset,
        config.batch_size,
        augmentation=config.augmentation,
        classes_per_batch=config.classes_per_batch,
        seed=config.seed,
    )
    return initial_model(config, dataset), source, make_optimizer(config, source.steps_per_epoch)


def _steps_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    return len(dataset.train.labels) // config.batch_size


def config_draws(config: TrainConfig, model: Model) -> Callable[[int], Mapping[str, np.ndarray]] | None:
    """What a step draws by docs/recipe.md, in both programs alike."""
    size, seed = config.batch_size, config.seed
    drawn: dict[str, Callable[[int], np.ndarray]] = {}
    if config.dropout > 0 and not is_own(config.backbone):
        features = dropout_of(model.backbone).features
        drawn["dropout"] = lambda step: dropout_mask(seed, step, size, features, config.dropout)
    if "normal" in config.objective.draws:
        drawn["normal"] = lambda step: normal_draws(seed, step, size)
    return (lambda step: {name: draw(step) for name, draw in drawn.items()}) if drawn else None


def _stack(trees: Sequence[Any]) -> Any:
    """One tree with a leading axis for the replicas."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _unstack(tree: Any, replicas: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(replica), tree) for replica in range(replicas)]
