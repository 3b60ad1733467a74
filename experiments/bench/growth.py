"""Time and memory of the heads as classes and batch grow, and a figure of both with fitted slopes.

    python -m experiments bench growth                    # measures, writes results/growth.json and figures/scaling.png
    python -m experiments bench growth --draw             # draws the earlier measurements

Each point is a run of the benchmark `head`: forward and backward, float32. A slope is fitted to a line's three last
points, in the logarithms.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments._arguments import Parser, UserError, check_at_least, check_can_be_written, read_json
from experiments.bench import RESULTS, circumstances, run_named

CONTENDERS = ("JAX, fused", "JAX, dense", "PyTorch, dense")
DIMENSION = 128
# B and C; the other is held where the first axis grows
CLASSES = {"batch_size": (256,), "classes": (10, 1_000, 10_000, 100_000, 1_000_000)}
BATCHES = {"batch_size": (64, 256, 1_024, 4_096, 8_192), "classes": (20_000,)}


def main(words: list[str]) -> None:
    """Measures, writes and draws."""
    parser = Parser("bench growth", __doc__)
    parser.add_argument("--turns", type=int, default=3, help="of which the median is taken (default: 3)")
    parser.add_argument("--largest", type=int, default=10**12, help="leaves out shapes with more cosines than this")
    parser.add_argument("--draw", action="store_true", help="draw the earlier measurements")
    parser.add_argument("--json", type=Path, default=RESULTS / "growth.json", metavar="FILE")
    parser.add_argument("--figure", type=Path, default=Path("figures/scaling.png"), metavar="FILE")
    options = parser.parse_args(words)
    check_at_least(1, turns=options.turns)
    check_at_least(BATCHES["batch_size"][1] * BATCHES["classes"][0], largest=options.largest)  # a slope has two points
    check_can_be_written(json=options.json)
    if options.draw and not options.json.exists():
        raise UserError(f"there is no {options.json} to draw; without --draw it is measured")
    if not options.draw:
        points = [
            measure_point(batch_size, classes, options.turns)
            for shapes in (CLASSES, BATCHES)
            for batch_size in shapes["batch_size"]
            for classes in shapes["classes"]
            if batch_size * classes <= options.largest
        ]
        result = {**circumstances(["growth", *words], options.turns), "points": points}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    draw(_read(options.json), options.figure)
    print(f"{options.json}\n{options.figure}")


def _read(path: Path) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or not result.get("points"):
        raise UserError(f"{path} holds no measurements of this benchmark")
    return result


def measure_point(batch_size: int, classes: int, turns: int) -> dict[str, Any]:
    """A run of `head` at one shape."""
    words = f"head --batch-size {batch_size} --classes {classes} --dimension {DIMENSION} --turns {turns} --no-floor"
    result = run_named([*words.split(), "--contenders", *CONTENDERS])
    print(result["headline"], {name: round(row["milliseconds"], 1) for name, row in result["rows"].items()}, flush=True)
    return {"batch_size": batch_size, "classes": classes, "rows": result["rows"]}


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The exponent of y as a power of x, fitted to the last three points."""
    return float(np.polyfit(np.log(x[-3:]), np.log(y[-3:]), 1)[0])


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and memory, as C grows and as B grows, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for column, (shapes, axis, name) in enumerate(
        ((CLASSES, "classes", "classes C, with B = 256"), (BATCHES, "batch_size", "batch B, with C = 20,000"))
    ):
        points = [
            p for p in result["points"] if p["classes"] in shapes["classes"] and p["batch_size"] in shapes["batch_size"]
        ]
        x = np.array([p[axis] for p in points], float)
        for row, (field, label) in enumerate(
            (("milliseconds", "time, ms"), ("mebibytes", "peak memory of the process, MiB"))
        ):
            for contender, marker in zip(CONTENDERS, "osD"[: len(CONTENDERS)], strict=True):
                y = np.array([p["rows"][contender][field] for p in points])
                axes[row, column].loglog(x, y, marker=marker, label=f"{contender}: slope {slope(x, y):.2f}")
            axes[row, column].set(xlabel=name, ylabel=label)
            axes[row, column].grid(True, which="major", alpha=0.3)
            axes[row, column].legend(fontsize=8)
    figure.suptitle(f"ArcFace head: loss and gradients, D = {DIMENSION}, float32, on a CPU")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
