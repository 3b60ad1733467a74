"""A table of losses: accuracy and angles of trained runs, one row each.

    python -m experiments compare_losses runs/losses --train --dataset mnist --epochs 3
    python -m experiments compare_losses runs/losses

Reads the run directories in a folder, whichever program wrote them; with `--train` it first trains, with `jax_arcface`,
those losses that are not there yet (a sweep over them): the rows of ArcFace's table 2 and the rest of docs/losses.md,
each with the data set's recipe. Prints the table of the finished ones and writes it into the folder, as losses.md and
losses.json.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments._arguments import Parser, UserError
from experiments._machine import machine
from experiments.sweep import is_finished, sweep
from jax_arcface.cli import runs
from jax_arcface.evaluation import angle_statistics
from jax_arcface.files import atomic_write, read_npz

# ArcFace's table 2, then what its table 4 and later papers compare.
LOSSES = (
    *(f"arcface:m={m}" for m in (0.4, 0.45, 0.5, 0.55)),
    *("sphereface", "cosface", "cm1", "cm2", "softmax", "norm_softmax"),
    *("norm_softmax+intra", "norm_softmax+inter", "norm_softmax+intra+inter", "triplet"),
    *("arcface+intra", "arcface+inter", "arcface+intra+inter", "arcface+triplet"),
    *("modified_softmax", "a_softmax", "sphereface_plus", "softmax+center", "softmax+center_learnt"),
    *("softmax+range", "softmax+marginal", "subcenter", "adacos", "curricularface", "magface", "adaface"),
    *("elasticface", "elastic_cosface", "arcface:filter=0.5", "contrastive", "contrastive:distance=angular"),
    *("triplet:mining=hard", "triplet:mining=semi_hard", "triplet:distance=l2,m=0.2"),
    *("circle", "multi_similarity", "multi_similarity:base=0.5", "supcon"),
)
ANGLES = {
    "intra": "mean angle of test embeddings to their class's mean direction",
    "inter": "mean over classes of the smallest angle between two classes' mean directions",
    "w_ec": "mean angle of prototypes to their class's mean direction",
    "w_inter": "mean over classes of the smallest angle between two prototypes",
}


def main(words: list[str]) -> int:
    """Trains where asked, and prints and writes the table; returns the exit status of a sweep that does not finish."""
    options, flags = _parser().parse_known_args(words)
    if not options.train and (idle := ["--losses"] * bool(options.losses) + flags):
        raise UserError(f"{idle[0]} has no effect without --train")
    if options.train and (status := sweep(options.folder, {"loss": options.losses or LOSSES}, flags)):
        return status
    found = [file.parent for file in sorted(options.folder.glob("*/config.json"))]
    finished = [run for run in found if is_finished(run)]
    if left := [run.name for run in found if run not in finished]:
        print(f"left out, as their training has not ended: {', '.join(left)}", file=sys.stderr)
    if not finished:
        raise UserError(f"{options.folder} holds no finished run directory; --train makes some")
    rows = [row(run) for run in finished]
    rows.sort(key=lambda row: LOSSES.index(row["loss"]) if row["loss"] in LOSSES else len(LOSSES))
    text = markdown(rows)
    print(text)
    with atomic_write(options.folder / "losses.md") as file:
        file.write_text(text)
    runs.write_json(options.folder / "losses.json", {"machine": machine(), "rows": rows})
    return 0


def row(run: Path) -> dict[str, Any]:
    """What a run reached: its configuration's main fields, accuracy of the last epoch, minutes, angles in degrees."""
    trained, records = runs.read_config(run), runs.read_metrics(run)
    arrays = read_npz(run / "embeddings.npz", ("embeddings", "labels", "prototypes"))
    return {
        "loss": trained.loss if trained.margin is None else f"{trained.loss}, margin {trained.margin:g}",
        "dataset": trained.dataset,
        "backbone": trained.backbone,
        "epochs": trained.epochs,
        "seed": trained.seed,
        "test_accuracy": records[-1]["test_accuracy"],
        "minutes": sum(record["seconds"] for record in records) / 60,
    } | angles(**arrays)


def angles(embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray) -> dict[str, float]:
    """The angle statistics of ArcFace's table 3, in degrees, on test embeddings; `ANGLES` says what each is.

    Args:
      embeddings: [N, D]. labels: [N], every class present. prototypes: [C, D], or [C, K, D] with sub-centres, of which
        the nearest to the class's mean direction counts.
    """
    found = angle_statistics(embeddings, labels, prototypes)
    return {name: math.degrees(getattr(found, name)) for name in ANGLES}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, the largest accuracy of each data set in bold."""
    best = {r["dataset"]: max(s["test_accuracy"] for s in rows if s["dataset"] == r["dataset"]) for r in rows}
    lines = [
        "| loss | data set, network, epochs | test accuracy | min | intra | inter | W-EC | W-inter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        accuracy = f"{100 * r['test_accuracy']:.2f} %"
        if r["test_accuracy"] == best[r["dataset"]]:
            accuracy = f"**{accuracy}**"
        lines.append(
            f"| {r['loss']} | {r['dataset']}, {r['backbone']}, {r['epochs']} | {accuracy} | {r['minutes']:.1f} | "
            + " | ".join(f"{r[name]:.1f}" for name in ANGLES)
            + " |"
        )
    notes = [f"{name.replace('w_ec', 'W-EC').replace('w_', 'W-')}: {text}" for name, text in ANGLES.items()]
    return "\n".join([*lines, "", f"Angles in degrees. {'; '.join(notes)}.", ""])


def _parser() -> Parser:
    parser = Parser("compare_losses", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of run directories")
    parser.add_argument("--train", action="store_true", help="train what is missing; further flags are passed to train")
    parser.add_argument("--losses", nargs="+", help="values of --loss (default: all)")
    return parser
