"""The run directory: what a training writes and what is read back.

    config.json         every field of the configuration
    dataset.json        the images' shape, the class names, each channel's mean and standard deviation
    metrics.jsonl       one line for each epoch
    checkpoints/        the latest state of an unfinished or finished training, `step_00001234.safetensors`
    model.safetensors   the weights under PyTorch names, in PyTorch's layout
    embeddings.npz      embeddings and labels of the test split, prototypes, a linear classifier's bias, class names
    embeddings.png      a picture of them

Each file is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jax_arcface import files
from jax_arcface.data import Dataset
from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write
from jax_arcface.files import read_npz as read_npz
from jax_arcface.models.weights import Weights
from jax_arcface.training import config as configs
from jax_arcface.training.config import TrainConfig


def check_free(out: Path) -> None:
    """Raises UserError where `out` holds a run already, is a folder that is not a run, or is no folder."""
    if (out / "config.json").exists():
        raise UserError(f"--out {out} holds a run already; give another folder, or --resume to go on with it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not a run directory; give a new or an empty folder")


def create(out: Path, config: TrainConfig) -> None:
    """Makes a run directory and writes its configuration.

    Raises:
      UserError: as `check_free`, or where the folder cannot be made.
    """
    check_free(out)
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}") from None
    write_json(out / "config.json", dataclasses.asdict(config))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(value, indent=2) + "\n")


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
      UserError: `run` is not a run directory.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    return configs.read(run / "config.json")


def read_replicas(out: Path) -> dict[str, TrainConfig]:
    """The configurations of the replicas begun in `out`, by name, by ascending seed and margin; none in a run itself.

    A folder counts that is called after its own seed or margin.

    Raises:
      UserError: a configuration that cannot be read.
    """
    if (out / "config.json").exists():
        return {}
    begun = []
    for file in (*out.glob("seed-*/config.json"), *out.glob("margin-*/config.json")):
        config, name = configs.read(file), file.parent.name
        if name in (f"seed-{config.seed}", None if config.margin is None else f"margin-{config.margin:g}"):
            begun.append((config.seed, config.margin or 0.0, name, config))  # others were moved away
    return {name: config for _, _, name, config in sorted(begun, key=lambda run: run[:3])}


def write_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    """Writes `metrics.jsonl`, one line for each record."""
    with atomic_write(run / "metrics.jsonl") as file:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; none where there is no such file yet.

    Raises:
      UserError: a line that is not the record of an epoch.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    records = files.read_json_lines(path)
    for number, record in enumerate(records, start=1):
        if type(step := record.get("step")) is not int or step < 0:
            raise UserError(f"line {number} of {path} is not the record of an epoch: remove it")
    return records


def write_weights(run: Path, values: Weights) -> None:
    """Writes `model.safetensors`."""
    with atomic_write(run / "model.safetensors") as file:
        file.write_bytes(safetensors.numpy.save(_contiguous(values)))


def read_weights(run: Path) -> Weights:
    """The weights of a run, under PyTorch names.

    Raises:
      UserError: there are none yet, or the file is damaged.
    """
    path = run / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no model.safetensors: its training has not ended; go on with it by --resume")
    return files.read_safetensors(path, kinds="f")


def write_dataset(run: Path, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> None:
    """Writes `dataset.json`: what a model must know of its training data to be used without it.

    These are the images' shape (H, W, C), the class names, and each channel's mean and standard deviation in grey
    levels.
    """
    write_json(run / "dataset.json", _described(dataset, mean, std))


def check_dataset(run: Path, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> None:
    """Raises UserError where the data set is not the one that `write_dataset` described."""
    described = read_dataset(run)
    for name, value in _described(dataset, mean, std).items():
        if (was := described.get(name)) != value:
            raise UserError(f"{dataset.name} has changed since {run} began: its {name} was {was} and is {value}")


def _described(dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def read_dataset(run: Path) -> dict[str, Any]:
    """What `write_dataset` wrote.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = run / "dataset.json"
    if not path.is_file():
        raise UserError(f"{run} is not a whole run directory: it has no dataset.json")
    return files.read_dataset(path)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays as an `.npz` file, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_checkpoint(run: Path, state: Any) -> None:
    """Writes a training state, any pytree with a leaf `step`, and removes older checkpoints."""
    leaves = {name: np.asarray(leaf) for name, leaf in _named_leaves(state).items()}
    path = run / "checkpoints" / f"step_{int(leaves['.step']):08d}.safetensors"
    with atomic_write(path) as file:
        file.write_bytes(safetensors.numpy.save(_contiguous(leaves)))
    for older in _checkpoints(run):
        if older < path:
            older.unlink()


def read_checkpoint(run: Path, template: Any) -> Any:
    """The latest checkpoint, as a pytree of the structure of `template`; None where there is none.

    Raises:
      UserError: a checkpoint that is damaged or does not fit.
    """
    paths = _checkpoints(run)
    if not paths:
        return None
    leaves = files.read_safetensors(paths[-1])
    names = _named_leaves(template)
    if {n: np.shape(v) for n, v in names.items()} != {n: v.shape for n, v in leaves.items()}:
        raise UserError(f"{paths[-1]} does not fit the model of {run / 'config.json'}")
    return jax.tree.unflatten(jax.tree.structure(template), [jax.numpy.asarray(leaves[name]) for name in names])


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*.safetensors"))


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # safetensors writes the memory of an array as it lies (np.ascontiguousarray would give a scalar an axis)
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
