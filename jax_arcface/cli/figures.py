"""The picture of a run's embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_arcface.files import atomic_write

_SHOWN = 5000  # images in the scatter plot, and
_NAMED = 40  # classes whose names are written, and
_LEVEL = 12  # on the level; more of them are written along their spokes


class Plane(NamedTuple):
    """What the left half of the picture shows, in its own coordinates.

    Args:
      points: [N, 2], the embeddings.
      prototypes: [C, 2].
      title: of the figure.
      true_length: whether the points are the embeddings themselves.
    """

    points: np.ndarray
    prototypes: np.ndarray
    title: str
    true_length: bool = False


def draw_embeddings(
    path: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray,
    class_names: tuple[str, ...],
    *,
    title: str = "",
    true_length: bool = False,
) -> None:
    """Draws test embeddings and their angles to the prototypes as a PNG.

    On the left the embeddings in a `plane`, with a spoke for each class's prototype; on the right the histograms of the
    angle to the prototype of the own class and to the nearest other one, in degrees.

    Args:
      path: where to.
      embeddings: [N, D].
      labels: [N].
      prototypes: [C, D], or [C, K, D], of whose sub-centres the nearest counts.
      class_names: [C].
      title: of the whole picture.
      true_length: draws two dimensions at their length, for a loss in which it counts, such as softmax.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(11.5, 5.6), layout=ConstrainedLayoutEngine(h_pad=0.12))
    if title:
        figure.suptitle(title, fontsize=13)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    prototypes = prototypes.reshape(len(prototypes), -1, prototypes.shape[-1])
    _draw_plane(left, plane(embeddings, prototypes[:, 0], true_length), labels, class_names)
    _draw_angles(right, *angles(embeddings, prototypes, labels))
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def angles(embeddings: np.ndarray, prototypes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The angles of [N, D] to the own class's and to the nearest other prototype of [C, K, D], in degrees, [N] each."""
    cosine = np.einsum("nd,ckd->nck", _unit(embeddings), _unit(prototypes)).max(axis=2)
    rows = np.arange(len(cosine))
    own = cosine[rows, labels]
    cosine[rows, labels] = -1
    to_own, to_other = np.degrees(np.arccos(np.clip([own, cosine.max(axis=1)], -1, 1)))
    return to_own, to_other


def plane(embeddings: np.ndarray, prototypes: np.ndarray, true_length: bool = False) -> Plane:
    """Embeddings [N, D] and prototypes [C, D] in two dimensions.

    Two dimensions stay as they are, at unit length or, with `true_length`, at their own. More are mapped by the affine
    map of the directions that places the prototypes evenly on a circle, neighbours side by side (as nearly as it can
    where there are more classes than dimensions).
    """
    w = _unit(prototypes)
    if embeddings.shape[1] == 2 and true_length:
        radius = float(np.linalg.norm(embeddings, axis=1).max(initial=1e-12))
        return Plane(embeddings, radius * w, "Embeddings, at their true length", true_length=True)
    x = _unit(embeddings)
    if embeddings.shape[1] == 2:
        return Plane(x, w, "Directions of the embeddings, and how many there are")
    centre = w.mean(axis=0)
    main = np.linalg.svd(w - centre, full_matrices=False)[2][:2]
    place = np.empty(len(w), int)  # round the circle, in the order of the angle in the plane of the two main directions
    place[np.argsort(np.arctan2(*((w - centre) @ main.T).T[::-1]), kind="stable")] = np.arange(len(w))
    map_ = np.linalg.pinv(w - centre, rcond=0.05) @ _at(np.pi / 2 - 2 * np.pi * place / len(w))
    title = f"Embeddings, mapped linearly from {x.shape[1]} dimensions\nso that the prototypes stand round a circle"
    return Plane((x - centre) @ map_, (w - centre) @ map_, title)


def spread(around: np.ndarray, gap: float) -> np.ndarray:
    """Angles [C] in radians, moved as little as makes them `gap` apart, or as far as the circle has room for.

    >>> spread(np.radians([0.0, 90.0, 94.0]), np.radians(20.0)).round(3)
    array([0.   , 1.431, 1.78 ])
    """
    if len(around) < 2:
        return around
    gap = min(gap, 2 * np.pi / len(around))
    order = np.argsort(around % (2 * np.pi), kind="stable")
    ring = (around % (2 * np.pi))[order]
    start = (np.argmax(np.diff(ring, append=ring[0] + 2 * np.pi)) + 1) % len(ring)  # cut where there is most room
    order = np.roll(order, -start)
    line = np.unwrap(np.roll(ring, -start)) - gap * np.arange(len(ring))
    blocks: list[tuple[float, int]] = []  # mean and size: the least squares among what does not fall
    for value in line:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        blocks.append((mean, size))
    moved = np.empty(len(ring))
    moved[order] = np.concatenate([np.full(size, mean) for mean, size in blocks]) + gap * np.arange(len(ring))
    return moved


def _draw_plane(axes: Any, plane: Plane, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    from matplotlib import colormaps

    count = len(plane.prototypes)
    palette = colormaps["tab10" if count <= 10 else "tab20" if count <= 20 else "turbo"]
    colours = palette(np.arange(count) if count <= 20 else np.linspace(0, 1, count))
    lengths = np.linalg.norm(np.concatenate([plane.points, plane.prototypes]), axis=1)
    on_circle = bool(np.allclose(lengths, 1))
    outer = 1.45 if on_circle else float(lengths.max(initial=0 if plane.true_length else 1))
    _draw_rings(axes, [1.0] if not plane.true_length else _round_numbers(outer), written=plane.true_length)
    for number, spoke in enumerate(plane.prototypes):
        label = "prototype of each class" if number == 0 else None
        axes.plot([0, spoke[0]], [0, spoke[1]], color="0.4", linewidth=0.9, zorder=1, label=label)
    shown = np.random.default_rng(0).permutation(len(labels))[:_SHOWN]  # no class lies over all others
    axes.scatter(*plane.points[shown].T, c=colours[labels[shown]], s=9, alpha=0.6, linewidths=0, zorder=2)
    axes.scatter([], [], color="0.4", s=9, label="test image, in the colour of its class")
    if on_circle:
        _draw_rose(axes, plane, labels, colours)
    if count <= _NAMED:
        _name_classes(axes, plane.prototypes, outer, class_names, colours, from_tip=not on_circle)
    longest = max(map(len, class_names)) if count <= _NAMED else 0
    wide = outer * (1.2 + 0.035 * min(longest, 12))
    tall = 1.2 * outer if count <= _LEVEL else wide
    axes.set(title=plane.title, xticks=[], yticks=[], xlim=(-wide, wide), ylim=(-tall, tall))
    axes.set_aspect("equal")
    axes.set_frame_on(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, columnspacing=1.2)


def _name_classes(
    axes: Any, prototypes: np.ndarray, outer: float, names: tuple[str, ...], colours: np.ndarray, from_tip: bool
) -> None:
    """Writes each class's name outside the circle of radius `outer`, and leads it to its spoke."""
    directions = np.arctan2(*prototypes.T[::-1]) % (2 * np.pi)
    size, along = (12, False) if len(names) <= _LEVEL else (8, True)
    for number, (direction, angle) in enumerate(zip(directions, spread(directions, np.radians(size)), strict=True)):
        x, y = 1.1 * outer * _at(angle)
        side = "left" if np.cos(angle) > 0 else "right"
        style: dict[str, Any] = {"ha": side if along or abs(np.cos(angle)) > 0.35 else "center", "va": "center"}
        if along:
            degrees = np.degrees(angle) + (0 if side == "left" else 180)
            style |= {"rotation": degrees, "rotation_mode": "anchor"}
        axes.text(x, y, names[number], color=colours[number], weight="bold", fontsize=size, **style)
        line = [1.02 * outer * _at(direction), 1.06 * outer * _at(angle)]
        if from_tip:
            line.insert(0, prototypes[number])
        axes.plot(*np.transpose(line), color=colours[number], linewidth=0.7, alpha=0.6, zorder=1)


def _round_numbers(largest: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [tick for tick in MaxNLocator(3).tick_values(0, largest) if 0 < tick <= largest]


def _draw_rings(axes: Any, radii: list[float], written: bool) -> None:
    from matplotlib.patches import Circle

    for radius in radii:
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.85", linewidth=0.8, zorder=0))
        if written:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(
                0, -radius, f"{radius:g}", ha="center", va="center", color="0.5", fontsize=8, bbox=white, zorder=0
            )


def _draw_rose(axes: Any, plane: Plane, labels: np.ndarray, colours: np.ndarray) -> None:
    """Round a circle of directions, how many there are in each: where all points lie on it, they hide one another."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Wedge

    degrees = np.degrees(np.arctan2(*plane.points.T[::-1])) % 360
    edges = np.linspace(0, 360, 181)
    counts = np.stack([np.histogram(degrees[labels == c], edges)[0] for c in range(len(colours))])
    tops = np.cumsum(counts, axis=0) / max(counts.sum(axis=0).max(), 1)
    inner, high = 1.03, 0.4
    wedges, shades = [], []
    for number, bin_ in zip(*np.nonzero(counts), strict=True):
        top = inner + high * np.sqrt(tops[number, bin_])  # equal areas for equal counts, nearly
        bottom = inner + high * np.sqrt(tops[number - 1, bin_] if number else 0.0)
        wedges.append(Wedge((0, 0), top, edges[bin_], edges[bin_ + 1], width=top - bottom))
        shades.append(colours[number])
    axes.add_collection(PatchCollection(wedges, facecolors=shades, linewidths=0, zorder=2))


def _draw_angles(axes: Any, own: np.ndarray, other: np.ndarray) -> None:
    bins = np.linspace(0, 180, 91).tolist()
    highest = 0.0
    for name, degrees, colour in (("own class", own, "tab:blue"), ("nearest other class", other, "tab:orange")):
        label = f"{name} (median {np.median(degrees):.0f}°)"
        counts, _, _ = axes.hist(degrees, bins=bins, alpha=0.7, color=colour, label=label)
        highest = max(highest, counts.max())
    axes.set(title="Angle between embedding and prototype", xlabel="degrees", ylabel="test images")
    widest = max(120, 30 * math.ceil(max(own.max(), other.max()) / 30))
    axes.set(xlim=(0, widest), xticks=range(0, widest + 1, 30), ylim=(0, 1.2 * highest))  # room for the legend
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _at(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
