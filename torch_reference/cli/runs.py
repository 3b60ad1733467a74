"""The run directory: what a training writes and what is read back.

    config.json         every field of the configuration
    dataset.json        the images' shape, the class names, each channel's mean and standard deviation
    metrics.jsonl       one line for each epoch
    checkpoints/        the latest state of an unfinished or finished training, `step_00001234.safetensors`
    model.safetensors   the weights under their state_dict names
    embeddings.npz      embeddings and labels of the test split, prototypes, the bias if there is one, class names
    embeddings.png      a picture of them

Each file is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from torch_reference import files
from torch_reference.data import Dataset
from torch_reference.errors import UserError
from torch_reference.files import atomic_write
from torch_reference.files import read_npz as read_npz
from torch_reference.training import config as configs
from torch_reference.training.config import TrainConfig

Arrays = dict[str, np.ndarray]


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
    """The runs of a set that were begun in `out`: their configurations by name, the smallest seed and margin first.

    There are none where `out` is a run itself.

    Raises:
      UserError: a configuration that cannot be read.
    """
    if (out / "config.json").exists():
        return {}
    names = [path.parent.name for path in out.glob("*/config.json")]
    begun = [(name, read_config(out / name)) for name in names if name.startswith(("seed-", "margin-"))]
    members = [(name, config) for name, config in begun if name in _names_in_a_set(config)]
    return dict(sorted(members, key=lambda run: (run[1].seed, run[1].margin or 0.0, run[0])))


def _names_in_a_set(config: TrainConfig) -> tuple[str, ...]:
    """What a run with this configuration may be called there; one with another name has been moved away."""
    by_margin = () if config.margin is None else (f"margin-{config.margin:g}",)
    return (f"seed-{config.seed}", *by_margin)


def write_metrics(run: Path, records: Sequence[Mapping[str, Any]]) -> None:
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


def write_weights(run: Path, weights: Arrays) -> None:
    """Writes `model.safetensors`."""
    with atomic_write(run / "model.safetensors") as file:
        file.write_bytes(safetensors.numpy.save(weights))


def read_weights(run: Path) -> Arrays:
    """The weights of a run, by their names in the state_dict.

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
    began_with = read_dataset(run)
    for name, value in _described(dataset, mean, std).items():
        if (was := began_with.get(name)) != value:
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
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_checkpoint(run: Path, step: int, state: Arrays) -> None:
    """Writes a training state after so many steps, and removes older checkpoints."""
    path = run / "checkpoints" / f"step_{step:08d}.safetensors"
    with atomic_write(path) as file:
        file.write_bytes(safetensors.numpy.save(state))
    for older in _checkpoints(run):
        if older < path:
            older.unlink()


def read_checkpoint(run: Path, load: Callable[[Arrays], None]) -> None:
    """Gives the latest checkpoint, if there is one, to `load`, which raises ValueError where it does not fit.

    Raises:
      UserError: a checkpoint that is damaged or does not fit.
    """
    if not (paths := _checkpoints(run)):
        return
    arrays = files.read_safetensors(paths[-1])
    try:
        load(arrays)
    except ValueError:
        raise UserError(f"{paths[-1]} does not fit the model of {run / 'config.json'}") from None


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*.safetensors"))
