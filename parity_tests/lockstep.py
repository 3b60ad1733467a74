"""Both programs trained step by step side by side, by their own step functions, in float32 or float64."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_arcface import data as jax_data
from jax_arcface.training import config as jax_config
from jax_arcface.training import fit as jax_training
from jax_arcface.training import state as jax_states
from jax_arcface.training.step import make_step
from parity_tests.cases import Unavailable
from torch_reference import data as torch_data
from torch_reference.models import weights as torch_weights
from torch_reference.training import batches as torch_batches
from torch_reference.training import config as torch_config
from torch_reference.training import fit as torch_training
from torch_reference.training import step as torch_step

Datasets = tuple[jax_data.Dataset, torch_data.Dataset]


class Moment(NamedTuple):
    """Where both programs stand after a step: JAX's loss and weights, and PyTorch's."""

    step: int
    jax_loss: float
    torch_loss: float
    jax_weights: dict[str, np.ndarray]
    torch_weights: dict[str, np.ndarray]


def published_folder() -> Path:
    """The folder with the files of MNIST and CIFAR-10: ARCFACE_DATA_DIR, then ../shared/data beside the checkout.

    Raises:
      Unavailable: neither is there.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    for folder in (os.environ.get("ARCFACE_DATA_DIR"), beside):
        if folder and Path(folder).is_dir():
            return Path(folder)
    raise Unavailable("the published files are neither in ARCFACE_DATA_DIR nor in ../shared/data beside the checkout")


def both_datasets(
    name: str, examples: int | None = None, data_dir: str | None = None, image_size: int | None = None
) -> Datasets:
    """A data set as each program loads it, or the first so many of its training examples."""
    folder = published_folder() if data_dir is None and name in ("mnist", "cifar10") else data_dir
    here, there = (module.load(name, folder, image_size=image_size) for module in (jax_data, torch_data))
    if examples is not None:
        few = slice(0, examples)
        here = dataclasses.replace(here, train=jax_data.Split(here.train.images[few], here.train.labels[few]))
        there = dataclasses.replace(there, train=torch_data.Split(there.train.images[few], there.train.labels[few]))
    return here, there


def train(fields: dict[str, Any], steps: int, dtype: str, datasets: Datasets) -> Iterator[Moment]:
    """Trains both programs from the same configuration and yields where they stand after each step.

    Both start from their own initial weights and states, in float32, which are then cast to `dtype`; nothing passes
    between them.

    Args:
      fields: of the configuration; the others are those of its data set's recipe.
      steps: how many.
      dtype: float32 or float64.
      datasets: what to train on, as each program loads it.

    Raises:
      Diverged (of either program): a loss that is not finite.
    """
    here, there = datasets
    for one, other in zip(
        _jax_steps(jax_config.from_dict(fields), here, steps, dtype),
        _torch_steps(torch_config.from_dict(fields), there, steps, dtype),
        strict=True,
    ):
        yield Moment(one[0], one[1], other[1], one[2], other[2])


_Step = tuple[int, float, dict[str, np.ndarray]]


def _jax_steps(config: jax_config.TrainConfig, dataset: jax_data.Dataset, steps: int, dtype: str) -> Iterator[_Step]:
    with jax.enable_x64(dtype == "float64"):
        model, source, optimizer = jax_training.make_objects(config, dataset)
        parts, *first = jax_states.split(model)
        params, stats = (jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32), dtype), t) for t in first)
        state = jax_states.start(params, stats, optimizer)
        resident = source.resident
        resident = resident._replace(mean=resident.mean.astype(dtype), scale=resident.scale.astype(dtype))
        warmup = round(config.margin_warmup_epochs * source.steps_per_epoch)
        step_function = jax.jit(make_step(parts, optimizer, source, warmup))
    batches = jax_training.with_draws(source, jax_training.config_draws(config, model))
    epochs = itertools.chain.from_iterable(batches(epoch, 0) for epoch in itertools.count())
    for step, batch in enumerate(itertools.islice(epochs, steps)):
        # entered for each step, and not around the yield: the caller is not to find JAX in another mode
        with jax.enable_x64(dtype == "float64"):
            state, metrics = step_function(state, resident, batch, config.objective.margins)
            if metrics.loss.dtype != dtype:
                raise AssertionError(f"the step's loss is {metrics.loss.dtype}, not {dtype}")
            weights = state.weights
        yield step, float(metrics.loss), weights


def _torch_steps(
    config: torch_config.TrainConfig, dataset: torch_data.Dataset, steps: int, dtype: str
) -> Iterator[_Step]:
    per_epoch = len(dataset.train.labels) // config.batch_size
    state = torch_training.initial_state(config, dataset)
    state.model.to(getattr(torch, dtype))  # what the losses remember, too
    statistics = torch_data.channel_statistics(dataset.train.images)
    data = torch_batches.Images.of(dataset.train, *statistics, dtype=getattr(torch, dtype))
    batches = torch_batches.Batches(data, config.batch_size, config.seed, config.augmentation, config.classes_per_batch)
    step = 0
    while step < steps:
        for images, labels in batches.epoch(step // per_epoch):
            metrics = torch_step.train_step(
                state,
                images,
                labels,
                learning_rate=torch_step.learning_rate(config, step, per_epoch),
                margin_growth=torch_step.margin_growth(config, step, per_epoch),
                clip_norm=config.clip_norm,
                precision=config.precision,
                seed=config.seed,
            )
            # copies: the next step changes the parameters in place
            weights = {name: array.copy() for name, array in torch_weights.to_arrays(state.model).items()}
            yield step, metrics.loss, weights
            step += 1
            if step == steps:
                return
