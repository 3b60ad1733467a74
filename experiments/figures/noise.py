"""What sub-centres are for: accuracy under wrong labels, and the wrong labels found again by their angle.

Shows the test accuracy of softmax, ArcFace and sub-centre ArcFace when 0, 20 and 40 % of the training labels are drawn
from the other classes; and, at 20 %, the training images that lie farthest from the class they are labelled with, with
the share of the wrong labels among as many images as there are wrong ones. Costs nine trainings: two minutes on digits,
four on 10,000 images of MNIST. Reached on those, one training each: at 40 % ArcFace falls to 21 %, with sub-centres it
keeps 92 %, and softmax 96 %.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _images, _style
from experiments.figures._framework import Figure, Numbers, Study, dataset
from experiments.figures._watched import train_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = {"softmax": "Softmax", "arcface": "ArcFace", "subcenter": "Sub-centre ArcFace, K = 3"}
RATES = (0.0, 0.2, 0.4)
LOOKED_AT = ("subcenter", 0.2)
SHOWN = 16


def numbers(study: Study) -> Numbers:
    """Accuracy and recall by loss and rate; the farthest images of one training."""
    held = dataset(study.dataset)
    few = 10_000 if study.dataset == "mnist" else len(held.train.labels)
    images, true = held.train.images[:few], held.train.labels[:few]
    found: Numbers = {"dataset": study.dataset, "images": len(true), "rates": list(RATES), "losses": {}}
    epochs = 15 if study.quick else 4
    for loss in LOSSES:
        kept: dict[str, list[Any]] = {"accuracy": [], "recall": []}
        for rate in RATES:
            labels = mislabelled(true, rate, held.num_classes)
            noisy = dataclasses.replace(held, train=dataclasses.replace(held.train, images=images, labels=labels))
            fields = {"dataset": study.dataset, "loss": loss, "seed": 0, "epochs": epochs, "width": 0.25}
            trained = train_on(noisy, fields)
            test = trained.predictions(held.test.images[:2000])
            kept["accuracy"].append(round(100 * float((test == held.test.labels[:2000]).mean()), 3))
            angles = np.degrees(np.arccos(np.clip(trained.cosines(images)[np.arange(few), labels], -1, 1)))
            kept["recall"].append(None if rate == 0 else round(100 * recall(angles, labels != true), 2))
            if (loss, rate) == LOOKED_AT:
                found["farthest"] = [
                    {
                        "image": _images.encoded(images[i]),
                        "label": held.class_names[labels[i]],
                        "true": held.class_names[true[i]],
                        "degrees": round(float(angles[i]), 1),
                    }
                    for i in np.argsort(-angles)[:SHOWN]
                ]
        found["losses"][loss] = kept
    return found


def mislabelled(labels: np.ndarray, rate: float, classes: int) -> np.ndarray:
    """The labels with a share of them moved to another class, each other class being equally likely.

    >>> wrong = mislabelled(np.zeros(1000, np.int32), 0.2, 10) != 0
    >>> int(wrong.sum())
    200
    """
    random = np.random.default_rng(0)
    chosen = random.permutation(len(labels))[: round(rate * len(labels))]
    moved = labels.copy()
    moved[chosen] = (labels[chosen] + random.integers(1, classes, len(chosen))) % classes
    return moved


def recall(angles: np.ndarray, wrong: np.ndarray) -> float:
    """The share of the wrong labels among as many images with the largest angles.

    >>> recall(np.array([10.0, 80.0, 90.0, 20.0]), np.array([False, True, False, True]))
    0.5
    """
    count = int(wrong.sum())
    return float(wrong[np.argsort(-angles)[:count]].mean())


def draw(found: Numbers) -> Picture:
    """Accuracy and recall on the left, the farthest images on the right."""
    figure = _style.figure(9.6, 3.7)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    left, right = halves
    accuracy, recalled = left.subplots(1, 2)
    rates = [f"{100 * rate:g}" for rate in found["rates"]]
    for loss, kept in found["losses"].items():
        colour = _style.LOSSES.get(loss, _style.BLUE)
        accuracy.plot(rates, kept["accuracy"], "o-", color=colour, label=LOSSES[loss])
        recalled.plot(rates[1:], kept["recall"][1:], "o-", color=colour)
    accuracy.set(title="Test accuracy", xlabel="wrong labels (%)", ylabel="right images (%)")
    recalled.set(title="Wrong labels found", xlabel="wrong labels (%)", ylabel="recall (%)", ylim=(0, 102))
    for axes in (accuracy, recalled):
        axes.grid(True, axis="y")
        axes.margins(x=0.12)
    left.legend(loc="outside upper center", ncols=3, columnspacing=1.2)
    right.suptitle("Farthest from their label", fontsize=10, weight="bold")
    for axes, one in zip(right.subplots(4, SHOWN // 4).flat, found["farthest"], strict=True):
        wrong = one["label"] != one["true"]
        _images.show(axes, _images.decoded(one["image"]), _style.RED if wrong else _style.FAINT, 1.6 if wrong else 0.8)
        axes.set_title(
            f"{one['label']}, {one['degrees']:.0f}°", fontsize=8, color=_style.RED if wrong else _style.INK, pad=3
        )
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    last = ", ".join(f"{LOSSES[loss]} {kept['accuracy'][-1]:.1f} %" for loss, kept in found["losses"].items())
    at = found["rates"].index(LOOKED_AT[1])
    share = found["losses"][LOOKED_AT[0]]["recall"][at]
    count = sum(one["label"] != one["true"] for one in found["farthest"])
    return (
        f"Training on {found['images']:,} images of {_style.DATASETS[found['dataset']]} with wrong labels (seed 0, one "
        f"training each). Left: accuracy on test images with right labels; at 40 %: {last}. Middle: of the images that "
        "lie farthest from the nearest prototype of their label, as many as there are wrong labels, the share that is "
        f"mislabelled. Right: the {len(found['farthest'])} farthest under sub-centre ArcFace at 20 % ({share:.0f} % "
        f"recall), with their label and angle; {count} are mislabelled (red)."
    )


FIGURE = Figure(
    "Wrong labels and sub-centres",
    caption,
    "nine short trainings",
    numbers,
    draw,
    alt="Two graphs against the share of wrong labels, a line for each loss: test accuracy, which falls, and the share "
    "of wrong labels found. Beside them sixteen images with the label they were given; most do not show it.",
)
