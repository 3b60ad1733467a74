"""The run directory: what a training writes and what is read back.

    config.json         every field of the configuration
    dataset.json        the images' shape, the class names, each channel's mean and standard deviation
    metrics.jsonl       one line for each epoch
    checkpoints/        the latest state of an unfinished or finished training, `step_00001234.safetensors`
    model.safetensors   the weights under PyTorch names, in PyTorch's layout
    embeddings.npz      embeddings and labels of the test split, prototypes, a linear classifier's bias, class names
    embeddings.png      a picture of them
    evaluation.json     what `evaluate` found, and threshold.json, what `evaluate --calibrate` did

Each file is written whole or not at all. A run has begun once it has `dataset.json`: a folder in which a training was
killed before that is begun again. While a process trains in a run, it holds a lock on the folder, which ends with the
process, however that ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jax_arcface import data
from jax_arcface.data import Dataset
from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write, read_dataset, read_json_lines, read_npz, read_safetensors
from jax_arcface.models.weights import Weights
from jax_arcface.training import config as configs
from jax_arcface.training.config import TrainConfig

try:
    import fcntl
except ImportError:  # on Windows: no lock
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..+\.\d+")  # as `atomic_write` names them


# ---- the folder


def check_free(out: Path) -> None:
    """Raises UserError where `out` holds a run already, is a folder of other things, or is no folder.

    A folder is free that is empty, or holds what a training left that was killed before its first step.
    """
    if holds_run(out):
        raise UserError(f"--out {out} holds a run already; give another folder, or --resume to go on with it")
    if out.exists() and (not out.is_dir() or any(not _is_remnant(file) for file in out.iterdir())):
        raise UserError(f"--out {out} exists and is not a run directory; give a new or an empty folder")


def holds_run(out: Path) -> bool:
    """Whether a run has begun in `out`: it has a configuration and any later file."""
    if not (out / "config.json").is_file():
        return False
    return any(not _is_remnant(file) for file in out.iterdir())


def _is_remnant(file: Path) -> bool:
    """Whether a file can be left by a training that was killed before its first step."""
    if file.name == "checkpoints" and file.is_dir():
        return all(_TEMPORARY.fullmatch(inner.name) for inner in file.iterdir())
    return file.name == "config.json" or _TEMPORARY.fullmatch(file.name) is not None


@contextlib.contextmanager
def begin(out: Path, config: TrainConfig, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> Iterator[None]:
    """Makes a run directory with `config.json`, then `dataset.json`, and holds its lock.

    Args:
      out: where to.
      config: how the run is trained.
      dataset: what on.
      mean: of each channel, in grey levels, [C].
      std: the standard deviation, likewise.

    Raises:
      UserError: as `check_free` and `locked`, or where the folder cannot be made.
    """
    check_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}") from None
    with locked(out):
        check_free(out)  # another process may have been faster
        (out / "checkpoints").mkdir(exist_ok=True)
        write_config(out, config)
        write_json(out / "dataset.json", _described(dataset, mean, std))
        yield


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run directory, and removes what a killed process left unfinished there.

    Raises:
      UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run} is being trained by another process; wait for it, or end it") from None
        except OSError:  # a file system without locks
            pass
        for folder in (run, run / "checkpoints"):
            for file in folder.iterdir() if folder.is_dir() else ():
                if _TEMPORARY.fullmatch(file.name) and file.is_file():
                    file.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


# ---- its files


def write_config(run: Path, config: TrainConfig) -> None:
    """Writes `config.json`."""
    write_json(run / "config.json", dataclasses.asdict(config))


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
        runs = sorted(file.parent.name for file in run.glob("*/config.json"))
        what = f"it is a folder of {len(runs)} runs; name one of them, such as {run / runs[0]}" if runs else ""
        raise UserError(f"{run} is not a run directory: {what or 'it has no config.json'}")
    return configs.read(run / "config.json")


def check_trained(run: Path) -> None:
    """Raises UserError where `run` is not a run directory with a trained model, with the remedy."""
    read_config(run)
    if not (run / "model.safetensors").is_file():
        raise UserError(f"{run} has no model yet: its training has not ended; go on with: train --resume --out {run}")


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
    records = read_json_lines(path) if path.exists() else []
    for number, record in enumerate(records, start=1):
        whole = all(type(record.get(name)) is int and record[name] > 0 for name in ("epoch", "step"))
        if not whole or any(type(value) not in (int, float, type(None)) for value in record.values()):
            raise UserError(f"line {number} of {path} is not the record of an epoch: remove it")
    return records


def epochs_done(run: Path) -> int:
    """How many epochs of a run are in its metrics.

    Raises:
      UserError: as `read_metrics`.
    """
    records = read_metrics(run)
    return int(records[-1]["epoch"]) if records else 0


def extend(run: Path, config: TrainConfig) -> None:
    """Gives a run more epochs: it is unfinished until its embeddings are written again, and not evaluated any more."""
    for file in (run / "embeddings.npz", run / "threshold.json", *run.glob("evaluation*.json")):
        file.unlink(missing_ok=True)
    write_config(run, config)


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its last epoch, and its model and embeddings are written.

    Raises:
      UserError: as `read_config` and `read_metrics`.
    """
    written = all((run / name).exists() for name in ("model.safetensors", "embeddings.npz"))
    return written and epochs_done(run) == read_config(run).epochs


def has_result(run: Path, weights: Weights) -> bool:
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


def write_weights(run: Path, values: Weights) -> None:
    """Writes `model.safetensors`."""
    with atomic_write(run / "model.safetensors") as file:
        file.write_bytes(safetensors.numpy.save(_contiguous(values)))


def check_dataset(run: Path, dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> None:
    """Raises UserError where the data set is not the one that `begin` described."""
    described = read_dataset(run / "dataset.json")
    for name, value in _described(dataset, mean, std).items():
        if (was := described.get(name)) != value:
            raise UserError(f"{dataset.name} has changed since {run} began: its {name} was {was} and is {value}")


def load_dataset(config: TrainConfig, data_dir: str | None = None) -> Dataset:
    """The data set of a configuration, from another folder where one is given; a bar on a terminal."""
    dataset = data.load(
        config.dataset,
        data_dir or config.data_dir,
        image_size=config.image_size,
        image_fit=config.image_fit,
        progress=sys.stderr.isatty(),
    )
    return data.hold_out(dataset, config.held_out) if config.held_out else dataset


def _described(dataset: Dataset, mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


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
    remove_older_checkpoints(run)


def remove_older_checkpoints(run: Path) -> None:
    """Removes all checkpoints but the latest."""
    for older in _checkpoints(run)[:-1]:
        older.unlink()


def read_checkpoint(run: Path, template: Any, steps: int) -> Any:
    """The latest checkpoint, as a pytree of the structure of `template`; None where there is none.

    Args:
      run: the run directory.
      template: a training state of the same configuration.
      steps: of the whole training.

    Raises:
      UserError: a checkpoint that is damaged or does not fit.
    """
    paths = _checkpoints(run)
    if not paths:
        return None
    leaves, names = read_safetensors(paths[-1]), _named_leaves(template)
    wanted = {name: (np.shape(leaf), np.asarray(leaf).dtype) for name, leaf in names.items()}
    if wanted != {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}:
        raise UserError(f"{paths[-1]} does not fit the model of {run / 'config.json'}")
    if not 0 <= leaves[".step"] <= steps:
        raise UserError(f"{paths[-1]} is of step {leaves['.step']}, but the training has {steps} steps")
    return jax.tree.unflatten(jax.tree.structure(template), [jax.numpy.asarray(leaves[name]) for name in names])


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*.safetensors"))


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # safetensors writes the memory of an array as it lies (np.ascontiguousarray would give a scalar an axis)
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
