"""Trainings in lockstep, drawn: how far apart loss and weights are after each step, in float32 and in float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface.errors import UserError
from jax_arcface.training.config import from_dict
from jax_arcface.training.fit import make_objects
from parity_tests import lockstep
from parity_tests.cases.trajectories import weights_apart
from parity_tests.report import make_folder

NAME = "parity_trajectory.png"


def fields_of(config: Path) -> dict[str, Any]:
    """The configuration fields in a JSON file; the data set is `digits` where it names none.

    Raises:
      UserError: a file that is not a configuration, or one of a training in bfloat16.
    """
    try:
        fields = {"dataset": "digits"} | json.loads(config.read_text())
    except OSError as error:
        raise UserError(f"--config {config} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"--config {config} is not a JSON object: {error}") from None
    precision = from_dict(fields, f"--config {config}").precision
    if precision != "float32":
        raise UserError(f"--config {config} has precision = {precision}; trainings are drawn in float32 and float64")
    return fields


def loaded(fields: dict[str, Any], steps: int) -> lockstep.Datasets:
    """The data set of a configuration, as each program loads it.

    Raises:
      UserError: no such data set, one that is too small, or more steps than the training has.
      Unavailable: a data set that is not here.
    """
    config = from_dict(fields)
    datasets = lockstep.both_datasets(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    make_objects(config, datasets[0])  # refuses a data set that is too small
    whole = config.epochs * (len(datasets[0].train.labels) // config.batch_size)
    if steps > whole:
        raise UserError(f"--steps is {steps}, but a training of {config.epochs} epochs has {whole}")
    return datasets


def apart(fields: dict[str, Any], steps: int, dtype: str, datasets: lockstep.Datasets) -> tuple[np.ndarray, np.ndarray]:
    """The relative difference of the losses, and the largest of any weight or statistic, after each step: two [steps].

    Relative to the largest element of each array, as in the table.
    """
    losses, weights = [], []
    for moment in lockstep.train(fields, steps, dtype, datasets):
        losses.append(abs(moment.jax_loss - moment.torch_loss) / abs(moment.torch_loss))
        weights.append(max(found.relative for found in weights_apart(moment, fields)))
    return np.array(losses), np.array(weights)


def draw(configs: Sequence[Path], steps: int, folder: Path) -> Path:
    """Trains both programs with each configuration in both precisions, draws a panel each, and returns the PNG's path.

    Raises:
      UserError: fewer steps than one, and as `fields_of`, `loaded` and `make_folder`.
      Diverged (of either program): as `lockstep.train`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if steps < 1:
        raise UserError(f"--steps is {steps}; it must be at least 1")
    # fail before minutes of training, not after
    trainings = [(fields, loaded(fields, steps)) for fields in map(fields_of, configs)]
    make_folder(folder)
    figure = Figure(figsize=(1 + 4.5 * len(configs), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(configs), sharey=True, squeeze=False)[0]
    for axes, (fields, datasets) in zip(panels, trainings, strict=True):
        config = from_dict(fields)
        title = f"{config.dataset}, {config.backbone}, learning rate {config.learning_rate:g}"
        for dtype, colour in (("float32", "tab:orange"), ("float64", "tab:blue")):
            losses, weights = apart(fields, steps, dtype, datasets)
            print(f"{title}, {dtype}: losses at most {losses.max():.2g} apart, weights {weights.max():.2g}", flush=True)
            for values, what, style in ((weights, "weights (largest)", "-"), (losses, "loss", ":")):
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
    path = folder / NAME
    figure.savefig(path, dpi=150)
    return path
