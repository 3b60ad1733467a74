"""The metrics by name: to add one, write its function here, and every command and file that lists metrics has it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_arcface.evaluation.accuracy import accuracy as accuracy_of
from jax_arcface.evaluation.accuracy import mean_loss
from jax_arcface.evaluation.pairs import all_pairs
from jax_arcface.evaluation.verification import Tally
from jax_arcface.losses.registry import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """What metrics are computed from.

    Args:
      embeddings: [N, D]. labels: [N], integers in [0, C).
      owned: `prototypes`, [C, D] or [C, K, D], and with a linear classifier a `bias` [C].
      objective: the losses of the training; None where they are not known.
      step: steps of the training.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    owned: Mapping[str, Any]
    objective: Objective | None = None
    step: int = 0

    @functools.cached_property
    def pairs(self) -> Tally:
        """The scores of all pairs, counted once for all that asks for them; raises as `all_pairs`."""
        return all_pairs(self.embeddings, self.labels)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
      compute: from what is embedded to a number; None where it is not defined.
      shown: how the number is formatted.
      help: the first line of the function's docstring.
    """

    compute: Callable[[Embedded], float | None]
    shown: str
    help: str


METRICS: dict[str, Metric] = {}


def metric(shown: str) -> Callable[[Callable[[Embedded], float | None]], Callable[[Embedded], float | None]]:
    """Registers a function as a metric, by its name; `shown` is how its number is formatted."""

    def register(function: Callable[[Embedded], float | None]) -> Callable[[Embedded], float | None]:
        METRICS[function.__name__] = Metric(function, shown, (function.__doc__ or "").split("\n")[0].rstrip("."))
        return function

    return register


@metric("{:.2%}")
def accuracy(e: Embedded) -> float | None:
    """Share that is classified correctly."""
    return accuracy_of(e.embeddings, e.owned["prototypes"], e.labels, e.owned.get("bias"))


@metric("{:.4f}")
def loss(e: Embedded) -> float | None:
    """Mean, with the full margin, as test_loss in metrics.jsonl."""
    return None if e.objective is None else mean_loss(e.objective, e.owned, e.embeddings, e.labels, step=e.step)


def evaluate(embedded: Embedded) -> dict[str, float]:
    """All metrics that are defined, by name.

    >>> x = np.eye(2, dtype=np.float32)
    >>> evaluate(Embedded(x, np.array([0, 1]), {"prototypes": x}))["accuracy"]
    1.0
    """
    found = {name: metric.compute(embedded) for name, metric in METRICS.items()}
    return {name: value for name, value in found.items() if value is not None}
