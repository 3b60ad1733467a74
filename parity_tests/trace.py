"""Trainings in lockstep, drawn: how far apart loss and weights are after each step, in float32 and in float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface.config import from_dict
from parity_tests import lockstep
from parity_tests.cases.trajectories import weights_apart

NAME = "parity_trajectory.png"


def fields_of(config: Path) -> dict[str, Any]:
    """The configuration fields in a JSON file; the data set is `digits` where it names none.

    Raises:
      ValueError: a file that is not a configuration.
    """
    try:
        fields = {"dataset": "digits"} | json.loads(config.read_text())
    except OSError as error:
        raise ValueError(f"--config {config} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config {config} is not a JSON object: {error}") from None
    from_dict(fields, f"--config {config}")
    return fields


def apart(fields: dict[str, Any], steps: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The relative difference of the losses, and the largest of any weight or statistic, after each step: two [steps].

    Relative to the largest element of each array, as in the table.

    Raises:
      Unavailable: a data set that is not here.
    """
    losses, weights = [], []
    for moment in lockstep.train(fields, steps, dtype):
        losses.append(abs(moment.jax_loss - moment.torch_loss) / abs(moment.torch_loss))
        weights.append(max(found.relative for found in weights_apart(moment, fields)))
    return np.array(losses), np.array(weights)


def draw(configs: Sequence[Path], steps: int, folder: Path) -> Path:
    """Trains both by each configuration in both precisions, draws a panel for each, and gives the PNG file's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.5 * len(configs), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(configs), sharey=True, squeeze=False)[0]
    for axes, fields in zip(panels, [fields_of(config) for config in configs], strict=True):
        config = from_dict(fields)
        title = f"{config.dataset}, {config.backbone}, learning rate {config.learning_rate:g}"
        for dtype, colour in (("float32", "tab:orange"), ("float64", "tab:blue")):
            losses, weights = apart(fields, steps, dtype)
            print(f"{title}, {dtype}: losses at most {losses.max():.2g} apart, weights {weights.max():.2g}", flush=True)
            for values, what, style in ((weights, "the farthest weight", "-"), (losses, "loss", ":")):
                # no difference at all has no place on a logarithmic axis
                seen = np.where(values > 0, values, np.nan)
                axes.plot(np.arange(1, steps + 1), seen, style, color=colour, label=f"{what}, {dtype}")
            axes.axhline(float(np.finfo(dtype).eps), color=colour, linewidth=0.8, alpha=0.5)
            axes.text(steps, float(np.finfo(dtype).eps), f"epsilon of {dtype}", ha="right", va="bottom", fontsize=8)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("relative difference, JAX and PyTorch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    figure.savefig(path, dpi=150)
    return path
