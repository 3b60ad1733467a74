"""Two trainings in lockstep, drawn: how far apart loss and weights are after each step, in float32 and in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from parity_tests import lockstep

NAME = "parity_trajectory.png"


def apart(config: Path, steps: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """|difference| of the loss, and the largest of any weight, after each step: two [steps].

    Raises:
      ValueError: a file that is not a configuration.
      Unavailable: a data set that is not here.
    """
    try:
        fields = json.loads(config.read_text())
    except OSError as error:
        raise ValueError(f"--config {config} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--config {config} is not JSON: {error}") from None
    losses, weights = [], []
    for moment in lockstep.train({"dataset": "digits"} | fields, steps, dtype):
        losses.append(abs(moment.jax_loss - moment.torch_loss))
        pairs = ((moment.jax_weights[name], other) for name, other in moment.torch_weights.items())
        weights.append(max(float(np.abs(one - other).max()) for one, other in pairs))
    return np.array(losses), np.array(weights)


def draw(config: Path, steps: int, folder: Path) -> Path:
    """Trains both, draws both differences in both precisions, and gives the path of the PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for dtype, colour in (("float32", "tab:orange"), ("float64", "tab:blue")):
        losses, weights = apart(config, steps, dtype)
        print(f"{dtype}: loss at most {losses.max():.2g} apart, weights {weights.max():.2g}")
        for values, what, style in ((losses, "loss", ":"), (weights, "weights, the largest", "-")):
            # no difference at all has no place on a logarithmic axis
            seen = np.where(values > 0, values, np.nan)
            axes.plot(np.arange(1, steps + 1), seen, style, color=colour, label=f"{what}, {dtype}")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("|difference| between JAX and PyTorch")
    axes.legend()
    axes.grid(alpha=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    figure.savefig(path, dpi=150)
    return path
