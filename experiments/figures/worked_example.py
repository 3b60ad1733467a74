"""Two vectors, their Euclidean distance and their angle: scaling one changes the first and not the second.

Shows the assignment's example, (5, 2) and (7, 4), and what happens when the second becomes 1.5 times as long.
Costs a second. Reached: distance 2.83, then 6.80; the angle is 7.94 degrees both times (the assignment prints 7.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

FIRST, SECOND, FACTOR = (5.0, 2.0), (7.0, 4.0), 1.5


def numbers(study: Study) -> Numbers:
    """Distances, cosines and angles of both pairs."""
    scaled = (FACTOR * SECOND[0], FACTOR * SECOND[1])
    return {"factor": FACTOR, "pairs": [compared(FIRST, SECOND), compared(FIRST, scaled)]}


def compared(first: tuple[float, ...], second: tuple[float, ...]) -> dict[str, Any]:
    """Two vectors, their distance, their cosine and their angle in degrees.

    >>> compared((1.0, 0.0), (0.0, 2.0))["degrees"]
    90.0
    """
    a, b = np.array(first), np.array(second)
    dot, lengths = float(a @ b), (float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    cosine = dot / (lengths[0] * lengths[1])
    return {
        "first": list(first),
        "second": list(second),
        "distance": float(np.linalg.norm(a - b)),
        "dot": dot,
        "lengths": list(lengths),
        "cosine": cosine,
        "degrees": float(np.degrees(np.arccos(cosine))),
    }


def caption(found: Numbers) -> str:
    """The caption."""
    before, after = found["pairs"]
    return (
        "The angle of two vectors does not depend on their lengths, their distance does. Left: (5, 2) and (7, 4) "
        f"lie {before['distance']:.2f} apart, at {before['degrees']:.2f} degrees. Right: the second vector times "
        f"{found['factor']:g}: the distance grows to {after['distance']:.2f}, the angle stays {after['degrees']:.2f} "
        "degrees. Embeddings are therefore compared by their angle. (The assignment prints 7.8 degrees for this "
        f"angle; the computation below the axes gives {before['degrees']:.2f}.)"
    )


def draw(found: Numbers) -> Picture:
    """Both pairs, side by side on the same axes."""
    figure = _style.figure(7, 3.1)
    for number, (axes, pair) in enumerate(zip(figure.subplots(1, 2, sharey=True), found["pairs"], strict=True)):
        _draw_pair(axes, pair, "Two vectors" if number == 0 else f"The second times {found['factor']:g}")
        axes.set_xlabel(_computed(pair), linespacing=1.9, labelpad=6, fontsize=8.5)
    return figure


def _draw_pair(axes: Any, pair: dict[str, Any], title: str) -> None:
    from matplotlib.patches import Arc

    first, second = pair["first"], pair["second"]
    for vector, colour, offset in ((first, _style.BLUE, (14, -13)), (second, _style.RED, (-2, 7))):
        axes.annotate("", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0,
                                                      "shrinkB": 0, "mutation_scale": 13})  # fmt: skip
        label = f"({vector[0]:g}, {vector[1]:g})"
        axes.annotate(label, vector, offset, textcoords="offset points", color=colour, ha="center", weight="bold")
    axes.plot(*zip(first, second, strict=True), color=_style.INK, linestyle=(0, (4, 2)), linewidth=1.2)
    middle = np.mean([first, second], axis=0)
    axes.annotate(f"{pair['distance']:.2f}", middle, (10, -8), textcoords="offset points", ha="left", va="center")
    low, high = (float(np.degrees(np.arctan2(v[1], v[0]))) for v in (first, second))
    axes.add_patch(Arc((0, 0), 6.4, 6.4, theta1=low, theta2=high, color=_style.INK, linewidth=1.3))
    at = np.radians((low + high) / 2)
    axes.annotate(
        f"{pair['degrees']:.2f}°", (3.2 * np.cos(at), 3.2 * np.sin(at)), (-30, 26), textcoords="offset points",
        ha="center", arrowprops={"arrowstyle": "-", "color": _style.FAINT, "lw": 0.7, "shrinkB": 1},
    )  # fmt: skip
    axes.set(title=title, xlim=(0, 12.2), ylim=(0, 7.2), xticks=range(0, 13, 2), yticks=range(0, 8, 2))
    axes.set_aspect("equal")
    axes.grid(True)
    axes.set_axisbelow(True)


def _computed(pair: dict[str, Any]) -> str:
    (a, b), (c, d) = pair["first"], pair["second"]
    x, y = abs(c - a), abs(d - b)
    return (
        rf"$\|a-b\| = \sqrt{{{x:g}^2+{y:g}^2}} = {pair['distance']:.2f}$" + "\n"
        rf"$\theta = \arccos\,\frac{{{a:g}\cdot {c:g}\,+\,{b:g}\cdot {d:g}}}"
        rf"{{{pair['lengths'][0]:.3f}\,\cdot\,{pair['lengths'][1]:.3f}}}"
        rf" = \arccos\,{pair['cosine']:.4f} = {pair['degrees']:.2f}^\circ$"
    )


FIGURE = Figure(
    "Euclidean distance and angle, by an example",
    caption,
    "a second",
    numbers,
    draw,
    alt="Two panels with the vectors (5, 2) and (7, 4) from the origin. In the second, the second vector is 1.5 times "
    "as long: the dashed distance between the tips grows from 2.83 to 6.80, the angle stays 7.94 degrees.",
)
