"""What margin and scale do: accuracy and verification over a grid of m and s, with CosFace's lower bound for s.

Shows ArcFace on digits with three classes held out: the test accuracy of the other seven, and how well pairs of images
of the three are told apart, both as means over the seeds. Always on digits, whose trainings take seconds: five minutes
for 90 of them, a minute with --quick (9).
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import runs
from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study, dataset
from experiments.figures._watched import train_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

MARGINS = (0.0, 0.1, 0.3, 0.5, 0.8)
SCALES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
PROBABILITY = 0.99  # that the bound asks for at a prototype
EPOCHS = 15
TITLES = {"accuracy": "Known classes: test accuracy (%)", "auc": "Unseen classes: verification, AUC (%)"}


def numbers(study: Study) -> Numbers:
    """The grid, and by measure the percentages by margin, scale and seed."""
    margins, scales = (MARGINS[::2], SCALES[1::2]) if study.quick else (MARGINS, SCALES)
    cells = {(m, s): [measured(m, s, seed) for seed in study.seeds] for m in margins for s in scales}
    return {
        "dataset": "digits",
        "seeds": list(study.seeds),
        "margins": list(margins),
        "scales": list(scales),
        "classes": 7,
        "bound": bound(7, PROBABILITY),
        **{name: [[[one[name] for one in cells[m, s]] for s in scales] for m in margins] for name in TITLES},
    }


def measured(m: float, s: float, seed: int) -> dict[str, float]:
    """Percentages of one training."""
    from torch_reference.evaluation import all_pairs, auc

    held_out = dataset("digits", runs.HELD_OUT["digits"])
    fields: dict[str, Any] = {"dataset": "digits", "loss": "arcface", "margin": m, "scale": s, "seed": seed}
    trained = train_on(held_out, fields | {"epochs": EPOCHS, "width": 0.25, "holdout_classes": runs.HELD_OUT["digits"]})
    right = trained.predictions(held_out.test.images) == held_out.test.labels
    pairs = all_pairs(trained.embed(held_out.unseen.images), held_out.unseen.labels)
    return {"accuracy": round(100 * float(right.mean()), 3), "auc": round(100 * float(auc(pairs)), 3)}


def bound(classes: int, probability: float) -> float:
    """CosFace's lower bound for the scale (Wang et al. 2018, equation 6).

    >>> round(bound(7, 0.99), 2)
    5.47
    """
    return (classes - 1) / classes * math.log((classes - 1) * probability / (1 - probability))


def draw(found: Numbers) -> Picture:
    """Two maps: margins upwards, scales to the right."""
    figure = _style.figure(8.6, 3.3)
    for axes, (name, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        values = np.array(found[name]).mean(axis=-1)
        # of the lower half of the values the colours need not tell much
        shown = axes.pcolormesh(values, cmap="cividis", vmin=max(values.min(), np.median(values) - 10))
        for (row, column), value in np.ndenumerate(values):
            dark = shown.norm(value) < 0.55
            axes.text(column + 0.5, row + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else _style.INK)  # fmt: skip
        axes.set_xticks(np.arange(values.shape[1]) + 0.5, [f"{s:g}" for s in found["scales"]])
        axes.set_yticks(np.arange(values.shape[0]) + 0.5, [f"{m:g}" for m in found["margins"]])
        axes.set(title=title, xlabel="scale s", ylabel="margin m (radians)")
        # the scales are powers of two, a cell each
        first, step = math.log2(found["scales"][0]), math.log2(found["scales"][1] / found["scales"][0])
        at = (math.log2(found["bound"]) - first) / step + 0.5
        axes.axvline(at, color=_style.RED, linewidth=2, linestyle=(0, (4, 2)))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    parts = []
    for name, words in (("accuracy", "test accuracy"), ("auc", "AUC")):
        means = {
            (m, s): fmean(found[name][i][j])
            for i, m in enumerate(found["margins"]) for j, s in enumerate(found["scales"])
        }  # fmt: skip
        (m, s), best = max(means.items(), key=lambda item: item[1])
        parts.append(f"the highest {words} is {best:.2f} % at m = {m:g}, s = {s:g}")
    count = len(found["seeds"])
    return (
        f"ArcFace on digits without {runs.HELD_OUT['digits']}, {EPOCHS} epochs, {count} "
        f"seed{'s' if count > 1 else ''}, over margin and scale. Left: test accuracy on the seven known classes; "
        "right: how well all pairs of test images of the three unseen ones are told apart by their angle (area under "
        f"the ROC curve); {' and '.join(parts)}. "
        f"Dashed: CosFace's lower bound of s, {found['bound']:.1f} for seven classes and a probability of "
        f"{PROBABILITY} at the prototype. One test image is {100 / 252:.1f} % on the left."
    )


FIGURE = Figure(
    "Margin and scale",
    caption,
    "90 trainings on digits",
    numbers,
    draw,
    alt="Two maps with the margin upwards and the scale to the right, with a number in each cell: test accuracy, and "
    "verification of unseen classes. A dashed line marks the lower bound of the scale.",
)
