"""The two command lines: the same flags, defaults and help, the same answers to mistakes, and the same evaluation."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from jax_arcface import __main__ as jax_program
from parity_tests.cases.evaluation import runs
from torch_reference import __main__ as torch_program

ROOT = Path(__file__).parents[1]
PROGRAMS = {"jax_arcface": jax_program.main, "torch_reference": torch_program.main}

# What --help tells on one side only, and why.
ONE_SIDE_ONLY = {
    "--device {None}|STR": "JAX takes its device from JAX_PLATFORMS",
    "--channels-last, --no-channels-last": "XLA chooses layouts itself",
    "--compile, --no-compile": "JAX always compiles",
    "--deterministic, --no-deterministic": "of PyTorch's CUDA kernels",
}

# What --help tells in other words, and why.
OTHER_WORDS = {
    "train": {
        "--data-dir {None}|STR": "each names the library that downloads",
        "--loss STR": "other examples",
        "--margins STR": "tyro quotes a default that is empty",
    }
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """No relative path is there, help is hardly wrapped, and the process's environment stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(jax_program, "set_up", lambda: None)


def helped(program, words, capsys):
    """What `--help` tells first, and of each flag and argument, by how it is written, such as `--out {None}|PATH`."""
    with pytest.raises(SystemExit, match="0"):
        PROGRAMS[program]([*words.split(), "--help"])
    rows = [row.strip("│ ") for row in capsys.readouterr().out.splitlines()]
    frame = re.compile(r"\W*(positional arguments|options)\b|\W*$")
    written, found = "", {"": []}
    for row in rows[rows.index("") :]:  # after the usage
        if frame.match(row):
            continue
        if entry := re.match(r"(--?\w.*?|[A-Z_]+)(?: {2,}(.*)|$)", row):
            written, row = entry[1], entry[2] or ""
            found[written] = []
        found[written] += row.split()
    return {written: " ".join(told).removesuffix(" (required)") for written, told in found.items()}


@pytest.mark.parametrize("words", ["train", "train --dataset cifar10 --loss triplet", "evaluate", "embed"])
def test_the_same_flags_defaults_and_help(words, capsys):
    here, there = (helped(program, words, capsys) for program in PROGRAMS)
    assert len(here) > 5
    assert all(here.values())
    assert here.keys() - there.keys() == set()
    assert there.keys() - here.keys() == ONE_SIDE_ONLY.keys() & there.keys()
    different = {written for written in here if here[written] != there[written]}
    assert different == set(OTHER_WORDS.get(words.split()[0], ()))


def test_no_exception_is_out_of_date(capsys):
    assert ONE_SIDE_ONLY.keys() <= helped("torch_reference", "train", capsys).keys()


def test_the_same_usage(capsys):
    said = []
    for program, main in PROGRAMS.items():
        assert main(["--help"]) == 0
        said.append(capsys.readouterr().out.replace(program, "PROGRAM"))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "words",
    [
        "trian",
        "train --epohcs 3",
        "train --zzz",
        "train extra",
        "train --epochs",
        "train --epochs many",
        "train --learning-rate high",
        "train --loss arcfase",
        "train --loss arcface+cosface",
        "train --margin 4",
        "train --loss softmax --margin 0.1",
        "train --dataset minst",
        "train --dataset ./nowhere",
        "train --config nowhere.json",
        "train --resume",
        "train --resume --out nowhere",
        "train --margins 0.3,x",
        "train --replicas 0",
        "train --backbone lenet --image-size 7",
        "train --backbone airnet",
        "train --backbone resnet20 --image-size 3",
        "train --backbone resnet18 --image-size 7",
        "train --margins 0.3,9",
        "train --loss triplet --margins 0.3",
        "train --checkpoint-every -1",
        "evaluate",
        "evaluate nowhere",
        "evaluate nowhere.npz",
        "evaluate one two",
        "embed nowhere",
        "embed nowhere digits",
        "embed nowhere digits --splitt test",
    ],
)
def test_the_same_mistake_has_the_same_message(words, capsys):
    (here, out), (there, other_out) = (answer(program, words, capsys) for program in PROGRAMS)
    assert here == there
    assert out == other_out == ""


@pytest.mark.parametrize("flags", ["", "--replicas 2", "--replicas 3", "--margins 1", "--margins 0,1,2", "--seed 1"])
@pytest.mark.parametrize("field", ["seed", "margin"])
def test_a_set_that_is_not_the_one_asked_for_has_the_same_message(field, flags, capsys):
    for value in (1, 0, 2):
        run = Path("set") / f"{field}-{value}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({field: value, "epochs": 9 if value == 2 else 3}))
    here, there = (answer(program, f"train --resume --out set {flags}", capsys) for program in PROGRAMS)
    assert here == there
    assert re.search("set holds|was begun with|the run to resume", here[0])


def answer(program, words, capsys):
    """The one line that a program answers a mistake with, without its name, and what it has told before."""
    assert PROGRAMS[program](words.split()) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    return output.err.removeprefix(f"{program}: "), output.out


def written(name, content):
    return lambda: (Path("run") / name).write_text(content)


def overwritten(name, content):
    return lambda: (Path("run") / name).write_bytes(content)


def configured(**changes):
    def harm():
        config = json.loads(Path("run/config.json").read_text())
        Path("run/config.json").write_text(json.dumps(config | changes))

    return harm


def weighed(**changes):
    def harm():
        weights = safetensors.numpy.load_file("run/model.safetensors") | changes
        kept = {name: array for name, array in weights.items() if array is not None}
        safetensors.numpy.save_file(kept, "run/model.safetensors")

    return harm


DESCRIPTION = '{"name": "x", "image_shape": [8, 8, 1], "class_names": ["0", "1"], "mean": [%s], "std": [1.5]}'
RUN_HARMS = {
    "no description": ("evaluate run", written("dataset.json", "{}"), "run/dataset.json must hold a JSON object with"),
    "a list": ("evaluate run", written("dataset.json", "[]"), "run/dataset.json must hold a JSON object with name, "),
    "no mean": ("embed run digits", written("dataset.json", DESCRIPTION % ""), "run/dataset.json must hold"),
    "words": ("train --resume --out run", written("dataset.json", DESCRIPTION % '"a"'), "run/dataset.json must hold"),
    "none": ("train --resume --out run --replicas 2", lambda: None, "--out run is a single run: go on with it without"),
    "metrics cut off": (
        "train --resume --out run",
        written("metrics.jsonl", '{"epoch": 1, "step": 2}\n{"epoch": 2, "st'),
        "line 2 of run/metrics.jsonl is not the record of an epoch: remove it",
    ),
    "metrics without a step": (
        "train --resume --out run",
        written("metrics.jsonl", '{"epoch": 1}\n'),
        "line 1 of run/metrics.jsonl is not the record of an epoch: remove it",
    ),
    "metrics that are no text": (
        "train --resume --out run",
        overwritten("metrics.jsonl", b"\xff\xfe"),
        "line 1 of run/metrics.jsonl is not the record of an epoch: remove it",
    ),
    "another optimiser": (
        "train --resume --out run",
        configured(optimizer="adamw"),
        "run/checkpoints/step_00000004.safetensors does not fit the model of run/config.json",
    ),
    "another model": (
        "train --resume --out run",
        configured(embedding_dim=8),
        "run/checkpoints/step_00000004.safetensors does not fit the model of run/config.json",
    ),
    "weights of another model": (
        "evaluate run",
        configured(embedding_dim=8),
        "run/model.safetensors: its backbone.embedding.bn2.bias has shape (16,); the model needs (8,)",
    ),
    "weights that are missing": (
        "evaluate run",
        weighed(**{"backbone.stages.0.conv1.weight": None}),
        "run/model.safetensors: it has no backbone.stages.0.conv1.weight, which the model needs",
    ),
    "weights that are not known": (
        "evaluate run",
        weighed(stray=np.zeros(1)),
        "run/model.safetensors: it has stray, which the model does not know",
    ),
}


@pytest.mark.parametrize(("words", "harm", "message"), RUN_HARMS.values(), ids=RUN_HARMS.keys())
def test_the_same_harm_to_a_run_has_the_same_message(words, harm, message, capsys):
    said = []
    for program, made in zip(PROGRAMS, runs("short").pair, strict=True):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(made, "run")
        harm()
        said.append(answer(program, words, capsys)[0])
    assert said[0] == said[1]
    assert said[0].startswith(message)


ARRAYS = {"embeddings": np.eye(2, 4), "labels": np.array([0, 1]), "prototypes": np.eye(2, 4), "bias": np.zeros(2)}


@pytest.mark.parametrize("name", ["embeddings", "prototypes", "bias"])
@pytest.mark.parametrize("value", ["a", np.nan, np.inf, 1j])
def test_arrays_that_are_not_finite_numbers_have_the_same_message(name, value, capsys):
    np.savez("mine.npz", **ARRAYS | {name: np.full(ARRAYS[name].shape, value)})
    here, there = (answer(program, "evaluate mine.npz", capsys)[0] for program in PROGRAMS)
    assert here == there == f"mine.npz has {name} that are not finite numbers\n"


# ---- the loss of an evaluation


@pytest.mark.parametrize(("loss", "weight", "above"), [("arcface:0.5", 0.5, 2.0), ("arcface:filter=0.0", 1.0, 0.0)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_loss_of_an_evaluation_has_its_weight_and_filter(program, loss, weight, above):
    shutil.copytree(runs("short").by_jax, "run")
    configured(loss=loss, margin=0.3, scale=8.0)()
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
