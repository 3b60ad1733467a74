"""The picture of a run's embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jax_arcface.files import atomic_write


def draw_embeddings(
    path: Path, embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Draws test embeddings and their angles to the prototypes as a PNG.

    On the left the directions of the embeddings and, as spokes, of the prototypes: as they are for D = 2, for D > 2
    along the prototypes' two main directions. On the right the histograms of the angle to the own class's prototype and
    to the nearest other one, in degrees.

    Args:
      path: where to; embeddings: [N, D]; labels: [N]; prototypes: [C, D] or [C, K, D]; class_names: [C].

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    x = _unit(embeddings)
    w = _unit(prototypes.reshape(len(prototypes), -1, prototypes.shape[-1]))
    cosine = np.einsum("nd,ckd->nck", x, w).max(axis=2)
    own = cosine[np.arange(len(x)), labels]
    cosine[np.arange(len(x)), labels] = -1
    degrees = np.degrees(np.arccos(np.clip([own, cosine.max(axis=1)], -1, 1)))

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    centres = w[:, 0]
    plane = np.eye(2) if x.shape[1] == 2 else np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)[2][:2]
    points, spokes = x @ plane.T, centres @ plane.T
    shown = np.argsort(labels, kind="stable") if len(x) <= 5000 else np.random.default_rng(0).permutation(len(x))[:5000]
    colours = left.scatter(*points[shown].T, c=labels[shown], cmap="tab10" if len(w) <= 10 else "turbo", s=4, alpha=0.5)
    for number, spoke in enumerate(spokes):
        left.plot([0, spoke[0]], [0, spoke[1]], color="0.4", linewidth=0.8, zorder=0)
        if len(spokes) <= 20:
            colour = colours.cmap(colours.norm(number))
            label = left.annotate(
                class_names[number], 1.12 * spoke, color=colour, ha="center", va="center", weight="bold"
            )
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])  # legible on the points
    left.set_aspect("equal")
    left.margins(0.15)
    shown_of = "" if x.shape[1] == 2 else f", 2 of {x.shape[1]} dimensions"
    left.set(title=f"Directions of the test embeddings{shown_of}", xticks=[], yticks=[])

    bins = np.linspace(0, 180, 91).tolist()
    right.hist(degrees[0], bins=bins, alpha=0.7, label="own class")
    right.hist(degrees[1], bins=bins, alpha=0.7, label="nearest other class")
    right.set(title="Angle to the prototype", xlabel="degrees", ylabel="test images", xlim=(0, 180))
    right.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
