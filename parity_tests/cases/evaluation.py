"""Predictions: of the same embeddings, and of models trained by one program and loaded by the other."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import torch_reference
from jax_arcface import data as jax_data
from jax_arcface import evaluation as jax_evaluation
from jax_arcface.cli import train as jax_train
from jax_arcface.losses.terms import arcface
from jax_arcface.models.trained import load_model as jax_load_model
from jax_arcface.training import config as jax_config
from parity_tests.cases import Case
from parity_tests.cases.losses import batch
from parity_tests.compare import Difference, difference
from torch_reference import data as torch_data
from torch_reference import evaluation as torch_evaluation
from torch_reference.cli import commands as torch_commands
from torch_reference.models import trained as torch_trained
from torch_reference.training import config as torch_config

_SMALL: dict[str, Any] = {"width": 0.25, "embedding_dim": 16, "warmup_epochs": 0.5}
FIELDS: dict[str, dict[str, Any]] = {
    # 93 to 95 % of the test images over three seeds, whichever program trains
    "trained": _SMALL | {"epochs": 6, "learning_rate": 0.01},
    # four steps in two epochs: at this learning rate rounding has not grown by then
    "short": _SMALL | {"epochs": 2, "learning_rate": 0.003, "batch_size": 512},
}


class Runs(NamedTuple):
    """Two run directories by the same configuration, and the temporary folder of both, deleted when this value is."""

    folder: tempfile.TemporaryDirectory
    by_jax: Path
    by_torch: Path

    @property
    def pair(self) -> tuple[Path, Path]:
        """The run of `jax_arcface`, and that of `torch_reference`."""
        return self.by_jax, self.by_torch


@functools.cache
def runs(name: str = "trained") -> Runs:
    """Both programs' run directories on digits by the configuration `FIELDS[name]`."""
    folder = tempfile.TemporaryDirectory()
    made = Runs(folder, Path(folder.name) / "jax", Path(folder.name) / "torch")
    fields = FIELDS[name]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        jax_train.train(jax_config.from_dict(fields), jax_train.RunOptions(out=made.by_jax))
        torch_commands.train(torch_commands.TrainOptions(training=torch_config.from_dict(fields), out=made.by_torch))
    return made


def predictions(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Predictions for every test image of digits by the model of a run, as each program loads it."""
    model = jax_load_model(run)
    here = model.predict(jax_data.load("digits").test.images)
    twin = torch_trained.load_model(run)
    there = twin.predict(torch_data.load("digits").test.images)
    return here, np.asarray(there)


def _exchanged(trained_by: int) -> Iterator[Difference]:
    here, there = predictions(runs().pair[trained_by])
    assert len(here) == len(jax_data.load("digits").test.labels)
    yield difference("predictions", here, there)


def _embeddings(trained_by: int) -> Iterator[Difference]:
    run = runs().pair[trained_by]
    here = jax_load_model(run).embed(jax_data.load("digits").test.images)
    there = torch_trained.load_model(run).embed(torch_data.load("digits").test.images)
    yield difference("embeddings", here, np.asarray(there))


def _predict() -> Iterator[Difference]:
    for subcenters in (1, 3):
        x, w, _ = batch("float32", subcenters)
        x[4], x[5] = w[2].reshape(-1, w.shape[-1])[0], 0  # the zero vector is equally near to all
        there = torch_evaluation.predict(x, w, block_size=7)
        yield difference(f"{subcenters} sub-centres", jax_evaluation.predict(x, w, block_size=5), np.asarray(there))


def _linear() -> Iterator[Difference]:
    x, w, _ = batch("float32")
    bias = np.linspace(-8, 8, len(w)).astype(np.float32)
    there = torch_evaluation.predict(x, w, bias, block_size=7)
    yield difference("with a bias", jax_evaluation.predict(x, w, bias, block_size=5), np.asarray(there))


def _class_means() -> Iterator[Difference]:
    x, w, y = batch("float32")
    there = torch_evaluation.class_means(x, y, len(w) + 1)  # a class without an example
    yield difference("means", jax_evaluation.class_means(x, y, len(w) + 1), np.asarray(there))


def _accuracy() -> Iterator[Difference]:
    x, w, y = batch("float32")
    here = jax_evaluation.accuracy(x, w, y)
    yield difference("accuracy", np.float64(here), np.float64(torch_evaluation.accuracy(x, w, y)))


def _mean_loss() -> Iterator[Difference]:
    x, w, y = batch("float32")
    here = jax_evaluation.mean_loss(arcface(scale=16.0), {"prototypes": w}, x, y, block_size=7)
    assert here is not None
    there = torch_evaluation.mean_loss(torch_reference.arcface(scale=16.0), {"prototypes": w}, x, y, block_size=10)
    assert there is not None
    yield difference("loss", np.float32(here), np.float32(there))


def _clustered() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of seven classes, with duplicates and equal scores, one of the classes with a single example."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 300)
    x = rng.normal(size=(6, 8))[labels] + rng.normal(size=(300, 8))
    x[10:40] = np.round(x[10:40])  # whole numbers: some cosines are equal
    x[5], x[17], labels[5], labels[299] = x[3], x[11], labels[3], 9
    return x, labels


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", -1.0 if value is None else float(value)


def _protocol(name: str) -> Iterator[Difference]:
    x, y = _clustered()
    used = slice(0, 299) if name == "angles" else slice(None)  # the prototypes are of six classes
    prototypes = {"prototypes": np.eye(6, 8)} if name == "angles" else {}
    here = jax_evaluation.PROTOCOLS[name](jax_evaluation.Embedded(x[used], y[used], prototypes))
    there = torch_evaluation.PROTOCOLS[name](torch_evaluation.Evaluated(x[used], y[used], prototypes))
    found = dict(_numbers(there))
    assert [key for key, _ in _numbers(here)] == list(found)
    for key, value in _numbers(here):
        yield difference(key, np.float64(value), np.float64(found[key]))


def _pairs() -> Iterator[Difference]:
    _, labels = _clustered()
    for seed in (0, 1):
        here, there = (e.draw_pairs(labels, count=600, folds=5, seed=seed) for e in (jax_evaluation, torch_evaluation))
        for part in ("first", "second", "same", "fold"):
            yield difference(part, getattr(here, part), np.asarray(getattr(there, part)))


def _open_set() -> Iterator[Difference]:
    x, y = _clustered()
    gallery, probes = (x[:60][y[:60] < 4], y[:60][y[:60] < 4]), (x[60:], y[60:])
    here, there = (e.identify(gallery, probes, fpirs=(0.3, 0.1, 0.01)) for e in (jax_evaluation, torch_evaluation))
    yield difference("CMC", here.cmc, np.asarray(there.cmc))
    for rate in here.tpir_at_fpir:
        one, other = (-1.0 if e.tpir_at_fpir[rate] is None else e.tpir_at_fpir[rate] for e in (here, there))
        yield difference(f"TPIR @ {rate}", np.float64(one), np.float64(other))


_PROGRAMS = ("jax_arcface", "torch_reference")

CASES = [
    Case("predictions of the same embeddings", "evaluation", "float32", 0.0, _predict, "exact", ("predict",)),
    Case("predictions of a linear classifier", "evaluation", "float32", 0.0, _linear, "exact"),
    Case("class means", "evaluation", "float32", 64.0, _class_means, "ulp", ("class_means",)),
    Case("accuracy", "evaluation", "float32", 0.0, _accuracy, "exact", ("accuracy",)),
    Case("mean loss", "evaluation", "float32", 64.0, _mean_loss, "ulp", ("mean_loss",)),
    Case("drawn pairs", "evaluation", "int64", 0.0, _pairs, "exact", ("draw_pairs",)),
    *(
        Case(f"protocol {name}", "evaluation", "float64", 1e-12, functools.partial(_protocol, name))
        for name in jax_evaluation.PROTOCOLS
    ),
    Case("identification in an open set", "evaluation", "float64", 1e-12, _open_set),
    *(
        Case(
            f"digits, trained by {_PROGRAMS[by]}, loaded by both: every test prediction",
            "evaluation",
            "float32",
            0.0,
            functools.partial(_exchanged, by),
            "exact",
        )
        for by in (0, 1)
    ),
    *(
        Case(
            f"digits, trained by {_PROGRAMS[by]}, loaded by both: test embeddings",
            "evaluation",
            "float32",
            64.0,
            functools.partial(_embeddings, by),
            "ulp",
        )
        for by in (0, 1)
    ),
]
