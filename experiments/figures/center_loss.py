"""Compactness against separability: two-dimensional embeddings under softmax with more and more centre loss.

Shows test embeddings of ten classes for lambda = 0.001 to 1, after figure 3 of Wen et al. 2016 (centre loss), with
the mean distance of an embedding to its class's mean, and of a class's mean to the nearest other. Costs four
trainings in two dimensions: half a minute on digits, five minutes on MNIST.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study
from experiments.figures._watched import watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

WEIGHTS = ("0.001", "0.01", "0.1", "1")
MOST = 1500


def fields(study: Study, weight: str) -> dict[str, Any]:
    """The fields of a training in two dimensions with all ten digits."""
    named = {"dataset": study.dataset, "loss": f"softmax+center:{weight}", "seed": 0, "embedding_dim": 2}
    return named | {"epochs": 30 if study.quick else 3, "width": 0.25}


def numbers(study: Study) -> Numbers:
    """By weight: points, accuracy, and the two distances."""
    found: Numbers = {"dataset": study.dataset, "weights": {}}
    for weight in WEIGHTS:
        seen = watch(fields(study, weight), (1.0,), study.folder)
        points, labels = seen.embeddings[-1].astype(float), seen.labels
        within, between = distances(points, labels)
        found["class_names"] = seen.class_names.tolist()
        found["weights"][weight] = {
            "accuracy": float(seen.accuracy[-1]),
            "within": round(within, 4),
            "between": round(between, 4),
            "points": points[:MOST].round(3).tolist(),
            "labels": labels[:MOST].tolist(),
        }
    return found


def distances(points: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The mean distance of points [N, D] to their class's mean, and of the means to the nearest other one.

    >>> distances(np.array([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0]]), np.array([0, 0, 1]))
    (0.6666666666666666, 3.0)
    """
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([points[labels == one].mean(axis=0) for one in classes])
    apart = np.linalg.norm(means[:, None] - means, axis=-1)
    np.fill_diagonal(apart, np.inf)
    return float(np.linalg.norm(points - means[index], axis=1).mean()), float(apart.min(axis=1).mean())


def draw(found: Numbers) -> Picture:
    """A panel for each weight, and the ratio of the distances."""
    from matplotlib.patheffects import withStroke

    figure = _style.figure(10, 2.6)
    *panels, last = figure.subplots(1, len(found["weights"]) + 1)
    colours = np.array(_style.CLASSES)
    for axes, (weight, kept) in zip(panels, found["weights"].items(), strict=True):
        points, labels = np.array(kept["points"]), np.array(kept["labels"], int)
        axes.scatter(*points.T, c=colours[labels], s=8, alpha=0.5, linewidths=0, rasterized=True)
        for number in np.unique(labels):
            at = points[labels == number].mean(axis=0)
            axes.text(*at, found["class_names"][number], ha="center", va="center", fontsize=9, weight="bold",
                      path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
        axes.set_title(rf"$\lambda$ = {weight}: {100 * kept['accuracy']:.2f} %")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set(visible=True, color="#BBBBBB")
    ratios = [kept["within"] / kept["between"] for kept in found["weights"].values()]
    last.plot(range(len(ratios)), ratios, "o-", color=_style.BLUE)
    last.set_xticks(range(len(ratios)), found["weights"])
    last.set(title="Within / between", xlabel=r"$\lambda$", ylim=(0, 1.15 * max(ratios)))
    last.margins(x=0.15)
    last.grid(True, axis="y")
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    parts = ", ".join(
        f"{kept['within']:.2f} and {kept['between']:.2f} at {weight}" for weight, kept in found["weights"].items()
    )
    return (
        f"Two-dimensional embeddings of test images of {_style.DATASETS[found['dataset']]} under softmax with centre "
        "loss of weight lambda (after Fig. 3 of Wen et al. 2016; seed 0; above: test accuracy). The mean distances of "
        f"an embedding to its class's mean and of that mean to the nearest other are {parts}; their ratio, on the "
        "right, says how compact the classes are."
    )


FIGURE = Figure(
    "Centre loss: compactness and separability",
    caption,
    "four trainings in two dimensions",
    numbers,
    draw,
    alt="Four panels with the points of ten classes in the plane, which stay where they are as the weight of centre "
    "loss grows and lie a little closer to their class's mean, and a curve of the ratio of the distances within and "
    "between classes.",
)
