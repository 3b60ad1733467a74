"""Confusion matrices of softmax and ArcFace.

Shows how many test images of each class were taken for each other class. Costs a second, besides two runs. Reached on
MNIST with one seed: 60 of 10,000 images wrong with softmax, 49 with ArcFace; on digits 11 and 6 of 359.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "arcface")


def numbers(study: Study) -> Numbers:
    """The matrix of each loss: rows are true classes, columns predictions."""
    found: Numbers = {"dataset": study.dataset, "matrices": {}}
    for loss in LOSSES:
        e = embedded(study.run(loss))
        found["class_names"] = list(e.class_names)
        found["matrices"][loss] = matrix(e.labels, e.predictions, len(e.class_names)).tolist()
    return found


def matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts [C, C] of (true class, prediction).

    >>> matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return np.bincount(np.asarray(labels) * classes + predictions, minlength=classes**2).reshape(classes, classes)


def draw(found: Numbers) -> Picture:
    """A matrix for each loss; mistakes in colour, by their share of the class."""
    figure = _style.figure(8.6, 4.3)
    names = found["class_names"]
    panels = figure.subplots(1, len(found["matrices"]), sharey=True)
    wrong = {loss: _mistakes(counts) for loss, counts in found["matrices"].items()}
    top = max(float(share.max()) for share in wrong.values()) or 1.0
    for axes, (loss, counts) in zip(panels, found["matrices"].items(), strict=True):
        image = axes.imshow(wrong[loss], cmap="Oranges", vmin=0, vmax=top)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    dark = wrong[loss][i, j] > 0.6 * top
                    colour = "white" if dark else _style.FAINT if i == j else _style.INK
                    axes.text(j, i, f"{count}", ha="center", va="center", fontsize=7, color=colour)
        total, right = int(np.sum(counts)), int(np.trace(counts))
        axes.set_title(f"{_style.TITLES[loss]}: {total - right} of {total:,} wrong", color=_style.LOSSES[loss])
        axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="prediction")
        long = max(map(len, names)) > 2
        axes.set_xticklabels(names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticklabels(names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
    panels[0].set_ylabel("true class")
    figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02, label="share of the class's images (%)")
    return figure


def _mistakes(counts: Any) -> np.ndarray:
    """In percent of each row, with an empty diagonal."""
    shares = 100 * np.array(counts, float) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    return shares


def caption(found: Numbers) -> str:
    """The caption."""
    parts = []
    for loss, counts in found["matrices"].items():
        c = np.array(counts)
        np.fill_diagonal(c, 0)
        i, j = np.unravel_index(c.argmax(), c.shape)
        names = found["class_names"]
        parts.append(
            f"with {_style.TITLES[loss]} {c.sum()} images are wrong, most often "
            f"{names[i]} taken for {names[j]} ({c[i, j]})"
        )
    return (
        f"Test images of {_style.DATASETS[found['dataset']]} by true class and prediction (seed 0): "
        f"{'; '.join(parts)}. Colour: mistakes as a share of the true class."
    )


FIGURE = Figure(
    "Confusion matrices",
    caption,
    "a second",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings(loss)) for loss in LOSSES],
    alt="Confusion matrices, one for each loss: rows are the true classes, columns the predicted ones, and nearly all "
    "images lie on the diagonal.",
)
