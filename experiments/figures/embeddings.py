"""Test embeddings in two dimensions: by PCA and by t-SNE, under softmax, CosFace and ArcFace.

Shows up to 2,000 embeddings of unit length. Costs half a minute, besides three runs. Reached: t-SNE separates the
classes under every loss, so it says little about which loss is better; PCA shows 27 to 41 % of the variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "cosface", "arcface")
MOST = 2000


def numbers(study: Study) -> Numbers:
    """Points by loss and method, and their labels."""
    found: Numbers = {"dataset": study.dataset, "losses": {}}
    for loss in LOSSES:
        e = embedded(study.run(loss))
        x = e.embeddings[:MOST] / np.linalg.norm(e.embeddings[:MOST], axis=1, keepdims=True)
        points, share = principal(x)
        found |= {"class_names": list(e.class_names), "labels": e.labels[:MOST].tolist()}
        found["losses"][loss] = {
            "variance": round(share, 4),
            "pca": points.round(3).tolist(),
            "tsne": neighbour_map(x).round(2).tolist(),
        }
    return found


def principal(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The two first principal components of [N, D] as [N, 2], and their share of the variance.

    >>> principal(np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))[1]
    1.0
    """
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    return u[:, :2] * s[:2], float((s[:2] ** 2).sum() / (s**2).sum())


def neighbour_map(x: np.ndarray) -> np.ndarray:
    """scikit-learn's t-SNE of [N, D], as [N, 2]."""
    from sklearn.manifold import TSNE

    return TSNE(perplexity=30, init="pca", random_state=0, max_iter=500).fit_transform(x)


def draw(found: Numbers) -> Picture:
    """Rows: the methods; columns: the losses."""
    figure = _style.figure(8.4, 5.7)
    labels = np.array(found["labels"])
    rows = figure.subplots(2, len(found["losses"]))
    for row, method in zip(rows, ("pca", "tsne"), strict=True):
        for axes, (loss, kept) in zip(row, found["losses"].items(), strict=True):
            points = np.array(kept[method])
            _scatter(axes, points, labels, found["class_names"])
            if method == "pca":
                axes.set_title(_style.TITLES[loss], color=_style.LOSSES[loss])
                axes.set_xlabel(f"{100 * kept['variance']:.0f} % of the variance", fontsize=8)
        row[0].set_ylabel({"pca": "PCA", "tsne": "t-SNE"}[method])
    return figure


def _scatter(axes: Any, points: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    from matplotlib.patheffects import withStroke

    colours = np.array(_style.CLASSES)[labels % len(_style.CLASSES)]
    axes.scatter(*points.T, c=colours, s=5, alpha=0.6, linewidths=0, rasterized=True)
    for number, name in enumerate(names):
        if (labels == number).any():
            at = np.median(points[labels == number], axis=0)
            axes.text(*at, name, ha="center", va="center", fontsize=9 if len(name) < 3 else 7, weight="bold",
                      path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="#BBBBBB")


def caption(found: Numbers) -> str:
    """The caption."""
    shares = ", ".join(
        f"{_style.TITLES[loss]} {100 * kept['variance']:.0f} %" for loss, kept in found["losses"].items()
    )
    return (
        f"Unit embeddings of {len(found['labels']):,} test images of {_style.DATASETS[found['dataset']]} (seed 0), in "
        f"colour and number of their class. Above: the first two principal components ({shares} of the variance); ten "
        "classes that are equally far apart cannot be told apart in two of nine dimensions. Below: t-SNE (perplexity "
        "30), which keeps neighbourhoods and not distances."
    )


FIGURE = Figure(
    "Embeddings in two dimensions",
    caption,
    "half a minute",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings(loss)) for loss in LOSSES],
    alt="Two rows of scatter plots with three losses as columns: above principal components, in which the classes "
    "overlap, below t-SNE, in which ten clusters lie apart.",
)
