"""A sweep trains what is missing, goes on with what was interrupted, and sums up what is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import sweep
from experiments.__main__ import main

FLAGS = ["--width", "0.05", "--embedding-dim", "4", "--batch-size", "256", "--epochs"]


def write_run(run, epochs, reached, seed=0):
    """A run directory as a training leaves it, as far as a sweep looks into it."""
    run.mkdir(parents=True, exist_ok=True)
    records = [{"epoch": n + 1, "step": n + 1, "test_accuracy": a, "seconds": 30.0} for n, a in enumerate(reached)]
    (run / "config.json").write_text(json.dumps({"epochs": epochs, "seed": seed}))
    (run / "dataset.json").write_text("{}")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if len(reached) == epochs:
        for name in ("model.safetensors", "embeddings.npz"):
            (run / name).write_bytes(b"")


@pytest.fixture
def trainings(monkeypatch):
    """What is trained, without training: each leaves a finished run, or gives the status that stands in `ends`."""
    words, ends = [], {}

    def run(command, check):
        words.append(command[3:])
        flags = dict(zip(command[4::2], command[5::2], strict=False))
        status = ends.get(Path(flags["--out"]).name, 0)
        seed = int(flags.get("--seed", 0))
        write_run(Path(flags["--out"]), 2, [0.25, 0.5 + seed / 8] if status == 0 else [0.25], seed)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=run))
    return words, ends


def test_the_table_is_mean_and_deviation_over_seeds(trainings, tmp_path, capsys):
    words, _ = trainings
    grid = ["--grid", "margin=0.3,0.5", "--grid", "seed=0,1,2"]
    assert main(["sweep", str(tmp_path), *grid, "--", "--epochs", "2"]) == 0
    out = str(tmp_path / "margin=0.3_seed=2")
    assert words[2] == ["train", "--epochs", "2", "--margin", "0.3", "--seed", "2", "--out", out]
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["values"] for row in found["rows"]] == [{"margin": "0.3"}, {"margin": "0.5"}]
    for row in found["rows"]:
        assert row["test_accuracy"] == {"0": 0.5, "1": 0.625, "2": 0.75}
        assert (row["mean"], row["std"]) == (0.625, 0.125)  # of a sample of three
        assert row["minutes"] == 1
    assert "| 0.5 | 62.50 +- 12.50 % | 3 | 1.0 |" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "sweep.md").read_text() in capsys.readouterr().out


def test_what_is_finished_is_left_and_what_is_begun_goes_on(trainings, tmp_path):
    words, ends = trainings
    command = ["sweep", str(tmp_path), "--grid", "seed=0,1,2", "--", "--config", "mine.json", "--width", "1"]
    ends["seed=1"] = 130
    assert main(command) == 130
    assert [Path(w[w.index("--out") + 1]).name for w in words] == ["seed=0", "seed=1"]
    words.clear(), ends.clear()
    assert main(command) == 0
    out = [str(tmp_path / f"seed={seed}") for seed in (1, 2)]
    assert words == [
        ["train", "--width", "1", "--seed", "1", "--out", out[0], "--resume"],
        ["train", "--config", "mine.json", "--width", "1", "--seed", "2", "--out", out[1]],
    ]


def test_a_training_that_diverges_does_not_stop_the_others(trainings, tmp_path):
    words, ends = trainings
    ends["learning_rate=9"] = 1
    assert main(["sweep", str(tmp_path), "--grid", "learning-rate=9,0.1"]) == 1
    assert len(words) == 2
    assert [row["values"] for row in json.loads((tmp_path / "sweep.json").read_text())["rows"]] == [
        {"learning_rate": "0.1"}
    ]


def test_a_mistake_in_the_flags_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: 2)
    for flags in (["--widht", "1"], ["--width", "x"]):  # mended, it is no other sweep
        assert main(["sweep", str(tmp_path), "--grid", "seed=0,1", "--", *flags]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--grid", "seed"],
        ["--grid", "seed=0,0"],
        ["--grid", "seed=0", "--grid", "seed=1"],
        ["--grid", "seed=0,"],
        ["--grid", "seed=0", "--", "--seed=1"],
        ["--grid", "seed=0", "--", "--out", "there"],
        ["--table"],
    ],
)
def test_mistakes(trainings, tmp_path, words):
    assert main(["sweep", str(tmp_path / "out"), *words]) == 2
    assert not trainings[0]
    assert not (tmp_path / "out").exists()


def test_one_folder_holds_one_sweep(trainings, tmp_path):
    words, _ = trainings
    first = ["sweep", str(tmp_path), "--grid", "seed=0,1"]
    assert main([*first, "--", "--width", "1"]) == 0
    words.clear()
    for other in (
        [*first, "--", "--width", "2"],
        ["sweep", str(tmp_path), "--grid", "seed=0", "--", "--width", "1"],
        ["sweep", str(tmp_path), "--grid", "seed=0,1", "--grid", "margin=0.5", "--", "--width", "1"],
        [*first, "--program", "torch_reference", "--", "--width", "1"],
    ):
        assert main(other) == 2
    assert not words
    assert main(["sweep", str(tmp_path), "--table"]) == 0
    assert main(["sweep", str(tmp_path), "--grid", "seed=0,1,2", "--", "--width", "1"]) == 0  # it may grow
    assert len(words) == 1


@pytest.mark.slow
def test_ctrl_c_ends_the_training_under_way_and_the_same_command_finishes_the_set(tmp_path):
    """Real processes: the interrupted run ends with the weights of one that was not."""
    command = [sys.executable, "-m", "experiments", "sweep", str(tmp_path / "set"), "--grid", "seed=0,1", "--", *FLAGS]
    with subprocess.Popen([*command, "40"], start_new_session=True) as process:
        while not list((tmp_path / "set").glob("seed=0/checkpoints/step_*")):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert not (tmp_path / "set" / "seed=0" / "model.safetensors").exists()
    assert subprocess.run([*command, "40"], check=False).returncode == 0
    whole = [sys.executable, "-m", "jax_arcface", "train", *FLAGS, "40", "--out", str(tmp_path / "whole")]
    subprocess.run(whole, check=True)
    here, there = (path / "model.safetensors" for path in (tmp_path / "set" / "seed=0", tmp_path / "whole"))
    assert here.read_bytes() == there.read_bytes()
    assert len(json.loads((tmp_path / "set" / "sweep.json").read_text())["rows"][0]["test_accuracy"]) == 2
