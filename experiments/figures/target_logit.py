"""The paper's figure 4: the target's logit against its angle, under each margin, and the angles seen in training.

Shows psi(theta) for the margins that the paper compares, and where the angles of test images lie before the first step,
after a sixth of an ArcFace training and at its end. Costs that training: seconds on digits, a minute on MNIST. Reached:
the angles begin round 90 degrees, where every margin's curve lies far below the cosine, and end round 20 on digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study
from experiments.figures._watched import SHARES, watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CURVES = {
    "norm_softmax": ("Norm-Softmax", (1.0, 0.0, 0.0)),
    "sphereface": (r"SphereFace, $m_1 = 1.35$", (1.35, 0.0, 0.0)),
    "cosface": (r"CosFace, $m_3 = 0.35$", (1.0, 0.0, 0.35)),
    "arcface": (r"ArcFace, $m_2 = 0.5$", (1.0, 0.5, 0.0)),
    "combined": (r"Combined $(1, 0.3, 0.2)$", (1.0, 0.3, 0.2)),
    "combined_2": (r"Combined $(0.9, 0.4, 0.15)$", (0.9, 0.4, 0.15)),
}
MOMENTS = (("start", 0.0), ("middle", 1 / 6), ("end", 1.0))
BINS = np.arange(0, 181, 3)


def numbers(study: Study) -> Numbers:
    """The curves, and the share of test images in each bin of angles at three moments of a training."""
    degrees = np.arange(0, 181, 2.0)
    curves = {name: curve(degrees, m).round(5).tolist() for name, (_, m) in CURVES.items()}
    watched = watch(study.settings("arcface"), SHARES, study.folder)
    seen = {name: watched.angles[round(share * (len(SHARES) - 1))] for name, share in MOMENTS}
    return {
        "dataset": study.dataset,
        "degrees": degrees.tolist(),
        "psi": curves,
        "bins": BINS.tolist(),
        "angles": {
            name: {
                "share": (np.histogram(angles, BINS)[0] / len(angles)).round(5).tolist(),
                "median": float(np.median(angles).round(2)),
            }
            for name, angles in seen.items()
        },
    }


def curve(degrees: np.ndarray, m: tuple[float, float, float]) -> np.ndarray:
    """psi(theta) of the library, past pi as it goes on falling.

    >>> curve(np.array([0.0, 90.0]), (1.0, 0.0, 0.35)).round(2).tolist()
    [0.65, -0.35]
    """
    import torch

    from torch_reference import Margin, target_cosine

    return target_cosine(torch.from_numpy(np.cos(np.radians(degrees))), Margin(*m)).numpy()


def draw(found: Numbers) -> Picture:
    """The curves on the left; on the right the angles, at the three moments."""
    figure = _style.figure(8.2, 3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for name, psi in found["psi"].items():
        colour = _style.LOSSES[name.removesuffix("_2")]
        style = (0, (4, 1.5)) if name.endswith("_2") else "-"
        left.plot(found["degrees"], psi, color=colour, linestyle=style, label=CURVES[name][0])
    left.axhline(0, color=_style.FAINT, linewidth=0.6, zorder=0)
    left.set(
        title="Target logit", xlabel=r"$\theta_y$, angle to the own prototype (degrees)",
        ylabel=r"$\psi(\theta_y) = \cos(m_1\theta_y + m_2) - m_3$", xlim=(0, 180), ylim=(-2.1, 1.1),
        xticks=range(0, 181, 30),
    )  # fmt: skip
    left.legend(loc="lower left")
    colours = {"start": _style.FAINT, "middle": _style.ORANGE, "end": _style.RED}
    words = {"start": "before the first step", "middle": "after 1/6 of the steps", "end": "at the end"}
    for name, seen in found["angles"].items():
        share = [100 * x for x in seen["share"]]
        label = f"{words[name]} (median {seen['median']:.0f}°)"
        right.stairs(share, found["bins"], color=colours[name], fill=True, alpha=0.25)
        right.stairs(share, found["bins"], color=colours[name], linewidth=1.3, label=label)
    right.set(
        title=f"Angles of test images, ArcFace on {_style.DATASETS[found['dataset']]}",
        xlabel=r"$\theta_y$ (degrees)", ylabel="images in a bin of 3° (%)", xlim=(0, 150), xticks=range(0, 151, 30),
    )  # fmt: skip
    right.set_ylim(0, 1.4 * right.dataLim.ymax)  # room for the legend
    right.legend(loc="upper right")
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    median = {name: round(seen["median"]) for name, seen in found["angles"].items()}
    return (
        "Left: the target's logit before scaling (after the paper's Fig. 4b). A margin lowers the whole curve, so the "
        "same loss needs a smaller angle; past pi the curves go on falling. Right: where the angles of test images to "
        f"their own prototype lie in an ArcFace training on {_style.DATASETS[found['dataset']]} (seed 0): the median "
        f"falls from {median['start']} over {median['middle']} to {median['end']} degrees."
    )


FIGURE = Figure(
    "Target logit, and the angles in training",
    caption,
    "an ArcFace training",
    numbers,
    draw,
    alt="Left, six curves of the target logit that fall as the angle grows, those with a margin below the cosine. "
    "Right, three histograms of angles that move towards zero during the training.",
)
