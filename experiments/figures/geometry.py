"""What each loss's boundary means on the circle and on the sphere, for two classes.

Shows the boundaries of softmax, modified softmax (NormFace), A-Softmax (SphereFace) and ArcFace with two prototypes 80
degrees apart. Costs a second. Reached: it is a drawing of closed forms; its numbers are where the boundaries lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

APART = 80.0  # degrees between the prototypes
LENGTHS = (1.0, 0.62)  # of the prototypes under softmax, where they count
FACTOR, ADDED = 2.0, 0.5
_ONE, _TWO, _GAP = "#F4B183", "#8FC1E3", "#C4C4C4"


def numbers(study: Study) -> Numbers:
    """Where class 1 ends and class 2 begins, in degrees from the first prototype towards the second."""
    return {"apart": APART, "lengths": list(LENGTHS), "factor": FACTOR, "added": ADDED, "limits": limits()}


def limits() -> dict[str, list[float]]:
    """The angles at which the classes' regions end on the arc between the prototypes, in closed form.

    >>> limits()["modified"]
    [40.0, 40.0]
    """
    # softmax: |W1| cos a = |W2| cos (APART - a)
    apart, (first, second) = np.radians(APART), LENGTHS
    even = np.degrees(np.arctan2(first - second * np.cos(apart), second * np.sin(apart)))
    times, plus = APART / (1 + FACTOR), (APART - np.degrees(ADDED)) / 2
    pairs = {"softmax": (even, even), "modified": (APART / 2, APART / 2), "a_softmax": (times, APART - times)}
    return {name: [float(x) for x in pair] for name, pair in (pairs | {"arcface": (plus, APART - plus)}).items()}


PANELS = {
    "softmax": ("Softmax", r"$\|W_1\|\cos\theta_1 = \|W_2\|\cos\theta_2$", "softmax"),
    "modified": ("Modified softmax", r"$\cos\theta_1 = \cos\theta_2$", "norm_softmax"),
    "a_softmax": ("A-Softmax", r"$\cos m_1\theta_1 = \cos\theta_2,\ \ m_1 = 2$", "sphereface"),
    "arcface": ("ArcFace", r"$\cos(\theta_1 + m_2) = \cos\theta_2,\ \ m_2 = 0.5$", "arcface"),
}


def draw(found: Numbers) -> Picture:
    """The circle above, the sphere below."""
    figure = _style.figure(9, 4.35)
    rows = figure.subplots(2, len(PANELS))
    for (name, (title, condition, loss)), circle, sphere in zip(PANELS.items(), rows[0], rows[1], strict=True):
        circle.set_title(title, color=_style.LOSSES[loss])
        _draw_circle(circle, name, found)
        _draw_sphere(sphere, name, found)
        sphere.set_xlabel(condition, fontsize=9, labelpad=4)
    rows[0, 0].set_ylabel("on the circle")
    rows[1, 0].set_ylabel("on the sphere")
    return figure


def _draw_circle(axes: Any, name: str, found: Numbers) -> None:
    from matplotlib.patches import Circle

    first = 90 + found["apart"] / 2  # prototype 1 on the left
    directions = (first, first - found["apart"])
    x, y = _pixels()
    radius = np.maximum(np.hypot(x, y), 1e-9)
    colours = _regions(name, found, [(x * _x(at) + y * _y(at)) / radius for at in directions])
    colours = 0.45 + 0.55 * colours
    axes.imshow(np.concatenate([colours, (radius <= 1)[..., None]], axis=-1), extent=(-1, 1, -1, 1))
    axes.add_patch(Circle((0, 0), 1, fill=False, color=_style.INK, linewidth=1))
    for limit in set(found["limits"][name]):
        at = first - limit
        axes.plot([0, 1.08 * _x(at)], [0, 1.08 * _y(at)], color=_style.INK, linewidth=1.2, linestyle=(0, (4, 2)))
    lengths = found["lengths"] if name == "softmax" else (1.0, 1.0)
    for number, (at, length, colour) in enumerate(zip(directions, lengths, ("#B5520A", "#1F6FA3"), strict=True)):
        tip = (length * _x(at), length * _y(at))
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
        axes.annotate("", tip, (0, 0), arrowprops=arrow)
        x_, y_ = (length + 0.16) * _x(at), (length + 0.16) * _y(at)
        axes.text(x_, y_, f"$W_{number + 1}$", ha="center", va="center", color=colour)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.08, 1.25))
    _bare(axes)


def _draw_sphere(axes: Any, name: str, found: Numbers) -> None:
    from matplotlib.patches import Circle

    x, y = _pixels()
    z = np.sqrt(np.maximum(1 - x**2 - y**2, 0))
    prototypes = _prototypes(found["apart"])
    colours = _regions(name, found, [p[0] * x + p[1] * y + p[2] * z for p in prototypes])
    light = 0.72 + 0.28 * np.clip(-0.35 * x + 0.5 * y + 0.8 * z, 0, 1)
    picture = np.concatenate([colours * light[..., None], (np.hypot(x, y) <= 1)[..., None]], axis=-1)
    axes.imshow(picture, extent=(-1, 1, -1, 1))
    axes.add_patch(Circle((0, 0), 1, fill=False, color=_style.INK, linewidth=1))
    for number, p in enumerate(prototypes):
        axes.plot(p[0], p[1], "o", color=_style.INK, markersize=4)
        axes.text(p[0], p[1] + 0.1, f"$W_{number + 1}$", ha="center", va="bottom")
    arc = np.array([_between(prototypes, t) for t in np.linspace(0, 1, 50)])
    axes.plot(arc[:, 0], arc[:, 1], color=_style.INK, linewidth=0.9)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.08, 1.08))
    _bare(axes)


def _regions(name: str, found: Numbers, cosines: list[np.ndarray]) -> np.ndarray:
    """Each point's colour, [..., 3], from its cosines to the two prototypes."""
    from matplotlib.colors import to_rgb

    if name == "softmax":
        targets = others = [length * c for length, c in zip(found["lengths"], cosines, strict=True)]
    else:
        m1 = found["factor"] if name == "a_softmax" else 1.0
        m2 = found["added"] if name == "arcface" else 0.0
        theta = [np.arccos(np.clip(c, -1, 1)) for c in cosines]
        # the order of the angles is all that counts, since psi falls everywhere
        targets, others = [-(m1 * t + m2) for t in theta], [-t for t in theta]
    one, two = targets[0] > others[1], targets[1] > others[0]
    return np.where(one[..., None], to_rgb(_ONE), np.where(two[..., None], to_rgb(_TWO), to_rgb(_GAP)))


def _pixels(count: int = 700) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(-1, 1, count), np.linspace(1, -1, count))
    return x, y


def _prototypes(apart: float) -> list[np.ndarray]:
    half, lifted = np.radians(apart / 2), np.radians(14)
    return [
        np.array([side * np.sin(half), np.cos(half) * np.sin(lifted), np.cos(half) * np.cos(lifted)])
        for side in (-1, 1)
    ]


def _between(prototypes: list[np.ndarray], share: float) -> np.ndarray:
    point = (1 - share) * prototypes[0] + share * prototypes[1]
    return np.asarray(point / np.linalg.norm(point))


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)


def _x(degrees: float) -> float:
    return float(np.cos(np.radians(degrees)))


def _y(degrees: float) -> float:
    return float(np.sin(np.radians(degrees)))


FIGURE = Figure(
    "The geometry of the boundaries",
    "Two classes in two and in three dimensions. Softmax: the prototypes' lengths move the boundary towards the "
    "shorter one. Modified softmax: with unit prototypes it lies half-way. A-Softmax multiplies the target's angle, "
    "ArcFace adds to it: in training each class must lie beyond its own boundary, and the grey gap between stays "
    "empty. On ArcFace's arc between the prototypes the gap is m2 wide, whatever their angle; A-Softmax's grows "
    "with it. Orange: class 1, blue: class 2.",
    "a second",
    numbers,
    draw,
    alt="Four columns, softmax, modified softmax, A-Softmax and ArcFace: two classes as orange and blue parts of a "
    "circle above and of a sphere below. The last two leave a grey gap between the classes.",
)
