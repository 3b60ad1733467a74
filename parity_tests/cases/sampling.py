"""What is random: the generators, the order, each example's augmentation, dropout masks, and the augmented batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_arcface.data import sampling as jax_sampling
from parity_tests.cases import Case, bound_of
from parity_tests.compare import Difference, difference
from torch_reference.data import sampling as torch_sampling

# The two programs' names for what is drawn.
DRAWN = {"affine": "matrix", "shift": "window", "flip": "flipped", "cutout": "hole"}

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rotate and zoom": {"rotate": 0.4, "zoom": 0.3},
    "zoom alone": {"zoom": 0.1},
    "shift": {"shift": 2},
    "shift beyond the image": {"shift": 9},
    "flip": {"flip": True},
    "cutout, odd": {"cutout": 3},
    "cutout, even": {"cutout": 4},
    "all": {"rotate": 0.2, "zoom": 0.1, "shift": 2, "flip": True, "cutout": 4},
}
EXAMPLES, HEIGHT, WIDTH = 500, 8, 11


def _generators() -> Iterator[Difference]:
    for purpose, index, seed in (("order", 0, 0), ("weights", "head.prototypes", 3), ("dropout", 999, 12345)):
        here = jax_sampling.generator(seed, purpose, index).random((3, 50))
        yield difference(purpose, here, torch_sampling.generator(seed, purpose, index).random((3, 50)))


def _orders() -> Iterator[Difference]:
    for seed, epoch, n in ((0, 0, 10), (0, 1, 1000), (7, 29, 60_000)):
        here = jax_sampling.permutation(seed, "order", epoch, n)
        yield difference(f"seed {seed}, epoch {epoch}", here, torch_sampling.epoch_order(seed, epoch, n))


def _balanced_orders() -> Iterator[Difference]:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(7), [3, 40, 41, 5, 30, 60, 21]))
    for seed, epoch, size, classes in ((0, 0, 20, 5), (1, 2, 14, 7)):
        here = jax_sampling.balanced_order(seed, epoch, labels, 7, size, classes)
        yield difference(f"epoch {epoch}", here, torch_sampling.class_batches(seed, epoch, labels, size, classes))


def _normal() -> Iterator[Difference]:
    for step in (0, 999):
        here, there = jax_sampling.normal_draws(3, step, 500), torch_sampling.elastic_normal(3, step, 500)
        yield difference(f"step {step}", here, there)


def _masks() -> Iterator[Difference]:
    for step, rate in ((0, 0.1), (17, 0.5)):
        arguments = (4, step, 6, 35, rate)
        yield difference(f"step {step}", jax_sampling.dropout_mask(*arguments), torch_sampling.dropout_mask(*arguments))


def draws(name: str, epoch: int) -> tuple[dict[str, np.ndarray], torch_sampling.Draws]:
    """An epoch's draws by both programs."""
    fields = AUGMENTATIONS[name]
    here = jax_sampling.draw_augmentation(jax_sampling.Augmentation(**fields), 2, epoch, EXAMPLES, HEIGHT, WIDTH)
    there = torch_sampling.draw_augmentation(torch_sampling.Augmentation(**fields), 2, epoch, EXAMPLES, HEIGHT, WIDTH)
    return here, there


def _draws() -> Iterator[Difference]:
    for name in AUGMENTATIONS:
        for epoch in (0, 1):
            here, there = draws(name, epoch)
            drawn = {key for key, other in DRAWN.items() if getattr(there, other) is not None}
            # which of them are drawn, as a comparison of its own
            yield difference(
                f"{name}: parts", np.array([k in here for k in DRAWN]), np.array([k in drawn for k in DRAWN])
            )
            for key in sorted(drawn & set(here)):
                yield difference(f"{name}, epoch {epoch}: {key}", here[key], getattr(there, DRAWN[key]).numpy())


def _batches(name: str, dtype: str) -> Iterator[Difference]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, HEIGHT, WIDTH, 3), dtype=np.uint8)
    mean, scale = np.array([100.0, 120.5, 90.25]).astype(dtype), np.array([0.01, 0.02, 0.015]).astype(dtype)
    chosen = rng.permutation(EXAMPLES)[:40]
    here_draws, there_draws = draws(name, 1)
    fields = AUGMENTATIONS[name]
    with jax.enable_x64(dtype == "float64"):
        here = jax.jit(jax_sampling.augment, static_argnums=4)(
            jnp.asarray(images),
            {key: jnp.asarray(value[chosen]) for key, value in here_draws.items()},
            jnp.asarray(mean),
            jnp.asarray(scale),
            jax_sampling.Augmentation(**fields),
        )
    there = torch_sampling.augment(
        torch.tensor(images),
        there_draws.take(torch.tensor(chosen)),
        torch_sampling.Augmentation(**fields),
        torch.tensor(mean),
        torch.tensor(scale),
    )
    yield difference("images", np.asarray(here), there.permute(0, 2, 3, 1).numpy())


CASES = [
    *(
        Case(what, "sampling", "float64", 0.0, measure, unit="exact")
        for what, measure in (
            ("random numbers for a purpose", _generators),
            ("order of the training examples", _orders),
            ("order in batches of few classes", _balanced_orders),
            ("dropout masks", _masks),
            ("what is drawn for each example", _draws),
        )
    ),
    # two ways to write log(1 - u)
    Case("normal draws of random margins", "sampling", "float32", 64.0, _normal, unit="ulp"),
    *(
        Case(
            f"augmented batch: {name}",
            "sampling",
            dtype,
            **bound_of(dtype),
            measure=functools.partial(_batches, name, dtype),
        )
        for dtype, names in (("float64", list(AUGMENTATIONS)), ("float32", ["all"]))
        for name in names
    ),
]
