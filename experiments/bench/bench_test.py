import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import bench
from experiments.__main__ import main
from experiments.bench import growth, start_up, table, turns

COMMAND = "head --batch-size 4 --classes 300 --dimension 8 --turns 2 --contenders"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "head.json"
    assert main(["bench", *COMMAND.split(), "JAX, dense", "PyTorch, dense", "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_run_is_written_with_what_it_was_of(result):
    assert result["floor"]["milliseconds"] > 0
    assert "\nfloor of the fused loss: " in table(result)
    assert list(result["rows"]) == ["JAX, dense", "PyTorch, dense"]
    assert result["command"] == f"{COMMAND} 'JAX, dense' 'PyTorch, dense'"
    assert result["versions"].keys() >= {"jax", "flax", "optax", "torch"}
    assert result["rows"]["PyTorch, dense"]["ratio"] == 1.0
    for row in result["rows"].values():
        assert 0 < row["smallest"] <= row["milliseconds"] <= row["largest"]
        assert row["environment"].get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
        assert row["value"] == pytest.approx(result["rows"]["JAX, dense"]["value"], rel=1e-4)


@pytest.mark.slow
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
    assert "growth.json is skipped: no run of contenders in turns\n" in said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("growth.json", '{"points": []}', "holds no result of head, step, replicas to compare with"),
        ("head.txt", "{}", "holds no result of head, step, replicas to compare with"),
        ("head.json", '{"rows": ', "head.json is no JSON: Expecting value"),
    ],
)
def test_a_check_of_nothing_is_a_mistake(name, text, said, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main(["bench", "--check", "--results", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_result_from_before_rows_had_an_environment_is_still_shown(result):
    rows = {name: {k: v for k, v in row.items() if k != "environment"} for name, row in result["rows"].items()}
    assert table(result | {"rows": rows}) == table(result)


@pytest.mark.parametrize("words", [[], ["haed"]])
def test_an_unknown_benchmark_is_told_the_known_ones(words, capsys):
    assert main(["bench", *words]) == 2
    assert (
        "known: head, step, replicas, evaluation, export, growth, mesh, seconds_to_accuracy, serving, start_up"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_no_mistake(flag, capsys):
    assert main(["bench", flag]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m experiments bench NAME")
    assert (
        "head, step, replicas, evaluation, export, growth, mesh, seconds_to_accuracy, serving, start_up; NAME --help"
        in said
    )


@pytest.mark.parametrize(
    ("written", "wrong"),
    [("{", "is no JSON"), *((text, "holds no measurements") for text in ("{}", '{"points": []}', "[]"))],
)
def test_a_file_without_measurements_is_not_drawn(written, wrong, tmp_path, capsys):
    (tmp_path / "g.json").write_text(written)
    assert main(["bench", "growth", "--draw", "--json", str(tmp_path / "g.json")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'g.json'} {wrong}" in said
    assert said.count("\n") == 1


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("head --classes 0", "--classes is 0; it must be at least 1"),
        ("head --batch-size -1", "--batch-size is -1; it must be at least 1"),
        ("head --turns 0", "--turns is 0; it must be at least 1"),
        ("head --json no/such/x", "--json is no/such/x; it must be a file in a folder that exists"),
        ("growth --json no/such/x", "--json is no/such/x; it must be a file in a folder that exists"),
        ("growth --largest 10", "--largest is 10; it must be at least 5120000"),
        ("growth --draw --json none.json", "there is no none.json to draw; without --draw it is measured"),
        ("step --backbone nonet", "argument --backbone: invalid choice: 'nonet'"),
        ("start_up --dataset nodata", "no data set is called 'nodata'"),
        ("seconds_to_accuracy --bogus 1", "jax_arcface: there is no flag --bogus"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, said, capfd):
    assert main(["bench", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(("flag", "expected"), [("", True), ("--no-floor", False), ("--precision bfloat16", False)])
def test_the_floor_is_of_float32(flag, expected):
    _, options = bench._parsed(["step", *flag.split()])
    assert bench._has_floor(options) == expected


def test_an_accelerator_has_no_floor(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="gpu\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: answer)
    assert not bench._has_floor(bench._parsed(["head"])[1])


def test_results_of_programs_tell_what_they_are_of(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    monkeypatch.setattr(growth, "measure_point", lambda *_: {})
    monkeypatch.setattr(growth, "draw", lambda *_: None)
    growth.main(["--turns", "2", "--json", str(path), "--figure", str(tmp_path / "figure.png")])
    result = json.loads(path.read_text())
    assert (result["command"], result["turns"]) == ("growth --turns 2", 2)
    assert "jax" in result["versions"]
    monkeypatch.setattr(start_up.subprocess, "run", lambda command, env: subprocess.CompletedProcess(command, 0))
    assert start_up.main([f"--json={path}", "--dataset", "digits"]) == 0
    result = json.loads(path.read_text())
    assert (result["command"], result["turns"]) == ("start_up --dataset digits", 1)
    assert "jax" in result["versions"]


@pytest.mark.slow
def test_growth_measures_and_draws_its_points(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "CLASSES", {"batch_size": (4,), "classes": (10, 20)})
    monkeypatch.setattr(growth, "BATCHES", {"batch_size": (4, 8), "classes": (10,)})
    monkeypatch.setattr(growth, "CONTENDERS", ("PyTorch, dense",))
    assert not growth.main(["--turns", "1", "--json", str(tmp_path / "g.json"), "--figure", str(tmp_path / "g.png")])
    points = json.loads((tmp_path / "g.json").read_text())["points"]
    assert [(p["batch_size"], p["classes"]) for p in points] == [(4, 10), (4, 20), (4, 10), (8, 10)]
    assert all(p["rows"]["PyTorch, dense"]["milliseconds"] > 0 for p in points)
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("head, B = ") == 4


@pytest.mark.slow
def test_start_up_is_measured_twice(tmp_path, capfd):
    assert main(["bench", "start_up", "--dataset", "digits", "--json", str(tmp_path / "s.json")]) == 0
    seconds = json.loads((tmp_path / "s.json").read_text())["seconds"]
    assert list(seconds) == ["first start", "second start"]
    assert all(0 < value < 600 for value in seconds.values())
    assert "second start" in capfd.readouterr().out


@pytest.mark.slow
def test_seconds_to_an_accuracy_are_of_both_programs(tmp_path):
    words = "--dataset digits --accuracy 0.15 --epochs 1 --width 0.1 --warmup-epochs 1 --margin-warmup-epochs 3"
    assert main(["bench", "seconds_to_accuracy", *words.split(), "--json", str(tmp_path / "s.json")]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert list(rows) == ["jax_arcface", "torch_reference"]
    for row in rows.values():
        assert row["epoch"] == 1
        assert 0 < row["seconds"] == row["all_seconds"]
        assert 0.15 <= row["last_accuracy"] <= 1


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="elsewhere a child's peak begins at its parent's")
def test_a_process_is_not_charged_with_its_parents_memory():
    program = "from experiments.bench import turns; print(turns._peak_mebibytes())"
    held = np.ones(300 * 2**17)  # 300 MiB
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(said) < 250 < turns._peak_mebibytes()
    assert held.all()


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
