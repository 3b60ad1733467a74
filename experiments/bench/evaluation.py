"""Verification over all pairs: time and memory of both programs, of numpy, and of the matrix product alone.

    python -m experiments bench evaluation --examples 20000 --dimension 512

Random unit embeddings of 1,000 classes; each contender runs in a process of its own. `jax_arcface` and
`torch_reference` count all pairs and compute AUC, EER and TAR @ FAR; `numpy_sort` computes the cosines in chunks and
sorts them all; `product` is the matrix product in the same blocks and nothing else: what any exact method has to do.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments._arguments import Parser, UserError, check_at_least
from experiments._machine import machine

CLASSES = 1000


def embeddings(examples: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors that lie about the direction of their class: float32 [N, D], and labels [N]."""
    rng = np.random.default_rng(0)
    labels = np.arange(examples) % CLASSES
    x = rng.normal(size=(CLASSES, dimension)).astype(np.float32)[labels]
    x += 2 * rng.standard_normal(size=x.shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def with_jax(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The library's."""
    from jax_arcface import evaluation as e

    found = e.verify(e.all_pairs(x, labels))
    return {"auc": found.auc, "eer": found.eer, "tar": [point.tar for point in found.points]}


def with_torch(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The twin's."""
    from torch_reference import evaluation as e

    found = e.all_pairs(x, labels)
    return {"auc": e.auc(found), "eer": e.eer(found)[0], "tar": [point.tar for point in e.tar_at_far(found)]}


def with_numpy(x: np.ndarray, labels: np.ndarray, chunk: int = 1000) -> dict[str, Any]:
    """Chunks of cosines, all kept and sorted."""
    scores: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, len(x), chunk):
        cosines = x[start : start + chunk] @ x[start:].T
        above = np.arange(start, len(x)) > np.arange(start, min(start + chunk, len(x)))[:, None]
        same = labels[start : start + chunk, None] == labels[start:]
        scores[0].append(cosines[above & ~same])
        scores[1].append(cosines[above & same])
    negatives, positives = (np.sort(np.concatenate(parts)) for parts in scores)
    below = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    tar = []
    for far in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        threshold = negatives[-int(far * len(negatives)) - 1]
        tar.append(float(np.mean(positives > threshold)))
    rejected = np.arange(len(positives)) / len(positives)
    accepted = 1 - np.searchsorted(negatives, positives) / len(negatives)
    return {
        "auc": float(below.sum() / 2 / len(negatives) / len(positives)),
        "eer": float(accepted[np.argmin(np.abs(accepted - rejected))]),
        "tar": tar,
    }


def with_product(x: np.ndarray, labels: np.ndarray, block_size: int = 2048) -> dict[str, Any]:
    """Each block's product."""
    import jax

    product = jax.jit(lambda a, b: a @ b.T)
    for top in range(0, len(x), block_size):
        for left in range(top, len(x), block_size):
            product(x[top : top + block_size], x[left : left + block_size]).block_until_ready()
    return {}


CONTENDERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "product": with_product,
    "jax_arcface": with_jax,
    "torch_reference": with_torch,
    "numpy_sort": with_numpy,
}


def main(words: list[str]) -> int:
    """Runs the contenders, one after the other, and prints a table."""
    options = _parser().parse_args(words)
    check_at_least(2 * CLASSES, examples=options.examples)
    if options.worker:
        x, labels = embeddings(options.examples, options.dimension)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        found = CONTENDERS[options.worker](x, labels)
        seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024, "before_mib": before / 1024, **found}))
        return 0
    chosen = options.contenders or list(CONTENDERS)
    if unknown := [name for name in chosen if name not in CONTENDERS]:
        raise UserError(f"there is no contender {unknown[0]!r}; known: {', '.join(CONTENDERS)}")
    print(f"{options.examples * (options.examples - 1) // 2:,} pairs of {options.examples:,} x {options.dimension}")
    print(machine())
    print("| contender | seconds | peak MiB of the process | AUC | EER | TAR @ FAR 1e-6 |\n|---|---|---|---|---|---|")
    for name in chosen:
        command = [sys.executable, "-m", "experiments", "bench", "evaluation", "--worker", name]
        sizes = ["--examples", str(options.examples), "--dimension", str(options.dimension)]
        row = json.loads(subprocess.run([*command, *sizes], capture_output=True, text=True, check=True).stdout)
        numbers = [row.get("auc"), row.get("eer"), (row.get("tar") or [None])[-1]]
        shown = " | ".join("" if number is None else f"{number:.6f}" for number in numbers)
        print(f"| {name} | {row['seconds']:.1f} | {row['peak_mib']:,.0f} | {shown} |", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("bench evaluation", __doc__)
    parser.add_argument("--examples", type=int, default=20_000, help="embeddings N (default: 20,000)")
    parser.add_argument("--dimension", type=int, default=512, help="D (default: 512)")
    parser.add_argument("--contenders", nargs="+", help="some of them (default: all)")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser
