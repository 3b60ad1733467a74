import dataclasses
import json
import shutil

import numpy as np
import pytest

from jax_arcface.cli import runs as jax_runs
from parity_tests.cases.evaluation import runs
from torch_reference.cli import runs as torch_runs

BOTH = (jax_runs, torch_runs)


@pytest.fixture(scope="module")
def pair():
    return runs().pair


def test_the_same_files(pair):
    here, there = ({str(p.relative_to(run)) for p in run.rglob("*")} for run in pair)
    assert here == there


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_the_same_json(name, pair):
    here, there = (json.loads((run / name).read_text()) for run in pair)
    assert here == there


def test_metrics_have_the_same_keys(pair):
    here, there = (jax_runs.read_metrics(run) for run in pair)
    assert [list(line) for line in here] == [list(line) for line in there]


def test_metrics_have_the_same_numbers():
    here, there = (jax_runs.read_metrics(run) for run in runs("short").pair)
    assert len(here) == len(there) == 2
    one_image = {"train_accuracy": 1 / 1024, "test_accuracy": 1 / 359}
    for one, other in zip(here, there, strict=True):
        for key in set(one) - {"seconds", "images_per_second"}:
            # float32, 64 ulp as everywhere; in an accuracy one image may lie between two classes
            bound = {"rtol": 64 * np.finfo(np.float32).eps, "atol": one_image.get(key, 0)}
            np.testing.assert_allclose(one[key], other[key], **bound, err_msg=key)


def test_the_same_tensors(pair):
    here, there = (jax_runs.read_weights(run) for run in pair)
    assert {n: (a.shape, a.dtype) for n, a in here.items()} == {n: (a.shape, a.dtype) for n, a in there.items()}


def test_the_same_arrays_of_embeddings(pair):
    loaded = []
    for run in pair:
        with np.load(run / "embeddings.npz") as file:
            loaded.append({name: (file[name].shape, file[name].dtype.kind) for name in file.files})
    assert loaded[0] == loaded[1]


@pytest.mark.parametrize("trained_by", [0, 1])
def test_each_reads_the_others_run(trained_by, pair):
    run = pair[trained_by]
    assert dataclasses.asdict(jax_runs.read_config(run)) == dataclasses.asdict(torch_runs.read_config(run))
    assert jax_runs.read_dataset(run) == torch_runs.read_dataset(run)
    assert jax_runs.read_metrics(run) == torch_runs.read_metrics(run)
    here, there = jax_runs.read_weights(run), torch_runs.read_weights(run)
    assert set(here) == set(there)
    assert all(np.array_equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("harm", ["no config", "no weights", "no dataset", "damaged weights", "damaged dataset"])
def test_the_same_harm_has_the_same_message(harm, pair, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pair[0], run)
    kind, what = harm.split()
    name = {"config": "config.json", "weights": "model.safetensors", "dataset": "dataset.json"}[what]
    (run / name).unlink()
    if kind == "damaged":
        (run / name).write_bytes(b"{")
    messages = []
    for module in BOTH:
        with pytest.raises(ValueError, match=name) as caught:
            {"config": module.read_config, "weights": module.read_weights, "dataset": module.read_dataset}[what](run)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
