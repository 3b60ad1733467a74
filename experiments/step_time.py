"""Milliseconds of a training step, with and without the XLA flags of the command line, and of replicas.

    python -m experiments step_time --backbone airnet --width 0.5 --shape 32 32 3 --batch-size 128 --replicas 4

Each variant runs in a process of its own; blocks of steps of all variants take turns, so that a change in the machine's
speed meets all alike. Prints medians and ratios; `--json FILE` writes them with hardware and versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jax_arcface.__main__ import CPU_FLAGS


def main(words: list[str]) -> None:
    """Measures and prints."""
    options = _parser().parse_args(words)
    if options.worker:
        _work(options)
        return
    variants = {
        "no flags": ({"XLA_FLAGS": ""}, 1),
        "flags": ({"XLA_FLAGS": CPU_FLAGS}, 1),
        f"flags, {options.replicas} replicas as one program": ({"XLA_FLAGS": CPU_FLAGS}, options.replicas),
    }
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-m", "experiments", "step_time", *words, "--worker", "--replicas", str(replicas)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, (environment, replicas) in variants.items()
    }
    for worker in workers.values():
        _block(worker)  # compiles
    blocks: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.blocks):
        for name, worker in workers.items():
            blocks[name].append(_block(worker))
    for worker in workers.values():
        worker.communicate()
    baseline = np.array(blocks["flags"])
    result = {
        name: {
            "milliseconds": float(np.median(times)),
            "smallest": min(times),
            "largest": max(times),
            "ratio": float(np.median(np.array(times) / baseline)),
        }
        for name, times in blocks.items()
    }
    print(
        f"{options.backbone}, width {options.width}, batch {options.batch_size}, {options.blocks} blocks, {machine()}"
    )
    for name, row in result.items():
        print(
            f"{name:<35} {row['milliseconds']:8.1f} ms ({row['smallest']:.1f} to {row['largest']:.1f}), "
            f"{row['ratio']:.2f} of one step with flags"
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "worker")}
        options.json.write_text(
            json.dumps({"settings": settings, "machine": machine(), "rows": result}, indent=2) + "\n"
        )


def _block(worker: subprocess.Popen) -> float:
    print("go", file=worker.stdin, flush=True)
    return float(worker.stdout.readline())  # type: ignore[union-attr]


def machine() -> str:
    """Processor, cores and versions, in a line."""
    import jax

    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _work(options: argparse.Namespace) -> None:
    """Runs a block of steps for each line on standard input, and prints the median of its steps in milliseconds."""
    import jax

    from jax_arcface import training
    from jax_arcface.config import TrainConfig
    from jax_arcface.data import Dataset, Split

    if jax.default_backend() != "cpu":
        sys.exit("step_time measures steps on a CPU; an accelerator runs an epoch as one program")
    rng = np.random.default_rng(0)
    n = options.batch_size * options.steps
    images = rng.integers(0, 256, (n, *options.shape), np.uint8)
    labels = rng.integers(0, 10, n).astype(np.int32)
    dataset = Dataset("noise", Split(images, labels), Split(images[:10], labels[:10]), tuple("0123456789"))
    config = TrainConfig(backbone=options.backbone, width=options.width, batch_size=options.batch_size, shift=2)
    configs = [dataclasses.replace(config, seed=seed) for seed in range(options.replicas)]
    optimizer = training.make_optimizer(config, options.steps)
    graphdef, _ = training.abstract_model(config, tuple(options.shape), 10)
    step = training.make_step(config, graphdef, optimizer, options.steps)
    run = training.make_epoch(step, options.replicas)
    data = training.device_data(dataset.train, images.mean((0, 1, 2)), images.std((0, 1, 2)))
    state = training.stack([training.initial_state(c, dataset, optimizer) for c in configs])
    margin = training.stack([c.margin_value for c in configs])
    batches = training.stack([training.host_batches(c, dataset, 0, 0) for c in configs], axis=1)
    for _ in sys.stdin:
        times = []
        start = time.perf_counter()
        for reached, metrics in run(state, data, batches, margin):
            state = reached
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
        print(1e3 * float(np.median(times)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments step_time", description=__doc__)
    parser.add_argument("--backbone", default="airnet")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[32, 32, 3], help="height, width and channels of an image"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="in a block")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser
