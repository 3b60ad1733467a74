"""A run is found again by its configuration, and by no other."""

import json

import pytest

from experiments import runs
from experiments.sweep_test import write_run


@pytest.fixture
def trainings(monkeypatch):
    done = []

    def train(cell, flags, program):
        done.append((program, cell.flags))
        write_run(cell.run, 1, [0.5], int(cell.values.get("seed", 0)))
        return 0

    monkeypatch.setattr(runs, "train_cell", train)
    return done


def test_each_is_trained_once(trainings, tmp_path):
    fields = {"loss": "softmax+center:0.01", "epochs": 1}
    first = runs.trained("torch_reference", folder=tmp_path, **fields)
    again = runs.trained("torch_reference", folder=tmp_path, **dict(reversed(fields.items())))
    others = [
        runs.trained("torch_reference", folder=tmp_path, **fields, seed=1),
        runs.trained("jax_arcface", folder=tmp_path, **fields),
    ]
    assert first == again
    assert len({first, *others}) == len(trainings) == 3
    assert trainings[0] == ("torch_reference", ["--loss", "softmax+center:0.01", "--epochs", "1"])
    assert json.loads((first / "experiment.json").read_text())["fields"] == fields


def test_a_run_of_other_code_is_named_or_trained_anew(trainings, tmp_path, monkeypatch, capsys):
    run = runs.trained("jax_arcface", folder=tmp_path, epochs=1)
    assert not capsys.readouterr().err
    monkeypatch.setattr(runs, "code", lambda program: "changed")
    assert runs.trained("jax_arcface", folder=tmp_path, epochs=1) == run
    assert run.name in capsys.readouterr().err
    runs.trained("jax_arcface", folder=tmp_path, epochs=1, retrain=True)
    assert len(trainings) == 2
    runs.trained("jax_arcface", folder=tmp_path, epochs=1, retrain=True)
    assert len(trainings) == 2  # it is of today's code now


def test_comments_are_no_code(tmp_path, monkeypatch):
    room = tmp_path / "p" / "losses"
    room.mkdir(parents=True)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    found = []
    for text in ('"""One."""\nx = 1  # one\n', "x = 1\n", "x = 2\n"):
        (room / "a.py").write_text(text)
        runs.code.cache_clear()
        found.append(runs.code("p"))
    assert found[0] == found[1] != found[2]
    runs.code.cache_clear()
