import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.compare_losses import LOSSES, angles
from jax_arcface.__main__ import main as jax_arcface
from jax_arcface.cli.runs import read_config

LITTLE = ["--width", "0.05", "--embedding-dim", "4"]


def test_angles_of_a_known_arrangement():
    """Two classes at 90 degrees; embeddings 10 degrees to either side; the second prototype is 20 degrees off."""

    def at(degrees, length=1.0):
        return length * np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    x = np.stack([at(-10), at(10, 5.0), at(80), at(100)])
    found = angles(x, np.array([0, 0, 1, 1]), np.stack([at(0), at(110, 3.0)]))
    assert found == pytest.approx({"intra": 10, "inter": 90, "w_ec": 10, "w_inter": 110})
    with_subcenters = np.stack([[at(180), at(0)], [at(110), at(40)]])
    assert angles(x, np.array([0, 0, 1, 1]), with_subcenters) == pytest.approx(found)


@pytest.mark.slow
def test_trains_and_tabulates(tmp_path, capsys):
    words = ["compare_losses", str(tmp_path), "--train", "--losses", "arcface:m=0.4", "softmax", "--epochs", "1"]
    assert main([*words, *LITTLE]) == 0
    # the recipe's three epochs of margin warm-up become a quarter of the one here
    assert read_config(tmp_path / "loss=arcface-m=0.4").margin_warmup_epochs == 0.25
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "losses.json").read_text())["rows"]
    assert [row["loss"] for row in rows] == ["arcface:m=0.4", "softmax"]
    for row in rows:
        line = f"| {row['loss']} | digits, lenet, 1 | "
        assert line in said
        assert line in (tmp_path / "losses.md").read_text()
        assert 0 < row["test_accuracy"] < 1
    # what is there is not trained again
    assert main(["compare_losses", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "losses.json").read_text())["rows"] == rows


@pytest.mark.slow
def test_an_unfinished_training_is_no_row(tmp_path, capsys):
    assert jax_arcface(["train", *LITTLE, "--epochs", "1", "--out", str(tmp_path / "one")]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "metrics.jsonl").write_text("")
    assert main(["compare_losses", str(tmp_path)]) == 0
    assert "two" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "losses.json").read_text())["rows"]) == 1


@pytest.mark.parametrize("flag", [("--epochs", "1"), ("--dataset", "mnist"), ("--losses", "cosface"), ("--width", "1")])
def test_flags_of_training_need_training(tmp_path, capsys, flag):
    assert main(["compare_losses", str(tmp_path), *flag]) == 2
    assert capsys.readouterr().err == f"experiments: {flag[0]} has no effect without --train\n"


@pytest.mark.parametrize(
    "words",
    [[], ["--train", "--losses", "softmax", "--dataset", "nosuch"], ["--train", "--losses", "softmax", "--widht", "1"]],
)
def test_a_mistake_is_status_2_and_leaves_nothing(tmp_path, words):
    assert main(["compare_losses", str(tmp_path), *words]) == 2
    assert not list(tmp_path.iterdir())


def test_the_committed_table_has_every_loss():
    committed = Path(__file__).parent / "results" / "mnist_losses.json"
    assert [row["loss"] for row in json.loads(committed.read_text())["rows"]] == list(LOSSES)
