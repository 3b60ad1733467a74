"""Seconds of training until a test accuracy is reached first, by both programs with the data set's recipe.

    python -m experiments bench seconds_to_accuracy --dataset mnist --accuracy 0.99 --epochs 4

The programs train one after the other; seconds are those of the epochs, without evaluation, compiling included. A
learning rate that falls over `--epochs` is part of the recipe, so that fewer epochs get there sooner.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments._arguments import Parser, check_can_be_written
from experiments.bench import circumstances

PROGRAMS = {"jax_arcface": (), "torch_reference": ("--channels-last",)}


def main(words: list[str]) -> int:
    """Trains and prints; returns the status of the first program that fails (which says why), or 0."""
    parser = Parser("bench seconds_to_accuracy", __doc__)
    parser.add_argument("--dataset", default="mnist", help="(default: mnist)")
    parser.add_argument("--accuracy", type=float, default=0.99, help="a share (default: 0.99)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with hardware and versions")
    options, flags = parser.parse_known_args(words)
    check_can_be_written(json=options.json)
    rows = {}
    for program, own in PROGRAMS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, "-m", program, "train", "--dataset", options.dataset, "--out", str(out)]
            ended = subprocess.run([*command, *own, *flags], stdout=subprocess.DEVNULL, env=os.environ)
            if ended.returncode:
                return ended.returncode
            records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows[program] = reached(records, options.accuracy)
        print(f"{program:<16} {rows[program]}", flush=True)
    if options.json:
        result = {**circumstances(["seconds_to_accuracy", *words], 1), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def reached(records: list[dict[str, Any]], accuracy: float) -> dict[str, Any]:
    """The first epoch that reaches the accuracy and the seconds till then (None where none does), and the last's.

    >>> reached([{"test_accuracy": 0.8, "seconds": 2.0}, {"test_accuracy": 0.9, "seconds": 1.5}], 0.85)
    {'epoch': 2, 'seconds': 3.5, 'all_seconds': 3.5, 'last_accuracy': 0.9}
    """
    seconds = [sum(r["seconds"] for r in records[: i + 1]) for i in range(len(records))]
    first = next((i for i, r in enumerate(records) if r["test_accuracy"] >= accuracy), None)
    return {
        "epoch": None if first is None else first + 1,
        "seconds": None if first is None else seconds[first],
        "all_seconds": seconds[-1],
        "last_accuracy": records[-1]["test_accuracy"],
    }
