"""Milliseconds of the margin softmax loss with its gradients, and their peak memory: dense, fused, PyTorch, the floor.

    python -m experiments fused_head --batch-size 256 --classes 102400 --dimension 128 --memory

Every contender computes ArcFace's loss (m = 0.5, s = 64) and its gradients to embeddings [B, D] and prototypes [C, D]
from the same float32 numbers. The floor is the matrix products alone, each in one piece: x w^T twice (the fused loss
computes it again backwards), and the two gradients. All run in one process and take turns, so that a change in the
machine's speed meets all alike. Prints medians and ratios; `--json FILE` writes them with hardware and versions.
`--memory` also runs each in a process of its own and reads by how much its resident memory grew, from inputs made and
program compiled to its peak; the gradient to the prototypes is part of it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.step_time import machine

MARGIN, SCALE = 0.5, 64.0
Step = Callable[[], float]  # runs once, waits for all results, returns the loss


def main(words: list[str]) -> None:
    """Measures and prints."""
    options = _parser().parse_args(words)
    if options.worker:
        print(json.dumps(_grown(options)))
        return
    # first, while this process is small: a new process starts with the peak of the one that started it
    memory = {name: _grown_elsewhere(words, name) for name in contenders()} if options.memory else {}
    rows = measure({name: make(options) for name, make in contenders().items()}, options.repetitions)
    for name, mebibytes in memory.items():
        rows[name]["mebibytes"] = mebibytes
    shape = f"B = {options.batch_size}, C = {options.classes}, D = {options.dimension}"
    print(f"{shape}, {options.repetitions} turns, {machine()}")
    for name, row in rows.items():
        print(
            f"{name:<30} {row['milliseconds']:8.1f} ms ({row['smallest']:.1f} to {row['largest']:.1f}), "
            f"{row['ratio']:.2f} of the matrix products" + (f", {memory[name]:.0f} MiB" if memory else "")
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "worker")}
        environment = {"machine": machine(), "versions": _versions(), "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
        options.json.write_text(json.dumps({"settings": settings, **environment, "rows": rows}, indent=2) + "\n")


def measure(steps: dict[str, Step], repetitions: int) -> dict[str, dict[str, float]]:
    """Medians of the steps, which take turns, and of their ratios to the first one in the same turn."""
    losses = {name: step() for name, step in steps.items()}  # warms up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    floor = np.array(next(iter(times.values())))
    return {
        name: {
            "milliseconds": float(np.median(t)),
            "smallest": min(t),
            "largest": max(t),
            "ratio": float(np.median(np.array(t) / floor)),
            **({"loss": losses[name]} if math.isfinite(losses[name]) else {}),
        }
        for name, t in times.items()
    }


def contenders() -> dict[str, Callable[[argparse.Namespace], Step]]:
    """What is measured, by name; the floor first."""
    known: dict[str, Callable[[argparse.Namespace], Step]] = {
        "four matrix products": _matrix_products,
        "JAX, fused": _fused,
        "JAX, fused, bfloat16 products": lambda options: _fused(options, "bfloat16"),
        "JAX, dense": _dense,
        "PyTorch, dense": _torch,
    }
    if importlib.util.find_spec("pytorch_metric_learning"):
        known["pytorch-metric-learning"] = _metric_learning
    return known


def _inputs(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, prototypes and labels: noise, each embedding drawn towards its prototype."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((options.classes, options.dimension), np.float32)
    labels = rng.integers(options.classes, size=options.batch_size)
    return w[labels] + rng.standard_normal((options.batch_size, options.dimension), np.float32), w, labels


def _matrix_products(options: argparse.Namespace) -> Step:
    import jax
    import jax.numpy as jnp

    x, w, _ = map(jnp.asarray, _inputs(options))
    d_logits = jnp.asarray(np.random.default_rng(1).standard_normal((len(x), len(w)), np.float32))
    forward = jax.jit(lambda x, w: x @ w.T).lower(x, w).compile()
    to_x = jax.jit(lambda d_logits, w: d_logits @ w).lower(d_logits, w).compile()
    to_w = jax.jit(lambda d_logits, x: d_logits.T @ x).lower(d_logits, x).compile()

    def step() -> float:
        for f, a, b in ((forward, x, w), (forward, x, w), (to_x, d_logits, w), (to_w, d_logits, x)):
            jax.block_until_ready(f(a, b))
        return math.nan

    return step


def _fused(options: argparse.Namespace, matmul_dtype: str | None = None) -> Step:
    from jax_arcface.fused import fused_margin_softmax_loss

    return _jax_step(options, fused_margin_softmax_loss, block_size=options.block_size, matmul_dtype=matmul_dtype)


def _dense(options: argparse.Namespace) -> Step:
    from jax_arcface import margin_softmax_loss

    return _jax_step(options, margin_softmax_loss)


def _jax_step(options: argparse.Namespace, loss: Callable, **keywords: Any) -> Step:
    import jax
    import jax.numpy as jnp

    from jax_arcface import Margin

    x, w, labels = map(jnp.asarray, _inputs(options))

    def of_vectors(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(x, w, labels, Margin.arcface(MARGIN), SCALE, **keywords)

    compiled = jax.jit(jax.value_and_grad(of_vectors, argnums=(0, 1))).lower(x, w, labels).compile()
    return lambda: float(jax.block_until_ready(compiled(x, w, labels))[0])


def _torch(options: argparse.Namespace) -> Step:
    import torch

    from torch_reference import Margin, margin_softmax_loss

    x, w, labels = map(torch.from_numpy, _inputs(options))
    x.requires_grad_()
    w.requires_grad_()

    def step() -> float:
        x.grad = w.grad = None
        loss = margin_softmax_loss(x, w, labels, Margin.arcface(MARGIN), SCALE)
        loss.backward()
        return loss.item()

    return step


def _metric_learning(options: argparse.Namespace) -> Step:
    import torch

    losses = importlib.import_module("pytorch_metric_learning.losses")
    x, w, labels = map(torch.from_numpy, _inputs(options))
    x.requires_grad_()
    head = losses.ArcFaceLoss(len(w), w.shape[1], margin=math.degrees(MARGIN), scale=SCALE)
    head.W.data = w.T.contiguous()

    def step() -> float:
        x.grad = head.W.grad = None
        loss = head(x, labels)
        loss.backward()
        return loss.item()

    return step


def _grown_elsewhere(words: list[str], name: str) -> float:
    command = [sys.executable, "-m", "experiments", "fused_head", *words, "--worker", name]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _grown(options: argparse.Namespace) -> float:
    """By how many MiB the peak of this process's resident memory grows in two steps."""
    step = contenders()[options.worker](options)
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # how much was needed on the way here
    before = _peak_mebibytes()
    step()
    step()
    return _peak_mebibytes() - before


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ["jax", "jaxlib", "numpy", "torch"]
    if importlib.util.find_spec("pytorch_metric_learning"):
        names.append("pytorch-metric-learning")
    return {name: version(name) for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments fused_head", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=256, help="B")
    parser.add_argument("--classes", type=int, default=102_400, help="C")
    parser.add_argument("--dimension", type=int, default=128, help="D")
    parser.add_argument("--block-size", type=int, help="classes a block of the fused loss; its own choice by default")
    parser.add_argument("--repetitions", type=int, default=7, help="turns, of which the median is taken")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser
