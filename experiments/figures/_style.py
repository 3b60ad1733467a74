"""One look for all figures: sizes, colours, and a colour for each loss.

The colours are those of Okabe and Ito, which the colour-blind tell apart. The background is white and opaque, so that a
figure reads the same on a dark page.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8A8A8A"
BLUE, SKY, GREEN, ORANGE, RED, PINK = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
LOSSES = {
    "softmax": "#4D4D4D",
    "norm_softmax": SKY,
    "sphereface": ORANGE,
    "cosface": GREEN,
    "arcface": RED,
    "combined": BLUE,
    "triplet": PINK,
}
TITLES = {
    "softmax": "Softmax",
    "norm_softmax": "Norm-Softmax",
    "sphereface": "SphereFace",
    "cosface": "CosFace",
    "arcface": "ArcFace",
    "combined": "Combined",
    "triplet": "Triplet",
}
DATASETS = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
# Ten classes: tab10 with its green and red moved apart in lightness. A class is also named where it lies.
CLASSES = (BLUE, ORANGE, "#1B7F5C", "#B22222", "#9467BD", "#8C564B", "#F2A0C9", "#7F7F7F", "#BCBD22", SKY)
_STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "mathtext.fontset": "cm",
    "svg.hashsalt": "figures",  # the same picture, the same file
    "svg.fonttype": "path",
}


def style() -> AbstractContextManager[None]:
    """The look, within a `with` block."""
    import matplotlib

    look: Any = _STYLE  # whose keys a type checker would want one by one
    return matplotlib.rc_context(look)


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; 7 inches are a page's width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
