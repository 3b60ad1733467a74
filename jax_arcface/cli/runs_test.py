"""Files of a run directory: written whole or not at all, and read back as they were."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jax_arcface.cli import runs
from jax_arcface.data import Dataset, Split
from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.fit import Metrics, TrainState


def state(step, shape=(2, 3)):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + step
    return TrainState(
        jnp.int32(step),
        {"w": jnp.asarray(values)},
        {"mean": jnp.float32(0.5)},
        (jnp.asarray(-values.T),),
        {"center": {"centers": jnp.asarray(2 * values)}},
        Metrics(jnp.float32(2), jnp.float32(3)),
    )


@pytest.fixture
def run(tmp_path):
    runs.create(tmp_path / "run", TrainConfig())
    return tmp_path / "run"


def test_replicas_are_found_in_the_order_of_seed_and_margin(tmp_path):
    configs = {f"seed-{seed}": TrainConfig(seed=seed) for seed in (9, 10, 100)}
    configs |= {f"margin-{margin:g}": TrainConfig(seed=200, margin=margin) for margin in (1e-05, 0.2)}
    for name in ("seed-100", "margin-0.2", "seed-9", "margin-1e-05", "seed-10"):
        runs.create(tmp_path / name, configs[name])
    runs.create(tmp_path / "other", TrainConfig())
    (tmp_path / "seed-5").mkdir()
    assert list(runs.read_replicas(tmp_path).items()) == list(configs.items())
    assert runs.read_replicas(tmp_path / "seed-9") == runs.read_replicas(tmp_path / "nowhere") == {}


# ---- whole or not at all


def write_and_fail(path):
    with atomic_write(path) as file:
        file.write_text("half of the n")
        raise RuntimeError("the writer stumbles")


def test_writer_that_raises_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "note"
    path.write_text("the old one")
    with pytest.raises(RuntimeError, match="stumbles"):
        write_and_fail(path)
    assert path.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["note"]


def test_writer_that_raises_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(RuntimeError, match="stumbles"):
        write_and_fail(tmp_path / "note")
    assert os.listdir(tmp_path) == []


def test_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "note"
    path.write_text("the old one")
    with atomic_write(path) as file:
        file.write_text("the new one")
        assert path.read_text() == "the old one"
    assert path.read_text() == "the new one"
    assert os.listdir(tmp_path) == ["note"]


def test_full_disk_is_told_in_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"note cannot be written: No space left on device$"),
        atomic_write(tmp_path / "note"),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_mode_of_every_file_is_the_umasks(mask, tmp_path):
    before = os.umask(mask)
    try:
        runs.create(tmp_path / "run", TrainConfig())
        runs.write_metrics(tmp_path / "run", [])
        runs.write_weights(tmp_path / "run", {"w": np.ones(3, np.float32)})
        runs.write_checkpoint(tmp_path / "run", state(1))
        runs.write_npz(tmp_path / "run" / "embeddings.npz", labels=np.arange(3))
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) == 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}


# ---- configuration, metrics, data set, weights, arrays


def test_create_takes_an_empty_folder_and_refuses_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    runs.create(tmp_path / "empty", TrainConfig(seed=3))
    assert runs.read_config(tmp_path / "empty") == TrainConfig(seed=3)
    with pytest.raises(UserError, match="holds a run already"):
        runs.create(tmp_path / "empty", TrainConfig(seed=4))
    assert runs.read_config(tmp_path / "empty") == TrainConfig(seed=3)


def test_metrics_come_back(run):
    assert runs.read_metrics(run) == []
    records = [{"epoch": 1, "step": 7, "train_loss": 0.1 + 0.2}, {"epoch": 2, "step": 14, "train_loss": 1e-9}]
    runs.write_metrics(run, records)
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == records
    assert runs.read_metrics(run) == records


def test_description_of_the_data_comes_back(run):
    split = Split(np.zeros((4, 5, 6, 3), np.uint8), np.array([0, 1, 0, 1], np.int32))
    mean, std = np.array([0.1, 0.2, 1 / 3]), np.array([1.0, 2.0, 3.0])
    runs.write_dataset(run, Dataset("pets", split, split, ("cat", "dog")), mean, std)
    described = runs.read_dataset(run)
    assert described["name"] == "pets"
    assert described["image_shape"] == [5, 6, 3]
    assert described["class_names"] == ["cat", "dog"]
    assert described["mean"] == mean.tolist()
    assert described["std"] == std.tolist()


@pytest.mark.parametrize("content", [None, "{"])
def test_description_that_is_missing_or_damaged(content, run):
    if content:
        (run / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        runs.read_dataset(run)


def test_weights_come_back_whatever_their_memory_order(run):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.arange(8.0)[::2]}
    runs.write_weights(run, values)
    found = safetensors.numpy.load_file(run / "model.safetensors")
    np.testing.assert_array_equal(found["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["b"], [0, 2, 4, 6])
    assert found["a"].dtype == np.float32
    assert set(runs.read_weights(run)) == {"a", "b"}


def test_npz_comes_back_without_pickles(tmp_path):
    path = tmp_path / "arrays.npz"
    runs.write_npz(path, labels=np.arange(3), class_names=np.array(["cat", "dog"]))
    assert runs.read_npz(path, ("labels",))["labels"].tolist() == [0, 1, 2]
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["class_names", "labels"]
        assert arrays["class_names"].tolist() == ["cat", "dog"]


def test_npz_of_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", labels=np.array([{}], object))
    with pytest.raises(UserError, match=r"arrays\.npz: labels is not an array of numbers"):
        runs.read_npz(tmp_path / "arrays.npz", ("labels",))


# ---- checkpoints


def test_no_checkpoint_is_none(run):
    assert runs.read_checkpoint(run, state(0)) is None


def test_checkpoint_comes_back_with_its_shapes_and_types(run):
    runs.write_checkpoint(run, state(7))
    found = runs.read_checkpoint(run, state(0))
    assert isinstance(found, TrainState)
    assert (int(found.step), found.step.shape, found.step.dtype) == (7, (), np.int32)
    np.testing.assert_array_equal(found.params["w"], [[7, 8, 9], [10, 11, 12]])
    np.testing.assert_array_equal(found.optimizer[0], [[-7, -10], [-8, -11], [-9, -12]])
    assert (float(found.stats["mean"]), found.stats["mean"].shape) == (0.5, ())


def test_only_the_newest_checkpoint_is_kept(run):
    for step in (9, 99, 100):
        runs.write_checkpoint(run, state(step))
        assert len(os.listdir(run / "checkpoints")) == 1
    assert int(runs.read_checkpoint(run, state(0)).step) == 100


def test_the_old_checkpoint_stays_if_the_new_one_fails(run, monkeypatch):
    runs.write_checkpoint(run, state(9))
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        runs.write_checkpoint(run, state(10))
    assert os.listdir(run / "checkpoints") == ["step_00000009.safetensors"]
    assert int(runs.read_checkpoint(run, state(0)).step) == 9


@pytest.mark.parametrize("template", [state(0, shape=(3, 2)), {"w": jnp.ones((2, 3))}])
def test_checkpoint_of_another_model_is_named(template, run):
    runs.write_checkpoint(run, state(9))
    with pytest.raises(UserError, match=r"step_00000009\.safetensors does not fit the model of .*config\.json$"):
        runs.read_checkpoint(run, template)


def test_damaged_checkpoint_is_named(run):
    (run / "checkpoints" / "step_00000009.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"step_00000009\.safetensors is not a safetensors file that can be read"):
        runs.read_checkpoint(run, state(0))
