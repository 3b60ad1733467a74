"""Loss, error and angle over a training, softmax beside ArcFace, PyTorch and JAX on top of each other.

Shows the training's loss and the test error after each epoch in both programs, and in PyTorch the mean angle of test
images to their own prototype and the gradient's norm. Costs two trainings besides the four runs: seconds on digits, two
minutes on MNIST. Reached on digits: both programs' losses lie on top of each other, their
test errors differ by a few images; ArcFace's angles end half as large as softmax's, and its gradients stay larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study
from experiments.figures._watched import SHARES, watch
from experiments.sweep import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

LOSSES = ("softmax", "arcface")
PROGRAMS = {"torch_reference": "PyTorch", "jax_arcface": "JAX"}


def numbers(study: Study) -> Numbers:
    """Records by loss and program, and what was seen in a training, by loss."""
    found: Numbers = {"dataset": study.dataset, "losses": {}}
    for loss in LOSSES:
        of_loss: dict[str, Any] = {}
        for program in PROGRAMS:
            kept = read_records(study.run(loss, program=program))
            of_loss[program] = {key: [one[key] for one in kept] for key in ("epoch", "train_loss", "test_accuracy")}
        seen = watch(study.settings(loss), SHARES, study.folder)
        of_loss["seen"] = {
            "epoch": [round(float(x), 3) for x in seen.epoch],
            "angle": [round(float(x), 3) for x in seen.angles.mean(axis=1)],
            "gradient": [None if np.isnan(x) else float(f"{x:.4g}") for x in seen.gradient],
        }
        found["losses"][loss] = of_loss
    return found


def draw(found: Numbers) -> Picture:
    """Four panels by epoch."""
    figure = _style.figure(8.4, 5.2)
    (loss_axes, error_axes), (angle_axes, gradient_axes) = figure.subplots(2, 2, sharex=True)
    for loss, kept in found["losses"].items():
        colour = _style.LOSSES[loss]
        for program, title in PROGRAMS.items():
            of = kept[program]
            look: dict[str, Any] = {"color": colour, "label": f"{_style.TITLES[loss]}, {title}"}
            look |= (
                {"linewidth": 3.2, "alpha": 0.4} if title == "PyTorch" else {"linewidth": 1.1, "marker": "o", "ms": 3}
            )
            loss_axes.plot(of["epoch"], of["train_loss"], **look)
            error_axes.plot(of["epoch"], [100 * (1 - a) for a in of["test_accuracy"]], **look)
        seen = kept["seen"]
        angle_axes.plot(seen["epoch"], seen["angle"], color=colour)
        norms = [np.nan if x is None else x for x in seen["gradient"]]
        gradient_axes.plot(seen["epoch"], norms, color=colour)
    loss_axes.set(title="Training loss", ylabel="mean loss of the epoch", yscale="log")
    error_axes.set(title="Test error", ylabel="wrong images (%)", yscale="log")
    angle_axes.set(
        title="Angle to the own prototype", xlabel="epoch", ylabel=r"mean $\theta_y$ (degrees)", ylim=(0, 100)
    )
    gradient_axes.set(title="Gradient", xlabel="epoch", ylabel="norm in a step", yscale="log")
    for axes in figure.axes:
        axes.grid(True)
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for axes in (loss_axes, error_axes, gradient_axes):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    gradient_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = loss_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    of = found["losses"]
    ends = {loss: 100 * of[loss]["torch_reference"]["test_accuracy"][-1] for loss in LOSSES}
    jax_ends = {loss: 100 * of[loss]["jax_arcface"]["test_accuracy"][-1] for loss in LOSSES}
    angles = {loss: of[loss]["seen"]["angle"][-1] for loss in LOSSES}
    return (
        f"Softmax and ArcFace on {_style.DATASETS[found['dataset']]}, one seed; PyTorch in broad pale lines, JAX in "
        f"thin ones with points. Test accuracy at the end: softmax {ends['softmax']:.2f} % (JAX "
        f"{jax_ends['softmax']:.2f} %), ArcFace {ends['arcface']:.2f} % (JAX {jax_ends['arcface']:.2f} %). The mean "
        f"angle of test images to their own prototype ends at {angles['softmax']:.0f} degrees with softmax and "
        f"{angles['arcface']:.0f} with ArcFace, which asks for it. The losses have different definitions and cannot "
        "be compared with each other. Lower panels: PyTorch."
    )


FIGURE = Figure(
    "Convergence",
    caption,
    "two trainings",
    numbers,
    draw,
    lambda study: [(program, study.settings(loss)) for loss in LOSSES for program in PROGRAMS],
    alt="Four panels by epoch: training loss and test error, with PyTorch's and JAX's lines on top of each other, the "
    "mean angle to the own prototype, and the gradient's norm, for softmax and ArcFace.",
)
