"""Initial weights, bit by bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from jax_arcface import data as jax_data
from jax_arcface.training import config as jax_config
from jax_arcface.training import fit as jax_training
from parity_tests.cases import Case
from parity_tests.cases.backbones import SHAPES
from parity_tests.compare import Difference, differences
from torch_reference import data as torch_data
from torch_reference.models import weights as torch_weights
from torch_reference.training import config as torch_config
from torch_reference.training import fit as torch_training


def _initial(fields: dict[str, Any]) -> Iterator[Difference]:
    # twice their size: airnet needs 9x9 pixels
    here, there = jax_data.load("digits", image_size=16), torch_data.load("digits", image_size=16)
    found = jax_training.initial_weights(jax_config.TrainConfig(**fields), here)
    state = torch_training.initial_state(torch_config.TrainConfig(**fields), there)
    yield from differences(found, torch_weights.to_arrays(state.model))


CASES = [
    Case(
        f"initial weights of {name}{', 3 sub-centres' if subcenters > 1 else ''}",
        "weights",
        "float32",
        0.0,
        functools.partial(
            _initial,
            {"backbone": name, "width": 0.25, "embedding_dim": 24, "seed": seed, "subcenters": subcenters},
        ),
        unit="exact",
    )
    for name, seed, subcenters in (*((name, 5, 1) for name in SHAPES), ("lenet", 0, 3))
]
