"""Seconds from the start of a process until its first training step is done: without and with what JAX compiled before.

    python -m experiments bench start_up --dataset mnist

The command line keeps what JAX compiles in the user's cache folder; here that is an empty folder, used twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments._arguments import Parser, check_can_be_written
from experiments.bench import circumstances


def main(words: list[str]) -> int:
    """Measures and prints; returns the status of the first process that fails (which says why), or 0."""
    parser = Parser("bench start_up", __doc__)
    parser.add_argument("--dataset", default="mnist", help="whose recipe (default: mnist)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with the hardware")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.worker:
        _first_step(options.dataset)
        return 0
    check_can_be_written(json=options.json)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_ENABLE_COMPILATION_CACHE": "true"}
        for name in ("first start", "second start"):
            start = time.perf_counter()
            command = [sys.executable, "-m", "experiments", "bench", "start_up", *words, "--worker"]
            if status := subprocess.run(command, env=environment).returncode:
                return status
            seconds[name] = time.perf_counter() - start
            print(f"{name:<13} {seconds[name]:6.1f} s", flush=True)
    if options.json:
        result = {**circumstances(["start_up", *words], 1), "dataset": options.dataset, "seconds": seconds}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _first_step(dataset: str) -> None:
    from jax_arcface import data
    from jax_arcface.cli.environment import set_up
    from jax_arcface.training.config import recipe
    from jax_arcface.training.fit import fit_config

    set_up()
    fit_config(recipe(dataset), data.load(dataset), stop=lambda: True)
