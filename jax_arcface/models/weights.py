"""Weights under PyTorch names: their initial values, and their way into and out of Flax modules.

The names are those of a PyTorch `state_dict` and the layouts are PyTorch's (`docs/recipe.md`), so that either program
loads what the other trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_arcface.philox import generator

Weights = dict[str, np.ndarray]

_NAMES = {"kernel": "weight", "scale": "weight", "slope": "weight", "mean": "running_mean", "var": "running_var"}

# From Flax's kernels, [H, W, in, out] and [in, out], to PyTorch's, [out, in, H, W] and [out, in].
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


def pytorch_name(path: tuple[Any, ...]) -> str:
    """The PyTorch name of an nnx path.

    >>> pytorch_name(("backbone", "stages", 0, "conv1", "kernel"))
    'backbone.stages.0.conv1.weight'
    """
    *parents, last = map(str, path)
    return ".".join([*parents, _NAMES.get(last, last)])


def to_pytorch(state: nnx.State) -> Weights:
    """The arrays of an nnx state (parameters, running statistics) under PyTorch names, in PyTorch's layout."""
    return {pytorch_name(path): _transposed(path, np.asarray(leaf[...])) for path, leaf in _leaves(state)}


def from_pytorch(state: nnx.State, weights: Mapping[str, np.ndarray]) -> nnx.State:
    """A state of the structure of `state` (whose values may be abstract) with the values of `weights`.

    Raises:
      ValueError: a name that is missing or not known, or a shape that does not fit; the message names it.
    """
    shapes = pytorch_shapes(state)
    if missing := shapes.keys() - weights.keys():
        raise ValueError(f"it has no {min(missing)}, which the model needs")
    if strange := weights.keys() - shapes.keys():
        raise ValueError(f"it has {min(strange)}, which the model does not know")
    for name, shape in sorted(shapes.items()):
        if weights[name].shape != shape:
            raise ValueError(f"its {name} has shape {weights[name].shape}; the model needs {shape}")
    filled = []
    for path, leaf in _leaves(state):
        value = _transposed(path, weights[pytorch_name(path)], back=True)
        filled.append((path, leaf.replace(jnp.asarray(value))))
    return nnx.from_flat_state(filled)


def pytorch_shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """The shapes of a state, whose values may be abstract, under PyTorch names and in PyTorch's layout."""
    shapes = {}
    for path, leaf in _leaves(state):
        axes = _axes(path, len(leaf.shape))
        shapes[pytorch_name(path)] = tuple(leaf.shape[axis] for axis in axes)
    return shapes


def initial(state: nnx.State, seed: int) -> Weights:
    """Initial values of a state, which may be abstract, under PyTorch names: `draw`, and 0.25 for PReLU's slopes."""
    values = draw(pytorch_shapes(state), seed)
    for path, leaf in _leaves(state):
        if path[-1] == "slope":
            values[pytorch_name(path)] = np.full(leaf.shape, 0.25, np.float32)
    return values


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Weights:
    """Initial values, float32, for parameters of these PyTorch names and shapes (`docs/recipe.md`, "Weights").

    >>> weights = draw({"fc.weight": (8, 3), "fc.bias": (8,), "bn.running_var": (8,)}, seed=0)
    >>> float(abs(weights["fc.weight"]).max()) <= 1, weights["bn.running_var"][0]
    (True, np.float32(1.0))
    """
    return {name: _initial(name, shape, seed).astype(np.float32) for name, shape in shapes.items()}


def _initial(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    last = name.rsplit(".", 1)[-1]
    if last in ("bias", "centers", "running_mean"):
        return np.zeros(shape)
    if last == "running_var":
        return np.ones(shape)
    if len(shape) == 1:
        return np.ones(shape)
    if last == "prototypes":
        bound = np.sqrt(3 / shape[-1])
    elif len(shape) == 4:
        bound = np.sqrt(6 / np.prod(shape[1:]))
    else:
        bound = np.sqrt(3 / shape[1])
    return (2 * generator(seed, "weights", name).random(shape) - 1) * bound


def _leaves(state: nnx.State) -> list[tuple[tuple, Any]]:
    return list(nnx.to_flat_state(state))


def _transposed(path: tuple, value: np.ndarray, back: bool = False) -> np.ndarray:
    axes = _axes(path, value.ndim)
    return value.transpose(np.argsort(axes) if back else axes)


def _axes(path: tuple, rank: int) -> tuple[int, ...]:
    """PyTorch's order of an array's axes; a kernel of another rank, which only an own network has, keeps its own."""
    return _AXES.get(rank, tuple(range(rank))) if path[-1] == "kernel" else tuple(range(rank))
