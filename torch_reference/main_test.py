"""Tests of the command line: what it writes, and how it answers mistakes."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from sklearn.datasets import load_digits

from torch_reference import data
from torch_reference.__main__ import COMMANDS, main
from torch_reference.cli import commands, runs
from torch_reference.cli.arguments import flag
from torch_reference.files import read_npz
from torch_reference.losses.registry import LOSSES
from torch_reference.training import config
from torch_reference.training.config import TrainConfig

SMALL = ["--width", "0.1", "--embedding-dim", "8", "--batch-size", "200", "--warmup-epochs", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *SMALL, "--epochs", "2", "--out", str(out)]) == 0
    return out


def complaint(capsys, *words):
    """The one line that the program answers a mistake with."""
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("torch_reference: ")
    assert error.count("\n") == 1
    return error.removeprefix("torch_reference: ").rstrip()


# ---- what is written


def test_a_run_directory_is_whole(run):
    names = ["checkpoints", "config.json", "dataset.json", "embeddings.npz", "embeddings.png", "metrics.jsonl"]
    assert sorted(path.name for path in run.iterdir()) == [*names, "model.safetensors"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000014.safetensors"]
    written = json.loads((run / "config.json").read_text())
    changes = {"width": 0.1, "embedding_dim": 8, "batch_size": 200, "warmup_epochs": 0.0}
    assert written == dataclasses.asdict(config.recipe("digits", epochs=2)) | changes
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 7), (2, 14)]
    assert list(records[0])[2:] == [
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "learning_rate",
        "images_per_second",
        "seconds",
    ]
    described = json.loads((run / "dataset.json").read_text())
    assert (described["name"], described["image_shape"], len(described["class_names"])) == ("digits", [8, 8, 1], 10)
    with np.load(run / "embeddings.npz", allow_pickle=False) as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            "embeddings": (359, 8),
            "labels": (359,),
            "prototypes": (10, 8),
            "class_names": (10,),
        }
    weights = safetensors.numpy.load_file(run / "model.safetensors")
    assert weights["backbone.stages.0.conv1.weight"].shape == (3, 1, 5, 5)
    assert (run / "embeddings.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluate_a_run_and_its_embeddings(run, tmp_path, capsys):
    out = shutil.copytree(run, tmp_path / "run")
    assert main(["evaluate", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train"]) == 0
    assert main(["evaluate", str(out / "embeddings.npz")]) == 0
    names = ("evaluation.json", "evaluation-train.json", "embeddings.evaluation.json")
    test, train, file = (json.loads((out / name).read_text()) for name in names)
    last = runs.read_metrics(run)[-1]
    assert test["accuracy"] == file["accuracy"] == last["test_accuracy"]
    assert test["loss"] == pytest.approx(last["test_loss"], rel=1e-6)
    protocols = {"verification", "identification", "retrieval", "angles", "health"}
    assert test.keys() == train.keys() == {"dataset", "split", "examples", "accuracy", "loss", *protocols}
    assert (test["split"], train["split"], train["examples"]) == ("test", "train", 1438)
    assert file.keys() == {"examples", "accuracy", *protocols}
    assert file["retrieval"] == test["retrieval"]
    said = capsys.readouterr().out
    assert f"{test['accuracy']:.2%}" in said
    assert "unfinished" not in said


def test_embed_a_data_set_and_images(run, tmp_path, capsys):
    assert main(["embed", str(run), "digits", "--out", str(tmp_path / "digits.npz")]) == 0
    held = ("embeddings", "labels", "prototypes", "class_names")
    embedded = read_npz(tmp_path / "digits.npz", ("predictions", *held))
    for name, array in read_npz(run / "embeddings.npz", held).items():
        np.testing.assert_array_equal(embedded[name], array)
    share = (embedded["predictions"] == embedded["labels"]).mean()
    assert share == pytest.approx(runs.read_metrics(run)[-1]["test_accuracy"])
    out = shutil.copytree(run, tmp_path / "run")
    capsys.readouterr()
    assert main(["embed", str(out), str(run / "embeddings.png")]) == 0
    one = read_npz(out / "embeddings-embeddings.npz", ("files", "predictions"))
    assert one["files"].tolist() == ["embeddings.png"]
    assert capsys.readouterr().out.startswith(f"embeddings.png  {one['predictions'][0]}\n")
    held = ("embeddings", "labels", "prototypes")
    assert main(["embed", str(out), "digits", "--split", "train"]) == 0
    assert len(read_npz(out / "embeddings-digits-train.npz", held)["labels"]) == 1438


def test_a_linear_classifier_carries_its_bias(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--loss", "softmax+center", "--learning-rate", "0.005", "--epochs", "2", "--out", str(out)]
    assert main(["train", *SMALL, *words]) == 0
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    arrays = read_npz(out / "embeddings.npz", ("embeddings", "labels", "prototypes"), optional=("bias", "nothing"))
    np.testing.assert_array_equal(arrays["bias"], weights["head.bias"])
    assert arrays["bias"].any()
    assert sorted(arrays) == ["bias", "embeddings", "labels", "prototypes"]
    predicted = (arrays["embeddings"] @ arrays["prototypes"].T + arrays["bias"]).argmax(axis=1)
    share = (predicted == arrays["labels"]).mean()
    assert runs.read_metrics(out)[-1]["test_accuracy"] == pytest.approx(share)
    for path, name in ((out, "evaluation.json"), (out / "embeddings.npz", "embeddings.evaluation.json")):
        assert main(["evaluate", str(path), "--out", str(tmp_path / "e")]) == 0
        found = json.loads((tmp_path / "e" / name).read_text())
        assert found["accuracy"] == pytest.approx(share)
        assert ("loss" in found) == (path == out)
    assert main(["embed", str(out), "digits", "--out", str(tmp_path / "digits.npz")]) == 0
    embedded = read_npz(tmp_path / "digits.npz", ("predictions", "bias"))
    np.testing.assert_array_equal(embedded["predictions"], predicted)
    assert main(["evaluate", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e" / "digits.evaluation.json").read_text())["accuracy"] == pytest.approx(share)


def test_pair_losses_classify_by_the_class_means(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--loss", "triplet:mining=hard", "--epochs", "1", "--out", str(out)]) == 0
    assert runs.read_config(out).classes_per_batch == 8
    assert main(["embed", str(out), "digits", "--split", "train", "--out", str(tmp_path / "train.npz")]) == 0
    train = read_npz(tmp_path / "train.npz", ("embeddings", "labels", "prototypes"))
    unit = train["embeddings"] / np.linalg.norm(train["embeddings"], axis=1, keepdims=True)
    means = [unit[train["labels"] == j].mean(axis=0) for j in range(10)]
    np.testing.assert_allclose(train["prototypes"], means, rtol=1e-4, atol=1e-6)
    assert main(["evaluate", str(out)]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert found["accuracy"] == runs.read_metrics(out)[-1]["test_accuracy"]
    assert "loss" not in found


def test_a_run_is_named_after_its_data_and_its_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--loss", "triplet:0.5,m=0.3,mining=hard+arcface", "--margin", "0.2", "--epochs", "0"]
    assert main(["train", *SMALL, *words]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-digits-triplet-0.5-m=0.3-mining=hard+arcface")


def test_one_seed_one_trajectory_and_another_way_to_say_it(run, tmp_path):
    out = tmp_path / "again"
    words = [f"--config={run / 'config.json'}", "--deterministic", "--no-tensorboard", "--checkpoint_every=0"]
    assert main(["train", *words, "--out", str(out)]) == 0
    one, other = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (run, out))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert not list((out / "checkpoints").iterdir())
    assert not torch.are_deterministic_algorithms_enabled()


def interrupt_at(monkeypatch, epoch, step):
    """Presses Ctrl-C after a step."""
    shown = commands.Progress.on_step

    def interrupted(self, its_epoch, number, metrics):
        shown(self, its_epoch, number, metrics)
        if (its_epoch, number) == (epoch, step):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(commands.Progress, "on_step", interrupted)


def untimed(run):
    return [{key: r[key] for key in r.keys() - {"images_per_second", "seconds"}} for r in runs.read_metrics(run)]


def test_ctrl_c_ends_after_the_step_and_resume_goes_on(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 3)
        assert main(["train", *SMALL, "--epochs", "2", "--out", str(out)]) == 130
    assert f"stopped after 10 of 14 steps; go on with: train --resume --out {out}" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints",
        "config.json",
        "dataset.json",
        "metrics.jsonl",
    ]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000010.safetensors"]
    assert "training is not finished" in complaint(capsys, "evaluate", str(out))
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert f"{out} is finished, after 2 epochs" in capsys.readouterr().out
    for path in (*(out / "checkpoints").iterdir(), out / "model.safetensors"):
        path.unlink()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert untimed(out) == untimed(run)


def test_ctrl_c_before_the_first_step_leaves_no_model(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(commands, "_interruptible", lambda: contextlib.nullcontext(lambda: True))
    assert main(["train", *SMALL, "--epochs", "1", "--out", str(out)]) == 130
    assert not (out / "model.safetensors").exists()
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", "at 0.05, after 0.05"), ("linear", "at 0.0333, after 0.0")]
)
def test_a_finished_run_is_extended(schedule, rates, tmp_path, capsys):
    out, whole = tmp_path / "run", tmp_path / "whole"
    words = ["train", *SMALL, "--schedule", schedule, "--margin-warmup-epochs", "0", "--learning-rate", "0.05"]
    assert main([*words, "--epochs", "1", "--out", str(out)]) == 0
    (out / "evaluation-unseen.json").write_text("{}")
    assert main(["train", "--resume", "--epochs", "3", "--out", str(out), "--device", "cpu"]) == 0
    assert not list(out.glob("evaluation*"))  # what was measured was of another model
    assert f"the {schedule} schedule now spans 3 epochs instead of 1" in (said := capsys.readouterr().out)
    assert rates in said
    assert runs.read_config(out).epochs == 3
    assert [record["epoch"] for record in runs.read_metrics(out)] == [1, 2, 3]
    if schedule == "constant":  # as if it had been so from the beginning
        assert main([*words, "--epochs", "3", "--out", str(whole)]) == 0
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert untimed(out) == untimed(whole)
    words = ("train", "--resume", "--out", str(out))
    assert "--epochs is 2, but the run to resume has 3" in complaint(capsys, *words, "--epochs", "2")
    assert "--width is 0.2" in complaint(capsys, *words, "--epochs", "9", "--width", "0.2")


def test_a_finished_run_without_a_checkpoint_keeps_its_model(run, tmp_path, capsys):
    out = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")  # as after --checkpoint-every 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    words = ["train", "--resume", "--out", str(out), "--device", "cpu"]
    assert "--checkpoint-every 0" in complaint(capsys, *words, "--epochs", "3")
    assert main(words) == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("killed_before", ["write_weights", "write_npz"])
def test_an_extended_run_killed_after_its_last_checkpoint_gets_its_new_model(killed_before, run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    out, whole = shutil.copytree(run, tmp_path / "run"), shutil.copytree(run, tmp_path / "whole")
    words = ["train", "--resume", "--epochs", "3", "--device", "cpu", "--out"]
    assert main([*words, str(whole)]) == 0
    monkeypatch.setattr(runs, killed_before, kill)
    with pytest.raises(Killed):
        main([*words, str(out)])
    monkeypatch.undo()
    assert main([*words, str(out)]) == 0
    for name in ("model.safetensors", "embeddings.npz"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_cannot_be_given_fewer_epochs_than_it_had(run, capsys):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    complaint(capsys, "train", "--resume", "--epochs", "1", "--out", str(run), "--device", "cpu")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_evaluate_says_that_an_extended_run_is_unfinished(run, tmp_path, capsys, monkeypatch):
    out = shutil.copytree(run, tmp_path / "run")
    interrupt_at(monkeypatch, 2, 3)
    assert main(["train", "--resume", "--epochs", "3", "--out", str(out), "--device", "cpu"]) == 130
    assert main(["evaluate", str(out)]) == 0
    assert "is unfinished, after 2 of 3 epochs" in capsys.readouterr().out


def test_a_run_that_is_being_trained_is_left_alone(run, tmp_path, capsys):
    out = shutil.copytree(run, tmp_path / "run")
    words = ["train", "--resume", "--epochs", "3", "--out", str(out), "--device", "cpu"]
    directory = os.open(out, os.O_RDONLY)  # as another process would have it
    fcntl.flock(directory, fcntl.LOCK_EX)
    assert "being trained by another process" in complaint(capsys, *words)
    os.close(directory)
    assert main(words) == 0


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_training_left_is_no_hindrance(run, tmp_path):
    out = tmp_path / "run"
    pid = dead_process()
    # killed between the two files of an earlier version, and while it wrote
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.json").write_bytes((run / "config.json").read_bytes())
    (out / f".dataset.json.{pid}").touch()
    (tmp_path / f".run.{pid}").mkdir()
    (tmp_path / f".run.{pid}" / "config.json").touch()
    again = shutil.copytree(out, tmp_path / "again")
    assert main(["train", *SMALL, "--epochs", "1", "--out", str(out)]) == 0
    assert main(["train", "--resume", "--out", str(again), "--device", "cpu"]) == 0
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "run"]
    # killed while it wrote a checkpoint; another process still writes
    for path in (again / "checkpoints" / f".step_00000021.safetensors.{pid}", again / f".metrics.jsonl.{pid}"):
        path.touch()
    mine = again / f".metrics.jsonl.{os.getppid()}"
    mine.touch()
    assert main(["train", "--resume", "--epochs", "3", "--out", str(again), "--device", "cpu"]) == 0
    assert [path.name for path in again.rglob(".*")] == [mine.name]


def test_a_diverging_training_ends_with_status_1(tmp_path, capsys):
    words = ["--learning-rate", "1e30", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *words]) == 1
    assert "try a smaller learning rate" in capsys.readouterr().err


def test_a_compiled_backbone_is_trained(run, monkeypatch, tmp_path):
    graphs = []

    def backend(graph, inputs):  # traces as any backend does, but needs no compiler
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    assert main(["train", *SMALL, "--epochs", "2", "--compile", "--out", str(tmp_path / "run")]) == 0
    assert len(graphs) == 2  # a trial, and the backbone
    expected, found = (safetensors.numpy.load_file(out / "model.safetensors") for out in (run, tmp_path / "run"))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_float32_on_a_cuda_device_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert commands.find_device(None) == "cuda"
    assert not torch.backends.cudnn.allow_tf32


def test_help_tells_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", "cifar10", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in TrainConfig.__dataclass_fields__:
        assert flag(field) in text
    assert "in pixels [3]" in text  # the recipe's shift
    with pytest.raises(SystemExit):
        main(["train", "--help-losses"])
    text = " ".join(capsys.readouterr().out.split())
    for name, loss in LOSSES.items():
        assert f"{name}: {loss.equation}" in text
    assert "sphereface_plus: short for a_softmax+mhe" in text
    assert main(["--help"]) == 0
    assert "train|evaluate|embed" in capsys.readouterr().out.replace(",", "|")


# ---- mistakes


# words, and what the answer must name: what is wrong, or what is right
def test_a_name_that_is_too_long_for_a_file(capsys):
    name = "n" * 300
    for words in (
        ["evaluate", name],
        ["evaluate", f"{name}.npz"],
        ["embed", name, "x.png"],
        ["train", "--dataset", name],
    ):
        assert name in complaint(capsys, *words)
    complaint(capsys, "train", "--resume", "--out", name)


TRAIN_MISTAKES = [
    (["--epochs", "abc"], "--epochs is 'abc'; it must be a whole number"),
    (["--epochs"], "--epochs needs a value"),
    (["--epoch", "3"], "did you mean --epochs?"),
    (["--augment"], "there is no flag --augment; see train --help"),
    (["--m", "3"], "there is no flag --m; see train --help"),
    (["extra"], "'extra' is not expected here"),
    (["--backbone", "resnet2"], "'resnet20'"),
    (["--loss", "arcfase"], "did you mean 'arcface'?"),
    (["--loss", "arcface:0.3"], "did you mean arcface:m=0.3?"),
    (["--optimizer", "x"], "known: sgd, nesterov, adamw"),
    (["--dropout", "1"], "dropout is 1; it must be at least 0 and below 1"),
    (["--lr", "nan"], "learning rate is nan; it must be finite"),
    (["--bs", "1"], "batch size is 1; it must be at least 2"),
    (["--wd", "-1"], "weight decay is -1"),
    (["--embedding_dim", "0"], "embedding dim is 0"),
    (["--margin", "7"], "m of arcface is 7; it must be at least 0 and below 3.142 (in radians)"),
    (["--loss", "softmax", "--scale", "16.5"], "scale has no effect on softmax"),
    (["--classes-per-batch", "16"], "only 10 classes"),
    (["--batch-size", "5000"], "only 1438 training images"),
    (["--backbone", "airnet"], "larger image size"),
    (["--dataset", "nope"], "no data set is called 'nope'"),
    (["--config", "/nonexistent.json"], "/nonexistent.json does not exist"),
    (["--resume"], "--resume needs --out"),
    (["--resume", "--epochs", "3"], "--resume needs --out"),
    (["--resume", "--out", "/nonexistent"], "/nonexistent is not a run directory"),
    (["--checkpoint-every", "-1"], "--checkpoint-every is -1"),
    (["--device", "gpu"], "it must be cpu, cuda"),
    (["--replicas", "2"], "there is no flag --replicas"),
]


@pytest.mark.parametrize(("words", "message"), TRAIN_MISTAKES, ids=[" ".join(words) for words, _ in TRAIN_MISTAKES])
def test_a_mistake_in_train_is_told_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, "train", *words)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert complaint(capsys, "train", "--device", "cuda").startswith(
        "--device cuda is not there: this PyTorch finds cpu"
    )


def test_a_compiler_that_is_not_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    message = complaint(capsys, "train", *SMALL, "--compile", "--out", str(tmp_path / "run"))
    assert message.startswith("--compile finds nothing to compile with (")
    assert message.endswith("): install a C++ compiler, such as g++, or leave it out")
    assert not (tmp_path / "run").exists()


def test_tensorboard_that_is_not_installed(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    words = [*SMALL, "--epochs", "1", "--tensorboard", "--out", str(tmp_path / "run")]
    assert "pip install tensorboardX" in complaint(capsys, "train", *words)
    assert not list(tmp_path.iterdir())


def scalars_in(run):
    """The scalars in a run's event files: TFRecords, each a length and its checksum, a message and its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    scalars = {}
    for file in run.glob("events.out.tfevents.*"):
        content, at = file.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            scalars |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            at += 12 + length + 4
    return scalars


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--epochs", "2", "--tensorboard", "--out", str(out)]) == 0
    expected = {(record["step"], name): record[name] for record in runs.read_metrics(out) for name in list(record)[2:]}
    assert scalars_in(out) == {place: np.float32(value) for place, value in expected.items()}


def test_a_folder_that_is_taken(run, tmp_path, capsys):
    assert "holds a run already" in complaint(capsys, "train", "--out", str(run))
    (tmp_path / "file").touch()
    assert "exists and is not a run directory" in complaint(capsys, "train", "--out", str(tmp_path))


def test_a_run_is_not_resumed_on_other_data(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(described | {"image_shape": [9, 8, 1]}))
    (folder / "checkpoints" / "step_00000014.safetensors").unlink()
    assert "its image_shape was [9, 8, 1] and is [8, 8, 1]" in complaint(
        capsys, "train", "--resume", "--out", str(folder)
    )
    assert "--config has no effect" in complaint(capsys, "train", "--resume", "--out", str(run), "--config", "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"epoch": 3}', "has the unknown field 'epoch'; did you mean 'epochs'?"),
        ('{"epochs": "3"}', 'has epochs = "3"; it must be of type int'),
        ('{"epochs": true}', "has epochs = true; it must be of type int"),
    ],
)
def test_a_configuration_file_that_is_not_one(content, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert message in complaint(capsys, "train", "--config", str(tmp_path))


def test_mistakes_in_evaluate_and_embed(run, tmp_path, capsys):
    assert "--model" in complaint(capsys, "evaluate")
    assert complaint(capsys, "embed") == "embed needs RUN and INPUT; see embed --help"
    (tmp_path / "nothing").mkdir()
    assert "has no config.json" in complaint(capsys, "evaluate", str(tmp_path / "nothing"))
    assert complaint(capsys, "evaluate", str(tmp_path / "x.npz")).endswith("x.npz does not exist")
    np.savez(tmp_path / "y.npz", embeddings=np.zeros((1, 2)))
    assert "y.npz has no array 'labels'" in complaint(capsys, "evaluate", str(tmp_path / "y.npz"))
    (tmp_path / "z.npz").write_text("no zip")
    assert complaint(capsys, "evaluate", str(tmp_path / "z.npz")).count("is not an .npz file that can be read")
    npz = str(run / "embeddings.npz")
    assert "--split has no effect" in complaint(capsys, "evaluate", npz, "--split", "train")
    assert "--device has no effect" in complaint(capsys, "evaluate", npz, "--device", "cpu")
    assert "--split is 'x'" in complaint(capsys, "evaluate", str(run), "--split", "x")
    assert "digitss is not there" in complaint(capsys, "embed", str(run), "digitss")


def test_damaged_runs(run, tmp_path, capsys):
    out = shutil.copytree(run, tmp_path / "run")
    (out / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9])
    assert "model.safetensors is not a safetensors file" in complaint(capsys, "evaluate", str(out))
    (out / "model.safetensors").unlink()
    assert "training is not finished" in complaint(capsys, "evaluate", str(out))
    checkpoint = out / "checkpoints" / "step_00000099.safetensors"
    safetensors.numpy.save_file({"step": np.array(7)}, checkpoint)
    assert "does not fit the model of" in complaint(capsys, "train", "--resume", "--out", str(out))
    (out / "dataset.json").unlink()
    assert "no dataset.json" in complaint(capsys, "evaluate", str(out))
    assert "it holds runs, such as" in complaint(capsys, "evaluate", str(tmp_path))


# ---- same or different


@pytest.fixture
def gallery(tmp_path):
    """Twenty digits as `gallery/CLASS/NUMBER.png`."""
    held = load_digits()
    for number in range(20):
        file = tmp_path / "gallery" / str(held.target[number]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 * held.images[number] // 16)).save(file)
    return tmp_path / "gallery"


def test_a_threshold_decides(run, gallery, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    words = [str(copy), str(gallery / "0/0.png"), str(gallery / "1/1.png")]
    assert "--calibrate" in complaint(capsys, "verify", *words)
    for far in ("1e-9", "0", "nan"):
        complaint(capsys, "evaluate", str(copy), "--calibrate", far)
    assert not (copy / "threshold.json").exists()
    assert main(["evaluate", str(copy), "--protocol", "none", "--calibrate", "0.05"]) == 0
    found = json.loads((copy / "threshold.json").read_text())
    # numpy: the scores of all pairs of two classes
    arrays = np.load(copy / "embeddings.npz")
    x = arrays["embeddings"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    scores = (x @ x.T)[np.triu(arrays["labels"][:, None] != arrays["labels"])]
    assert found["negatives"] == len(scores)
    near = 2.0**-19  # scores are rounded, and the network computes in float32
    low, high = (np.mean(scores >= found["threshold"] + d) for d in (near, -near))
    assert low <= found["far"] <= min(0.05, high)
    assert 0.05 < np.mean(scores >= found["threshold"] - 4 * near)
    (gallery / "0/10.png").rename(tmp_path / "probe.png")
    shown = []
    for threshold, answer in ((-1.0, "same"), (1.0, "different")):
        (copy / "threshold.json").write_text(json.dumps(found | {"threshold": threshold}))
        capsys.readouterr()
        assert main(["verify", *words]) == 0
        assert capsys.readouterr().out.splitlines()[0] == answer
        assert main(["identify", str(copy), str(gallery), str(tmp_path / "probe.png")]) == 0
        shown.append(capsys.readouterr().out.splitlines()[:-1])
    assert len(shown[0]) == 5
    assert shown[1] == ["nobody", *shown[0]]


def test_what_cannot_be_compared(run, gallery, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    path, one = copy / "threshold.json", str(gallery / "0/0.png")
    good = {"threshold": 0.5, "far": 0.1, "tar": 0.9, "negatives": 100}
    path.write_text(json.dumps(good))
    assert main(["verify", str(copy), one, one]) == 0
    capsys.readouterr()
    assert "not a file" in complaint(capsys, "verify", str(copy), str(gallery), one)
    assert "not a folder" in complaint(capsys, "identify", str(copy), one, one)
    assert "empty" in complaint(capsys, "identify", str(copy), str(tmp_path / "empty"), one)
    assert "nowhere" in complaint(capsys, "identify", str(copy), str(tmp_path / "nowhere"), one)
    for damaged in ([], good | {"threshold": 2}, good | {"far": "much"}, good | {"tar": True}, {"threshold": 0.5}):
        path.write_text(json.dumps(damaged))
        assert "threshold.json" in complaint(capsys, "verify", str(copy), one, one)
        assert "threshold.json" in complaint(capsys, "identify", str(copy), str(gallery), one)


def test_images_of_another_shape(run, tmp_path, capsys, monkeypatch):
    colours = data.Split(np.zeros((20, 9, 9, 3), np.uint8), np.arange(20, dtype=np.int32) % 2)
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: data.Dataset("cifar10", colours, colours, ("a", "b")))
    said = complaint(capsys, "embed", str(run), "cifar10")
    assert said == "cifar10 has images 9x9x3; the model takes 8x8x1"


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    script = "import sys; sys.modules['torch'] = None; from torch_reference.__main__ import main; sys.exit(main({}))"
    for words, status in ((["--help"], 0), ([], 0), (["train", "--help"], 1), (["evaluate", "x"], 1)):
        result = subprocess.run([sys.executable, "-c", script.format(words)], capture_output=True, text=True)
        assert result.returncode == status, words
        assert result.stderr.count("\n") == (1 if status else 0)
        assert ("pip install torch" in result.stderr) == bool(status)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(2, int)}, "labels (2,)"),
        ({"prototypes": np.zeros((2, 5))}, "prototypes (2, 5)"),
        ({"labels": np.array([0, 1, 2])}, "has labels other than the whole numbers from 0 to 1"),
        ({"bias": np.zeros(3)}, "a bias (3,)"),
        ({"labels": np.zeros(3)}, "has labels"),
    ],
)
def test_arrays_that_do_not_fit(changes, message, tmp_path, capsys):
    arrays = {"embeddings": np.ones((3, 4)), "labels": np.array([0, 1, 1]), "prototypes": np.eye(2, 4)}
    np.savez(tmp_path / "good.npz", **arrays)
    assert main(["evaluate", str(tmp_path / "good.npz")]) == 0
    capsys.readouterr()
    np.savez(tmp_path / "bad.npz", **(arrays | changes))
    assert message in complaint(capsys, "evaluate", str(tmp_path / "bad.npz"))


def test_a_place_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be written: " in complaint(capsys, "evaluate", str(run), "--out", str(tmp_path / "file"))


def test_a_second_ctrl_c_ends_at_once(monkeypatch, tmp_path, capsys):
    def interrupted(self, epoch, number, metrics):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Progress, "on_step", interrupted)
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "torch_reference: ended at once by Ctrl-C\n"


def test_an_unknown_command(capsys):
    said = complaint(capsys, "trian")
    assert "'train'" in said
    assert all(name in said for name in COMMANDS)


def test_importing_is_light():
    script = (
        "import sys, torch_reference, torch_reference.__main__\n"
        "heavy = ('torch', 'jax', 'jax_arcface', 'torchvision', 'sklearn', 'matplotlib', 'PIL', 'tensorboardX')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "from torch_reference import arcface\n"
        "import torch\n"
        "print([name for name in heavy[1:] if name in sys.modules], torch.cuda.is_initialized())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n[] False\n", "")


KEPT = """
import resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from torch_reference.__main__ import keep_freed_memory

print(keep_freed_memory())
threads = ThreadPoolExecutor(1)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MiB
    threads.submit(np.ones, 2**24).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize("tuned", [None, "GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_kept_unless_the_user_has_tuned_it(tuned):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))}
    environment |= {} if tuned is None else {tuned: ""}
    said = subprocess.run(
        [sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True
    ).stdout
    kept, page_faults = said.split()
    if tuned is None and kept == "False":
        pytest.skip("this C library cannot be told")
    assert kept == str(tuned is None)
    assert (int(page_faults) < 32) == (tuned is None)  # there are 65,536 pages, or 128 large ones


# what a kill can leave behind after the last checkpoint, or somebody's hand
def lose(*names):
    return lambda run: [(run / name).unlink() for name in names]


def be_of_fewer_steps(run):
    values = safetensors.numpy.load_file(run / "model.safetensors")
    safetensors.numpy.save_file({name: value + 1 for name, value in values.items()}, run / "model.safetensors")


@pytest.mark.parametrize("harm", [lose("embeddings.npz"), lose("model.safetensors"), be_of_fewer_steps])
def test_a_training_killed_while_it_wrote_its_result_writes_it(harm, run, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    harm(out)
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    with np.load(out / "embeddings.npz") as ours, np.load(run / "embeddings.npz") as wanted:
        np.testing.assert_array_equal(ours["embeddings"], wanted["embeddings"])


def change_the_step(step):
    def change(run):
        (path,) = (run / "checkpoints").iterdir()
        safetensors.numpy.save_file(safetensors.numpy.load_file(path) | {"step": np.array(step)}, path)

    return change


def change_metrics(**values):
    def change(run):
        record = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        (run / "metrics.jsonl").write_text(json.dumps(record | values) + "\n")

    return change


@pytest.mark.parametrize(
    "harm",
    [
        change_the_step(-5),
        change_the_step(9999),
        lose("metrics.jsonl"),
        change_metrics(step=True),
        change_metrics(step=-7),
        change_metrics(step=3),
        change_metrics(train_loss="0.5"),
    ],
)
def test_a_run_that_does_not_fit_itself_is_a_mistake(harm, run, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    harm(out)
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 2
