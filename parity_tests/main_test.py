import json

import numpy as np
import pytest

from parity_tests import __main__ as program
from parity_tests import lockstep
from parity_tests.cases import PAIRS, Case, Unavailable, all_cases
from parity_tests.compare import difference
from parity_tests.lockstep import Moment


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
    assert program.main(["--out", str(tmp_path), "--only", "data", "--cases", *texts]) == 0
    assert "1 of 1 within their bounds, 0 left out" in capsys.readouterr().out


def test_a_name_that_no_case_has_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main(["--only", "data", "--cases", "initial weights"])
    assert "no case has any of ['initial weights'] in its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("[", "not a JSON object"), ("[1]", "not a"), ('{"a": 1}', "unknown")]
)
def test_a_config_that_is_none_is_refused(text, said, tmp_path, capsys):
    config = tmp_path / "config.json"
    if text is not None:
        config.write_text(text)
    assert program.main(["trace", "--config", str(config), "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_trace_is_drawn(monkeypatch, tmp_path, capsys):
    def train(fields, steps, dtype):
        assert fields == {"dataset": "digits", "width": 0.5}
        for step in range(steps):
            weights = {"a": np.array([8.0, 4.0]), "b": np.array([1.0])}
            yield Moment(step, 2.5, 2.0, weights | {"b": np.array([1.5 - step])}, weights)

    monkeypatch.setattr(lockstep, "train", train)
    config = tmp_path / "config.json"
    config.write_text('{"width": 0.5}')
    assert program.main(["trace", "--config", str(config), "--steps", "2", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "parity_trajectory.png").read_bytes().startswith(b"\x89PNG")
    assert "float64: losses at most 0.25 apart, weights 0.5" in capsys.readouterr().out
