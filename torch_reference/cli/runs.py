"""The run directory: what a training writes and what is read back (docs/recipe.md, "Run directory").

    config.json         every field of the configuration
    dataset.json        the images' shape, the class names, each channel's mean and standard deviation
    metrics.jsonl       one line for each epoch
    checkpoints/        the latest state of the training, `step_00001234.safetensors`
    model.safetensors   the weights under their state_dict names, at the end of the training
    embeddings.npz      embeddings and labels of the test split, prototypes, the bias if there is one, class names
    embeddings.png      a picture of them

Each file is written whole or not at all, and the directory appears with both JSON files in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from torch_reference import data
from torch_reference.data import Dataset, channel_statistics
from torch_reference.errors import UserError
from torch_reference.files import atomic_write, read_json_lines, read_npz, read_safetensors
from torch_reference.models.trained import read_description
from torch_reference.training import config as configs
from torch_reference.training.config import TrainConfig

Arrays = dict[str, np.ndarray]


# ---- the directory


def check_free(out: Path) -> None:
    """Raises UserError where `out` holds a run already, is a folder that is not a run, or is no folder."""
    if is_run(out):
        raise UserError(f"{out} holds a run already; give another folder, or --resume to go on with it")
    if out.exists() and (not out.is_dir() or _beside_a_beginning(out)):
        raise UserError(f"{out} exists and is not a run directory; give a new or an empty folder")


def is_run(out: Path) -> bool:
    """Whether a training has begun there; one that was killed before it described its data has not."""
    return (out / "config.json").is_file() and (out / "dataset.json").is_file()


def _beside_a_beginning(out: Path) -> list[Path]:
    """What is in a folder but for what a training leaves that was killed while it began."""
    empty = [path for path in (out / "checkpoints",) if path.is_dir() and not any(path.iterdir())]
    return [path for path in out.iterdir() if path.name != "config.json" and path not in empty and not _leftover(path)]


def create(out: Path, config: TrainConfig, dataset: Dataset) -> None:
    """Makes a run directory with its configuration and the description of its data, in one rename.

    Raises:
      UserError: as `check_free`, or where the folder cannot be made.
    """
    check_free(out)
    new = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in filter(_leftover, out.parent.glob(f".{out.name}.*")):
            shutil.rmtree(path, ignore_errors=True)
        (new / "checkpoints").mkdir(parents=True)
        write_json(new / "config.json", dataclasses.asdict(config))
        write_json(new / "dataset.json", _described(dataset))
        if out.exists():
            shutil.rmtree(out)  # empty, or a beginning
        new.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps other trainings away from a run, and removes what a killed one left half written.

    The lock is the operating system's, on the directory itself: it ends with the process, however that ends.

    Raises:
      UserError: another process trains the run.
    """
    directory = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run} is being trained by another process") from None
        for path in filter(_leftover, [*run.glob(".*"), *(run / "checkpoints").glob(".*")]):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(directory)


def _leftover(path: Path) -> bool:
    """Whether it is a temporary file or folder, `.NAME.PID`, of a process that is no more."""
    if not (match := re.fullmatch(r"\..+\.(\d+)", path.name)):
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def is_finished(run: Path) -> bool:
    """Whether the training wrote all that it leaves: the embeddings come after the weights."""
    return (run / "model.safetensors").is_file() and (run / "embeddings.npz").is_file()


def extend(run: Path, config: TrainConfig) -> None:
    """Gives a run a configuration with more epochs: until they are trained, it is not finished.

    The embeddings and what was evaluated go; the weights, which `evaluate` reads, stay until there are new ones.
    """
    for file in (run / "embeddings.npz", run / "threshold.json", *run.glob("evaluation*.json")):
        file.unlink(missing_ok=True)
    write_json(run / "config.json", dataclasses.asdict(config))


# ---- its JSON files


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
        inside = sorted(path.parent for path in run.glob("*/config.json"))
        hint = f"; it holds runs, such as {inside[0]}" if inside else ""
        raise UserError(f"{run} is not a run directory: it has no config.json{hint}")
    return configs.read(run / "config.json")


def check_dataset(run: Path, dataset: Dataset) -> None:
    """Raises UserError where the data set is not the one that the run began with."""
    began_with = read_description(run)
    for name, value in _described(dataset).items():
        if (was := began_with.get(name)) != value:
            raise UserError(f"{dataset.name} has changed since {run} began: its {name} was {was} and is {value}")


def load_dataset(config: TrainConfig, data_dir: str | None = None) -> Dataset:
    """The data set that a configuration names, without the classes it holds out; `data_dir` replaces its folder."""
    folder = data_dir or config.data_dir
    dataset = data.load(config.dataset, folder, image_size=config.image_size, image_fit=config.image_fit)
    return data.hold_out(dataset, config.held_out) if config.held_out else dataset


def _described(dataset: Dataset) -> dict[str, Any]:
    mean, std = channel_statistics(dataset.train.images)
    return {
        "name": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


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
    records = read_json_lines(path)
    for number, record in enumerate(records, start=1):
        whole = all(type(record.get(key)) is int and record[key] > 0 for key in ("epoch", "step"))
        if not whole or any(type(value) not in (int, float, type(None)) for value in record.values()):
            raise UserError(f"line {number} of {path} is not the record of an epoch: remove it")
    return records


def read_metrics_until(run: Path, step: int, per_epoch: int) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` up to a step: one for each epoch of so many steps.

    Raises:
      UserError: as `read_metrics`, or where one is missing.
    """
    records = [record for record in read_metrics(run) if record["step"] <= step]
    epochs = step // per_epoch
    if [(r["epoch"], r["step"]) for r in records] != [(n, n * per_epoch) for n in range(1, epochs + 1)]:
        raise UserError(
            f"{run / 'metrics.jsonl'} does not fit what was trained: it must have a line for each of the {epochs} "
            f"epochs of {per_epoch} steps; put it back, or train anew in another folder"
        )
    return records


# ---- its arrays


def write_weights(run: Path, weights: Arrays) -> None:
    """Writes `model.safetensors`."""
    with atomic_write(run / "model.safetensors") as file:
        file.write_bytes(safetensors.numpy.save(weights))


def has_result(run: Path, weights: Arrays) -> bool:
    """Whether `model.safetensors` holds these weights, and `embeddings.npz`, which is written last, its prototypes.

    Otherwise the training was killed before both were written, or they are of fewer epochs.
    """
    try:
        model = read_safetensors(run / "model.safetensors")
        embedded = read_npz(run / "embeddings.npz", ("prototypes",))
    except UserError:
        return False
    same = model.keys() == weights.keys() and all(np.array_equal(model[name], weights[name]) for name in weights)
    return same and np.array_equal(embedded["prototypes"], weights["head.prototypes"])


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays as an `.npz` file, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_checkpoint(run: Path, step: int, state: Arrays) -> None:
    """Writes a training state after so many steps, and removes older checkpoints."""
    path = run / "checkpoints" / f"step_{step:08d}.safetensors"
    with atomic_write(path) as file:
        file.write_bytes(safetensors.numpy.save(state))
    remove_older_checkpoints(run)


def remove_older_checkpoints(run: Path) -> None:
    """Removes all checkpoints but the latest."""
    for older in _checkpoints(run)[:-1]:
        older.unlink()


def read_checkpoint(run: Path, load: Callable[[Arrays], None], steps: int) -> None:
    """Gives the latest checkpoint, if there is one, to `load`, which raises ValueError where it does not fit.

    Args:
      run: the run directory.
      load: takes the arrays over.
      steps: of the whole training.

    Raises:
      UserError: a checkpoint that is damaged or does not fit.
    """
    if not (paths := _checkpoints(run)):
        return
    arrays = read_safetensors(paths[-1])
    step = arrays.get("step", np.array(0))
    if step.ndim or not 0 <= step <= steps:
        raise UserError(f"{paths[-1]} is of step {step}, but the training has {steps} steps")
    try:
        load(arrays)
    except ValueError:
        raise UserError(f"{paths[-1]} does not fit the model of {run / 'config.json'}") from None


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*.safetensors"))
