"""The paper's figure 2: how ArcFace computes its loss, with the numbers of one test image.

Shows an image, its normalised embedding, the cosines to all prototypes, what the margin does to the target's angle, the
scaled logits and the softmax. Costs a second, besides an ArcFace run. Reached on digits: a rightly classified image,
far from its prototype, whose loss would be 0.0033 without the margin, has a loss of 1.4 with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _images, _style
from experiments.figures._framework import Figure, Numbers, Study, dataset_of, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

MINUS = "\N{MINUS SIGN}"


def numbers(study: Study) -> Numbers:
    """All values on the way from a test image to its loss."""
    run = study.run("arcface")
    e = embedded(run)
    assert e.prototypes is not None
    config = json.loads((run / "config.json").read_text())
    m, s = config["margin"] or 0.5, config["scale"] or 16.0
    w = e.prototypes / np.linalg.norm(e.prototypes, axis=1, keepdims=True)
    cosines = e.embeddings @ w.T / np.linalg.norm(e.embeddings, axis=1, keepdims=True)
    rows = np.arange(len(cosines))
    own = np.degrees(np.arccos(np.clip(cosines[rows, e.labels], -1, 1)))
    right = cosines.argmax(axis=1) == e.labels
    # rather far from its prototype, and still classified rightly
    index = int(np.argmin(np.where(right, np.abs(own - np.percentile(own, 99)), np.inf)))
    image = dataset_of(run).test.images[index]
    return {
        "dataset": study.dataset,
        "index": index,
        "image": _images.encoded(image),
        "label": int(e.labels[index]),
        "class_names": list(e.class_names),
        "embedding": e.embeddings[index].astype(float).round(4).tolist(),
    } | computed(cosines[index].astype(float), int(e.labels[index]), m, s, float(np.linalg.norm(e.embeddings[index])))


def computed(cosines: np.ndarray, label: int, m: float, s: float, length: float) -> dict[str, Any]:
    """ArcFace's equation 3, step by step, from the cosines [C] of one example; m in radians, angles in degrees.

    >>> computed(np.array([1.0, 0.0]), 0, 0.0, 1.0, 1.0)["probabilities"]
    [0.731059, 0.268941]
    """
    theta = float(np.arccos(np.clip(cosines[label], -1, 1)))
    with_margin = cosines.copy()
    with_margin[label] = np.cos(theta + m)
    losses = []
    for values in (cosines, with_margin):
        shares = np.exp(s * (values - values.max()))
        shares /= shares.sum()
        losses.append(float(-np.log(shares[label])))
    return {
        "length": round(length, 4),
        "cosines": cosines.round(5).tolist(),
        "m": m,
        "scale": s,
        "theta": float(np.degrees(theta)),
        "theta_with_margin": float(np.degrees(theta + m)),
        "target": float(with_margin[label]),
        "logits": (s * with_margin).round(4).tolist(),
        "probabilities": shares.round(6).tolist(),
        "loss": losses[1],
        "loss_without_margin": losses[0],
    }


def draw(found: Numbers) -> Picture:
    """Six stages from left to right, an arrow between each two."""
    from matplotlib.figure import Figure as Plain

    figure = Plain(figsize=(10, 2.9))
    label, names = found["label"], found["class_names"]
    colours = [_style.RED if j == label else "#9DB7CC" for j in range(len(names))]
    top, bottom, high = 0.9, 0.2, 0.66

    def title(x: float, words: str) -> None:
        figure.text(x, top, words, ha="center", va="bottom", weight="bold", fontsize=9)

    def note(x: float, words: str) -> None:
        figure.text(x, bottom - 0.03, words, ha="center", va="top", fontsize=8.5, linespacing=1.5)

    def arrow(start: float, end: float) -> None:
        from matplotlib.patches import FancyArrowPatch

        at = bottom + high / 2
        look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "color": _style.INK, "linewidth": 1.2}
        figure.add_artist(FancyArrowPatch((start, at), (end, at), transform=figure.transFigure, **look))

    axes = figure.add_axes((0.012, bottom + 0.15, 0.105, 0.36))
    _images.show(axes, _images.decoded(found["image"]))
    title(0.065, "Image")
    note(0.065, f"class {names[label]}")
    arrow(0.122, 0.182)
    figure.text(0.151, bottom + high / 2 + 0.035, "network", ha="center", fontsize=8)

    x = np.array(found["embedding"]) / found["length"]
    wide = next(k for k in (8, 4, 2, 1) if len(x) % k == 0)
    axes = figure.add_axes((0.188, bottom + 0.02, 0.06, high - 0.04))
    axes.imshow(x.reshape(-1, wide), cmap="RdBu", vmin=-np.abs(x).max(), vmax=np.abs(x).max(), aspect="auto")
    axes.set(xticks=[], yticks=[])
    title(0.218, "Embedding")
    note(0.218, rf"$x / \|x\|$, $D = {len(x)}$" + "\n" + rf"$\|x\| = {found['length']:.2f}$")
    arrow(0.253, 0.295)

    axes = figure.add_axes((0.318, bottom, 0.135, high))
    _bars(axes, found["cosines"], names, colours)
    title(0.385, "Cosines")
    note(0.385, r"$\cos\theta_j = \frac{W_j^\top x}{\|W_j\|\,\|x\|}$")
    arrow(0.46, 0.49)

    axes = figure.add_axes((0.497, bottom, 0.15, high), projection=None)
    _angle(axes, found)
    title(0.572, "Margin on the angle")
    note(0.572, rf"$\cos({found['theta']:.1f}^\circ) = {found['cosines'][label]:.3f}$" + "\n"
         + rf"$\cos({found['theta_with_margin']:.1f}^\circ) = {found['target']:.3f}$")  # fmt: skip
    arrow(0.65, 0.68)

    axes = figure.add_axes((0.702, bottom, 0.125, high))
    _bars(axes, found["logits"], names, colours)
    own = found["scale"] * found["cosines"][label]
    axes.barh(label, own, color="none", edgecolor=_style.RED, linestyle=(0, (2, 1.5)), linewidth=0.9)
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.2 * own))
    title(0.765, "Logits")
    note(0.765, rf"times $s = {found['scale']:g}$" + "\n(dashed: no margin)")
    arrow(0.835, 0.862)

    axes = figure.add_axes((0.885, bottom, 0.1, high))
    _bars(axes, found["probabilities"], names, colours)
    title(0.935, "Softmax")
    note(0.935, f"loss {found['loss']:.2g}\n({found['loss_without_margin']:.2g} without)")
    return figure


def _bars(axes: Any, values: list[float], names: list[str], colours: list[str]) -> None:
    axes.barh(range(len(values)), values, color=colours, height=0.72)
    for j, value in enumerate(values):
        side = "left" if value >= 0 else "right"
        words = f" {value:.2f} " if max(map(abs, values)) <= 1 else f" {value:.1f} "
        axes.text(value, j, words.replace("-", MINUS), ha=side, va="center", fontsize=6.5)
    low, high = min(0.0, *values), max(0.0, *values)
    axes.set_xlim(low - (0.45 * (high - low) if low < 0 else 0), high + 0.4 * (high - low))
    axes.axvline(0, color=_style.INK, linewidth=0.8)
    axes.set(xticks=[], yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0, labelsize=7 if max(map(len, names)) < 3 else 5.5)
    axes.spines[["left", "bottom"]].set_visible(False)


def _angle(axes: Any, found: Numbers) -> None:
    from matplotlib.patches import Wedge

    theta, more = found["theta"], found["theta_with_margin"]
    axes.add_patch(Wedge((0, 0), 1, 0, theta, color="#F6CDB0"))
    axes.add_patch(Wedge((0, 0), 1, theta, more, color="#D9D9D9"))
    for degrees, words, colour, style in (
        (0.0, r"$W_y$", _style.INK, "-"),
        (theta, r"$x$", _style.RED, "-"),
        (more, "", _style.RED, (0, (3, 2))),
    ):
        at = np.radians(degrees)
        x, y = np.cos(at), np.sin(at)
        if style == "-":
            arrowed = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), (0, 0), arrowprops=arrowed)
        else:
            axes.plot([0, x], [0, y], color=colour, linestyle=style, linewidth=1.4)
        axes.text(1.1 * x, 1.1 * y, words, ha="left", va="center", fontsize=9, color=colour)
    for degrees, words in ((theta / 2, rf"$\theta_y={theta:.1f}^\circ$"), ((theta + more) / 2, rf"$m={found['m']:g}$")):
        at = np.radians(degrees)
        axes.text(0.66 * np.cos(at), 0.66 * np.sin(at), words, ha="center", va="center", fontsize=7.5)
    tall = max(0.55, float(np.sin(np.radians(min(more, 90)))))
    axes.set(
        xlim=(-0.05 + min(0.0, float(np.cos(np.radians(more)))), 1.3), ylim=(-0.18, tall + 0.25), xticks=[], yticks=[]
    )
    axes.set_aspect("equal")
    axes.axis("off")


def caption(found: Numbers) -> str:
    """The caption."""
    return (
        f"From an image to ArcFace's loss (after the paper's Fig. 2), with the values of test image {found['index']} "
        f"of {_style.DATASETS[found['dataset']]} in a trained network. Embedding and prototypes are normalised, so "
        f"that a logit is a cosine; the margin m = {found['m']:g} rad is added to the target's angle, here "
        f"{found['theta']:.1f} degrees; the scale s = {found['scale']:g} follows, then the softmax. The loss is "
        f"{found['loss']:.2g}; without the margin it would be {found['loss_without_margin']:.2g}."
    )


FIGURE = Figure(
    "From an image to the loss",
    caption,
    "a second",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings("arcface"))],
    alt="A diagram from left to right: a digit's image, its embedding, its unit vector beside ten unit prototypes, the "
    "cosines, the target's angle with the margin added, the scaled logits, the softmax and the loss, with the "
    "numbers of one example.",
)
