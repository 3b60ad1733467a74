"""The paper's figure 3: embeddings of eight classes in two dimensions, under five losses.

Shows the test embeddings as they are, with the direction of each prototype, and below them the directions alone, round
the circle. Costs five trainings, which `training_2d` shows from their beginning: half a minute on digits, seven
minutes on MNIST. Reached on MNIST, one seed and three epochs: from 95.6 % (CosFace) to 98.8 % (softmax, which also uses
the lengths); ArcFace 98.0 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study
from experiments.figures._watched import watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "norm_softmax", "sphereface", "cosface", "arcface")
MOST = 1500
MOMENTS = tuple(number / 48 for number in range(49))  # as shares of a training, for `training_2d`
BINS = np.arange(-180, 181, 3)


def fields(study: Study, loss: str) -> dict[str, Any]:
    """The fields of a training in two dimensions, with the first eight digits."""
    named = {"dataset": study.dataset, "loss": loss, "seed": 0, "embedding_dim": 2, "holdout_classes": "8,9"}
    return named | {"epochs": 30 if study.quick else 3, "width": 0.25}


def numbers(study: Study) -> Numbers:
    """Points, prototypes' directions, accuracy and the histogram of directions, by loss."""
    found: Numbers = {"dataset": study.dataset, "bins": BINS.tolist(), "losses": {}}
    for loss in LOSSES:
        seen = watch(fields(study, loss), MOMENTS, study.folder)
        points, labels = seen.embeddings[-1], seen.labels
        found["class_names"] = seen.class_names.tolist()
        found["losses"][loss] = {
            "accuracy": float(seen.accuracy[-1]),
            "points": points[:MOST].astype(float).round(3).tolist(),
            "labels": labels[:MOST].tolist(),
            "prototypes": directions(seen.prototypes[-1]).round(2).astype(float).tolist(),
            "counts": [
                np.histogram(directions(points[labels == c]), BINS)[0].tolist() for c in range(len(seen.class_names))
            ],
        }
    return found


def directions(vectors: np.ndarray) -> np.ndarray:
    """The angles of [N, 2] in degrees, from -180 to 180.

    >>> directions(np.array([[0.0, 2.0]])).tolist()
    [90.0]
    """
    return np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0]))


def draw(found: Numbers) -> Picture:
    """Above the embeddings, below their directions; a column for each loss."""
    figure = _style.figure(10, 4.25)
    rows = figure.subplots(2, len(found["losses"]))
    for above, below, (loss, kept) in zip(rows[0], rows[1], found["losses"].items(), strict=True):
        _plane(above, kept)
        _circle(below, kept, found)
        above.set_title(f"{_style.TITLES[loss]}\n", color=_style.LOSSES[loss])
        above.text(0.5, 1.02, f"{100 * kept['accuracy']:.2f} %", transform=above.transAxes, ha="center", fontsize=8)
    rows[0, 0].set_ylabel("embeddings")
    rows[1, 0].set_ylabel("directions")
    return figure


def _plane(axes: Any, kept: dict[str, Any]) -> None:
    points = np.array(kept["points"])
    lengths = np.linalg.norm(points, axis=1)
    outer = float(np.percentile(lengths, 99.5)) if len(lengths) else 1.0
    for number, degrees in enumerate(kept["prototypes"]):
        at = np.radians(degrees)
        axes.plot(
            [0, 1.05 * outer * np.cos(at)], [0, 1.05 * outer * np.sin(at)], color=_style.CLASSES[number], linewidth=1
        )
    colours = np.array(_style.CLASSES)[np.array(kept["labels"], int)]
    axes.scatter(*points.T, c=colours, s=3, alpha=0.5, linewidths=0, rasterized=True, zorder=2)
    axes.set(xlim=(-1.12 * outer, 1.12 * outer), ylim=(-1.12 * outer, 1.12 * outer))
    _bare(axes, frame=True)


def _circle(axes: Any, kept: dict[str, Any], found: Numbers) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Wedge

    axes.add_patch(Circle((0, 0), 1, fill=False, color=_style.FAINT, linewidth=0.8))
    counts = np.array(kept["counts"])
    tops = 1 + 0.55 * np.sqrt(np.cumsum(counts, axis=0) / counts.sum(axis=0).max())
    wedges, colours = [], []
    for number, bin_ in zip(*np.nonzero(counts), strict=True):
        low = tops[number - 1, bin_] if number else 1.0
        start = found["bins"][bin_]
        wedges.append(Wedge((0, 0), tops[number, bin_], start, start + 3, width=tops[number, bin_] - low))
        colours.append(_style.CLASSES[number])
    axes.add_collection(PatchCollection(wedges, facecolors=colours, linewidths=0))
    for number, degrees in enumerate(kept["prototypes"]):
        at = np.radians(degrees)
        axes.plot([0, np.cos(at)], [0, np.sin(at)], color=_style.CLASSES[number], linewidth=1)
        look: dict[str, Any] = {"color": _style.CLASSES[number], "weight": "bold", "fontsize": 7.5}
        look |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}, "ha": "center", "va": "center"}
        axes.text(0.72 * np.cos(at), 0.72 * np.sin(at), found["class_names"][number], **look)
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    _bare(axes, frame=False)


def _bare(axes: Any, frame: bool) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.spines[:].set(visible=frame, color="#BBBBBB")


def caption(found: Numbers) -> str:
    """The caption."""
    parts = ", ".join(f"{_style.TITLES[loss]} {100 * kept['accuracy']:.2f} %" for loss, kept in found["losses"].items())
    return (
        f"Two-dimensional embeddings of the test images of eight classes of {_style.DATASETS[found['dataset']]} "
        f"(after the paper's Fig. 3; seed 0; test accuracy: {parts}). Above: the embeddings, and a line in the "
        "direction of each prototype. Below: how many point in each direction (area), on the circle, where all "
        "losses but softmax look at them."
    )


FIGURE = Figure(
    "Eight classes in two dimensions",
    caption,
    "five trainings in two dimensions",
    numbers,
    draw,
    alt="A column for each of five losses: above, the points of eight classes in the plane with lines to their "
    "prototypes; below, the directions of the points as bars round a circle.",
)
