"""Tests of the command line: what it writes, and how it answers mistakes."""

import dataclasses
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

from torch_reference import Margin
from torch_reference.__main__ import main
from torch_reference.cli import commands, runs
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
    changes = {"width": 0.1, "embedding_dim": 8, "batch_size": 200, "warmup_epochs": 0.0, "epochs": 2}
    assert written == dataclasses.asdict(config.recipe("digits")) | changes
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 7), (2, 14)]
    assert list(records[0])[2:] == [
        "train_loss",
        "train_accuracy",
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
    assert main(["evaluate", str(run), "--out", str(tmp_path / "a")]) == 0
    of_run = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert main(["evaluate", str(run / "embeddings.npz"), "--out", str(tmp_path / "b")]) == 0
    of_file = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert of_run["accuracy"] == of_file["accuracy"] == runs.read_metrics(run)[-1]["test_accuracy"]
    assert of_run.keys() == {"dataset", "split", "examples", "accuracy", "loss"}
    assert of_file == {"examples": 359, "accuracy": of_run["accuracy"]}
    assert f"accuracy  {100 * of_run['accuracy']:.2f} %" in capsys.readouterr().out


def test_embed_a_data_set_and_images(run, tmp_path):
    assert main(["embed", str(run), "digits", "--out", str(tmp_path / "digits.npz")]) == 0
    held = ("embeddings", "labels", "prototypes", "class_names")
    embedded = runs.read_npz(tmp_path / "digits.npz", ("predictions", *held))
    for name, array in runs.read_npz(run / "embeddings.npz", held).items():
        np.testing.assert_array_equal(embedded[name], array)
    share = (embedded["predictions"] == embedded["labels"]).mean()
    assert share == pytest.approx(runs.read_metrics(run)[-1]["test_accuracy"])
    assert main(["embed", str(run), str(run / "embeddings.png"), "--out", str(tmp_path / "one.npz")]) == 0
    assert runs.read_npz(tmp_path / "one.npz", ("files",))["files"].tolist() == ["embeddings.png"]


def test_a_linear_classifier_carries_its_bias(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--loss", "softmax+center", "--learning-rate", "0.005", "--epochs", "2", "--out", str(out)]
    assert main(["train", *SMALL, *words]) == 0
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    arrays = runs.read_npz(out / "embeddings.npz", ("embeddings", "labels", "prototypes"), optional=("bias", "nothing"))
    np.testing.assert_array_equal(arrays["bias"], weights["head.bias"])
    assert arrays["bias"].any()
    assert sorted(arrays) == ["bias", "embeddings", "labels", "prototypes"]
    predicted = (arrays["embeddings"] @ arrays["prototypes"].T + arrays["bias"]).argmax(axis=1)
    share = (predicted == arrays["labels"]).mean()
    assert runs.read_metrics(out)[-1]["test_accuracy"] == pytest.approx(share)
    for path in (out, out / "embeddings.npz"):
        assert main(["evaluate", str(path), "--out", str(tmp_path / "e")]) == 0
        found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        assert found["accuracy"] == pytest.approx(share)
        assert "loss" not in found
    assert main(["embed", str(out), "digits", "--out", str(tmp_path / "digits.npz")]) == 0
    embedded = runs.read_npz(tmp_path / "digits.npz", ("predictions", "bias"))
    np.testing.assert_array_equal(embedded["predictions"], predicted)
    assert main(["evaluate", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["accuracy"] == pytest.approx(share)


def test_pair_losses_classify_by_the_class_means(tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--loss", "triplet:mining=hard", "--epochs", "1", "--out", str(out)]) == 0
    assert runs.read_config(out).classes_per_batch == 8
    assert main(["embed", str(out), "digits", "--split", "train", "--out", str(tmp_path / "train.npz")]) == 0
    train = runs.read_npz(tmp_path / "train.npz", ("embeddings", "labels", "prototypes"))
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


def test_help_tells_every_loss_with_its_equation(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, loss in LOSSES.items():
        assert f"{name}: {loss.equation}" in text
    assert "sphereface_plus: short for a_softmax+mhe" in text


def test_replicas_and_margins(tmp_path, capsys):
    assert main(["train", *SMALL, "--epochs", "1", "--replicas", "2", "--out", str(tmp_path / "r")]) == 0
    assert sorted(json.loads((tmp_path / "r" / "replicas.json").read_text())) == ["seed-0", "seed-1"]
    assert "standard deviation of 2" in capsys.readouterr().out
    assert runs.read_config(tmp_path / "r" / "seed-1").seed == 1
    assert main(["train", *SMALL, "--epochs", "1", "--margins", "0.1,0.2", "--out", str(tmp_path / "m")]) == 0
    assert runs.read_config(tmp_path / "m" / "margin-0.2").margin == 0.2


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("norm_softmax", {"margin_warmup_epochs": 0.0}),
        ("softmax+center", {"margin_warmup_epochs": 0.0}),
        ("a_softmax", {"margin_warmup_epochs": 0.0}),
        ("magface", {"margin_warmup_epochs": 3}),
        ("subcenter", {"margin_warmup_epochs": 3, "subcenters": 3}),
        ("triplet+supcon", {"margin_warmup_epochs": 0.0, "classes_per_batch": 8, "clip_norm": 1.0}),
        ("arcface+triplet", {"margin_warmup_epochs": 3, "classes_per_batch": 0}),
    ],
)
def test_a_loss_has_its_own_defaults(loss, changes):
    assert config.recipe("digits", loss) == dataclasses.replace(config.recipe("digits"), loss=loss, **changes)


def test_the_scale_where_it_is_given_and_where_not():
    assert TrainConfig().scale_value == 16
    assert TrainConfig(scale=30.0).scale_value == 30
    assert TrainConfig(loss="softmax").margin_value == Margin.softmax()


def test_one_seed_one_trajectory_and_another_way_to_say_it(run, tmp_path):
    out = tmp_path / "again"
    words = [f"--config={run / 'config.json'}", "--deterministic", "--no-tensorboard", "--checkpoint_every=0"]
    assert main(["train", *words, "--out", str(out)]) == 0
    one, other = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (run, out))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
    assert not list((out / "checkpoints").iterdir())
    assert not torch.are_deterministic_algorithms_enabled()


def test_ctrl_c_ends_after_the_step_and_resume_goes_on(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    step = commands.Progress.on_step

    def interrupted(self, epoch, number, metrics):
        step(self, epoch, number, metrics)
        if (epoch, number) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(commands.Progress, "on_step", interrupted)
        assert main(["train", *SMALL, "--epochs", "2", "--out", str(out)]) == 0
    assert f"stopped after 10 of 14 steps; go on with: --resume --out {out}" in capsys.readouterr().out
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000010.safetensors"]
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert f"\n{out} goes on after step 10 of 14\n" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    for checkpoint in (out / "checkpoints").iterdir():
        checkpoint.unlink()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{out} has ended\n")
    (out / "embeddings.npz").unlink()
    assert main(["train", "--resume", "--out", str(out), "--device", "cpu"]) == 0
    assert f"\n{out} has no checkpoint and begins anew\n" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    timed = ("images_per_second", "seconds")
    expected, found = (
        [{key: value for key, value in record.items() if key not in timed} for record in runs.read_metrics(folder)]
        for folder in (run, out)
    )
    assert found == expected


def test_a_diverging_training_ends_with_status_1(tmp_path, capsys):
    words = ["--learning-rate", "1e30", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *words]) == 1
    assert "try a smaller --learning-rate (now 1e+30)" in capsys.readouterr().err


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
    assert commands._device(None) == "cuda"
    assert not torch.backends.cudnn.allow_tf32


def test_help_tells_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", "cifar10", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in TrainConfig.__dataclass_fields__:
        assert config.flag(field) in text
    assert "in pixels. (default: 3)" in text  # the recipe's shift
    assert main(["--help"]) == 0
    assert "train|evaluate|embed" in capsys.readouterr().out.replace(",", "|")


# ---- mistakes

TRAIN_MISTAKES = [
    (["--epochs", "abc"], "--epochs is 'abc'; it must be a whole number; see train --help"),
    (["--epochs"], "--epochs needs a value; see train --help"),
    (["--epoch", "3"], "there is no flag --epoch; did you mean --epochs?"),
    (["extra"], "'extra' is not expected here; see train --help"),
    (["--backbone", "resnet2"], "there is no --backbone 'resnet2': did you mean 'resnet20'? known: lenet, resnet20, "),
    (["--loss", "arcfase"], "there is no --loss 'arcfase': did you mean 'arcface'?"),
    (["--optimizer", "x"], "there is no --optimizer 'x': known: sgd, nesterov, adamw"),
    (["--dropout", "1"], "--dropout is 1.0; it must be at least 0 and below 1"),
    (["--learning-rate", "nan"], "--learning-rate is nan; it must be > 0"),
    (["--batch-size", "1"], "--batch-size is 1; it must be at least 2"),
    (["--embedding_dim", "0"], "--embedding-dim is 0; it must be at least 2"),
    (["--margin", "7"], "--margin is 7; for --loss arcface it must be at least 0 and below 3.142 (in radians)"),
    (["--loss", "norm_softmax", "--margin", "0.1"], "--margin has no effect on --loss norm_softmax"),
    (["--loss", "cosface", "--beyond-pi", "wrap"], "--beyond-pi has no effect on --loss cosface"),
    (["--loss", "sphereface", "--beyond-pi", "linear"], "--beyond-pi linear is not defined for --loss sphereface"),
    (["--loss", "cosface", "--gradient", "straight_through"], "--gradient has no effect on --loss cosface"),
    (["--loss", "softmax", "--scale", "16"], "--scale has no effect on --loss softmax"),
    (["--loss", "triplet", "--scale", "16"], "--scale has no effect on --loss triplet"),
    (["--loss", "adacos", "--margin-warmup-epochs", "1"], "--margin-warmup-epochs has no effect on --loss adacos"),
    (["--loss", "softmax", "--subcenters", "2"], "--subcenters has no effect on --loss softmax"),
    (["--loss", "supcon", "--label-smoothing", "0.1"], "--label-smoothing has no effect on --loss supcon"),
    (["--loss", "subcenter", "--subcenters", "1"], "--loss subcenter needs --subcenters of at least 2"),
    (
        ["--loss", "arcface+inter", "--subcenters", "2"],
        "--subcenters 2: inter in --loss arcface+inter is defined for 1 only",
    ),
    (["--loss", "arcfac"], "there is no --loss 'arcfac': did you mean 'arcface'?"),
    (
        ["--loss", "triplet", "--margins", "0.1,0.2"],
        "--margins has no effect on --loss triplet; its margin is an option",
    ),
    (["--margins", "0.3,9"], "--margins is 9; for --loss arcface it must be at least 0 and below 3.142 (in radians)"),
    (["--classes-per-batch", "1"], "--classes-per-batch is 1; it must be 0, or at least 2 and divide --batch-size, 64"),
    (["--classes-per-batch", "7"], "--classes-per-batch is 7; it must be 0, or at least 2 and divide --batch-size, 64"),
    (["--classes-per-batch", "16"], "--classes-per-batch is 16, but there are only 10 classes"),
    (["--scale", "0"], "--scale is 0.0; it must be > 0"),
    (["--warmup-epochs", "-1"], "--warmup-epochs is -1.0; it must be at least 0"),
    (["--learning-rate", "inf"], "--learning-rate is inf; it must be > 0 and finite"),
    (["--lr", "x"], "there is no flag --lr; "),
    (["--batch-size", "5000"], "--batch-size is 5000, but there are only 1438 training images"),
    (
        ["--backbone", "airnet"],
        "airnet needs images of at least 9x9 pixels; these have 8x8: give a larger --image-size",
    ),
    (["--margins", "0.1", "--margin", "0.2"], "--margin 0.2 has no effect with --margins: leave one of them out"),
    (["--margins", "0.1,0.10"], "--margins is '0.1,0.10'; each margin must be given once"),
    (["--resume", "--out", "x", "--margins", "0.1"], "x is not a run directory"),
    (["--dataset", "nope"], "no data set is called 'nope'"),
    (["--config", "/nonexistent.json"], "/nonexistent.json does not exist"),
    (["--resume"], "--resume needs --out, a run directory or a folder of replicas"),
    (["--resume", "--epochs", "3"], "--resume needs --out, a run directory or a folder of replicas"),
    (["--resume", "--out", "/nonexistent"], "/nonexistent is not a run directory: it has no config.json"),
    (["--replicas", "0"], "--replicas is 0; it must be at least 1"),
    (["--replicas", "2", "--margins", "0.1"], "--margins and --replicas cannot be given together"),
    (["--margins", "a,b"], "--margins is 'a,b'; it must be numbers with commas: 0.3,0.4,0.5"),
    (["--checkpoint-every", "-1"], "--checkpoint-every is -1; it must be at least 0"),
    (["--device", "gpu"], "--device gpu is not known: "),
]


@pytest.mark.parametrize(("words", "message"), TRAIN_MISTAKES, ids=[" ".join(words) for words, _ in TRAIN_MISTAKES])
def test_a_mistake_in_train_is_told_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert complaint(capsys, "train", *words).startswith(message)
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
    expected = "--tensorboard needs tensorboardX: pip install 'jax-arcface[tensorboard]'"
    assert complaint(capsys, "train", *words) == expected
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
    assert complaint(capsys, "train", "--out", str(run)).startswith(f"--out {run} holds a run already; give another")
    (tmp_path / "file").touch()
    assert "exists and is not a run directory" in complaint(capsys, "train", "--out", str(tmp_path))


def test_a_run_is_resumed_with_its_own_configuration_only(run, capsys):
    words = ("train", "--resume", "--out", str(run))
    expected = "--epochs is 3, but the run to resume has 2: leave it out, or start a new run"
    assert complaint(capsys, *words, "--epochs", "3") == expected
    assert complaint(capsys, *words, "--config", "x.json").startswith("--config has no effect with --resume")


def test_a_single_run_is_not_resumed_as_a_set(run, capsys):
    for flags in (["--replicas", "2"], ["--margins", "0.3"]):
        expected = f"--out {run} is a single run: go on with it without {' '.join(flags)}"
        assert complaint(capsys, "train", "--resume", "--out", str(run), *flags) == expected


SEEDS = "--out set holds seed-2, seed-3, seed-5: give --replicas 4, or more, to go on with them"
MARGINS = "--out set holds margin-0.25, margin-0.5: give --margins 0.25,0.5, or more, to go on with them"


@pytest.mark.parametrize(
    ("flags", "of_seeds", "of_margins"),
    [
        ("", SEEDS, MARGINS),
        ("--replicas 3", SEEDS, MARGINS),
        ("--margins 0.25", SEEDS, MARGINS),
        ("--replicas 4 --seed 3", "--seed is 3, but the run to resume has 2: leave", "--seed is 3, but the run to"),
        ("--margins 0.5,0.25 --width 2", "--width is 2.0, but the run to resume has 1.0", "--width is 2.0, but the"),
        ("--replicas 4", "set/seed-5 was begun with --epochs 9, but what is to go on has 30: move it away", MARGINS),
        ("--margins 0.25,0.5", SEEDS, "set/margin-0.5 was begun with --epochs 9, but what is to go on has 30"),
    ],
)
def test_a_set_is_resumed_as_it_was_begun(flags, of_seeds, of_margins, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for field, values, message in (("seed", (2, 3, 5), of_seeds), ("margin", (0.25, 0.5), of_margins)):
        for value in values:
            changes = {field: value} | ({"epochs": 9} if value in (5, 0.5) else {})
            runs.create(tmp_path / "set" / f"{field}-{value}", TrainConfig(**changes))
        runs.create(tmp_path / "set" / f"{field}-moved", TrainConfig(epochs=9))  # does not count
        assert complaint(capsys, "train", "--resume", "--out", "set", *flags.split()).startswith(message)
        shutil.rmtree("set")


def test_a_run_is_not_resumed_on_other_data(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(described | {"image_shape": [9, 8, 1]}))
    expected = f"digits has changed since {folder} began: its image_shape was [9, 8, 1] and is [8, 8, 1]"
    assert complaint(capsys, "train", "--resume", "--out", str(folder)) == expected


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
    assert complaint(capsys, "evaluate") == "evaluate needs RUN_OR_NPZ; see evaluate --help"
    assert complaint(capsys, "embed") == "embed needs RUN and INPUT; see embed --help"
    assert "has no config.json" in complaint(capsys, "evaluate", str(tmp_path))
    assert complaint(capsys, "evaluate", str(tmp_path / "x.npz")).endswith("x.npz does not exist")
    np.savez(tmp_path / "y.npz", embeddings=np.zeros((1, 2)))
    assert "y.npz has no array 'labels'" in complaint(capsys, "evaluate", str(tmp_path / "y.npz"))
    (tmp_path / "z.npz").write_text("no zip")
    assert complaint(capsys, "evaluate", str(tmp_path / "z.npz")).count("is not an .npz file that can be read")
    npz = str(run / "embeddings.npz")
    assert "--split and --data-dir have no effect" in complaint(capsys, "evaluate", npz, "--split", "train")
    assert "--device has no effect" in complaint(capsys, "evaluate", npz, "--device", "cpu")
    assert "--split is 'x'; it must be train or test" in complaint(capsys, "evaluate", str(run), "--split", "x")
    assert "digitss is not there" in complaint(capsys, "embed", str(run), "digitss")


def test_an_unfinished_run_and_damaged_weights(run, tmp_path, capsys):
    runs.create(tmp_path / "new", runs.read_config(run))
    assert "it has no dataset.json" in complaint(capsys, "evaluate", str(tmp_path / "new"))
    (tmp_path / "new" / "dataset.json").write_bytes((run / "dataset.json").read_bytes())
    assert "its training has not ended" in complaint(capsys, "evaluate", str(tmp_path / "new"))
    (tmp_path / "new" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-9])
    assert "model.safetensors is not a safetensors file that can be read" in complaint(
        capsys, "evaluate", str(tmp_path / "new")
    )
    checkpoint = tmp_path / "new" / "checkpoints" / "step_00000007.safetensors"
    safetensors.numpy.save_file({".step": np.array(7)}, checkpoint)
    message = complaint(capsys, "train", "--resume", "--out", str(tmp_path / "new"), "--device", "cpu")
    assert "does not fit the model of" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(2, int)}, "labels (2,), prototypes (2, 4); they must be [N, D], [N] and [C, D] or"),
        ({"prototypes": np.zeros((2, 5))}, "prototypes (2, 5); they must be"),
        ({"labels": np.array([0, 1, 2])}, "has labels other than the whole numbers from 0 to 1"),
        ({"bias": np.zeros(3)}, "holds a bias (3,) for prototypes (2, 4); it must be [C] for [C, D]"),
        ({"labels": np.zeros(3)}, "has labels other than the whole numbers from 0 to 1"),
    ],
)
def test_arrays_that_do_not_fit(changes, message, tmp_path, capsys):
    arrays = {"embeddings": np.ones((3, 4)), "labels": np.array([0, 1, 1]), "prototypes": np.eye(2, 4)}
    np.savez(tmp_path / "good.npz", **arrays)
    assert main(["evaluate", str(tmp_path / "good.npz")]) == 0
    capsys.readouterr()
    np.savez(tmp_path / "bad.npz", **(arrays | changes))
    assert message in complaint(capsys, "evaluate", str(tmp_path / "bad.npz"))


def test_the_margins_warm_up_is_left_out_where_there_is_none(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(commands.data, "load", lambda name, *args, **kwargs: asked.append(name) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["train", "--loss", "norm_softmax", "--out", str(tmp_path / "run")])
    assert asked == ["digits"]


def test_a_place_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be written: " in complaint(capsys, "evaluate", str(run), "--out", str(tmp_path / "file"))


def test_a_second_ctrl_c_ends_at_once(monkeypatch, tmp_path, capsys):
    def interrupted(self, epoch, number, metrics):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Progress, "on_step", interrupted)
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "torch_reference: ended at once by Ctrl-C\n"


def test_an_interrupted_replica_has_no_share_in_a_mean(monkeypatch, tmp_path, capsys):
    shown = commands.Progress.on_step

    def interrupted(self, epoch, number, metrics):
        shown(self, epoch, number, metrics)
        if (tmp_path / "runs" / "seed-1").exists():
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(commands.Progress, "on_step", interrupted)
        assert main(["train", *SMALL, "--replicas", "3", "--out", str(tmp_path / "runs")]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-0", "seed-1"]
    assert "mean and standard deviation" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--margins 0.1,0.2", "--replicas 2"])
def test_a_set_ends_with_the_same_bits_however_often_it_was_interrupted(flag, monkeypatch, tmp_path, capsys):
    at_once, out = tmp_path / "at once", tmp_path / "set"
    new = ["train", *SMALL, "--epochs", "2", *flag.split()]
    assert main([*new, "--out", str(at_once)]) == 0
    told = capsys.readouterr().out
    one, other = sorted(path.parent for path in at_once.glob("*/config.json"))
    again = f"--resume --out {out} {flag}"
    shown = commands.Progress.on_step

    def interrupted(self, epoch, number, metrics):
        shown(self, epoch, number, metrics)
        if (epoch, number) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(commands.Progress, "on_step", interrupted)
        for words in ([*new, "--out", str(out)], ["train", *again.split(), "--device", "cpu"]):
            assert main(words) == 0
            assert capsys.readouterr().out.endswith(f"\ngo on with: {again}\n")
    assert sorted(path.name for path in out.iterdir()) == [one.name, other.name]
    assert main(["train", *again.split(), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"{out / other.name} goes on after step 10 of 14\n" in said
    assert said[said.index("\n\n") :] == told[told.index("\n\n") :]
    for name in ("replicas.json", f"{one.name}/model.safetensors", f"{other.name}/model.safetensors"):
        assert (out / name).read_bytes() == (at_once / name).read_bytes()


def test_what_has_ended_is_not_trained_again_and_seeds_are_added(run, tmp_path, capsys):
    ended = shutil.copytree(run, tmp_path / "seed-0")
    shutil.rmtree(ended / "checkpoints")
    written = (ended / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--resume", "--out", str(tmp_path), "--replicas", "2", "--device", "cpu"]) == 0
    assert f"\n{ended} has ended\n" in capsys.readouterr().out
    assert (ended / "model.safetensors").stat().st_mtime_ns == written
    reached = json.loads((tmp_path / "replicas.json").read_text())
    assert reached == {name: runs.read_metrics(tmp_path / name)[-1]["test_accuracy"] for name in ("seed-0", "seed-1")}


def test_an_unknown_command(capsys):
    assert (
        complaint(capsys, "trian") == "there is no command 'trian': did you mean 'train'? known: train, evaluate, embed"
    )


def test_importing_is_light():
    script = (
        "import sys, torch_reference, torch_reference.__main__, torch\n"
        "heavy = ('jax', 'jax_arcface', 'torchvision', 'sklearn', 'matplotlib', 'PIL', 'tensorboardX')\n"
        "print([name for name in heavy if name in sys.modules], torch.cuda.is_initialized())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[] False\n", "")


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
