"""The picture of a run's embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torch_reference.files import atomic_write

_SHOWN = 5000  # points; more would hide each other
_NAMED = 40  # classes; more names would hide the points


def draw_embeddings(
    path: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    title: str,
    prototypes: np.ndarray,
    bias: np.ndarray | None = None,
) -> None:
    """Draws test embeddings and their angles to the prototypes as a PNG.

    On the left the directions of the embeddings, as points, and of the prototypes, as lines from the centre: as they
    are for D = 2, for D > 2 along the prototypes' two main directions. With a bias and D = 2 the embeddings have their
    true lengths. On the right the histograms of the angle to the own class's prototype and to the nearest other one.

    Args:
      path: where to.
      embeddings: [N, D]. labels: [N].
      class_names: [C].
      title: of the picture.
      prototypes: [C, D] or [C, K, D]. bias: [C], of a linear classifier.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    x, w = _directions(embeddings), _directions(prototypes.reshape(len(prototypes), -1, prototypes.shape[-1]))
    is_drawn_at_length = bias is not None and x.shape[1] == 2
    _draw_points(left, embeddings if is_drawn_at_length else x, labels, w[:, 0], class_names, is_drawn_at_length)
    _draw_angles(right, np.einsum("nd,ckd->nck", x, w).max(axis=2), labels)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw_points(
    axes: Any, x: np.ndarray, labels: np.ndarray, centres: np.ndarray, names: tuple[str, ...], at_length: bool
) -> None:
    from matplotlib import patheffects

    plane = np.eye(2) if x.shape[1] == 2 else np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)[2][:2]
    points, spokes = x @ plane.T, centres @ plane.T
    radius = np.quantile(np.linalg.norm(points, axis=1), 0.99) if at_length else 1.0
    shown = np.random.default_rng(0).permutation(len(x))[:_SHOWN]
    colours = "tab10" if len(centres) <= 10 else "turbo"
    dots = axes.scatter(*points[shown].T, c=labels[shown], cmap=colours, vmin=0, vmax=len(centres) - 1, s=4, alpha=0.5)
    axes.plot(*np.stack([0 * spokes, radius * spokes, np.nan * spokes], axis=1).reshape(-1, 2).T, color="0.4", lw=0.8)
    for label in range(min(len(names), _NAMED)):
        members = points[labels == label]
        # where the class is; beside a line two classes of which one lies below the other would hide each other
        place = np.median(members, axis=0) if len(members) else radius * spokes[label]
        text = axes.text(*place, names[label], ha="center", va="center", weight="bold", clip_on=True)
        text.set(color=dots.cmap(dots.norm(label)))
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    axes.set(title=f"Test {'embeddings' if at_length else 'embeddings, their directions'}", xticks=[], yticks=[])
    space = "" if x.shape[1] == 2 else f"; 2 of {x.shape[1]} dimensions"
    axes.set_xlabel(f"points: embeddings; lines: prototypes{space}")


def _draw_angles(axes: Any, cosine: np.ndarray, labels: np.ndarray) -> None:
    own = np.eye(cosine.shape[1], dtype=bool)[labels]
    for name, chosen in (
        ("own class", cosine[own]),
        ("nearest other class", np.where(own, -1, cosine).max(axis=1)),
    ):
        angles = np.degrees(np.arccos(chosen.clip(-1, 1)))
        axes.hist(angles, bins=np.linspace(0, 180, 91), alpha=0.7, label=name)
    axes.set(title="Angle to the prototype", xlabel="degrees", ylabel="test images", xlim=(0, 180))
    axes.legend(frameon=False)


def _directions(vectors: np.ndarray) -> np.ndarray:
    directions: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return directions
