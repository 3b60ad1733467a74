import json

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.bench import growth

COMMAND = "head --batch-size 4 --classes 300 --dimension 8 --turns 2 --contenders"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "head.json"
    assert main(["bench", *COMMAND.split(), "JAX, dense", "PyTorch, dense", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_run_is_written_with_what_it_was_of(result):
    assert result["command"] == f"{COMMAND} 'JAX, dense' 'PyTorch, dense'"
    assert result["versions"].keys() >= {"jax", "torch"}
    assert result["rows"]["PyTorch, dense"]["ratio"] == 1.0
    for row in result["rows"].values():
        assert 0 < row["smallest"] <= row["milliseconds"] <= row["largest"]
        assert row["value"] == pytest.approx(result["rows"]["JAX, dense"]["value"], rel=1e-4)


@pytest.mark.parametrize(("was", "status", "verdict"), [(1e9, 0, "ok"), (1e-9, 1, "SLOWER")])
def test_the_check_tells_what_became_slower(result, was, status, verdict, tmp_path, capfd):
    rows = result["rows"] | {"JAX, dense": result["rows"]["JAX, dense"] | {"ratio": was}}
    (tmp_path / "head.json").write_text(json.dumps(result | {"rows": rows}))
    (tmp_path / "growth.json").write_text(json.dumps({"points": []}))  # no run of contenders in turns
    assert main(["bench", "--check", "--results", str(tmp_path)]) == status
    said = capfd.readouterr().out
    assert "head, B = 4, C = 300, D = 8: ratio to PyTorch, dense" in said
    assert said.rstrip().endswith(verdict)
    assert "  PyTorch, dense" not in said


@pytest.mark.parametrize("words", [[], ["haed"]])
def test_an_unknown_benchmark_is_told_the_known_ones(words, capsys):
    assert main(["bench", *words]) == 2
    assert "known: head, step, replicas, growth, seconds_to_accuracy, start_up" in capsys.readouterr().err


def test_an_unknown_contender_is_told_the_known_ones(capsys):
    assert main(["bench", "head", "--contenders", "numpy"]) == 2
    said = "experiments: there is no contender 'numpy'; known: matrix products in blocks, JAX, fused"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("words", [["head"], ["replicas"], ["growth"], ["--check"]])
def test_a_word_that_is_no_number_is_one_line_and_status_2(words, capsys):
    flag = "--tolerance" if words == ["--check"] else "--turns"
    assert main(["bench", *words, flag, "x"]) == 2
    said = capsys.readouterr().err
    assert f"argument {flag}: invalid" in said
    assert said.endswith(f"see bench {words[0]} --help\n")
    assert said.count("\n") == 1


def test_a_slope_is_the_exponent_of_the_last_points():
    x = np.array([10.0, 1e3, 1e4, 1e5])
    y = np.array([5.0, 3 * 1e3**1.5, 3 * 1e4**1.5, 3 * 1e5**1.5])
    assert growth.slope(x, y) == pytest.approx(1.5)


def test_the_figure_of_growth_has_a_line_for_each_contender(tmp_path):
    row = {"milliseconds": 2.0, "mebibytes": 3.0}
    points = [
        {"batch_size": b, "classes": c, "rows": dict.fromkeys(growth.CONTENDERS, row)}
        for shapes in (growth.CLASSES, growth.BATCHES)
        for b in shapes["batch_size"]
        for c in shapes["classes"]
    ]
    growth.draw({"points": points}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
