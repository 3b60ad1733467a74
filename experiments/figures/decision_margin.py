"""The paper's figure 5: how two classes share the plane of the angles (theta_1, theta_2) to their prototypes.

Shows, for each margin, where an example counts as class 1 in training, where as class 2, and the gap between. Costs a
second. Reached: ArcFace's gap has the same width of 2 m2 everywhere; SphereFace's vanishes at small angles, CosFace's
depends on the angle, and normalised softmax has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

MARGINS = {
    "norm_softmax": (1.0, 0.0, 0.0),
    "sphereface": (1.35, 0.0, 0.0),
    "cosface": (1.0, 0.0, 0.35),
    "arcface": (1.0, 0.5, 0.0),
    "combined": (1.0, 0.3, 0.2),
}
CONDITIONS = {
    "norm_softmax": r"$\theta_1 = \theta_2$",
    "sphereface": r"$\cos 1.35\,\theta_1 = \cos\theta_2$",
    "cosface": r"$\cos\theta_1 - 0.35 = \cos\theta_2$",
    "arcface": r"$\cos(\theta_1 + 0.5) = \cos\theta_2$",
    "combined": r"$\cos(\theta_1 + 0.3) - 0.2 = \cos\theta_2$",
}


def numbers(study: Study) -> Numbers:
    """The boundary of class 1 under each margin, in degrees: the largest theta_1 at each theta_2; none is null."""
    other = np.linspace(0, 90, 181)
    return {
        "theta_2": other.tolist(),
        "margins": {
            name: {"m": list(m), "theta_1": [None if np.isnan(x) else round(float(x), 4) for x in boundary(other, m)]}
            for name, m in MARGINS.items()
        },
    }


def boundary(other: np.ndarray, m: tuple[float, float, float]) -> np.ndarray:
    """Where psi(theta_1) = cos(theta_2), in degrees; NaN where no theta_1 satisfies it.

    It is found on the curve of the library's own `target_cosine`.

    >>> boundary(np.array([60.0]), (1.0, np.radians(20.0), 0.0)).round(3).tolist()
    [40.0]
    """
    import torch

    from torch_reference import Margin, target_cosine

    theta = np.radians(np.linspace(0, 120, 24001))
    psi = target_cosine(torch.from_numpy(np.cos(theta)), Margin(*m)).numpy()
    found = np.degrees(np.interp(-np.cos(np.radians(other)), -psi, theta))
    return np.where(np.cos(np.radians(other)) <= psi[0] + 1e-12, found, np.nan)


def draw(found: Numbers) -> Picture:
    """A panel for each margin."""
    figure = _style.figure(8.6, 2.5)
    other = np.array(found["theta_2"])
    panels = figure.subplots(1, len(found["margins"]), sharey=True)
    for axes, (name, margin) in zip(panels, found["margins"].items(), strict=True):
        _draw_panel(axes, other, np.array([np.nan if x is None else x for x in margin["theta_1"]]), name)
    panels[0].set_ylabel(r"$\theta_2$ (degrees)")
    panels[len(panels) // 2].set_xlabel(r"$\theta_1$ (degrees)")
    return figure


def _draw_panel(axes: Any, other: np.ndarray, limit: np.ndarray, name: str) -> None:
    colour = _style.LOSSES[name]
    there = ~np.isnan(limit)
    low, at = limit[there], other[there]
    axes.fill([0, 90, 90], [0, 90, 0], color="#D9E7F2", linewidth=0)  # class 2: below, where theta_2 is smaller
    axes.fill([0, 90, 0], [0, 90, 90], color="#FBE6D4", linewidth=0)
    edge, along = np.concatenate([[0.0], low]), np.concatenate([[at[0]], at])
    axes.fill(
        np.concatenate([[0.0], edge, [90.0], along[::-1], [0.0]]),
        np.concatenate([[0.0], along, [90.0], edge[::-1], [0.0]]),
        color="#BDBDBD", linewidth=0, zorder=2,
    )  # fmt: skip
    axes.plot([0, 90], [0, 90], color=_style.INK, linestyle=(0, (4, 2)), linewidth=1, zorder=3)
    if name != "norm_softmax":
        for x, y in ((edge, along), (along, edge)):
            axes.plot(x, y, color=colour, linewidth=1.8, zorder=4)
    axes.text(17, 78, "class 1", ha="center", va="center", fontsize=8.5, zorder=5)
    axes.text(73, 12, "class 2", ha="center", va="center", fontsize=8.5, zorder=5)
    axes.set_title(_style.TITLES[name], color=colour, fontsize=9.5)
    axes.text(0.5, -0.38, CONDITIONS[name], transform=axes.transAxes, ha="center", va="top", fontsize=7.5)
    axes.set(xlim=(0, 90), ylim=(0, 90), xticks=(0, 30, 60, 90), yticks=(0, 30, 60, 90))
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(True)


FIGURE = Figure(
    "Decision margins of two classes",
    "What counts as class 1 and as class 2 in training, in the plane of the angles to both prototypes (after the "
    "paper's Fig. 5). The dashed diagonal is the boundary without a margin; in the grey gap an example is right for "
    "neither class, so training moves it out. ArcFace's gap has one width everywhere, 2 x 0.5 rad measured along an "
    "axis; CosFace's varies with the angle; SphereFace's vanishes at small angles. Below each panel the boundary "
    "of class 1.",
    "a second",
    numbers,
    draw,
    alt="Panels with the angles to two prototypes as axes: the regions of class 1 and class 2 and, for losses with a "
    "margin, the strip between them in which neither holds.",
)
