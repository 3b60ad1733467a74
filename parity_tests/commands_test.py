"""The two command lines: the same flags, defaults and help, and the same answers to mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_arcface import __main__ as jax_program
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
    said = []
    for program, main in PROGRAMS.items():
        assert main(words.split()) == 2
        output = capsys.readouterr()
        assert output.out == ""
        said.append(output.err.removeprefix(f"{program}: "))
    assert said[0] == said[1]
    assert said[0].count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_whoever_reads_help_may_stop(program):
    """As in `--help | head`: nothing on standard error."""
    command = [sys.executable, "-m", program, "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdout.close()  # long before the program writes
        assert process.stderr.read() == ""
