"""The command line end to end, as a new user would try it."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from sklearn.datasets import load_digits

from jax_arcface.__main__ import main
from jax_arcface.cli import runs
from jax_arcface.cli.progress import Progress
from jax_arcface.training import fit as training
from jax_arcface.training.config import TrainConfig

# 1,438 training images in batches of 128: 11 steps an epoch
LITTLE = ["--width", "0.125", "--embedding-dim", "16", "--batch-size", "128", "--epochs", "3"]
STEPS = 33


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """The trainings of this file share their compiled steps."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch, tmp_path):
    """No test reads the user's folders, writes into them or downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARCFACE_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained without an interruption; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *LITTLE, "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two replicas that were trained without an interruption, not to be changed, and what was said."""
    out, said = tmp_path_factory.mktemp("runs") / "both", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["train", *LITTLE, "--replicas", "2", "--out", str(out)]) == 0
    return out, said.getvalue()


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy of the trained run, to be changed."""
    copy = tmp_path / "copy"
    for file in trained.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(trained)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(trained)).write_bytes(file.read_bytes())
    return copy


def files_below(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def assert_same_weights(one, other):
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def cosines(arrays):
    x, w = (arrays[name].astype(np.float64) for name in ("embeddings", "prototypes"))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def numpy_accuracy(arrays):
    return np.mean(np.argmax(cosines(arrays), axis=1) == arrays["labels"])


# ---- mistakes


@pytest.fixture
def told(capsys, monkeypatch):
    """Runs a command line that is a mistake; gives the one line that it is answered with."""

    def told(line, *more):
        monkeypatch.setattr(training, "fit", lambda *args: pytest.fail("a training began"))
        status = main([*line.split(), *map(str, more)])
        error = capsys.readouterr().err
        assert status == 2
        assert error.startswith("jax_arcface: ")
        assert error.endswith("\n")
        assert len(error.splitlines()) == 1
        return error

    return told


def assert_names(message, *parts):
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("trian", ["'trian'", "did you mean 'train'?", "train, evaluate, embed"]),
        ("--verbose", ["'--verbose'", "train, evaluate, embed"]),
        ("train digits", ["'digits' is not expected", "train --help"]),
        ("train --dataset minst", ["'minst'", "did you mean 'mnist'?", "digits, mnist, cifar10"]),
        ("train --dataset imagenet", ["'imagenet'", "digits, mnist, cifar10"]),
        ("train --backbone resnet2", ["'resnet2'", "did you mean 'resnet20'?", "lenet, resnet20, resnet18, airnet"]),
        ("train --backbone vit", ["--backbone 'vit'", "lenet, resnet20, resnet18, airnet"]),
        ("train --loss arcfac", ["'arcfac'", "did you mean 'arcface'?", "sphereface, cosface, arcface"]),
        ("train --optimizer adam", ["--optimizer 'adam'", "did you mean 'adamw'?", "sgd, nesterov, adamw"]),
        ("train --schedule step", ["--schedule 'step'", "cosine, linear, constant"]),
        ("train --precision float16", ["--precision 'float16'", "did you mean 'bfloat16'?"]),
        ("train --beyond-pi warp", ["--beyond-pi 'warp'", "did you mean 'wrap'?"]),
        ("train --scale 0", ["--scale is 0", "> 0"]),
        ("train --scale -1", ["--scale is -1", "> 0"]),
        ("train --scale inf", ["--scale is inf", "finite"]),
        ("train --margin 4", ["--margin is 4", "arcface", "at least 0 and below 3.142", "radians"]),
        ("train --margin -0.1", ["--margin is -0.1", "at least 0 and below 3.142"]),
        ("train --margin nan", ["--margin is nan", "at least 0 and below 3.142"]),
        ("train --loss cosface --margin 2", ["--margin is 2", "cosface", "at least 0 and below 2", "cosine"]),
        ("train --loss sphereface --margin 0.5", ["--margin is 0.5", "sphereface", "at least 1 and below 8", "factor"]),
        ("train --loss norm_softmax --margin 0.5", ["--margin has no effect", "norm_softmax"]),
        ("train --loss norm_softmax --margins 0.1,0.2", ["--margins has no effect", "norm_softmax"]),
        ("train --loss norm_softmax --beyond-pi wrap", ["--beyond-pi has no effect", "norm_softmax"]),
        ("train --loss cosface --beyond-pi wrap", ["--beyond-pi has no effect", "cosface"]),
        ("train --loss sphereface --beyond-pi linear", ["--beyond-pi linear", "monotone or wrap"]),
        ("train --epochs -1", ["--epochs is -1", "at least 0"]),
        ("train --epochs three", ["--epochs is 'three'", "a whole number"]),
        ("train --epochs 2.5", ["--epochs is '2.5'", "a whole number"]),
        ("train --epochs", ["--epochs needs a value"]),
        ("train --scale big", ["--scale is 'big'", "a number"]),
        ("train --margin none", ["--margin is 'none'", "a number"]),
        ("train --learning-rate 0", ["--learning-rate is 0", "> 0"]),
        ("train --learning-rate nan", ["--learning-rate is nan", "> 0"]),
        ("train --learning-rate inf", ["--learning-rate is inf", "finite"]),
        ("train --batch-size 1", ["--batch-size is 1", "at least 2"]),
        ("train --batch-size 1439", ["--batch-size is 1439", "1438 training images"]),
        ("train --image-size 4", ["lenet", "at least 8x8", "4x4", "--image-size"]),
        ("train --image-size 0", ["--image-size is 0", "at least 1"]),
        ("train --seed -1", ["--seed is -1", "at least 0"]),
        ("train --dropout 1", ["--dropout is 1", "below 1"]),
        ("train --checkpoint-every -1", ["--checkpoint-every is -1", "at least 0"]),
        ("train --learningrate 0.1", ["no flag --learningrate", "did you mean --learning-rate?"]),
        ("train --batch-sise 3 --epoch 3", ["no flag --batch-sise", "did you mean --batch-size?"]),
        ("train --xyz", ["no flag --xyz", "train --help"]),
        ("train --flip maybe", ["'maybe' is not expected"]),
        ("train --config missing.json", ["missing.json", "No such file"]),
        ("train --config", ["--config needs a value"]),
        ("train --resume", ["--resume needs --out"]),
        ("train --resume --epochs 3", ["--resume needs --out"]),
        ("train --resume --out missing", ["missing is not a run directory", "config.json"]),
        ("train --resume --out missing --config old.json", ["--config has no effect with --resume"]),
        ("train --replicas 0", ["--replicas is 0", "at least 1"]),
        ("train --replicas two", ["--replicas is 'two'", "a whole number"]),
        ("train --margins 0.3,0.5 --replicas 2", ["--margins and --replicas", "together"]),
        ("train --margins 0.3,0.5 --margin 0.4", ["--margin 0.4 has no effect with --margins"]),
        ("train --margins small,large", ["'small,large'", "numbers with commas"]),
        ("train --margins 0.3,", ["'0.3,'", "numbers with commas"]),
        ("train --margins 0.3,0.30", ["'0.3,0.30'", "once"]),
        ("train --margins 0.3,4", ["--margins is 4", "below 3.142"]),
        ("train --data-dir somewhere", ["somewhere", "no effect", "digits"]),
        ("train --dataset mnist", ["mnist", "ARCFACE_DATA_DIR", "train-images-idx3-ubyte.gz"]),
        ("evaluate", ["evaluate needs RUN_OR_NPZ"]),
        ("evaluate missing", ["missing is not a run directory", "config.json"]),
        ("evaluate missing.npz", ["missing.npz does not exist"]),
        ("evaluate missing.npz --split train", ["--split", "no effect", "missing.npz"]),
        ("embed", ["embed needs RUN and INPUT"]),
        ("embed missing digits", ["missing is not a run directory"]),
    ],
)
def test_mistake_is_answered_in_one_line(line, parts, told):
    assert_names(told(line), *parts)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ["is not JSON"]),
        ("[3]", ["JSON object"]),
        ('{"epoch": 3}', ["unknown field 'epoch'", "did you mean 'epochs'?"]),
        ('{"epochs": "3"}', ['epochs = "3"', "int"]),
        ('{"flip": 1}', ["flip = 1", "bool"]),
        ('{"epochs": true}', ["epochs = true", "int"]),
        ('{"margin": 9}', ["--margin is 9", "below 3.142"]),
        ('{"scale": NaN}', ["--scale is nan"]),
    ],
)
def test_mistake_in_a_config_file_is_answered_in_one_line(text, parts, told, tmp_path):
    (tmp_path / "mine.json").write_text(text)
    assert_names(told("train --config mine.json"), "mine.json", *parts)


def test_config_file_that_is_no_text(told, tmp_path):
    (tmp_path / "mine.json").write_bytes(b"\xff\xfe\x00")
    assert_names(told("train --config mine.json"), "mine.json", "is not JSON")


def test_out_that_is_not_a_run(told, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    assert_names(told("train --out photos"), "photos", "not a run directory", "new or an empty folder")
    assert files_below(tmp_path / "photos") == ["1.png"]


def test_out_that_is_a_file(told, tmp_path):
    (tmp_path / "note").write_text("mine")
    assert_names(told("train --out note"), "note", "not a run directory")
    assert (tmp_path / "note").read_text() == "mine"


def test_out_below_a_file(told, tmp_path):
    (tmp_path / "note").touch()
    assert_names(told("train --out note/run"), "note/run", "Not a directory")


def test_out_that_is_a_run_already(told, trained):
    assert_names(told("train --out", trained), str(trained), "holds a run already", "--resume")


def test_mistake_found_late_leaves_the_folder_free(told, tmp_path):
    told("train --batch-size 5000 --out new")
    told("train --image-size 4 --out new")
    assert not (tmp_path / "new").exists()


def test_tensorboard_that_is_not_installed(told, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert_names(told("train --tensorboard --out new"), "tensorboardX", "pip install")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("flag", ["--scale 20", "--seed 1", "--epochs 5", "--loss cosface", "--no-flip --rotate 0.3"])
def test_resume_with_a_changed_flag(flag, told, trained):
    name = flag.split()[-2]
    assert_names(told(f"train --resume {flag} --out", trained), name, "the run to resume has", "leave it out")


@pytest.mark.parametrize("flag", ["--replicas 2", "--margins 0.3", "--margins 0.3,0.4"])
def test_resume_of_a_single_run_as_several(flag, told, trained):
    assert_names(told(f"train --resume {flag} --out", trained), f"{trained} is a single run", f"without {flag}")


def set_of(configs):
    """Writes nothing but the configurations of replicas, into the folder `set`; and of two that were moved away."""
    for name, config in (configs | {"seed-old": TrainConfig(epochs=1), "margin-old": TrainConfig(epochs=1)}).items():
        runs.create(Path("set") / name, config)


SEEDS = "--out set holds seed-9, seed-10: give --replicas 2, or more"
MARGINS = "--out set holds margin-0.2, margin-0.3: give --margins 0.2,0.3, or more"


@pytest.mark.parametrize(
    ("flags", "seeds", "margins"),
    [
        ("", SEEDS, MARGINS),
        ("--replicas 1", SEEDS, MARGINS),
        ("--replicas 3 --epochs 5", "--epochs is 5, but the run to resume has 4", "--epochs is 5, but the run to"),
        ("--replicas 0", "--replicas is 0", MARGINS),
        ("--replicas 3 --seed 8", "--seed is 8, but the run to resume has 9", "--seed is 8, but the run to"),
        ("--margins 0.2", SEEDS, MARGINS),
        ("--replicas 2", "seed-10 was begun with --width 0.5, but what is to go on has 1.0: move it away", MARGINS),
        ("--margins 0.3,0.2", SEEDS, "margin-0.3 was begun with --width 0.5, but what is to go on has 1.0: move it"),
        ("--config x.json --replicas 2", "--config has no effect with --resume", "--config has no effect"),
    ],
)
def test_resume_of_a_set_that_is_another_than_asked_for(flags, seeds, margins, told):
    config = TrainConfig(epochs=4)
    other = dataclasses.replace(config, width=0.5)
    set_of({"seed-9": dataclasses.replace(config, seed=9), "seed-10": dataclasses.replace(other, seed=10)})
    assert_names(told(f"train --resume --out set {flags}"), seeds)
    shutil.rmtree("set")
    set_of(
        {"margin-0.2": dataclasses.replace(config, margin=0.2), "margin-0.3": dataclasses.replace(other, margin=0.3)}
    )
    assert_names(told(f"train --resume --out set {flags}"), margins)


def test_resume_of_fewer_replicas_than_there_are(told):
    set_of({f"seed-{seed}": TrainConfig(seed=seed) for seed in (0, 1, 3)})
    assert_names(told("train --resume --out set --replicas 3"), "seed-0, seed-1, seed-3: give --replicas 4, or more")


def test_resume_of_a_checkpoint_that_does_not_fit(told, run_copy):
    checkpoint = run_copy / "checkpoints" / f"step_{STEPS:08d}.safetensors"
    safetensors.numpy.save_file({".step": np.full((), STEPS, np.int32)}, checkpoint)
    assert_names(told("train --resume --out", run_copy), str(checkpoint), "does not fit")


def test_evaluate_without_weights(told, run_copy):
    (run_copy / "model.safetensors").unlink()
    assert_names(told("evaluate", run_copy), "no model.safetensors", "--resume")


def test_evaluate_of_weights_that_are_cut_off(told, run_copy):
    weights = run_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_names(told("evaluate", run_copy), str(weights), "not a safetensors file")


def test_evaluate_of_weights_of_another_model(told, run_copy):
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(config | {"embedding_dim": 8}))
    assert_names(told("evaluate", run_copy), "model.safetensors", "(8", "(16")


def test_evaluate_on_other_classes(told, run_copy):
    described = json.loads((run_copy / "dataset.json").read_text())
    described["class_names"][0] = "zero"
    (run_copy / "dataset.json").write_text(json.dumps(described))
    assert_names(told("evaluate", run_copy), "digits has other classes")


def test_evaluate_on_an_unknown_split(told, trained):
    assert_names(told("evaluate --split validation", trained), "'validation'", "train or test")


def test_evaluate_into_a_file(told, trained, tmp_path):
    (tmp_path / "note").touch()
    assert_names(told("evaluate --out note/below", trained), "note/below/evaluation.json cannot be written")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_evaluate_of_no_npz(content, told, tmp_path):
    (tmp_path / "mine.npz").write_bytes(content)
    assert_names(told("evaluate mine.npz"), "mine.npz is not an .npz file")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"labels": None}, ["no array 'labels'", "embeddings, labels, prototypes"]),
        ({"labels": np.zeros(4, int)}, ["labels (4,)", "[N]"]),
        ({"labels": np.array([0, 1, 2])}, ["labels", "from 0 to 1"]),
        ({"labels": np.array([0.0, 1.0, 1.0])}, ["labels", "whole numbers"]),
        ({"prototypes": np.ones((2, 5))}, ["prototypes (2, 5)", "[C, D]"]),
        ({"embeddings": np.ones((0, 4)), "labels": np.zeros(0, int)}, ["embeddings (0, 4)"]),
    ],
)
def test_evaluate_of_arrays_that_do_not_fit(change, parts, told):
    arrays = {"embeddings": np.ones((3, 4)), "labels": np.array([0, 1, 1]), "prototypes": np.ones((2, 4))} | change
    np.savez("mine.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert_names(told("evaluate mine.npz"), "mine.npz", *parts)


def test_embed_of_a_missing_file(told, trained):
    assert_names(told("embed", trained, "cat.png"), "cat.png")


def test_embed_of_no_image(told, trained, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"meow")
    assert_names(told("embed", trained, "cat.png"), "cat.png", "not an image")


def test_embed_into_a_folder(told, trained, tmp_path):
    (tmp_path / "there").mkdir()
    assert_names(told("embed --out there", trained, "digits"), "there cannot be written")
    assert list(tmp_path.glob(".there*")) == []


def test_embed_of_files_has_no_split(told, trained):
    assert_names(told("embed --split train", trained, "cat.png"), "--split", "no effect", "cat.png")


def test_as_a_program_where_the_terminal_has_no_frames(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jax_arcface", "train", "--epochs", "three"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "jax_arcface: --epochs is 'three'; it must be a whole number; see train --help\n"


# ---- help


def test_usage_names_the_commands(capsys):
    assert main([]) == 0
    assert_names(capsys.readouterr().out, "train", "evaluate", "embed", "--help")


def test_help_tells_each_flag_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no help text is broken
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code in (0, None)
    rows = [row.strip("│ ") for row in capsys.readouterr().out.splitlines()]
    text = " ".join(re.sub(r"^(--[a-z])", "\0\\1", "\n".join(rows), flags=re.MULTILINE).split())
    entries = {entry.split()[0].rstrip(","): entry for entry in text.split("\0")[1:]}
    flags = [field.name for field in dataclasses.fields(TrainConfig)]
    flags += ["config", "out", "checkpoint_every", "resume", "replicas", "margins", "tensorboard"]
    assert set(entries) == {f"--{flag.replace('_', '-')}" for flag in flags}
    for flag, entry in entries.items():
        assert re.fullmatch(rf"{flag}(, --no-\S+| \S+) [A-Z](\S+ ){{2,}}.*\(default: .*\).*", entry), entry


def test_help_tells_the_defaults_of_the_data_set(capsys):
    for dataset, batch_size in (("digits", 64), ("cifar10", 256)):
        with pytest.raises(SystemExit):
            main(["train", "--dataset", dataset, "--help"])
        assert f"Images in a step. (default: {batch_size})" in capsys.readouterr().out


# ---- train


def test_train_writes_the_run_directory(trained):
    assert files_below(trained) == [
        f"checkpoints/step_{STEPS:08d}.safetensors",
        "config.json",
        "dataset.json",
        "embeddings.npz",
        "embeddings.png",
        "metrics.jsonl",
        "model.safetensors",
    ]


def test_config_holds_every_field_and_what_was_asked_for(trained):
    config = json.loads((trained / "config.json").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(TrainConfig)}
    asked = {"dataset": "digits", "width": 0.125, "embedding_dim": 16, "batch_size": 128, "epochs": 3, "seed": 0}
    assert config.items() >= asked.items()


def test_metrics_are_a_line_an_epoch(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 11), (2, 22), (3, 33)]
    for record in records:
        keys = {"train_loss", "train_accuracy", "test_accuracy", "learning_rate", "images_per_second"}
        assert record.keys() >= keys
        assert all(np.isfinite(record[key]) for key in keys)
    assert records[-1]["test_accuracy"] == numpy_accuracy(np.load(trained / "embeddings.npz"))


def test_dataset_json_describes_the_training_images(trained):
    described = json.loads((trained / "dataset.json").read_text())
    assert described["image_shape"] == [8, 8, 1]
    assert described["class_names"] == list("0123456789")


def test_embeddings_are_of_the_test_split(trained):
    with np.load(trained / "embeddings.npz") as arrays:
        assert arrays["embeddings"].shape == (359, 16)
        assert arrays["prototypes"].shape == (10, 16)
        np.testing.assert_array_equal(
            arrays["prototypes"], safetensors.numpy.load_file(trained / "model.safetensors")["head.prototypes"]
        )
        # a fifth of each class
        whole = np.bincount(load_digits().target)
        np.testing.assert_array_equal(np.bincount(arrays["labels"]), np.round(whole / 5))


def test_files_are_as_readable_as_the_umask_says(trained):
    umask = os.umask(0)
    os.umask(umask)
    for file in files_below(trained):
        assert (trained / file).stat().st_mode & 0o777 == 0o666 & ~umask, file


def test_train_tells_accuracy_run_and_picture(trained, capsys):
    out = trained.parent / "told"
    assert main(["train", *LITTLE, "--out", str(out)]) == 0
    said = capsys.readouterr()
    right = 100 * numpy_accuracy(np.load(out / "embeddings.npz"))
    assert said.err == ""
    assert f"test accuracy {right:.2f} %" in said.out
    assert f"run directory {out}\n" in said.out
    assert f"picture       {out / 'embeddings.png'}\n" in said.out
    assert len(re.findall(r"^epoch \d/3  loss ", said.out, re.MULTILINE)) == 3
    with Image.open(out / "embeddings.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100
    assert_same_weights(out, trained)  # the same command gives the same run


def test_training_learns(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["train_accuracy"] > records[0]["train_accuracy"] + 0.2


def test_config_of_an_old_run_gives_it_again(trained, tmp_path):
    assert main(["train", "--config", str(trained / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert_same_weights(tmp_path / "again", trained)
    assert (tmp_path / "again" / "config.json").read_text() == (trained / "config.json").read_text()


def test_flags_override_the_config_file_and_no_epochs_are_the_first_weights(trained, tmp_path):
    words = ["train", "--config", str(trained), "--epochs", "0", "--out", str(tmp_path / "untrained")]
    assert main(words) == 0
    config = json.loads((tmp_path / "untrained" / "config.json").read_text())
    assert config == json.loads((trained / "config.json").read_text()) | {"epochs": 0}
    weights = safetensors.numpy.load_file(tmp_path / "untrained" / "model.safetensors")
    assert set(weights["backbone.stages.0.prelu1.weight"]) == {np.float32(0.25)}


def test_recipe_follows_a_loss_without_margin(tmp_path):
    assert main(["train", *LITTLE[:-1], "0", "--loss", "norm_softmax", "--out", str(tmp_path / "plain")]) == 0
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["loss"] == "norm_softmax"


def test_two_trainings_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *args: "20260101-000000")
    for _ in range(2):
        assert main(["train", *LITTLE[:-1], "0"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["20260101-000000-digits-arcface", "20260101-000000-digits-arcface-2"]


def test_without_matplotlib_there_is_a_word_in_place_of_the_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", *LITTLE[:-1], "0", "--out", str(tmp_path / "plain")]) == 0
    assert "no picture: it needs matplotlib (pip install" in capsys.readouterr().out
    assert not (tmp_path / "plain" / "embeddings.png").exists()


def press_ctrl_c(monkeypatch, epoch, step):
    original = Progress.on_step

    def on_step(self, replica, at_epoch, at_step, metrics):
        original(self, replica, at_epoch, at_step, metrics)
        if (at_epoch, at_step) == (epoch, step):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "on_step", on_step)


@pytest.mark.parametrize(("epoch", "step"), [(1, 4), (0, 11)])
def test_ctrl_c_keeps_what_was_trained_and_resume_ends_it_as_if_nothing_had_been(
    epoch, step, trained, tmp_path, monkeypatch, capsys
):
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, epoch, step)
        assert main(["train", *LITTLE, "--out", str(run)]) == 0
    said, done = capsys.readouterr().out, 11 * epoch + step
    assert f"stopped after {done} of {STEPS} steps; go on with: --resume --out {run}" in said
    assert signal.getsignal(signal.SIGINT) is handler
    assert files_below(run / "checkpoints") == [f"step_{done:08d}.safetensors"]
    stopped = safetensors.numpy.load_file(run / "model.safetensors")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert main(["evaluate", str(run)]) == 0

    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert f"\n{run} goes on after step {done} of {STEPS}\n" in capsys.readouterr().out
    assert_same_weights(run, trained)
    ended = safetensors.numpy.load_file(run / "model.safetensors")
    assert any(np.any(ended[name] != stopped[name]) for name in ended)
    assert files_below(run / "checkpoints") == [f"step_{STEPS:08d}.safetensors"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


@pytest.fixture
def heeded_interrupt():
    """Ctrl-C as at a terminal: a shell starts programs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupt")
def test_second_ctrl_c_ends_at_once(tmp_path, monkeypatch, capsys):
    def on_step(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "on_step", on_step)
    try:
        status = main(["train", *LITTLE, "--out", str(tmp_path / "run")])
    except KeyboardInterrupt:  # would end pytest too
        pytest.fail("a traceback")
    assert status == 130
    assert capsys.readouterr().err == "jax_arcface: ended at once by Ctrl-C\n"


def test_resume_without_a_checkpoint_begins_anew_unless_the_run_has_ended(run_copy, trained, capsys):
    for checkpoint in (run_copy / "checkpoints").iterdir():
        checkpoint.unlink()
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert capsys.readouterr().out.endswith(f"\n{run_copy} has ended\n")
    (run_copy / "embeddings.npz").unlink()
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert f"\n{run_copy} has no checkpoint and begins anew\n" in capsys.readouterr().out
    assert_same_weights(run_copy, trained)


def test_resume_of_an_ended_run_changes_nothing(run_copy, trained):
    assert main(["train", "--resume", "--out", str(run_copy)]) == 0
    assert_same_weights(run_copy, trained)
    assert (run_copy / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    words = ["--optimizer", "sgd", "--warmup-epochs", "0", "--learning-rate", "1e38", "--out", str(tmp_path / "run")]
    assert main(["train", *LITTLE, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(
        r"jax_arcface: the loss of step \d+ is (nan|-?inf); try a smaller --learning-rate \(now 1e\+38\)", line
    )


def test_replicas_are_runs_with_their_own_seed(both, trained):
    out, said = both
    assert sorted(path.name for path in out.iterdir()) == ["replicas.json", "seed-0", "seed-1"]
    assert_same_weights(out / "seed-0", trained)
    assert files_below(out / "seed-1") == files_below(trained)
    assert json.loads((out / "seed-1" / "config.json").read_text())["seed"] == 1
    check_summary(out, ["seed-0", "seed-1"], said)


def test_margins_are_runs_with_their_own_margin_and_tensorboard_events_can_be_read(tmp_path, capsys):
    out = tmp_path / "both"
    assert main(["train", *LITTLE, "--margins", "0.3,0.45", "--tensorboard", "--out", str(out)]) == 0
    margins = {
        run.name: json.loads((run / "config.json").read_text())["margin"] for run in out.iterdir() if run.is_dir()
    }
    assert margins == {"margin-0.3": 0.3, "margin-0.45": 0.45}
    check_summary(out, ["margin-0.3", "margin-0.45"], capsys.readouterr().out, seeds=False)
    for name in margins:
        (file,) = (out / name).glob("events.out.tfevents.*")
        events = read_events(file)
        for record in map(json.loads, (out / name / "metrics.jsonl").read_text().splitlines()):
            for key in ("train_loss", "train_accuracy", "test_accuracy", "learning_rate", "images_per_second"):
                assert events[record["step"], key] == np.float32(record[key])


def test_an_interrupted_set_is_ended_as_if_nothing_had_been(both, run_copy, tmp_path, monkeypatch, capsys):
    """One replica has ended; the other is begun, interrupted, and goes on."""
    out = tmp_path / "set"
    out.mkdir()
    run_copy.rename(out / "seed-0")
    go_on = f"--resume --out {out} --replicas 2"
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 1, 4)
        assert main(["train", *go_on.split()]) == 0
    said = capsys.readouterr().out
    assert f"\n{out / 'seed-0'} goes on after step {STEPS} of {STEPS}\n" in said
    assert f"\nstopped after 15 of {STEPS} steps\n" in said
    assert said.endswith(f"\ngo on with: {go_on}\n")
    assert sorted(os.listdir(out)) == ["seed-0", "seed-1"]

    shutil.rmtree(out / "seed-0" / "checkpoints")  # as after --checkpoint-every 0
    before = (out / "seed-0" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", *go_on.split()]) == 0
    said = capsys.readouterr().out
    assert f"\n{out / 'seed-0'} has ended\n{out / 'seed-1'} goes on after step 15 of {STEPS}\n" in said
    assert (out / "seed-0" / "model.safetensors").stat().st_mtime_ns == before
    whole, told = both
    assert said.split("\n\n")[-1] == told.split("\n\n")[-1]  # the summary
    for name in ("replicas.json", "seed-0/model.safetensors", "seed-1/model.safetensors", "seed-1/config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert files_below(out / "seed-1") == files_below(whole / "seed-1")


def test_an_interrupted_set_of_margins_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 1, 4)
        assert main(["train", *LITTLE, "--margins", "0.3, 0.45", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"\ngo on with: --resume --out {out} --margins 0.3,0.45\n")
    assert os.listdir(out) == ["margin-0.3"]
    assert main(["train", *said.splitlines()[-1].removeprefix("go on with: ").split()]) == 0
    assert json.loads((out / "margin-0.45" / "config.json").read_text())["margin"] == 0.45
    check_summary(out, ["margin-0.3", "margin-0.45"], capsys.readouterr().out, seeds=False)


def check_summary(out, names, said, seeds=True):
    values = [numpy_accuracy(np.load(out / name / "embeddings.npz")) for name in names]
    assert values[0] != values[1]
    assert json.loads((out / "replicas.json").read_text()) == dict(zip(names, values, strict=True))
    mean = 100 * (values[0] + values[1]) / 2
    deviation = 100 * abs(values[0] - values[1]) / np.sqrt(2)  # of a sample of two
    assert (f"test accuracy {mean:.2f} +- {deviation:.2f} % (mean and standard deviation of 2)" in said) == seeds
    for name, value in zip(names, values, strict=True):
        assert f"  {name:<12} {100 * value:.2f} %" in said


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


# ---- evaluate


def test_evaluate_tells_what_numpy_finds_in_the_embeddings(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--out", str(tmp_path / "result")]) == 0
    found = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    arrays = np.load(trained / "embeddings.npz")
    assert (found["dataset"], found["split"], found["examples"]) == ("digits", "test", 359)
    assert found["accuracy"] == numpy_accuracy(arrays)
    # ArcFace, equation 3, s = 16, m = 0.5, with the falling branch -cos(theta + m) - 2 past pi
    cosine, own = cosines(arrays), (np.arange(359), arrays["labels"])
    angle = np.arccos(np.clip(cosine[own], -1, 1)) + 0.5
    logits = 16 * cosine
    logits[own] = 16 * np.where(angle <= np.pi, np.cos(angle), -np.cos(angle) - 2)
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[own])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    said = capsys.readouterr().out
    assert f"{100 * found['accuracy']:.2f} %" in said
    assert str(tmp_path / "result" / "evaluation.json") in said


def test_evaluate_of_the_npz_tells_the_same_accuracy(trained, tmp_path):
    assert main(["evaluate", str(trained / "embeddings.npz"), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found == {"examples": 359, "accuracy": numpy_accuracy(np.load(trained / "embeddings.npz"))}


def test_evaluate_writes_into_the_run_and_takes_the_training_split(run_copy):
    assert main(["evaluate", str(run_copy), "--split", "train"]) == 0
    found = json.loads((run_copy / "evaluation.json").read_text())
    assert (found["split"], found["examples"]) == ("train", 1438)


# ---- embed


def test_embed_of_a_data_set_is_what_the_run_holds(trained, tmp_path):
    assert main(["embed", str(trained), "digits", "--out", str(tmp_path / "deep" / "test.npz")]) == 0
    held, found = np.load(trained / "embeddings.npz"), np.load(tmp_path / "deep" / "test.npz")
    for name in ("embeddings", "labels", "prototypes", "class_names"):
        np.testing.assert_array_equal(found[name], held[name])
    np.testing.assert_array_equal(found["predictions"], np.argmax(cosines(held), axis=1))


def test_embed_of_image_files_is_that_of_the_data_set(trained, tmp_path):
    # docs/recipe.md: the first of scikit-learn's digits, as they are stored
    pixels = load_digits().images[:6].astype(int)
    for number, image in enumerate(((255 * pixels + 8) // 16).astype(np.uint8)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    assert main(["embed", str(trained), str(tmp_path), "--out", str(tmp_path / "files.npz")]) == 0
    found = np.load(tmp_path / "files.npz")
    assert [Path(name).name for name in found["files"]] == [f"{number}.png" for number in range(6)]
    both = []
    for split in ("train", "test"):
        assert main(["embed", str(trained), "digits", "--split", split, "--out", str(tmp_path / f"{split}.npz")]) == 0
        both.append(np.load(tmp_path / f"{split}.npz")["embeddings"])
    known = np.concatenate(both)
    for embedding in found["embeddings"]:
        assert np.abs(known - embedding).max(axis=1).min() < 1e-4


def test_embed_of_one_file(trained, tmp_path, capsys):
    Image.fromarray(np.full((30, 20), 128, np.uint8)).save(tmp_path / "grey.png")
    assert main(["embed", str(trained), "grey.png"]) == 0
    assert np.load(tmp_path / "embeddings.npz")["embeddings"].shape == (1, 16)
    assert capsys.readouterr().out == "1 embeddings of dimension 16 written to embeddings.npz\n"
