"""`python -m jax_arcface evaluate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser
from jax_arcface.errors import UserError
from jax_arcface.evaluation import METRICS, Embedded, evaluate
from jax_arcface.files import read_npz
from jax_arcface.models.trained import load_model


@dataclasses.dataclass(frozen=True)
class Options:
    """Prints a run's accuracy and loss, or the accuracy of the embeddings in an .npz file, and writes them as JSON."""

    run_or_npz: Path = dataclasses.field(metadata={"positional": True})
    """A run directory, or an .npz file with embeddings [N, D], labels [N] and prototypes [C, D] (and a bias [C])."""
    split: str = "test"
    """Which split of the run's data set: test or train."""
    data_dir: str | None = None
    """Folder with the data set's files; the default is that of the training."""
    out: Path | None = None
    """Folder for the JSON file; the default is the run directory, or the .npz file's folder."""


def main(words: Sequence[str]) -> int:
    """Evaluates what the words name; returns the exit status."""
    parser = Parser("evaluate RUN_OR_NPZ", str(Options.__doc__))
    parser.add_fields(Options)
    options = Options(**parser.parse(words))
    path = options.run_or_npz
    if path.suffix == ".npz":
        result, out = _of_arrays(options), (options.out or path.parent) / f"{path.stem}.evaluation.json"
    else:
        result = _of_run(options)
        name = "evaluation.json" if options.split == "test" else f"evaluation-{options.split}.json"
        out = (options.out or path) / name
    runs.write_json(out, result)
    for name, value in result.items():
        metric = METRICS.get(name)
        print(f"{name:<9} {metric.shown.format(value)}  ({metric.help})" if metric else f"{name:<9} {value}")
    print(f"written to {out}")
    return 0


def _of_run(options: Options) -> dict[str, Any]:
    run = options.run_or_npz
    runs.check_trained(run)
    config, model = runs.read_config(run), load_model(run)
    if (done := runs.epochs_done(run)) < config.epochs:
        print(
            f"{run} is unfinished: {done} of {config.epochs} epochs are done; go on with: train --resume --out {run}",
            file=sys.stderr,
        )
    dataset = runs.load_dataset(config, options.data_dir)
    if (dataset.image_shape, tuple(dataset.class_names)) != (model.image_shape, tuple(model.class_names)):
        raise UserError(f"{config.dataset} has other classes or other images than those {run} was trained on")
    split = data_split(dataset, options.split)
    embeddings, labels = model.embed(split.images), np.asarray(split.labels)
    owned = {"prototypes": model.prototypes} | ({} if model.bias is None else {"bias": model.bias})
    step = records[-1]["step"] if (records := runs.read_metrics(run)) else 0
    found = evaluate(Embedded(embeddings, labels, owned, config.objective, step))
    return {"dataset": config.dataset, "split": options.split, "examples": len(labels), **found}


def data_split(dataset: data.Dataset, which: str) -> data.Split:
    """The split of a data set that --split names."""
    if which not in ("train", "test"):
        raise UserError(f"--split is {which!r}; it must be train or test")
    return dataset.train if which == "train" else dataset.test


def _of_arrays(options: Options) -> dict[str, Any]:
    path = options.run_or_npz
    if options.split != "test" or options.data_dir is not None:
        raise UserError(f"--split and --data-dir have no effect on {path}, which holds its own examples")
    arrays = read_npz(path, ("embeddings", "labels", "prototypes"), optional=("bias",))
    _check_arrays(path, **arrays)
    embeddings, labels = arrays.pop("embeddings"), arrays.pop("labels")
    return {"examples": len(labels), **evaluate(Embedded(embeddings, labels, arrays))}


def _check_arrays(
    path: Path, embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray, bias: np.ndarray | None = None
) -> None:
    shapes = f"embeddings {embeddings.shape}, labels {labels.shape}, prototypes {prototypes.shape}"
    fit = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1] and len(labels) > 0
    if not fit or prototypes.ndim not in (2, 3) or prototypes.shape[-1] != embeddings.shape[1]:
        raise UserError(f"{path} holds {shapes}; they must be [N, D], [N] and [C, D] or [C, K, D]")
    if bias is not None and (prototypes.ndim != 2 or bias.shape != prototypes.shape[:1]):
        raise UserError(
            f"{path} holds a bias {bias.shape} for prototypes {prototypes.shape}; it must be [C] for [C, D]"
        )
    for name, array in (("embeddings", embeddings), ("prototypes", prototypes), ("bias", bias)):
        if array is not None and array.dtype.kind not in "fiu":
            raise UserError(f"{path} has {name} that are not numbers")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(prototypes):
        raise UserError(f"{path} has labels other than the whole numbers from 0 to {len(prototypes) - 1}")
