"""The state of a training: what a step changes, and what is kept in a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jax_arcface.models import weights
from jax_arcface.models.heads import Head, LossState


class Model(nnx.Module):
    """What is trained: a backbone from images to embeddings, and a head with the losses."""

    def __init__(self, backbone: nnx.Module, head: Head):
        self.backbone = backbone
        self.head = head


class Metrics(NamedTuple):
    """Of a step: the loss, and the share of the batch that is classified correctly, without margin.

    With pair losses alone, classified as the nearest other example of the batch.
    """

    loss: Array
    accuracy: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "stats", "optimizer", "totals"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Args:
      step: steps done.
      params: the parameters of backbone and head.
      stats: all else that the model holds: running statistics, class means, the losses' states.
      optimizer: the optimiser's state.
      totals: the sums of the epoch's metrics.
    """

    step: Array
    params: nnx.State
    stats: nnx.State
    optimizer: optax.OptState
    totals: Metrics

    @property
    def model(self) -> nnx.State:
        """The model's part: parameters and all else that the model holds."""
        return nnx.merge_state(self.params, self.stats)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights under PyTorch's names, in PyTorch's layout: what `model.safetensors` holds."""
        return weights.to_pytorch(exchanged(self.model))


class Parts(NamedTuple):
    """The model apart: its structure, and the random streams that it draws from (`nnx.Rngs`)."""

    graphdef: nnx.GraphDef
    streams: nnx.State

    def merge(self, params: nnx.State, stats: nnx.State, step: Array | None = None) -> Model:
        """The model; its streams are a function of the step, so that they need no state."""
        streams = self.streams
        if step is not None:
            streams = jax.tree.map(
                lambda leaf: (
                    jax.random.fold_in(leaf, step) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
                ),
                streams,
            )
        return nnx.merge(self.graphdef, params, streams, stats, copy=True)


def split(model: Model) -> tuple[Parts, nnx.State, nnx.State]:
    """A model's structure and streams, its parameters, and all else that it holds."""
    parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
    graphdef, params, streams, stats = parts
    return Parts(graphdef, streams), params, stats


def start(params: nnx.State, stats: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    totals = Metrics(jnp.zeros(()), jnp.zeros(()))
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), totals)


def exchanged(state: nnx.State) -> nnx.State:
    """What both programs exchange of a model's state: parameters and statistics, not the losses' states."""
    return nnx.filter_state(state, nnx.Not(nnx.Any(LossState, nnx.RngState)))


def filled(state: nnx.State, values: Mapping[str, np.ndarray]) -> nnx.State:
    """A model's state (which may be abstract) with these weights, under PyTorch's names, in it.

    Raises:
      ValueError: a name or a shape that does not fit.
    """
    return nnx.merge_state(state, weights.from_pytorch(exchanged(state), values))
