import json

import numpy as np
import pytest

from jax_arcface.training import fit as jax_training
from parity_tests import __main__ as program
from parity_tests import lockstep, planted
from parity_tests.cases import PAIRS, Case, Unavailable, all_cases
from parity_tests.compare import difference
from parity_tests.lockstep import Moment
from torch_reference.training import fit as torch_training


def unavailable():
    raise Unavailable("it is not here")


GOOD = Case("good", "heads", "float32", 64.0, lambda: [difference("x", np.float32(1), np.float32(1))], unit="ulp")
BAD = Case("bad", "heads", "float32", 64.0, lambda: [difference("x", np.float32(2), np.float32(1))], unit="ulp")
AWAY = Case("away", "data", "uint8", 0.0, unavailable, unit="exact")


@pytest.mark.parametrize(("cases", "status"), [([GOOD, AWAY], 0), ([GOOD, BAD, AWAY], 1)])
def test_the_status_and_the_files_tell_what_was_missed(cases, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "all_cases", lambda only, named: cases)
    assert program.main(["--out", str(tmp_path)]) == status
    printed, written = capsys.readouterr().out, (tmp_path / "parity.md").read_text()
    assert f"1 of {len(cases) - 1} within their bounds, 1 left out" in printed
    assert "left out: it is not here" in printed
    assert "left out: it is not here" in written
    assert ("MISSED: x at []: 2 and 1" in printed) == (status == 1)
    assert ("64 ulp, **missed by 1**" in written) == (status == 1)
    results = json.loads((tmp_path / "parity.json").read_text())["results"]
    assert [result["passed"] for result in results] == [case is GOOD for case in cases if case is not AWAY]


def test_pairs_alone():
    assert {case.pair for case in all_cases(["weights", "data"])} == {"weights", "data"}
    assert {case.pair for case in all_cases()} == set(PAIRS)


def test_cases_alone(tmp_path, capsys):
    texts = ["initial weights of lenet, float32", "image files"]
    assert [case.what for case in all_cases(named=texts)] == ["initial weights of lenet", "image files"]
    assert [case.what for case in all_cases(["data"], texts)] == ["image files"]
    assert program.main(["--out", str(tmp_path), "--only", "data", "weights", "--cases", *texts]) == 0
    assert "2 of 2 within their bounds, 0 left out" in capsys.readouterr().out


def refused(arguments, capsys):
    """What is said of a mistake, which is one line on standard error."""
    assert program.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("parity_tests: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--only data --cases initial", "no case has 'initial' in its name"),
        ("--cases lenet planted", "no case has 'planted' in its name"),
        ("--only marginz", "--only: there is no pair 'marginz': did you mean 'margins'?"),
        ("--only", "--only: expected at least one argument; see --help"),
        ("--onyl", "unrecognized arguments: --onyl; see --help"),
        ("plant", "invalid choice: 'plant'"),
        ("trace", "the following arguments are required: --config; see --help"),
        ("trace --config a.json --steps x", "--steps: invalid int value: 'x'; see --help"),
        ("trace --config a.json --steps 0", "--steps is 0; it must be at least 1"),
        ("--only=data trace --config a.json", "--only has no effect before trace: leave it out"),
        ("--cases=x planted", "--cases has no effect before planted: leave it out"),
        ("--out x planted", "--out has no effect before planted: give it after"),
        ("--out x trace --config a.json", "--out has no effect before trace: give it after"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, said, capsys):
    assert said in refused(arguments.split(), capsys)


@pytest.mark.parametrize("arguments", [[], ["planted"], ["trace", "--config", "config.json"]], ids=str)
@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_where_nothing_can_be_written_nothing_is_measured(arguments, place, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "config.json").write_text("{}")
    for module, name in ((program, "measure"), (planted, "outcomes"), (lockstep, "train")):
        monkeypatch.delattr(module, name)
    assert f"--out {place} is no folder that can be written to: " in refused([*arguments, "--out", place], capsys)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("[", "not a JSON object"), ("[1]", "not a"), ('{"a": 1}', "unknown")]
)
def test_a_config_that_is_none_is_refused(text, said, tmp_path, capsys):
    config = tmp_path / "config.json"
    if text is not None:
        config.write_text(text)
    assert said in refused(["trace", "--config", str(config), "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"precision": "bfloat16"}, "has precision = bfloat16; trainings are drawn in float32 and float64"),
        ({"batch_size": 5000}, "--batch-size is 5000, but there are only 1438 training images"),
        ({"epochs": 2, "batch_size": 100}, "--steps is 29, but a training of 2 epochs has 28"),
        ({"data_dir": "nowhere"}, "a data folder (nowhere) has no effect on 'digits'"),
        ({"dataset": "mnist", "data_dir": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_traced_is_refused(fields, said, monkeypatch, tmp_path, capsys):
    monkeypatch.delattr(lockstep, "train")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(fields))
    assert said in refused(["trace", "--config", str(config), "--steps", "29", "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize("error", [jax_training.Diverged, torch_training.Diverged])
def test_a_training_that_diverges_is_told(error, monkeypatch, tmp_path, capsys):
    def train(*arguments):
        raise error("the loss of step 2 is nan")

    monkeypatch.setattr(lockstep, "train", train)
    config = tmp_path / "config.json"
    config.write_text("{}")
    said = refused(["trace", "--config", str(config), "--out", str(tmp_path)], capsys)
    assert said == "parity_tests: the loss of step 2 is nan\n"


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
    assert "float64: losses at most 0.25 apart, weights 0.5" in capsys.readouterr().out
