"""A whole training step: gather, augment, forward, loss, backward, update; JAX and PyTorch.

The configuration is the data set's recipe, with noise for images. A run is `--steps` steps; times are of one. Both
programs keep freed memory, as their command lines have it; "nothing set" does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import numpy as np

from experiments._arguments import Parser
from experiments.bench.floor import Work
from experiments.bench.turns import Contender, Step
from jax_arcface.cli.environment import cpu_environment, keep_freed_memory
from jax_arcface.models.backbones import BACKBONES
from jax_arcface.training.config import CHOICES

REFERENCE = "PyTorch, channels last"
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def headline(options: argparse.Namespace) -> str:
    """Network, images and batch."""
    height, width, channels = SHAPES[options.dataset]
    return (
        f"training step, {options.backbone}, width {options.width:g}, {height}x{width}x{channels}, "
        f"batch {options.batch_size}, {options.precision}"
    )


def least_work(options: argparse.Namespace) -> Work:
    """The convolutions and matrix products of a step, forward and backward, zeros of the padding counted."""
    from torch.utils.flop_counter import FlopCounterMode

    step = torch_step(argparse.Namespace(**vars(options) | {"steps": 1}))
    with FlopCounterMode(display=False) as counter:
        step()
    return Work("a step", counter.get_total_flops())


def jax_step(options: argparse.Namespace, replicas: int = 1, xla: bool = False) -> Step:
    """`options.steps` steps of `jax_arcface`, with one state or several as one vmapped program; all by XLA if asked."""
    import jax
    from flax import nnx

    from jax_arcface.data import Dataset, Split
    from jax_arcface.training import fit as training
    from jax_arcface.training import state as states
    from jax_arcface.training.config import recipe
    from jax_arcface.training.step import make_run, make_step

    keep_freed_memory()
    images, labels = _noise(options)
    dataset = Dataset("noise", Split(images, labels), Split(images[:10], labels[:10]), tuple("0123456789"))
    config = dataclasses.replace(recipe(options.dataset), **_changes(options))
    made = [training.make_objects(dataclasses.replace(config, seed=seed), dataset) for seed in range(replicas)]
    model, source, optimizer = made[0]
    if xla:
        for _, module in nnx.iter_modules(model):
            if hasattr(module, "implementation"):
                module.implementation = "xla"
    parts, _, _ = states.split(model)
    run = make_step(parts, optimizer, source, round(config.margin_warmup_epochs * options.steps))
    reached = [states.start(*states.split(one)[1:], optimizer) for one, _, _ in made]
    epochs = [list(source.batches(0)) for _, source, _ in made]
    if replicas == 1:
        (state,), batches, margins = reached, epochs[0], config.objective.margins
    else:
        run = jax.vmap(run, in_axes=(0, None, 0, 0))
        stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
        state, batches = stack(*reached), [stack(*several) for several in zip(*epochs, strict=True)]
        margins = stack(*[config.objective.margins] * replicas)
    step_by_step = make_run(run)

    def step() -> float:
        nonlocal state
        for after, metrics in step_by_step(state, source.resident, batches, margins):
            state = after
            loss = float(np.ravel(jax.block_until_ready(metrics).loss)[-1])
        return loss

    return step


def torch_step(options: argparse.Namespace, channels_last: bool = False, compile: bool = False) -> Step:
    """`options.steps` steps of `torch_reference`."""
    from torch_reference.__main__ import keep_freed_memory
    from torch_reference.data import Dataset, Split
    from torch_reference.training import fit as training
    from torch_reference.training.batches import Batches, Images
    from torch_reference.training.config import recipe
    from torch_reference.training.step import learning_rate, margin_growth, train_step

    keep_freed_memory()
    images, labels = _noise(options)
    dataset = Dataset("noise", Split(images, labels), Split(images[:10], labels[:10]), tuple("0123456789"))
    config = dataclasses.replace(recipe(options.dataset), **_changes(options))
    machine = training.Machine(channels_last=channels_last, compile=compile)
    state = training.initial_state(config, dataset, machine)
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    data = Images.of(dataset.train, mean, std, memory_format=machine.memory_format)
    batches = Batches(data, config.batch_size, config.seed, config.augmentation)

    def step() -> float:
        for chosen, labels in batches.epoch(0):
            loss, _ = train_step(
                state,
                chosen,
                labels,
                learning_rate=learning_rate(config, state.step, options.steps),
                margin_growth=margin_growth(config, state.step, options.steps),
                precision=config.precision,
                seed=config.seed,
            )
        return loss

    return step


def _noise(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    n = options.batch_size * options.steps
    return rng.integers(0, 256, (n, *SHAPES[options.dataset]), np.uint8), rng.integers(0, 10, n).astype(np.int32)


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    fields = ("backbone", "width", "batch_size", "precision")
    return {field: getattr(options, field) for field in fields} | {"epochs": 1000}


CONTENDERS = {
    "JAX": Contender(jax_step, cpu_environment),
    "JAX, XLA's convolutions": Contender(functools.partial(jax_step, xla=True), cpu_environment),
    "JAX, nothing set": Contender(
        functools.partial(jax_step, xla=True), lambda: {"XLA_FLAGS": "", "GLIBC_TUNABLES": ""}
    ),
    "PyTorch": Contender(torch_step),
    "PyTorch, channels last": Contender(functools.partial(torch_step, channels_last=True)),
    "PyTorch, compiled": Contender(functools.partial(torch_step, compile=True)),
    "PyTorch, compiled, channels last": Contender(functools.partial(torch_step, channels_last=True, compile=True)),
}


def parser() -> Parser:
    """What is trained."""
    parser = Parser("bench step", __doc__)
    parser.add_argument("--dataset", choices=SHAPES, default="mnist", help="whose recipe and shape (default: mnist)")
    parser.add_argument("--backbone", choices=tuple(BACKBONES), default="lenet", help="network (default: lenet)")
    parser.add_argument("--width", type=float, default=0.5, help="factor on its channels (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default: 128)")
    parser.add_argument("--precision", choices=CHOICES["precision"], default="float32", help="(default: float32)")
    parser.add_argument("--steps", type=int, default=8, help="steps in a run (default: 8)")
    return parser
