import json

import pytest

from experiments.report.contents import gather, parity, runs


def _run(folder, name, accuracy, **fields):
    run = folder / name
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"test_accuracy": a}) + "\n" for a in (0.1, accuracy)))
    held = {"program": "torch_reference", "fields": {"dataset": "digits", "loss": "arcface", **fields}}
    (run / "experiment.json").write_text(json.dumps(held))


def test_a_run_counts_with_its_last_epoch_once_it_has_ended(tmp_path):
    _run(tmp_path, "ended", 0.75, seed=1)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.jsonl").write_text('{"test_accuracy": 0.5}\n')
    assert [(row["seed"], row["accuracy"]) for row in runs(tmp_path)] == [(1, 0.75)]


def test_the_table_of_parity_is_the_readmes(tmp_path):
    (tmp_path / "README.md").write_text(
        "|a|b|\n## The proof\n| what | n |\n|---|---|\n| x | 2 |\n\n## Next\n| y | 3 |\n"
    )
    assert parity(tmp_path / "README.md") == [["x", "2"]]


@pytest.mark.parametrize("runs_made", [0, 2])
def test_the_report_is_typeset_with_and_without_runs(tmp_path, monkeypatch, runs_made):
    pytest.importorskip("typst")
    from experiments import report

    found = runs_folder = tmp_path / "runs"
    for seed in range(runs_made):
        _run(runs_folder, str(seed), 0.75, seed=seed)
    monkeypatch.setattr("experiments.report.contents.terminal", lambda root: {"command": "python", "printed": "1 %"})
    monkeypatch.setattr("experiments.report.contents.runs", lambda folder, real=runs: real(found))
    table = gather(quick=True)["tables"][0]["rows"]
    assert next(row["torch"] for row in table if row["loss"] == "ArcFace").startswith("75" if runs_made else "not run")
    report.write(tmp_path / "report.pdf", author="Zoë *Mark*", student_id="#1", quick=True)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
