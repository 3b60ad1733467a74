"""Whole trainings in lockstep: each loss, every weight and every running statistic after each step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from parity_tests import lockstep
from parity_tests.cases import Case
from parity_tests.cases.backbones import VANISHING
from parity_tests.compare import Difference, difference, differences


class Training(NamedTuple):
    """What is trained: the configuration, so many of the training images (None: all), so many steps, and the bound."""

    fields: dict[str, Any]
    examples: int | None
    steps: int
    bound: float


# The digits' own recipe: LeNet++ of half its width, ArcFace with m = 0.5 and s = 16, Nesterov, batches of 64, rotation,
# zoom and shift; 200 steps are 9 of its epochs. A quarter of the width keeps the test short. At the recipe's learning
# rate of 0.05 the first 30 steps are chaotic: a difference of 1e-16 grows tenfold every 4 steps, up to 1e-7. At 0.01 it
# stays below 1e-9.
_DIGITS: dict[str, Any] = {"dataset": "digits", "width": 0.25, "embedding_dim": 32, "epochs": 10, "learning_rate": 0.01}
# What no data set's recipe has; 30 steps go into a second epoch.
_OPTIONS: dict[str, Any] = {
    "dataset": "digits",
    "width": 0.25,
    "embedding_dim": 16,
    "dropout": 0.2,
    "loss": "cosface",
    "margin_warmup_epochs": 1.5,
    "subcenters": 3,
    "label_smoothing": 0.1,
    "epochs": 2,
    "optimizer": "sgd",
    "learning_rate": 0.005,
    "clip_norm": 1.0,
    "flip": True,
    "cutout": 2,
    "seed": 1,
}
# States beside the weights, centres that are weights, pairs in balanced batches; and not elasticface, whose random
# margins are float32 numbers in both programs, rounded in their own ways.
_SUM: dict[str, Any] = {
    "dataset": "digits",
    "width": 0.25,
    "embedding_dim": 16,
    "loss": "adaface+center:0.01+center_learnt:0.01+triplet:0.1",
    "margin_warmup_epochs": 0.5,
    "classes_per_batch": 8,
    "epochs": 2,
    "learning_rate": 0.005,
}
_MNIST: dict[str, Any] = {
    "dataset": "mnist",
    "backbone": "lenet",
    "width": 0.125,
    "embedding_dim": 16,
    "batch_size": 32,
    "learning_rate": 0.01,
}
_CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "backbone": "resnet20",
    "width": 0.5,
    "embedding_dim": 32,
    "batch_size": 32,
    "epochs": 1,
    "warmup_epochs": 0.25,
    "margin_warmup_epochs": 0.5,
    "learning_rate": 0.05,
}
TRAININGS = {
    "digits": Training(_DIGITS, None, 200, 1e-8),
    "digits, other options": Training(_OPTIONS, None, 30, 1e-8),
    "digits, a sum of losses": Training(_SUM, None, 30, 1e-8),
    "mnist": Training(_MNIST, 3200, 200, 1e-8),
    "cifar10": Training(_CIFAR10, 320, 10, 1e-6),
}


def weights_apart(moment: lockstep.Moment, fields: dict[str, Any], together: bool = False) -> list[Difference]:
    """The differences between both programs' weights and statistics at a moment of a training with these fields."""
    # without dropout the last batch norm takes the mean away, so that the first one's bias takes no gradient and stays
    # 0, as does the mean
    vanishing = () if fields.get("dropout") else (*VANISHING, "embedding.bn2.running_mean")
    found = differences(moment.jax_weights, moment.torch_weights, vanishing=vanishing, together=together)
    return [dataclasses.replace(d, name=f"step {moment.step}: {d.name}") for d in found]


def _moments(name: str, dtype: str, steps: int) -> Iterator[lockstep.Moment]:
    training = TRAININGS[name]
    datasets = lockstep.both_datasets(training.fields["dataset"], training.examples)
    yield from lockstep.train(training.fields, steps, dtype, datasets)


@functools.cache
def trained(name: str, dtype: str, steps: int, together: bool) -> tuple[np.ndarray, list[Difference]]:
    """Losses [steps, 2], JAX's and PyTorch's, and the differences between the weights after each step."""
    losses, apart = [], []
    for moment in _moments(name, dtype, steps):
        losses.append((moment.jax_loss, moment.torch_loss))
        apart += weights_apart(moment, TRAININGS[name].fields, together)
    return np.array(losses), apart


def _losses(name: str, dtype: str, steps: int, together: bool) -> Iterator[Difference]:
    losses, _ = trained(name, dtype, steps, together)
    for step, (here, there) in enumerate(losses.astype(dtype)):
        yield difference(f"step {step}: loss", here, there)


def _weights(name: str, dtype: str, steps: int, together: bool) -> Iterator[Difference]:
    yield from trained(name, dtype, steps, together)[1]


_PARTS = (("each loss", _losses), ("every weight and statistic", _weights))

CASES = [
    *(
        Case(
            f"training on {name}, {training.steps} steps: {what}",
            "trajectories",
            "float64",
            training.bound,
            functools.partial(measure, name, "float64", training.steps, False),
            slow=name != "digits",
        )
        for name, training in TRAININGS.items()
        for what, measure in _PARTS
    ),
    # A bias starts at 0, so that after a step it is its gradient, which may nearly cancel (see `cases/backbones.py`):
    # errors are relative to the largest of all weights and statistics.
    *(
        Case(
            f"training on {name}, first step: {what}",
            "trajectories",
            "float32",
            64.0,
            functools.partial(measure, name, "float32", 1, True),
            unit="ulp",
        )
        for name in ("digits", "mnist")
        for what, measure in _PARTS
    ),
]
