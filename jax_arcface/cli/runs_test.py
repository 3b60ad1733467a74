"""Files of a run directory: written whole or not at all, and read back as they were."""

import dataclasses
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jax_arcface import files
from jax_arcface.cli import runs
from jax_arcface.data import Dataset, Split
from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.state import Metrics, TrainState


def state(step, shape=(2, 3)):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + step
    return TrainState(
        jnp.int32(step),
        {"w": jnp.asarray(values)},
        {"mean": jnp.float32(0.5)},
        (jnp.asarray(-values.T),),
        Metrics(jnp.float32(2), jnp.float32(3)),
    )


MEAN, STD = np.array([0.1, 0.2, 1 / 3]), np.array([1.0, 2.0, 3.0])
PETS = Split(np.zeros((4, 5, 6, 3), np.uint8), np.array([0, 1, 0, 1], np.int32))


def begin(out, config=None):
    return runs.begin(out, config or TrainConfig(), Dataset("pets", PETS, PETS, ("cat", "dog")), MEAN, STD)


@pytest.fixture
def run(tmp_path):
    with begin(tmp_path / "run"):
        pass
    return tmp_path / "run"


# ---- the folder


def test_a_run_takes_an_empty_folder_and_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    with begin(tmp_path / "empty", TrainConfig(seed=3)):
        pass
    with pytest.raises(UserError), begin(tmp_path / "empty", TrainConfig(seed=4)):
        pass
    assert runs.read_config(tmp_path / "empty") == TrainConfig(seed=3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    with pytest.raises(UserError), begin(tmp_path / "photos"):
        pass


@pytest.mark.parametrize("number", range(6))
def test_a_folder_is_free_after_a_kill_at_any_moment_before_the_run_has_begun(number, tmp_path, monkeypatch):
    """The process dies between any two changes of the file system."""

    class Killed(BaseException):
        pass

    left = [number]

    def dying(original):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "mkdir", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            with begin(tmp_path / "run", TrainConfig(seed=1)):
                pass
        except Killed:
            assert not runs.holds_run(tmp_path / "run")
    if not runs.holds_run(tmp_path / "run"):
        with begin(tmp_path / "run", TrainConfig(seed=2)):
            pass
        assert runs.read_config(tmp_path / "run") == TrainConfig(seed=2)
    assert files.read_dataset(tmp_path / "run" / "dataset.json")["name"] == "pets"


HOLD = """
import sys, time
from pathlib import Path
from jax_arcface import files
from jax_arcface.cli import runs
with runs.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(run):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError), runs.locked(run):
            pass
        process.kill()
        process.wait()
        with runs.locked(run):
            pass


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
        with begin(tmp_path / "run"):
            pass
        runs.write_metrics(tmp_path / "run", [])
        runs.write_weights(tmp_path / "run", {"w": np.ones(3, np.float32)})
        runs.write_checkpoint(tmp_path / "run", state(1))
        runs.write_npz(tmp_path / "run" / "embeddings.npz", labels=np.arange(3))
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) == 6
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}


# ---- configuration, metrics, data set, weights, arrays


def test_metrics_come_back(run):
    assert runs.read_metrics(run) == []
    records = [{"epoch": 1, "step": 7, "train_loss": 0.1 + 0.2}, {"epoch": 2, "step": 14, "train_loss": 1e-9}]
    runs.write_metrics(run, records)
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == records
    assert runs.read_metrics(run) == records


@pytest.mark.parametrize(
    "record",
    [
        {"epoch": 1},
        {"epoch": 1, "step": True},
        {"epoch": 1, "step": -7},
        {"epoch": 1.0, "step": 7},
        {"epoch": 1, "step": 7, "train_loss": "0.5"},
    ],
)
def test_a_line_that_is_no_record_is_refused(record, run):
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="line 1 of "):
        runs.read_metrics(run)


def test_description_of_the_data(run):
    described = files.read_dataset(run / "dataset.json")
    assert (described["name"], described["image_shape"], described["class_names"]) == (
        "pets",
        [5, 6, 3],
        ["cat", "dog"],
    )
    assert (described["mean"], described["std"]) == (MEAN.tolist(), STD.tolist())


def test_weights_come_back_whatever_their_memory_order(run):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.arange(8.0)[::2]}
    runs.write_weights(run, values)
    found = safetensors.numpy.load_file(run / "model.safetensors")
    np.testing.assert_array_equal(found["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["b"], [0, 2, 4, 6])
    assert found["a"].dtype == np.float32
    assert set(found) == {"a", "b"}


def test_npz_is_without_pickles(tmp_path):
    runs.write_npz(tmp_path / "arrays.npz", labels=np.arange(3), class_names=np.array(["cat", "dog"]))
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["class_names", "labels"]
        assert arrays["class_names"].tolist() == ["cat", "dog"]


# ---- checkpoints


def test_no_checkpoint_is_none(run):
    assert runs.read_checkpoint(run, state(0), 100) is None


def test_checkpoint_comes_back_with_its_shapes_and_types(run):
    runs.write_checkpoint(run, state(7))
    found = runs.read_checkpoint(run, state(0), 100)
    assert isinstance(found, TrainState)
    assert (int(found.step), found.step.shape, found.step.dtype) == (7, (), np.int32)
    np.testing.assert_array_equal(found.params["w"], [[7, 8, 9], [10, 11, 12]])
    np.testing.assert_array_equal(found.optimizer[0], [[-7, -10], [-8, -11], [-9, -12]])
    assert (float(found.stats["mean"]), found.stats["mean"].shape) == (0.5, ())


def test_only_the_newest_checkpoint_is_kept(run):
    for step in (9, 99, 100):
        runs.write_checkpoint(run, state(step))
        assert len(os.listdir(run / "checkpoints")) == 1
    assert int(runs.read_checkpoint(run, state(0), 100).step) == 100


def test_the_old_checkpoint_stays_if_the_new_one_fails(run, monkeypatch):
    runs.write_checkpoint(run, state(9))
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        runs.write_checkpoint(run, state(10))
    assert os.listdir(run / "checkpoints") == ["step_00000009.safetensors"]
    assert int(runs.read_checkpoint(run, state(0), 100).step) == 9


@pytest.mark.parametrize(
    "template",
    [
        state(0, shape=(3, 2)),
        {"w": jnp.ones((2, 3))},
        dataclasses.replace(state(0), params={"w": jnp.ones((2, 3), jnp.float16)}),
    ],
)
def test_checkpoint_of_another_model_is_named(template, run):
    runs.write_checkpoint(run, state(9))
    with pytest.raises(UserError, match=r"step_00000009\.safetensors does not fit the model of .*config\.json$"):
        runs.read_checkpoint(run, template, 100)


def test_damaged_checkpoint_is_named(run):
    (run / "checkpoints" / "step_00000009.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match=r"step_00000009\.safetensors is not a safetensors file that can be read"):
        runs.read_checkpoint(run, state(0), 100)


@pytest.mark.parametrize("step", [-5, 101])
def test_checkpoint_of_a_step_that_the_training_does_not_have(step, run):
    runs.write_checkpoint(run, state(9))
    (path,) = (run / "checkpoints").iterdir()
    safetensors.numpy.save_file(safetensors.numpy.load_file(path) | {".step": np.full((), step, np.int32)}, path)
    with pytest.raises(UserError):
        runs.read_checkpoint(run, state(0), 100)


def test_checkpoint_of_numbers_that_are_not_finite(run):
    runs.write_checkpoint(run, dataclasses.replace(state(9), params={"w": jnp.full((2, 3), jnp.nan)}))
    with pytest.raises(UserError):
        runs.read_checkpoint(run, state(0), 100)
