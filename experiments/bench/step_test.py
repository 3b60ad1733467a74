import json

import pytest

from experiments.__main__ import main


def test_measures_what_it_says(tmp_path, capfd):
    words = "--backbone lenet --width 0.05 --shape 8 8 1 --batch-size 4 --replicas 2 --steps 2 --blocks 1"
    path = tmp_path / "times.json"
    assert main(["step_time", *words.split(), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["settings"]["batch_size"] == 4
    assert list(result["rows"]) == ["no flags", "flags", "flags, 2 replicas as one program"]
    assert result["rows"]["flags"]["ratio"] == 1.0
    for row in result["rows"].values():
        assert 0 < row["smallest"] <= row["milliseconds"] <= row["largest"]
    assert "2 replicas as one program" in capfd.readouterr().out


@pytest.mark.parametrize("words", [[], ["step_tiem"]])
def test_an_unknown_experiment_is_told_the_known_ones(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(name in said.partition("known: ")[2] for name in ("step_time", "fused_head", "compare_losses"))
    assert "_test" not in said
