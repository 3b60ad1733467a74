"""The two command lines: the same flags, exit status for the same mistake, and use of each other's runs."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jax_arcface import __main__ as jax_program
from jax_arcface.cli import train as jax_train
from parity_tests.cases.evaluation import runs
from torch_reference import __main__ as torch_program
from torch_reference.cli import arguments as torch_arguments
from torch_reference.cli.commands import TrainOptions

ROOT = Path(__file__).parents[1]
PROGRAMS = {"jax_arcface": jax_program.main, "torch_reference": torch_program.main}

# Flags of one side, and why.
ONE_SIDE_ONLY = {
    "--device": "JAX takes its device from JAX_PLATFORMS",
    "--channels-last": "XLA chooses layouts itself",
    "--compile": "JAX always compiles",
    "--deterministic": "of PyTorch's CUDA kernels",
}

EVERY_FLAG = (
    "--image-size 12 --holdout-classes 3,4 --backbone lenet --width 0.25 --embedding-dim 8 --dropout 0.1 --loss "
    "subcenter --margin 0.4 --margin-warmup-epochs 0.5 --scale 20 --beyond-pi linear --gradient straight_through "
    "--subcenters 2 --label-smoothing 0.1 --epochs 1 --batch-size 512 --classes-per-batch 4 --optimizer adamw "
    "--learning-rate 0.01 --momentum 0.8 --weight-decay 0.001 --schedule linear --warmup-epochs 0.5 --clip-norm 1 "
    "--rotate 0.1 --zoom 0.05 --shift 2 --flip --cutout 3 --seed 5 --precision bfloat16"
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """No relative path is there, and the process's environment stays as it is."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def flags(program, command, capsys):
    """The flags that `--help` shows; --flip for --no-flip."""
    with contextlib.suppress(SystemExit):
        PROGRAMS[program]([command, "--help"])
    return {found.replace("--no-", "--") for found in re.findall(r"(?<!\w)--[a-z][a-z-]+", capsys.readouterr().out)}


@pytest.mark.parametrize("command", ["train", "evaluate", "embed", "verify", "identify", "export"])
def test_the_same_flags(command, capsys):
    here, there = (flags(program, command, capsys) for program in PROGRAMS)
    assert "--help" in here
    assert here - {"--help-losses"} == there - {"--help-losses"} - ONE_SIDE_ONLY.keys()
    if command == "train":
        assert there >= ONE_SIDE_ONLY.keys()


def test_every_flag_sets_the_same_field():
    written = []
    for program, main in PROGRAMS.items():
        assert main(["train", "--out", program, *EVERY_FLAG.split()]) == 0
        written.append(json.loads(Path(program, "config.json").read_text()))
    assert written[0] == written[1]
    said = dict(re.findall(r"--(\S+) ([^-\s]\S*)", EVERY_FLAG)) | {"flip": True}
    assert {name for name in written[0] if name.replace("_", "-") not in said} == {"dataset", "data_dir", "image_fit"}


@pytest.mark.parametrize(
    "line",
    ["", "--embedding-dim 2", "--epochs 2", "--epochs 2 --scale none", "--dataset digits --loss softmax --epochs 1"],
)
def test_flags_beside_a_file_mean_the_same(line):
    """Such as the warm-ups, which the flags' number of epochs caps."""
    Path("mine.json").write_text('{"dataset": "mnist", "scale": 20}')
    words = ["--config", "mine.json", *line.split()]
    here, _ = jax_train.parse(words)
    there = torch_arguments.parse(TrainOptions, "train", words).training
    assert dataclasses.asdict(here) == dataclasses.asdict(there)


@pytest.mark.parametrize(
    "words",
    [
        "trian",
        "train --epohcs 3",
        "train extra",
        "train --epochs",
        "train --epochs many",
        "train --loss arcfase",
        "train --loss arcface+cosface",
        "train --margin 4",
        "train --loss softmax --margin 0.1",
        "train --dataset minst",
        "train --dataset ./nowhere",
        "train --config nowhere.json",
        "train --resume",
        "train --resume --out nowhere",
        "train --backbone lenet --image-size 7",
        "train --backbone airnet",
        "train --checkpoint-every -1",
        "evaluate",
        "evaluate nowhere",
        "evaluate nowhere.npz",
        "evaluate one two",
        "embed nowhere",
        "embed nowhere digits",
        "embed nowhere digits --splitt test",
        "evaluate nowhere --calibrate much",
        "evaluate nowhere.npz --calibrate 0.1",
        "verify nowhere one.png two.png",
        "verify nowhere one.png",
        "identify nowhere gallery one.png",
        "identify",
        "export",
        "export nowhere",
        "export nowhere --format onxx",
        "export nowhere --out model",
    ],
)
def test_the_same_mistake_has_the_same_exit_status(words, capsys):
    for program in PROGRAMS:
        assert_refused(program, words, capsys)


def assert_refused(program, words, capsys):
    """Exit status 2 and one line on standard error."""
    assert PROGRAMS[program](words.split()) == 2, program
    assert capsys.readouterr().err.count("\n") == 1


def harmed(name, change):
    """Changes a file of the folder `run`, by a function of its JSON or to other bytes, or removes it."""
    path = Path("run") / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(
            change if isinstance(change, bytes) else json.dumps(change(json.loads(path.read_text()))).encode()
        )


RUN_HARMS = {
    "no config": ("evaluate run", "config.json", None),
    "no weights": ("evaluate run", "model.safetensors", None),
    "no description": ("embed run digits", "dataset.json", None),
    "damaged weights": ("evaluate run", "model.safetensors", b"{"),
    "damaged config": ("evaluate run", "config.json", b"{"),
    "an empty description": ("evaluate run", "dataset.json", b"{}"),
    "no mean": ("evaluate run", "dataset.json", lambda fields: fields | {"mean": []}),
    "a mean in words": ("train --resume --out run", "dataset.json", lambda fields: fields | {"mean": ["a"]}),
    "metrics cut off": ("train --resume --out run", "metrics.jsonl", b'{"epoch": 1, "step": 2}\n{"epoch": 2, "st'),
    "metrics that are no text": ("train --resume --out run", "metrics.jsonl", b"\xff\xfe"),
    "another optimiser": ("train --resume --out run", "config.json", lambda fields: fields | {"optimizer": "adamw"}),
    "another model": ("evaluate run", "config.json", lambda fields: fields | {"embedding_dim": 8}),
    "another model, resumed": ("train --resume --out run", "config.json", lambda fields: fields | {"embedding_dim": 8}),
}


@pytest.mark.parametrize("harm", RUN_HARMS)
def test_the_same_harm_to_a_run_has_the_same_exit_status(harm, capsys):
    words, name, change = RUN_HARMS[harm]
    for program, made in zip(PROGRAMS, runs("short").pair, strict=True):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(made, "run")
        harmed(name, change)
        assert_refused(program, words, capsys)


ARRAYS = {"embeddings": np.eye(2, 4), "labels": np.array([0, 1]), "prototypes": np.eye(2, 4), "bias": np.zeros(2)}


@pytest.mark.parametrize("name", ["embeddings", "prototypes", "bias"])
@pytest.mark.parametrize("value", ["a", np.nan, np.inf, 1j])
def test_arrays_that_are_not_finite_numbers_are_refused_by_both(name, value, capsys):
    np.savez("mine.npz", **ARRAYS | {name: np.full(ARRAYS[name].shape, value)})
    for program in PROGRAMS:
        assert_refused(program, "evaluate mine.npz", capsys)


@pytest.mark.parametrize("trained_by", [0, 1])
def test_each_evaluates_the_others_run(trained_by):
    found = []
    for program, main in PROGRAMS.items():
        shutil.copytree(runs("short").pair[trained_by], program)
        assert main(["evaluate", program]) == 0
        found.append(json.loads(Path(program, "evaluation.json").read_text()))
    here, there = found
    assert here.keys() == there.keys()
    numbers = [key for key, value in here.items() if isinstance(value, float)]
    assert {"accuracy", "loss"} <= set(numbers)
    for key in numbers:
        np.testing.assert_allclose(here[key], there[key], rtol=64 * np.finfo(np.float32).eps, err_msg=key)
    parts = {key for key, value in here.items() if isinstance(value, dict)}
    assert parts == {"verification", "identification", "retrieval", "angles", "health"}
    for key in parts:  # of embeddings that differ in their last digits, by which two neighbours may change places
        one, other = (dict(flat(part[key])) for part in (here, there))
        assert one == pytest.approx(other, rel=1e-2, abs=1e-2), key
    assert all(here[key] == there[key] for key in here.keys() - {*numbers, *parts, "run"})


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key} ")
        else:
            yield prefix + key, -1 if value is None else value


def digits(folder, numbers):
    """Images of scikit-learn's digits, `folder/CLASS/NUMBER.png`."""
    held = load_digits()
    for number in numbers:
        path = Path(folder, str(held.target[number]), f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * held.images[number].astype(int) // 16).astype(np.uint8)).save(path)


def test_both_calibrate_verify_and_identify_alike(capsys):
    digits("gallery", range(30))
    digits("probe", [30])
    (probe,) = Path("probe").rglob("*.png")
    written, printed = [], []
    for program, main in PROGRAMS.items():
        shutil.copytree(runs("short").by_jax, program)
        verify = ["verify", program, "gallery/0/0.png"]
        assert_refused(program, " ".join([*verify, "gallery/1/1.png"]), capsys)  # not calibrated
        for far in ("1e-9", "0", "1", "nan"):
            assert_refused(program, f"evaluate {program} --calibrate {far}", capsys)
            assert not Path(program, "threshold.json").exists()
            assert not Path(program, "evaluation.json").exists()
        assert main(["evaluate", program, "--protocol", "none", "--calibrate", "1e-2"]) == 0
        written.append(json.loads(Path(program, "threshold.json").read_text()))
        capsys.readouterr()
        for other in ("gallery/0/0.png", "gallery/1/1.png"):
            assert main([*verify, other]) == 0
        assert main(["identify", program, "gallery", str(probe)]) == 0
        Path(program, "threshold.json").write_text(json.dumps(written[-1] | {"threshold": 1.0}))
        assert main(["identify", program, "gallery", str(probe)]) == 0
        printed.append(capsys.readouterr().out.splitlines())
        for words in ("gallery gallery", f"{probe} {probe}", f"nowhere {probe}", "gallery nowhere.png"):
            assert_refused(program, f"identify {program} {words}", capsys)
        for words in (f"{probe} gallery", f"nowhere.png {probe}"):
            assert_refused(program, f"verify {program} {words}", capsys)
        Path(program, "threshold.json").write_text('{"threshold": "much"}')
        assert_refused(program, f"verify {program} {probe} {probe}", capsys)
    assert written[0] == pytest.approx(written[1], abs=1e-5)
    assert 0 < written[0]["far"] <= 1e-2
    first, *rest = printed[0]
    assert (first, rest[0]) == ("same", "angle      0.0 degrees")
    assert printed[0].count("nobody") == 1
    assert [re.split(r"[ ]{2,}", line)[:2] for line in printed[0]] == [
        re.split(r"[ ]{2,}", line)[:2] for line in printed[1]
    ]


def test_both_write_files_of_the_same_names():
    made = []
    for program, main in PROGRAMS.items():
        run = Path(shutil.copytree(runs("short").by_jax, program))
        for line in ("evaluate", "evaluate --split train", "embed digits", "embed digits --split train"):
            command, *rest = line.split()
            assert main([command, program, *rest]) == 0
        assert main(["embed", program, str(run / "embeddings.png")]) == 0
        assert main(["evaluate", str(run / "embeddings.npz")]) == 0
        made.append({path.name for path in run.iterdir()})
    assert made[0] == made[1]


@pytest.mark.parametrize(("loss", "weight", "above"), [("arcface", 1.0, 2.0), ("arcface:filter=0.0", 1.0, 0.0)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_loss_of_an_evaluation_has_its_weight_and_filter(program, loss, weight, above):
    shutil.copytree(runs("short").by_jax, "run")
    harmed("config.json", lambda fields: fields | {"loss": loss, "margin": 0.3, "scale": 8.0})
    assert PROGRAMS[program](["evaluate", "run"]) == 0
    x, w, labels = (np.load("run/embeddings.npz")[name] for name in ("embeddings", "prototypes", "labels"))
    x, w = (vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1)[:, None] for vectors in (x, w))
    cosine, own = x @ w.T, (np.arange(len(labels)), labels)
    theta = np.arccos(cosine[own])
    assert theta.max() < np.pi - 0.3  # where cos(theta + 0.3) still falls
    logits = 8 * np.where(cosine > above, 0, cosine)
    logits[own] = 8 * np.cos(theta + 0.3)
    expected = weight * np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[own])
    found = json.loads(Path("run/evaluation.json").read_text())["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("program", PROGRAMS)
def test_whoever_reads_help_may_stop(program):
    """As in `--help | head`: nothing on standard error."""
    command = [sys.executable, "-m", program, "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdout.close()  # long before the program writes
        assert process.stderr.read() == ""
