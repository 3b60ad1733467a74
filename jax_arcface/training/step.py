"""One training step, pure, and how steps are run: one by one, or scanned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jax_arcface.data.source import Batch, Source
from jax_arcface.losses.vectors import cosines
from jax_arcface.training.state import Metrics, Model, Parts, TrainState

Step = Callable[[TrainState, Any, Batch, Any], tuple[TrainState, Metrics]]

_SCANNED_BYTES = 64 * 2**20  # of host arrays that go to the device together


def grown(step: Array | int, warmup: int) -> Array:
    """The share of the margin in effect at step t: it grows linearly, and is 1 from step `warmup` on.

    An angular margin from the first step on can hold a network at the point where all embeddings coincide, since there
    it costs least.
    """
    return jnp.minimum(1.0, (jnp.asarray(step, float) + 1) / (warmup + 1))


def make_step(parts: Parts, optimizer: optax.GradientTransformation, source: Source, margin_warmup: int = 0) -> Step:
    """One training step, pure: (state, resident, batch, margins) to (state, metrics).

    Args:
      parts: of the model (`state.split`).
      optimizer: any of optax's.
      source: whose `take` makes images and labels of `resident` and `batch`.
      margin_warmup: steps in which the margins grow.

    `batch` may also hold what a step draws: `dropout`, a mask for the backbone, and `normal`, for random margins.
    `margins` (`Objective.margins`) is an argument so that `jax.vmap` can train several at once.
    """

    def loss_of(params: nnx.State, state: TrainState, images: Array, labels: Array, batch: Batch, margins: Any):
        model = parts.merge(params, state.stats, state.step)
        model.train()
        mask = {"dropout_mask": batch["dropout"]} if "dropout" in batch else {}
        embeddings = model.backbone(images, **mask)
        objective = model.head.objective.with_margins(margins).grown(grown(state.step, margin_warmup))
        outcome = model.head.outcome(
            embeddings, labels, step=state.step, objective=objective, normal=batch.get("normal")
        )
        model.head.keep(outcome.state)
        correct = _correct(model, embeddings, labels) if outcome.correct is None else outcome.correct
        return outcome.loss, (nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))), jnp.mean(correct))

    def step(state: TrainState, resident: Any, batch: Batch, margins: Any) -> tuple[TrainState, Metrics]:
        images, labels = source.take(resident, batch)
        (loss, (stats, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state, images, labels, batch, margins
        )
        updates, memory = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(loss, correct)
        first = state.step % source.steps_per_epoch == 0
        totals = jax.tree.map(lambda total, new: jnp.where(first, 0, total) + new, state.totals, metrics)
        return TrainState(state.step + 1, params, stats, memory, totals), metrics

    return step


def _correct(model: Model, embeddings: Array, labels: Array) -> Array:
    """Which examples of a batch are classified correctly, without margin, bool [B]."""
    if model.head.objective.classifier is None:
        others = cosines(embeddings, embeddings)
        others = jnp.where(jnp.eye(len(others), dtype=bool), -jnp.inf, others)
        return labels[jnp.argmax(others, axis=1)] == labels
    return model.head.predict(embeddings) == labels


def make_run(
    step: Step, scan: bool | None = None
) -> Callable[[TrainState, Any, Iterable[Batch], Any], Iterator[tuple[TrainState, Metrics]]]:
    """Runs a step over batches: scanned in chunks on an accelerator, step by step on a CPU.

    On a CPU XLA runs a convolution inside a loop tens of times slower.

    Args:
      step: from `make_step`, or mapped over replicas by `jax.vmap`.
      scan: overrides the choice.

    Returns:
      A function (state, resident, batches, margins) that yields (state, metrics) as they come; metrics have a leading
      axis of steps. Each state that it is given or has yielded is used up by the next.
    """
    if jax.default_backend() != "cpu" if scan is None else scan:

        @functools.partial(jax.jit, donate_argnums=0)
        def scanned(state, resident, batches, margins):
            return jax.lax.scan(lambda state, batch: step(state, resident, batch, margins), state, batches)

        def run(state, resident, batches, margins):
            for chunk in _chunks(batches):
                state, metrics = scanned(state, resident, chunk, margins)
                yield state, metrics
    else:
        jitted = jax.jit(step, donate_argnums=0)

        def run(state, resident, batches, margins):
            for batch in batches:
                state, metrics = jitted(state, resident, batch, margins)
                yield state, jax.tree.map(lambda metric: metric[None], metrics)

    return run


def _chunks(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches stacked, as many together as have room."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) * sum(np.asarray(array).nbytes for array in batch.values()) >= _SCANNED_BYTES:
            yield _stacked(waiting)
            waiting = []
    if waiting:
        yield _stacked(waiting)


def _stacked(batches: list[Batch]) -> Batch:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
