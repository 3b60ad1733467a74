"""`train` end to end, as a new user would try it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from sklearn.datasets import load_digits

from jax_arcface.__main__ import main
from jax_arcface.cli import runs
from jax_arcface.cli.progress import Progress
from jax_arcface.cli.train import parse
from jax_arcface.training import fit as training
from jax_arcface.training.config import TrainConfig

STEPS = 33


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def assert_same_weights(one, other):
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def numpy_accuracy(run):
    with np.load(run / "embeddings.npz") as arrays:
        x, w = (arrays[name].astype(np.float64) for name in ("embeddings", "prototypes"))
        cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
        return np.mean(cosine.argmax(axis=1) == arrays["labels"])


def records_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---- mistakes


@pytest.mark.parametrize(
    "line",
    [
        "--dataset minst",
        "--backbone vit",
        "--loss arcfac",
        "--loss arcface:0.3",
        "--optimizer adam",
        "--scale 0",
        "--margin 4",
        "--loss norm_softmax --margin 0.5",
        "--epochs -1",
        "--epochs three",
        "--epochs",
        "--lr nan",
        "--batch-size 1439",
        "--image-size 4",
        "--classes-per-batch 16",
        "--checkpoint-every -1",
        "--config missing.json",
        "--resume",
        "--resume --out missing",
        "--data-dir somewhere",
        "--dataset mnist",
    ],
)
def test_a_mistake_leaves_no_run(line, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit_config", lambda *args: pytest.fail("a training began"))
    refused("train", *line.split())
    assert not (tmp_path / "runs").exists()
    if "--out" not in line and "--resume" not in line:
        refused("train", *line.split(), "--out", "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--lr 0", "--learning-rate"),
        ("--bs 1439", "--batch-size"),
        ("--margin 4", "--margin"),
        ("--image-size 0", "--image-size"),
        ("--loss cosface --beyond-pi wrap", "--beyond-pi"),
    ],
)
def test_mistakes_are_named_by_their_flags(line, flag, refused):
    assert refused("train", *line.split()).startswith(f"jax_arcface: {flag} ")


@pytest.mark.parametrize("text", ["{", "[3]", '{"epoch": 3}', '{"epochs": "3"}', '{"margin": 9}', "\udcff"])
def test_mistakes_in_a_config_file(text, refused, tmp_path):
    (tmp_path / "mine.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "mine.json" in refused("train", "--config", "mine.json")


def test_a_folder_of_other_things_is_left_alone(refused, trained, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    (tmp_path / "note").touch()
    for out in ("photos", "note", "note/run", trained):
        refused("train", "--out", out)
    assert files_below(tmp_path) == ["note", "photos/1.png"]


def test_tensorboard_that_is_not_installed(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused("train", "--tensorboard", "--out", "new")
    assert not (tmp_path / "new").exists()


# ---- what a training leaves


def test_the_run_directory(trained):
    assert files_below(trained) == [
        f"checkpoints/step_{STEPS:08d}.safetensors",
        "config.json",
        "dataset.json",
        "embeddings.npz",
        "embeddings.png",
        "metrics.jsonl",
        "model.safetensors",
    ]
    config = json.loads((trained / "config.json").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert config.items() >= {"dataset": "digits", "width": 0.125, "embedding_dim": 16, "epochs": 3}.items()
    described = json.loads((trained / "dataset.json").read_text())
    assert (described["image_shape"], described["class_names"]) == ([8, 8, 1], list("0123456789"))
    umask = os.umask(0)
    os.umask(umask)
    for file in files_below(trained):
        assert (trained / file).stat().st_mode & 0o777 == 0o666 & ~umask, file
    with Image.open(trained / "embeddings.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_metrics_are_a_line_an_epoch(trained):
    records = records_of(trained)
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 11), (2, 22), (3, 33)]
    assert all(np.isfinite(value) for record in records for value in record.values())
    assert records[-1]["test_accuracy"] == numpy_accuracy(trained)
    assert records[-1]["train_accuracy"] > records[0]["train_accuracy"] + 0.2


def test_embeddings_are_of_the_test_split(trained):
    with np.load(trained / "embeddings.npz") as arrays:
        assert arrays["embeddings"].shape == (359, 16)
        weights = safetensors.numpy.load_file(trained / "model.safetensors")
        np.testing.assert_array_equal(arrays["prototypes"], weights["head.prototypes"])
        # a fifth of each class
        whole = np.bincount(load_digits().target)
        np.testing.assert_array_equal(np.bincount(arrays["labels"]), np.round(whole / 5))


def test_the_configuration_of_an_old_run_gives_it_again(trained, tmp_path, capsys):
    assert main(["train", "--config", str(trained / "config.json"), "--out", "again"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"test accuracy {100 * numpy_accuracy(trained):.2f} %" in said.out
    assert len(re.findall(r"^epoch \d/3  loss ", said.out, re.MULTILINE)) == 3
    assert_same_weights(tmp_path / "again", trained)
    assert (tmp_path / "again" / "config.json").read_text() == (trained / "config.json").read_text()


def test_no_epochs_are_the_first_weights(little, tmp_path):
    assert main(["train", *little[:-1], "0", "--out", "untrained"]) == 0
    weights = safetensors.numpy.load_file(tmp_path / "untrained" / "model.safetensors")
    assert set(weights["backbone.stages.0.prelu1.weight"]) == {np.float32(0.25)}


def test_two_trainings_in_one_second_get_two_folders(little, tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *args: "20260101-000000")
    for _ in range(2):
        assert main(["train", *little[:-1], "0"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["20260101-000000-digits-arcface", "20260101-000000-digits-arcface-2"]


def test_without_matplotlib_there_is_no_picture(little, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", *little[:-1], "0", "--out", "plain"]) == 0
    assert not (tmp_path / "plain" / "embeddings.png").exists()


def test_tensorboard_events_can_be_read(little, tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    assert main(["train", *little, "--tensorboard", "--out", "run"]) == 0
    assert "tensorboard --logdir run" in capsys.readouterr().out
    (file,) = (tmp_path / "run").glob("events.out.tfevents.*")
    events = read_events(file)
    for record in records_of(tmp_path / "run"):
        for key in record.keys() - {"epoch", "step"}:
            assert events[record["step"], key] == np.float32(record[key])


def read_events(file):
    """The scalars of a TensorBoard file, a TFRecord of protocol buffers, by step and name."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    content, at, scalars = file.read_bytes(), 0, {}
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
        scalars |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return scalars


def test_a_loss_that_is_not_finite_is_status_1(little, capsys):
    words = ["--optimizer", "sgd", "--warmup-epochs", "0", "--learning-rate", "1e38", "--out", "run"]
    assert main(["train", *little, *words]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- interrupted, resumed, extended


@pytest.fixture
def heeded_interrupt():
    """Ctrl-C as at a terminal: a shell starts programs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ctrl_c_after(at_epoch, at_step, times=1):
    original = Progress.on_step

    def on_step(self, epoch, step, metrics):
        original(self, epoch, step, metrics)
        if (epoch, step) == (at_epoch, at_step):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "on_step", on_step)
        yield


@pytest.mark.usefixtures("heeded_interrupt")
@pytest.mark.parametrize(("epoch", "step"), [(1, 4), (0, 11), (0, 1)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(epoch, step, little, trained, tmp_path, refused):
    run, handler, done = tmp_path / "run", signal.getsignal(signal.SIGINT), 11 * epoch + step
    with ctrl_c_after(epoch, step):
        assert main(["train", *little, "--out", "run"]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    metrics = ["metrics.jsonl"] if done >= 11 else []
    assert files_below(run) == [f"checkpoints/step_{done:08d}.safetensors", "config.json", "dataset.json", *metrics]
    refused("evaluate", "run")
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert_same_weights(run, trained)
    assert files_below(run) == files_below(trained)
    assert [record["epoch"] for record in records_of(run)] == [1, 2, 3]


@pytest.mark.usefixtures("heeded_interrupt")
def test_a_second_ctrl_c_ends_at_once(little, capsys):
    with ctrl_c_after(0, 1, times=2):
        assert main(["train", *little, "--out", "run"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_resuming_an_ended_run_changes_nothing(run_copy, capsys):
    before = {file: (run_copy / file).stat().st_mtime_ns for file in files_below(run_copy)}
    for _ in range(2):
        assert main(["train", "--resume", "--out", str(run_copy)]) == 0
        assert {file: (run_copy / file).stat().st_mtime_ns for file in before} == before
        shutil.rmtree(run_copy / "checkpoints")  # as after --checkpoint-every 0
        before = {file: stamp for file, stamp in before.items() if not file.startswith("checkpoints")}
        (run_copy / "checkpoints").mkdir(exist_ok=True)


def be_of_fewer_steps(run):
    values = safetensors.numpy.load_file(run / "model.safetensors")
    safetensors.numpy.save_file({name: value + 1 for name, value in values.items()}, run / "model.safetensors")


def leave_an_older_checkpoint(run):
    (path,) = (run / "checkpoints").iterdir()
    shutil.copy(path, run / "checkpoints" / "step_00000011.safetensors")


@pytest.mark.parametrize(
    "harm", [lambda run: (run / "embeddings.npz").unlink(), be_of_fewer_steps, leave_an_older_checkpoint]
)
def test_a_training_killed_while_it_wrote_its_result_writes_it(harm, run_copy, trained):
    harm(run_copy)
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert_same_weights(run_copy, trained)
    assert files_below(run_copy) == files_below(trained)


def test_without_a_checkpoint_an_unfinished_run_begins_anew(run_copy, trained):
    shutil.rmtree(run_copy / "checkpoints")
    (run_copy / "embeddings.npz").unlink()
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert_same_weights(run_copy, trained)
    assert len(records_of(run_copy)) == 3


def test_a_finished_run_is_extended(little, tmp_path, capsys, refused):
    """With a constant learning rate, as if it had had so many epochs from the start."""
    flags = [*little[:-1], "2", "--schedule", "constant", "--warmup-epochs", "0.5", "--margin-warmup-epochs", "0.5"]
    assert main(["train", *flags, "--out", "run"]) == 0
    assert main(["train", "--resume", "--epochs", "3", "--out", "run"]) == 0
    assert "learning rate" in capsys.readouterr().out
    assert main(["train", *flags, "--epochs", "3", "--out", "whole"]) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    for name in ("config.json", "dataset.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    same = ("epoch", "step", "train_loss", "test_loss", "test_accuracy", "learning_rate")
    here, there = ([[r[key] for key in same] for r in records_of(tmp_path / name)] for name in ("run", "whole"))
    assert here == there
    refused("train", "--resume", "--epochs", "2", "--out", "run")  # three are behind it
    # killed after its last epoch, before it wrote its weights: it has not ended
    state = runs.read_config(tmp_path / "run")
    (tmp_path / "run" / "evaluation-unseen.json").write_text("{}")
    runs.extend(tmp_path / "run", dataclasses.replace(state, epochs=3))
    assert not runs.is_finished(tmp_path / "run")
    assert not list((tmp_path / "run").glob("evaluation*"))  # what was measured was of another model
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert runs.is_finished(tmp_path / "run")


@pytest.mark.parametrize("flags", ["--scale 20", "--seed 1", "--loss cosface", "--rotate 0.3"])
def test_a_run_is_not_resumed_as_another(flags, refused, trained):
    assert refused("train", "--resume", *flags.split(), "--out", trained).startswith(f"jax_arcface: {flags.split()[0]}")


def lose_metrics(run):
    (run / "metrics.jsonl").unlink()


def lose_a_line(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))


def double_the_steps(run):
    records = [record | {"step": 2 * record["step"]} for record in records_of(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def change_the_step(step):
    def change(run):
        (path,) = (run / "checkpoints").iterdir()
        safetensors.numpy.save_file(safetensors.numpy.load_file(path) | {".step": np.full((), step, np.int32)}, path)

    return change


def change_the_data(run):
    described = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(described | {"name": "other"}))


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("harm", [lose_metrics, lose_a_line, double_the_steps])
def test_metrics_that_do_not_fit_are_a_mistake(harm, checkpoint, run_copy, refused):
    if not checkpoint:
        shutil.rmtree(run_copy / "checkpoints")
    harm(run_copy)
    assert "metrics.jsonl" in refused("train", "--resume", "--out", run_copy)


@pytest.mark.parametrize("harm", [change_the_step(-5), change_the_step(9999), change_the_data])
def test_a_run_that_does_not_fit_itself_is_a_mistake(harm, run_copy, refused):
    harm(run_copy)
    refused("train", "--resume", "--out", run_copy)


# what a training that was killed before `dataset.json` was written can leave
REMNANTS = {
    "checkpoints": lambda run: (run / "checkpoints").mkdir(parents=True),
    "configuration": lambda run: runs.write_config(run, parse(["--width", "0.125", "--epochs", "0"])[0]),
    "temporary file": lambda run: (
        (run / "checkpoints").mkdir(parents=True) or (run / ".config.json.12345").write_text("{")
    ),
}


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("leave", REMNANTS.values(), ids=REMNANTS.keys())
def test_what_was_killed_before_it_began_is_begun_again(leave, resume, tmp_path):
    leave(tmp_path / "run")
    assert main(["train", *resume, "--width", "0.125", "--epochs", "0", "--out", "run"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["width"] == 0.125
    assert not [file for file in files_below(tmp_path / "run") if "/." in f"/{file}"]


def test_what_a_killed_training_left_half_written_is_removed(run_copy):
    for file in (".metrics.jsonl.123", "checkpoints/.step_00000044.safetensors.9"):
        (run_copy / file).write_bytes(b"half")
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert not list(run_copy.rglob(".*"))


def test_two_processes_do_not_train_in_one_run(run_copy, refused):
    descriptor = os.open(run_copy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as another process would hold it
    try:
        refused("train", "--resume", "--out", run_copy)
    finally:
        os.close(descriptor)
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0


OWN = """
from flax import nnx

class Own(nnx.Module):
    def __init__(self, image_shape, embedding_dim, *, rngs, dropout=0.0):
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(64, embedding_dim, rngs=rngs)
        self.bias = nnx.Param(0.5 + 0 * self.out.bias[...])

    def __call__(self, x):
        return self.out(self.dropout(x.reshape(x.shape[0], -1))) + self.bias
"""


@pytest.mark.slow
def test_an_own_network_is_trained_and_only_a_trusted_one_loaded(monkeypatch, tmp_path, refused):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--backbone", "mine:Own", "--dropout", "0.1", "--embedding-dim", "8", "--batch-size", "256"]
    assert main(["train", *flags, "--epochs", "0", "--out", "start"]) == 0
    start = safetensors.numpy.load_file("start/model.safetensors")
    assert (start["backbone.bias"] == 0.5).all()  # as it was made, not as the recipe has it
    assert main(["train", *flags, "--epochs", "2", "--out", "run"]) == 0
    trained = safetensors.numpy.load_file("run/model.safetensors")
    assert trained.keys() == start.keys()
    assert np.abs(trained["backbone.out.weight"] - start["backbone.out.weight"]).max() > 1e-3
    del sys.modules["mine"]
    refused("embed", "run", "digits")
    assert "mine" not in sys.modules
    monkeypatch.setenv("ARCFACE_MODULES", "mine")
    assert main(["embed", "run", "digits", "--out", "again.npz"]) == 0
    np.testing.assert_allclose(
        np.load("again.npz")["embeddings"], np.load("run/embeddings.npz")["embeddings"], atol=1e-5
    )
