"""The paper's table 3: angles between prototypes, centres and embeddings, under five losses, beside the paper's own.

Shows W-EC (prototype to its class's centre), W-Inter (prototype to the nearest other), Intra (embedding to its centre)
and Inter (centre to the nearest other), for training and test images. Costs half a minute to embed the training images,
besides five runs. Reached on digits: as in the paper ArcFace has by far the smallest W-EC and Intra among the losses
that keep the classes apart, and its Inter is the largest or close to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _paper, _style
from experiments.figures._framework import Figure, Numbers, Study, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

TITLES = {
    "norm_softmax": "Norm-Softmax",
    "arcface": "ArcFace",
    "norm_softmax+intra": "NS + Intra",
    "norm_softmax+inter": "NS + Inter",
    "triplet": "Triplet",
}
COLOURS = {
    "norm_softmax": _style.LOSSES["norm_softmax"],
    "arcface": _style.LOSSES["arcface"],
    "norm_softmax+intra": _style.BLUE,
    "norm_softmax+inter": "#8C6D1F",
    "triplet": _style.LOSSES["triplet"],
}
COLUMNS = {
    "w_ec": "W-EC",
    "w_inter": "W-Inter",
    "intra_train": "Intra, train",
    "intra_test": "Intra, test",
    "inter_train": "Inter, train",
    "inter_test": "Inter, test",
}
MOST = 20_000  # training images that are embedded


def numbers(study: Study) -> Numbers:
    """Degrees by loss and statistic, ours and the paper's; null where there are no prototypes."""
    found: Numbers = {"dataset": study.dataset, "source": _paper.SOURCE, "losses": {}}
    for loss in TITLES:
        run = study.run(loss)
        train, test = (_statistics(run, split, loss) for split in ("train", "test"))
        ours = {"w_ec": train["w_ec"], "w_inter": train["w_inter"]}
        ours |= {
            f"{name}_{split}": of[name]
            for name in ("intra", "inter")
            for split, of in (("train", train), ("test", test))
        }
        paper = _paper.TABLE_3[loss]
        theirs = {"w_ec": paper["w_ec"], "w_inter": paper["w_inter"]}
        theirs |= {
            f"{name}_{split}": paper[name][i]
            for name in ("intra", "inter")
            for i, split in enumerate(("train", "test"))
        }
        found["losses"][loss] = {"ours": ours, "paper": theirs}
    return found


def _statistics(run: Any, split: str, loss: str) -> dict[str, float | None]:
    from torch_reference.evaluation import angle_statistics

    e = embedded(run, split, MOST)
    # a triplet training has class means in place of prototypes
    found = angle_statistics(e.embeddings, e.labels, None if loss == "triplet" else e.prototypes)
    names = ("w_ec", "w_inter", "intra", "inter")
    values = (getattr(found, name) for name in names)
    return {name: None if x is None else round(float(np.degrees(x)), 2) for name, x in zip(names, values, strict=True)}


def draw(found: Numbers) -> Picture:
    """A group of bars for each statistic, a bar for each loss, and a diamond at the paper's value."""
    figure = _style.figure(8.6, 3.6)
    axes = figure.subplots()
    count = len(found["losses"])
    for number, (loss, kept) in enumerate(found["losses"].items()):
        at = np.arange(len(COLUMNS)) + 0.16 * (number - (count - 1) / 2)
        ours, theirs = ([kept[of][name] for name in COLUMNS] for of in ("ours", "paper"))
        axes.bar(at, [x or 0 for x in ours], 0.15, color=COLOURS[loss], label=TITLES[loss])
        for x, value in zip(at, ours, strict=True):
            ink = _style.INK if value is None or loss in ("norm_softmax", "triplet") else "white"
            axes.text(x, 1.5, "none" if value is None else f"{value:.0f}", ha="center", fontsize=6.5, color=ink,
                      rotation=90 if value is None else 0)  # fmt: skip
        there = np.array([(x, y) for x, y in zip(at, theirs, strict=True) if y is not None])
        look: dict[str, Any] = {"marker": "D", "facecolor": "white", "edgecolor": _style.INK, "linewidth": 0.9}
        axes.scatter(
            there[:, 0], there[:, 1], s=15, zorder=3, label="the paper, faces" if number == count - 1 else None, **look
        )
    axes.set(ylabel="mean angle (degrees)", ylim=(0, 95), xlim=(-0.5, len(COLUMNS) - 0.5))
    axes.set_xticks(range(len(COLUMNS)), COLUMNS.values())
    axes.tick_params(axis="x", length=0)
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=6, columnspacing=1.1, handlelength=1.4)
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    arc, plain = (found["losses"][loss]["ours"] for loss in ("arcface", "norm_softmax"))
    return (
        f"The paper's Table 3 on {_style.DATASETS[found['dataset']]} (bars; seed 0), beside the paper's own values "
        "on faces (diamonds: CASIA-WebFace, and LFW for test), which come from thousands of identities and are not "
        "to be met. W-EC: prototype to its class's centre; W-Inter: prototype to the nearest other; Intra: "
        f"embedding to its centre; Inter: centre to the nearest other. ArcFace's W-EC is {arc['w_ec']:.1f} degrees "
        f"against Norm-Softmax's {plain['w_ec']:.1f}, its Intra on test images {arc['intra_test']:.1f} against "
        f"{plain['intra_test']:.1f}. Triplet loss has no prototypes."
    )


FIGURE = Figure(
    "Angles within and between classes (Table 3)",
    caption,
    "half a minute",
    numbers,
    draw,
    lambda study: [("torch_reference", study.settings(loss)) for loss in TITLES],
    alt="Bars of mean angles for five losses in six groups, W-EC, W-Inter, and Intra and Inter on training and test "
    "images, with a diamond at the paper's value over each bar.",
)
