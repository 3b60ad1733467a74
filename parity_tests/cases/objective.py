"""Every loss of the registry, by its words: values, gradients and states over two steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_arcface import objective as jax_objective
from jax_arcface.margins import Margin as JaxMargin
from parity_tests.cases import Case, bound_of
from parity_tests.cases.losses import CLASSES, DIM, SCALE, batch
from parity_tests.compare import Difference, compare
from torch_reference import objective as torch_objective
from torch_reference.margins import Margin as TorchMargin


def words() -> list[str]:
    """Each name of the registry (regularisers beside `softmax`), and each word that an option can be."""
    found = []
    for name, loss in jax_objective.LOSSES.items():
        alone = f"softmax+{name}" if loss.kind == "regulariser" else name
        found.append(alone)
        for option, kind in loss.options.items():
            if isinstance(kind, jax_objective.Choice):
                found += [f"{alone}:{option}={word}" for word in kind.known[1:]]
            elif kind.default is None:
                found.append(f"{alone}:{option}=0.2")
    return [*found, *jax_objective.ALIASES, "arcface:0.5,m=0.4+intra:2+inter+triplet:0.25,mining=hard"]


def _inputs(dtype: str, subcenters: int) -> list[np.ndarray]:
    x, w, labels = batch(dtype, subcenters)
    x, labels = x[:18], labels[:18]  # of all 24 the mean cosine is 0 but for rounding
    # lengths on both sides of MagFace's shortest
    rng = np.random.default_rng(5)
    extra = [rng.normal(size=(CLASSES,)), rng.normal(size=(CLASSES, DIM)), rng.normal(size=len(x))]
    return [2 * x, w, *(array.astype(dtype) for array in extra), labels]


def _settings(objective: Any) -> dict[str, Any]:
    """What the configuration would give, where it has an effect."""
    takes = objective.takes
    return {
        "scale": SCALE,
        "label_smoothing": 0.1 if "label_smoothing" in takes else 0.0,
        "growth": 0.75 if "margin_warmup_epochs" in takes else 1.0,
        "beyond_pi": "wrap" if "beyond_pi" in takes else "monotone",
    }


def _jax_steps(text: str) -> Callable[..., dict[str, Any]]:
    objective = jax_objective.parse(text)
    margin = objective.margin("wrap" if "beyond_pi" in objective.takes else "monotone") or JaxMargin()

    def steps(x, w, bias, centers, normal, labels):
        inputs = jax_objective.Inputs(x, labels, w, bias, centers, margin, normal=normal, **_settings(objective))
        # the initial states are float32 numbers in both programs; the arithmetic is to be that of the inputs
        states = jax.tree.map(
            lambda value: value.astype(np.float32).astype(x.dtype),
            jax_objective.initial_states(objective, CLASSES, DIM),
        )
        outputs = {}
        for step in (0, 1):
            inputs = inputs._replace(embeddings=x * (1 + 0.5 * step), step=step)
            outputs[f"loss {step}"], states = jax_objective.total_loss(objective, inputs, states)
        return outputs | {f"{name}.{key}": jnp.asarray(v) for name, s in states.items() for key, v in s.items()}

    return steps


def _torch_steps(text: str) -> Callable[..., dict[str, Any]]:
    objective = torch_objective.parse(text)
    margin = objective.margin("wrap" if "beyond_pi" in objective.takes else "monotone") or TorchMargin()

    def steps(x, w, bias, centers, normal, labels):
        inputs = torch_objective.Inputs(x, labels, w, bias, centers, margin, normal=normal, **_settings(objective))
        states = torch_objective.initial_states(objective, CLASSES, DIM)
        states = {name: {key: value.to(x.dtype) for key, value in state.items()} for name, state in states.items()}
        outputs = {}
        for step in (0, 1):
            inputs = inputs._replace(embeddings=x * (1 + 0.5 * step), step=step)
            outputs[f"loss {step}"], states = torch_objective.total_loss(objective, inputs, states)
        return outputs | {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    return steps


def _measured(text: str, subcenters: int, dtype: str) -> Iterator[Difference]:
    inputs = _inputs(dtype, subcenters)
    yield from compare(_jax_steps(text), _torch_steps(text), *inputs, argnums=(0, 1, 2, 3)).differences


CASES = [
    *(
        Case(
            f"loss {text}", "objective", dtype, **bound_of(dtype), measure=functools.partial(_measured, text, 1, dtype)
        )
        for dtype in ("float64", "float32")
        for text in words()
        if text != "subcenter"
    ),
    *(
        Case(
            f"loss {text}, 3 sub-centres",
            "objective",
            "float64",
            1e-12,
            functools.partial(_measured, text, 3, "float64"),
        )
        for text, loss in jax_objective.LOSSES.items()
        if "subcenters" in loss.takes
    ),
]
