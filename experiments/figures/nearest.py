"""Nearest neighbours of test images by the angle of their embeddings, and the worst mistakes, of an ArcFace run.

Shows for one test image of each class the seven others that are nearest, and the images that were misclassified by the
largest difference of cosines. Costs some seconds, besides a run. Reached on MNIST and on digits: all 70
neighbours are of their query's class; 49 of 10,000 and 6 of 359 images are misclassified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _images, _style
from experiments.figures._framework import Figure, Numbers, Study, dataset_of, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

NEIGHBOURS, MISTAKES = 7, 20


def numbers(study: Study) -> Numbers:
    """Images with their classes: each query with its neighbours' angles, and the mistakes with their predictions."""
    run = study.run("arcface")
    e = embedded(run)
    assert e.prototypes is not None
    images = dataset_of(run).test.images
    x = e.embeddings / np.linalg.norm(e.embeddings, axis=1, keepdims=True)
    queries = [int(np.flatnonzero(e.labels == c)[0]) for c in range(len(e.class_names))]
    rows = []
    for query in queries:
        order, cosines = neighbours(x, query, NEIGHBOURS)
        kept = [_shown(images, e, int(i)) | {"degrees": round(float(np.degrees(np.arccos(min(c, 1)))), 2)}
                for i, c in zip(order, cosines, strict=True)]  # fmt: skip
        rows.append({"query": _shown(images, e, query), "neighbours": kept})
    w = e.prototypes / np.linalg.norm(e.prototypes, axis=1, keepdims=True)
    cosines = x @ w.T
    wrong = np.flatnonzero(e.predictions != e.labels)
    by = cosines[wrong, e.predictions[wrong]] - cosines[wrong, e.labels[wrong]]
    worst = wrong[np.argsort(-by, kind="stable")][:MISTAKES]
    return {
        "dataset": study.dataset,
        "class_names": list(e.class_names),
        "test_images": len(e.labels),
        "wrong": len(wrong),
        "rows": rows,
        "mistakes": [_shown(images, e, int(i)) | {"prediction": int(e.predictions[i])} for i in worst],
    }


def neighbours(units: np.ndarray, query: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest others of one of the unit vectors [N, D]: their indices and cosines.

    >>> neighbours(np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), 0, 1)[0].tolist()
    [2]
    """
    cosines = units @ units[query]
    order = np.argsort(-cosines, kind="stable")
    order = order[order != query][:count]
    return order, cosines[order]


def _shown(images: np.ndarray, e: Any, index: int) -> dict[str, Any]:
    return {"index": index, "label": int(e.labels[index]), "image": _images.encoded(images[index])}


def draw(found: Numbers) -> Picture:
    """Neighbours on the left, a row for each class; mistakes on the right."""
    figure = _style.figure(8.4, 6.6)
    rows, names = found["rows"], found["class_names"]
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    left, right = parts
    left.suptitle("Nearest neighbours (angle in degrees)", weight="bold", fontsize=10)
    panels = left.subplots(len(rows), NEIGHBOURS + 1, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for line, row in zip(panels, rows, strict=True):
        _images.show(line[0], _images.decoded(row["query"]["image"]), _style.INK, 1.6)
        line[0].set_ylabel(names[row["query"]["label"]], rotation=0, ha="right", va="center", fontsize=8)
        for axes in line[1:]:
            axes.axis("off")
        for axes, other in zip(line[1:], row["neighbours"], strict=False):
            axes.axis("on")
            right_class = other["label"] == row["query"]["label"]
            _images.show(axes, _images.decoded(other["image"]), _style.GREEN if right_class else _style.RED, 1.4)
            axes.set_xlabel(f"{other['degrees']:.1f}", fontsize=6, labelpad=1.5)
    shown, wrong = len(found["mistakes"]), found["wrong"]
    count = f"{shown} worst of {wrong} mistakes" if shown < wrong else f"All mistakes ({wrong})"
    right.suptitle(count, weight="bold", fontsize=10)
    grid = right.subplots(5, 4)
    for axes in grid.flat:
        axes.axis("off")
    for axes, one in zip(grid.flat, found["mistakes"], strict=False):
        axes.axis("on")
        _images.show(axes, _images.decoded(one["image"]), _style.RED, 1.2)
        axes.set_title(f"{names[one['label']]} → {names[one['prediction']]}", fontsize=7.5, weight="normal", pad=2)
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    same = sum(n["label"] == row["query"]["label"] for row in found["rows"] for n in row["neighbours"])
    total = sum(len(row["neighbours"]) for row in found["rows"])
    return (
        f"ArcFace on {_style.DATASETS[found['dataset']]} (seed 0). Left: the first test image of each class and the "
        f"test images with the smallest angle to it; {same} of {total} are of its class (green frames, else red). "
        "Right: misclassified images (true class → prediction), those that are nearer to the wrong prototype by "
        f"most first; {found['wrong']} of {found['test_images']:,} test images are wrong."
    )


FIGURE = Figure(
    "Nearest neighbours and worst mistakes",
    caption,
    "seconds",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings("arcface"))],
    alt="Rows of images: a test image and its nearest neighbours with their angles; and below, the images that were "
    "classified wrongly with the greatest confidence.",
)
