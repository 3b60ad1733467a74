"""The registry of metrics: a function here is a line of `evaluate` and a field of evaluation.json."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import torch

from torch_reference.evaluation.accuracy import Array, mean_loss, predict
from torch_reference.evaluation.pairs import all_pairs
from torch_reference.evaluation.verification import Tally
from torch_reference.losses.registry import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """Embeddings with what is known of them.

    Args:
      embeddings: [N, D]. labels: [N].
      classes: `prototypes` [C, D] or [C, K, D], and `bias` [C] with a linear classifier.
      objective: the losses that were trained with, and after how many steps; None where that is not known.
    """

    embeddings: Array
    labels: Array
    classes: Mapping[str, Array]
    objective: Objective | None = None
    step: int = 0

    @functools.cached_property
    def pairs(self) -> Tally:
        """The counts of `all_pairs`, made when first asked for."""
        return all_pairs(self.embeddings, self.labels)


Metric = Callable[[Evaluated], float | None]


def accuracy(e: Evaluated) -> float:
    """The share of examples that are given their own class."""
    predicted = predict(e.embeddings, e.classes["prototypes"], e.classes.get("bias"))
    return (predicted == torch.as_tensor(e.labels)).double().mean().item()


def loss(e: Evaluated) -> float | None:
    """The mean classification loss with its whole margin; None where it does not follow from one example alone."""
    return None if e.objective is None else mean_loss(e.objective, e.classes, e.embeddings, e.labels, step=e.step)


# by name, with the format of the number
METRICS: dict[str, tuple[Metric, str]] = {"accuracy": (accuracy, ".2%"), "loss": (loss, ".4f")}


def evaluate(e: Evaluated) -> dict[str, float]:
    """Each metric that is defined.

    >>> evaluate(Evaluated(torch.eye(2), torch.tensor([0, 1]), {"prototypes": torch.eye(2)}))["accuracy"]
    1.0
    """
    values = {name: compute(e) for name, (compute, _) in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def shown(values: Mapping[str, object]) -> str:
    """Values as they are printed, a line each, metrics in their format, and those of a protocol under its name.

    >>> print(shown({"examples": 359, "accuracy": 0.98, "retrieval": {"recall_at_k": {"1": 0.5}}}))
    examples                   359
    accuracy                   98.00%
    retrieval
      recall_at_k 1            0.5000
    """
    formats = {name: form for name, (_, form) in METRICS.items()}
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [name, *(f"  {key:<24} {_number(number, name)}" for key, number in _flat(value))]
        else:
            lines.append(f"{name:<26} {format(value, formats.get(name, ''))}")
    return "\n".join(lines)


def _flat(values: Mapping[str, object]) -> list[tuple[str, object]]:
    """Keys and values, with `key inner` for those of an inner mapping."""
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        found += [(f"{key} {name}".strip(), one) for name, one in inner]
    return found


def _number(value: object, protocol: str) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" + (f" ({math.degrees(value):.2f} degrees)" if protocol == "angles" else "")
    return "too few pairs" if value is None and protocol == "verification" else "-" if value is None else str(value)
