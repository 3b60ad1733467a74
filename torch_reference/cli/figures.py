"""The picture of a run's embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torch_reference.files import atomic_write

_SHOWN = 5000  # points; more would hide each other


def draw_embeddings(
    path: Path, embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Draws test embeddings and their angles to the prototypes as a PNG.

    On the left the directions of the embeddings and, as spokes, of the prototypes: as they are for D = 2, for D > 2
    along the prototypes' two main directions. On the right the histograms of the angle to the own class's prototype and
    to the nearest other one, in degrees.

    Args:
      path: where to.
      embeddings: [N, D]. labels: [N].
      prototypes: [C, D] or [C, K, D].
      class_names: [C].

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    x, w = _directions(embeddings), _directions(prototypes.reshape(len(prototypes), -1, prototypes.shape[-1]))
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_directions(left, x, labels, w[:, 0], class_names)
    _draw_angles(right, np.einsum("nd,ckd->nck", x, w).max(axis=2), labels)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw_directions(axes, x, labels, centres, class_names) -> None:
    from matplotlib import patheffects

    dimension = x.shape[1]
    if dimension == 2:
        plane, space = np.eye(2), ""
    else:
        plane = np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)[2][:2]
        space = f", 2 of {dimension} dimensions"
    points, spokes = x @ plane.T, centres @ plane.T
    shown = np.random.default_rng(0).permutation(len(x))[:_SHOWN]
    colours = "tab10" if len(centres) <= 10 else "turbo"
    dots = axes.scatter(*points[shown].T, c=labels[shown], cmap=colours, vmin=0, vmax=len(centres) - 1, s=4, alpha=0.5)
    for label, spoke in enumerate(spokes):
        axes.plot(*np.stack([0 * spoke, spoke], axis=1), color="0.4", linewidth=0.8, zorder=0)
        if len(spokes) <= 20:
            colour = dots.cmap(dots.norm(label))
            place = {"ha": "center", "va": "center", "weight": "bold"}
            text = axes.annotate(class_names[label], 1.12 * spoke, color=colour, **place)
            text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])  # above the points
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.15)
    axes.set(title=f"Directions of the test embeddings{space}", xticks=[], yticks=[])


def _draw_angles(axes, cosine, labels) -> None:
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
