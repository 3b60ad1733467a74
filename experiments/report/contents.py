"""What the report says in numbers: gathered from JSON files, run directories and the README's table of parity."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments._arguments import read_json
from experiments.figures._style import DATASETS
from experiments.runs import HELD_OUT, ROOT
from experiments.sweep import read_records

LOSSES = {
    "softmax": "softmax", "norm_softmax": "normalised softmax", "sphereface": "SphereFace", "cosface": "CosFace",
    "arcface": "ArcFace", "triplet": "triplet",
}  # fmt: skip
# The figures of the assignment; one that has not been made stands in the report as "not run".
FIGURES = (
    "worked_example", "pipeline", "geometry", "toy_2d", "training_2d", "sphere_3d", "center_loss", "target_logit",
    "decision_margin", "loss_comparison",
    "angle_statistics", "angle_distributions", "margin_and_scale", "numerics", "convergence", "confusion", "nearest",
    "embeddings", "noise",
)  # fmt: skip


def gather(quick: bool = False, root: Path = ROOT) -> dict[str, Any]:
    """All that the template reads."""
    made, missing = _figures(root / "figures")
    rows = runs(root / "runs" / "experiments")
    datasets = ("digits",) if quick else ("mnist", "cifar10")
    return {
        "figures": made,
        "not_run": missing,
        "tables": [
            {"title": DATASETS[dataset], "held_out": held_out, "rows": _table(rows, dataset, held_out)}
            for dataset in datasets
            for held_out in ("", HELD_OUT[dataset])
        ],
        "trajectory": (root / "figures/parity_trajectory.png").exists(),
        "parity": parity(root / "README.md"),
        "steps": [_steps(file) for file in sorted((root / "experiments/bench/results").glob("step-*.json"))],
        "excerpt": _function(root / "torch_reference/losses/arcface.py", "arcface_loss"),
        "terminal": terminal(root),
    }


def _figures(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    made = []
    for name in FIGURES:
        if (folder / f"{name}.json").exists() and (folder / f"{name}.png").exists():
            held = read_json(folder / f"{name}.json")
            made.append({key: str(held.get(key, "")) for key in ("title", "caption", "command")} | {"name": name})
    return made, [name for name in FIGURES if name not in {one["name"] for one in made}]


def runs(folder: Path) -> list[dict[str, Any]]:
    """Program, data set, loss, held-out classes, seed and last test accuracy of each finished run in a folder."""
    found = []
    for file in sorted(folder.glob("*/experiment.json")):  # written last, by a training that ended
        fields, records = read_json(file), read_records(file.parent)
        held = fields["fields"]
        row = {key: held.get(key, "") for key in ("dataset", "loss", "seed", "holdout_classes", "epochs", "width")}
        found.append(row | {"program": fields["program"], "accuracy": records[-1]["test_accuracy"]})
    return found


def _table(rows: Iterable[dict[str, Any]], dataset: str, held_out: str) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    settings = {}
    for row in rows:
        if row["dataset"] == dataset and row["holdout_classes"] == held_out:
            groups[row["loss"], row["program"]].append(row["accuracy"])
            settings[row["loss"]] = f"{row['epochs']} epochs, width {row['width']}"
    made = []
    for loss, title in LOSSES.items():
        cells = [summary(groups[loss, program]) for program in ("torch_reference", "jax_arcface")]
        mean = fmean(groups[loss, "torch_reference"]) if groups[loss, "torch_reference"] else None
        made.append({"loss": title, "torch": cells[0], "jax": cells[1], "mean": mean, "of": settings.get(loss, "")})
    return made


def summary(accuracies: list[float]) -> str:
    """Mean, and standard deviation over the seeds where there are two or more, in percent.

    >>> summary([0.99, 0.98]), summary([0.9]), summary([])
    ('98.50 ± 0.71 (n = 2)', '90.00 (n = 1)', 'not run')
    """
    if not accuracies:
        return "not run"
    spread = f" ± {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * fmean(accuracies):.2f}{spread} (n = {len(accuracies)})"


def parity(readme: Path) -> list[list[str]]:
    """The rows of the README's table of parity."""
    section = readme.read_text().partition("## The proof")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.+)\|$", section, re.MULTILINE)[2:]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def _steps(file: Path) -> dict[str, Any]:
    held = read_json(file)
    rows = [[name, f"{row['milliseconds']:.0f}", f"{row['ratio']:.2f}"] for name, row in held["rows"].items()
            if math.isfinite(row.get("milliseconds", math.nan)) and "ratio" in row]  # fmt: skip
    return {"title": held["headline"], "machine": held["machine"], "reference": held["reference"], "rows": rows}


def _function(file: Path, name: str) -> str:
    """A function of a file, without its docstring."""
    body = file.read_text().partition(f"def {name}")[2]
    head, _, rest = body.partition('"""')
    return f"def {name}{head}".rstrip() + "\n" + rest.partition('"""')[2].strip("\n")


def terminal(root: Path) -> dict[str, str]:
    """A command and what it printed: a training of two epochs on digits, run now."""
    words = ["-m", "torch_reference", "train", "--epochs", "2"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words, "--out", f"{folder}/digits"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        # A bar on standard error is rewritten in place; what stays is the last of each line.
        lines = [line.rpartition("\r")[2].rstrip() for line in done.stdout.splitlines()]
        printed = "\n".join(lines).replace(folder, "runs")
    return {"command": "python " + " ".join([*words, "--out", "runs/digits"]), "printed": printed or done.stderr}
