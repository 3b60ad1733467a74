"""The optimiser and its learning rate, as the configuration describes them (`docs/recipe.md`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jax_arcface.training.config import TrainConfig


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
