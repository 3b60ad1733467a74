"""The paper's figure 6: angles of pairs of one class and of two, of classes that no training has seen.

Shows the distribution of the angle over all pairs of test images of the three classes that were held out, under
softmax, CosFace, ArcFace and triplet loss, with the equal error rate. Costs some seconds, besides four runs. Reached on
MNIST with one seed: equal error rates of 22 (ArcFace) to 25 % (softmax), on digits of 34 to 41 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "cosface", "arcface", "triplet")
BINS = np.arange(0, 181, 3)


def numbers(study: Study) -> Numbers:
    """Shares of pairs by angle, and the equal error rate, by loss."""
    from torch_reference.evaluation import all_pairs, eer

    found: Numbers = {"dataset": study.dataset, "bins": BINS.tolist(), "losses": {}}
    for loss in LOSSES:
        e = embedded(study.run(loss, held_out=True), "unseen")
        counted = all_pairs(e.embeddings, e.labels)
        degrees = np.degrees(np.arccos(np.clip(np.asarray(counted.scores, np.float64), -1, 1)))
        rate, threshold = eer(counted)
        kinds = {"positive": np.asarray(counted.positives), "negative": np.asarray(counted.negatives)}
        found["names"], found["images"] = list(e.class_names), len(e.labels)
        found["losses"][loss] = {
            "eer": rate,
            "eer_degrees": float(np.degrees(np.arccos(np.clip(threshold, -1, 1)))),
            "pairs": {kind: int(counts.sum()) for kind, counts in kinds.items()},
            "mean": {kind: float((degrees * counts).sum() / counts.sum()) for kind, counts in kinds.items()},
            "share": {kind: shares(degrees, counts).round(6).tolist() for kind, counts in kinds.items()},
        }
    return found


def shares(degrees: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The share of all pairs in each bin, from angles [T] and how many pairs have each.

    >>> shares(np.array([1.0, 4.0]), np.array([1, 3]))[:2].tolist()
    [0.25, 0.75]
    """
    return np.histogram(degrees, BINS, weights=counts)[0] / counts.sum()


def draw(found: Numbers) -> Picture:
    """A panel for each loss."""
    figure = _style.figure(7.6, 4.7)
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axes, (loss, kept) in zip(panels, found["losses"].items(), strict=True):
        for kind, colour in (("negative", _style.FAINT), ("positive", _style.LOSSES[loss])):
            share = [100 * x for x in kept["share"][kind]]
            words = {"positive": "one class", "negative": "two classes"}[kind]
            label = f"{words}, mean {kept['mean'][kind]:.0f}°"
            axes.stairs(share, found["bins"], color=colour, fill=True, alpha=0.4)
            axes.stairs(share, found["bins"], color=colour, linewidth=1.3, label=label)
        axes.axvline(kept["eer_degrees"], color=_style.INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_title(f"{_style.TITLES[loss]}: EER {100 * kept['eer']:.2f} %", color=_style.LOSSES[loss])
        axes.legend(loc="upper right")
        axes.set(xlim=(0, 150), xticks=range(0, 151, 30))
    top = max(100 * x for kept in found["losses"].values() for share in kept["share"].values() for x in share)
    for axes in figure.axes:
        axes.set_ylim(0, 1.3 * top)  # room for the legends
    for axes in figure.axes[2:]:
        axes.set_xlabel("angle of the pair (degrees)")
    for axes in figure.axes[::2]:
        axes.set_ylabel("pairs in a bin of 3° (%)")
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    rates = ", ".join(f"{_style.TITLES[loss]} {100 * kept['eer']:.2f} %" for loss, kept in found["losses"].items())
    pairs = next(iter(found["losses"].values()))["pairs"]
    return (
        f"Angles of all pairs of the {found['images']:,} test images of {', '.join(found['names'])} "
        f"({_style.DATASETS[found['dataset']]}), classes that were held out of the training: {pairs['positive']:,} "
        f"pairs of one class and {pairs['negative']:,} of two (after the paper's Fig. 6; seed 0). Dashed: the "
        f"threshold of the equal error rate, {rates}."
    )


FIGURE = Figure(
    "Angles of pairs of unseen classes",
    caption,
    "seconds",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings(loss, held_out=True)) for loss in LOSSES],
    alt="A panel for each loss with two overlapping histograms of angles, of pairs of one class and of two classes, "
    "and a dashed line at the threshold of the equal error rate.",
)
