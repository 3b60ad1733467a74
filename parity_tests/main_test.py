import json
import re

import numpy as np
import pytest

from jax_arcface.training import fit as jax_training
from parity_tests import __main__ as program
from parity_tests import lockstep, planted
from parity_tests.cases import PAIRS, Case, Unavailable, all_cases
from parity_tests.compare import difference
from parity_tests.lockstep import Moment
from torch_reference.training import step as torch_training


def unavailable():
    raise Unavailable("it is not here")


GOOD = Case("good", "heads", "float32", 64.0, lambda: [difference("x", np.float32(1), np.float32(1))], unit="ulp")
BAD = Case("bad", "heads", "float32", 64.0, lambda: [difference("x", np.float32(2), np.float32(1))], unit="ulp")
AWAY = Case("away", "data", "uint8", 0.0, unavailable, unit="exact")


@pytest.mark.parametrize(("cases", "status"), [([GOOD, AWAY], 0), ([GOOD, BAD, AWAY], 1)])
def test_the_status_and_the_files_tell_what_was_missed(cases, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "all_cases", lambda only, named: cases)
    assert program.main(["--out", str(tmp_path)]) == status
    for text in (capsys.readouterr().out, (tmp_path / "parity.md").read_text()):
        assert all(case.what in text for case in cases)
        assert "it is not here" in text
    written = json.loads((tmp_path / "parity.json").read_text())
    assert [result["passed"] for result in written["results"]] == [case is GOOD for case in cases if case is not AWAY]
    assert written["left out"].keys() == {str(AWAY)}


def test_pairs_alone():
    assert {case.pair for case in all_cases(["weights", "data"])} == {"weights", "data"}
    assert {case.pair for case in all_cases()} == set(PAIRS)


def test_cases_alone(tmp_path):
    texts = ["initial weights of lenet, float32", "image files"]
    assert [case.what for case in all_cases(named=texts)] == ["initial weights of lenet", "image files"]
    assert [case.what for case in all_cases(["data"], texts)] == ["image files"]
    assert program.main(["--out", str(tmp_path), "--only", "data", "weights", "--cases", *texts]) == 0
    written = json.loads((tmp_path / "parity.json").read_text())
    assert [result["passed"] for result in written["results"]] == [True, True]


def assert_refused(arguments, capsys):
    """Exit status 2 and one line on standard error."""
    assert program.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "--only data --cases initial",
        "--cases lenet planted",
        "--only marginz",
        "--only",
        "--onyl",
        "plant",
        "trace",
        "trace --config a.json --steps x",
        "trace --config a.json --steps 0",
        "--only=data trace --config a.json",
        "--cases=x planted",
        "--out x planted",
        "--out x trace --config a.json",
    ],
)
def test_a_mistake_is_refused(arguments, capsys):
    assert_refused(arguments.split(), capsys)


@pytest.mark.parametrize("arguments", [[], ["planted"], ["trace", "--config", "config.json"]], ids=str)
@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_where_nothing_can_be_written_nothing_is_measured(arguments, place, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "config.json").write_text("{}")
    for module, name in ((program, "measure"), (planted, "outcomes"), (lockstep, "train")):
        monkeypatch.delattr(module, name)
    assert_refused([*arguments, "--out", place], capsys)


@pytest.mark.parametrize("text", [None, "[", "[1]", '{"a": 1}'])
def test_a_file_that_is_no_config_is_refused(text, tmp_path, capsys):
    config = tmp_path / "config.json"
    if text is not None:
        config.write_text(text)
    assert_refused(["trace", "--config", str(config), "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bfloat16"},
        {"batch_size": 5000},
        {"epochs": 2, "batch_size": 100},  # 28 steps
        {"data_dir": "nowhere"},
        {"dataset": "mnist", "data_dir": "nowhere"},
    ],
    ids=str,
)
def test_a_training_that_cannot_be_traced_is_refused(fields, monkeypatch, tmp_path, capsys):
    monkeypatch.delattr(lockstep, "train")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(fields))
    assert_refused(["trace", "--config", str(config), "--steps", "29", "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize("error", [jax_training.Diverged, torch_training.Diverged])
def test_a_training_that_diverges_is_refused(error, monkeypatch, tmp_path, capsys):
    def train(*arguments):
        raise error("the loss of step 2 is nan")

    monkeypatch.setattr(lockstep, "train", train)
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert_refused(["trace", "--config", str(config), "--out", str(tmp_path)], capsys)


def test_a_trace_is_drawn(monkeypatch, tmp_path, capsys):
    def train(fields, steps, dtype, datasets):
        assert fields == {"dataset": "digits", "width": 0.5, "image_size": 12}
        assert [dataset.image_shape for dataset in datasets] == 2 * [(12, 12, 1)]
        for step in range(steps):
            weights = {"a": np.array([8.0, 4.0]), "b": np.array([1.0])}
            yield Moment(step, 2.5, 2.0, weights | {"b": np.array([1.5 - step])}, weights)

    monkeypatch.setattr(lockstep, "train", train)
    config = tmp_path / "config.json"
    config.write_text('{"width": 0.5, "image_size": 12}')
    assert program.main(["trace", "--config", str(config), "--steps", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "parity_trajectory.png").read_bytes().startswith(b"\x89PNG")
    assert {"0.25", "0.5"} <= set(re.findall(r"[0-9.]+\d", capsys.readouterr().out))  # how far apart they are
