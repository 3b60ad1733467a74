"""Optimisers, schedules, and the margin's warm-up."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from jax_arcface.training import config as jax_config
from jax_arcface.training.optimizer import learning_rate_schedule, make_optimizer
from jax_arcface.training.step import grown
from parity_tests.cases import Case
from parity_tests.compare import Difference, difference, differences
from torch_reference.training import config as torch_config
from torch_reference.training import state as torch_state
from torch_reference.training import step as torch_step

STEPS = 100
_LOSSES = ("norm_softmax", "sphereface", "cosface", "arcface")
_MARGINS = {"sphereface": "m1", "arcface": "m2", "cosface": "m3"}  # of the combined margin
_PER_EPOCH = 10
_FIELDS: dict[str, Any] = {"epochs": 10, "warmup_epochs": 1.5, "learning_rate": 0.1, "weight_decay": 0.01}
_SHAPES = {"conv": (3, 2, 3, 3), "linear": (4, 5), "norm": (6,)}


def _stream() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    # some of norm below 1, some above: clipping takes part in some steps only
    return [
        {name: rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 0) for name, shape in _SHAPES.items()}
        for _ in range(STEPS)
    ]


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(12)
    return {name: rng.normal(size=shape) for name, shape in _SHAPES.items()}


def jax_optimised(fields: dict[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """Parameters after each of the steps, [steps, ...], by `jax_arcface`."""
    config = jax_config.TrainConfig(**fields)
    with jax.enable_x64(dtype == "float64"):
        optimizer = make_optimizer(config, _PER_EPOCH)
        params = {name: jnp.asarray(value, dtype) for name, value in _start().items()}
        stream = {name: jnp.asarray(np.stack([g[name] for g in _stream()]), dtype) for name in _SHAPES}

        def step(carry, gradients):
            params, memory = carry
            updates, memory = optimizer.update(gradients, memory, params)
            params = optax.apply_updates(params, updates)
            return (params, memory), params

        _, seen = jax.jit(lambda p, s: jax.lax.scan(step, (p, optimizer.init(p)), s))(params, stream)
        return {name: np.asarray(value) for name, value in seen.items()}


def torch_optimised(fields: dict[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """The same by `torch_reference`, the optimiser driven as `train_step` drives it."""
    config = torch_config.TrainConfig(**fields)
    model = nn.ParameterDict({n: nn.Parameter(torch.tensor(v.astype(dtype))) for n, v in _start().items()})
    optimizer = torch_state.make_optimizer(config, model)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in _SHAPES}
    for number, gradients in enumerate(_stream()):
        for name, parameter in model.items():
            parameter.grad = torch.tensor(gradients[name].astype(dtype))
        if config.clip_norm > 0:
            torch_step.clip_gradients(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = torch_step.learning_rate(config, number, _PER_EPOCH)
        optimizer.step()
        for name, parameter in model.items():
            seen[name].append(parameter.detach().numpy().copy())
    return {name: np.stack(values) for name, values in seen.items()}


def _optimiser(optimizer: str, momentum: float, clip: float, dtype: str) -> Iterator[Difference]:
    fields = _FIELDS | {"optimizer": optimizer, "momentum": momentum, "clip_norm": clip}
    yield from differences(jax_optimised(fields, dtype), torch_optimised(fields, dtype))


def _schedule(schedule: str) -> Iterator[Difference]:
    for warmup in (0.0, 1.5, 0.25, 20.0):
        fields = _FIELDS | {"schedule": schedule, "warmup_epochs": warmup}
        with jax.enable_x64(True):
            rate = learning_rate_schedule(jax_config.TrainConfig(**fields), _PER_EPOCH)
            here = np.asarray(rate(jnp.arange(STEPS)))
        config = torch_config.TrainConfig(**fields)
        there = np.array([torch_step.learning_rate(config, t, _PER_EPOCH) for t in range(STEPS)])
        yield difference(f"warm-up of {warmup} epochs: learning rate", here, there)


def _margin_warmup(loss: str) -> Iterator[Difference]:
    # norm_softmax has no margin to grow
    for epochs in (0.0,) if loss == "norm_softmax" else (0.0, 0.35, 3.0):
        fields: dict[str, Any] = {"loss": loss, "margin_warmup_epochs": epochs}
        there = [_grown(torch_config.TrainConfig(**fields), t) for t in range(STEPS)]
        with jax.enable_x64(True):
            share = grown(jnp.arange(STEPS), round(epochs * _PER_EPOCH))
            margins = jax_config.TrainConfig(**fields).objective.grown(share).margins
            neutral = {"m1": 1.0, "m2": 0.0, "m3": 0.0}
            found = neutral | dict(zip([_MARGINS[loss]] if margins else [], margins.values(), strict=True))
            for name, value in found.items():
                here = np.broadcast_to(np.asarray(value, np.float64), STEPS)
                yield difference(
                    f"{epochs} epochs: {name}", here, np.array([m.get(name, neutral[name]) for m in there])
                )


def _grown(config: torch_config.TrainConfig, step: int) -> dict[str, float]:
    """The margin of a step, by its name in `Margin`, as a loss of `torch_reference` sees it."""
    term = config.objective.classifier
    assert term is not None
    if "m" not in term.options:
        return {}
    growth = torch_step.margin_growth(config, step, _PER_EPOCH)
    field = {"sphereface": "m1", "arcface": "m2", "cosface": "m3"}[term.name]
    return {field: float(term.loss.options["m"].at(term.options["m"], growth))}


CASES = [
    *(
        Case(
            f"{optimizer}, momentum {momentum:g}{', clipped' if clip else ''}: {STEPS} steps",
            "training",
            "float64",
            1e-12,
            functools.partial(_optimiser, optimizer, momentum, clip, "float64"),
            covers=(optimizer,),
        )
        for optimizer, (momentum, clip) in itertools.product(torch_config.OPTIMIZERS, ((0.9, 0.0), (0.9, 1.0)))
    ),
    Case(
        "nesterov, momentum 0",
        "training",
        "float64",
        1e-12,
        functools.partial(_optimiser, "nesterov", 0.0, 0.0, "float64"),
    ),
    *(
        Case(
            f"learning rate, {schedule}: {STEPS} steps",
            "training",
            "float64",
            1e-12,
            functools.partial(_schedule, schedule),
            covers=(schedule,),
        )
        for schedule in torch_config.SCHEDULES
    ),
    *(
        Case(
            f"margin warm-up, {loss}: {STEPS} steps",
            "training",
            "float64",
            1e-12,
            functools.partial(_margin_warmup, loss),
            covers=(loss,),
        )
        for loss in _LOSSES
    ),
]
