"""Embeddings in three dimensions: ten classes on the sphere, under softmax and ArcFace, also as a page that turns.

Shows the directions of 800 test embeddings and of the prototypes. `sphere_3d.html` is a page of its own that needs no
network: drag it to turn the sphere, point at a dot to see its image. Costs a second, besides two runs: half a minute on
digits, two on MNIST. Reached on
MNIST: a mean angle to the own prototype of 11 degrees with ArcFace and of 19 with softmax.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import runs
from experiments.figures import _images, _style
from experiments.figures._framework import Figure, Numbers, Study, dataset_of, embedded
from experiments.sweep import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "arcface")
MOST = 800
COLUMNS = 40  # of the sheet of images
VIEW = (25.0, 20.0)  # degrees to the right and up, of the picture and of the page when it opens


def fields(study: Study, loss: str) -> dict[str, Any]:
    """The fields of a training in three dimensions with all ten digits."""
    named = {"dataset": study.dataset, "loss": loss, "seed": 0, "embedding_dim": 3}
    return named | {"epochs": 30 if study.quick else 2, "width": 0.25}


def numbers(study: Study) -> Numbers:
    """By loss the accuracy, and points and prototypes on the unit sphere; the images on one sheet."""
    found: Numbers = {"dataset": study.dataset, "losses": {}}
    for loss in LOSSES:
        run = runs.trained("torch_reference", folder=study.folder, **fields(study, loss))
        e = embedded(run)
        assert e.prototypes is not None
        points, prototypes = _unit(e.embeddings[:MOST]), _unit(e.prototypes)
        found["class_names"] = list(e.class_names)
        found["labels"] = e.labels[:MOST].tolist()
        found["losses"][loss] = {
            "accuracy": read_records(run)[-1]["test_accuracy"],
            "points": points.round(3).tolist(),
            "prototypes": prototypes.round(3).tolist(),
            "degrees": np.degrees(np.arccos((points * prototypes[e.labels[:MOST]]).sum(axis=1))).round(1).tolist(),
        }
    images = dataset_of(run).test.images[:MOST]
    return found | {"columns": COLUMNS, "size": images.shape[1], "sheet": _images.encoded(sheet(images))}


def _unit(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True))


def sheet(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] beside and below each other, `COLUMNS` in a row.

    >>> sheet(np.ones((41, 2, 3, 1), np.uint8)).shape
    (4, 120, 1)
    """
    height, width, depth = images.shape[1:]
    rows = -(-len(images) // COLUMNS)
    full = np.zeros((rows * COLUMNS, height, width, depth), np.uint8)
    full[: len(images)] = images
    in_rows = full.reshape(rows, COLUMNS, height, width, depth).transpose(0, 2, 1, 3, 4)
    return in_rows.reshape(rows * height, COLUMNS * width, depth)


def turned(points: np.ndarray, right: float, up: float) -> np.ndarray:
    """Points [N, 3] as seen after the sphere was turned by these degrees: x to the right, y up, z to the viewer.

    >>> turned(np.array([[0.0, 0.0, 1.0]]), 90, 0).round(6).tolist()
    [[1.0, 0.0, 0.0]]
    """
    a, b = np.radians(right), np.radians(up)
    x, y, z = points.T
    x, z = x * np.cos(a) + z * np.sin(a), z * np.cos(a) - x * np.sin(a)
    return np.stack([x, y * np.cos(b) - z * np.sin(b), z * np.cos(b) + y * np.sin(b)], axis=1)


def draw(found: Numbers) -> Picture:
    """A sphere for each loss, from the front; what lies behind is pale."""
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    figure = _style.figure(7.4, 3.7)
    labels = np.array(found["labels"], int)
    colours = np.array(_style.CLASSES)
    for axes, (loss, kept) in zip(figure.subplots(1, len(found["losses"])), found["losses"].items(), strict=True):
        axes.add_patch(Circle((0, 0), 1, facecolor="#F6F6F6", edgecolor=_style.FAINT, linewidth=0.8))
        points, prototypes = (turned(np.array(kept[of]), *VIEW) for of in ("points", "prototypes"))
        for front, alpha, over in ((False, 0.18, 1), (True, 0.75, 3)):
            there = (points[:, 2] > 0) == front
            look = {"s": 7, "alpha": alpha, "linewidths": 0, "zorder": over, "rasterized": True}
            axes.scatter(*points[there, :2].T, c=colours[labels[there]], **look)
            for number in np.flatnonzero((prototypes[:, 2] > 0) == front):
                x, y, _ = 1.12 * prototypes[number]
                axes.plot(
                    [0, x], [0, y], color=colours[number], linewidth=1.1, alpha=max(alpha, 0.3), zorder=over - 0.5
                )
                axes.text(x, y, found["class_names"][number], color=colours[number], weight="bold", ha="center",
                          va="center", alpha=1 if front else 0.45, zorder=over + 1,
                          path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
        axes.set_title(f"{_style.TITLES[loss]}: {100 * kept['accuracy']:.2f} %", color=_style.LOSSES[loss], pad=0)
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[])
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
    return figure


def page(found: Numbers) -> dict[str, bytes]:
    """The page that turns."""
    data = found | {"colours": _style.CLASSES, "titles": _style.TITLES, "view": VIEW}
    text = (Path(__file__).parent / "sphere.html").read_text()
    return {"html": text.replace("/* data */ null", json.dumps(data).replace("</", "<\\/")).encode()}


def caption(found: Numbers) -> str:
    """The caption."""
    parts = ", ".join(
        f"{_style.TITLES[loss]} {100 * kept['accuracy']:.2f} %, {np.mean(kept['degrees']):.0f} degrees"
        for loss, kept in found["losses"].items()
    )
    return (
        f"Three-dimensional embeddings of {len(found['labels'])} test images of {_style.DATASETS[found['dataset']]} by "
        "their directions, with those of the ten prototypes (seed 0; test accuracy, and the images' mean angle to "
        f"their own prototype: {parts}). Pale: behind. Softmax also uses the lengths, which are not drawn."
    )


FIGURE = Figure(
    "Ten classes on the sphere",
    caption,
    "a second",
    numbers,
    draw,
    lambda study: [("torch_reference", fields(study, loss)) for loss in LOSSES],
    alt="Two spheres with the points of ten classes in colour and lines to the prototypes: under softmax "
    "many lie beside their prototype, under ArcFace they lie round it.",
    moving=page,
)
