import json

import numpy as np
import pytest

from experiments.__main__ import main


def test_measures_what_it_says(tmp_path, capfd):
    words = "--batch-size 4 --classes 300 --dimension 8 --block-size 128 --repetitions 2"
    path = tmp_path / "times.json"
    assert main(["fused_head", *words.split(), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["settings"]["classes"] == 300
    assert result["versions"].keys() >= {"jax", "torch"}
    rows = result["rows"]
    assert rows["four matrix products"]["ratio"] == 1.0
    for row in rows.values():
        assert 0 < row["smallest"] <= row["milliseconds"] <= row["largest"]
    dense = rows["JAX, dense"]["loss"]
    for name in ("JAX, fused", "PyTorch, dense", "pytorch-metric-learning"):
        assert rows[name]["loss"] == pytest.approx(dense, rel=1e-4)  # all compute the same
    assert np.isclose(rows["JAX, fused, bfloat16 products"]["loss"], dense, rtol=0.02)
    assert "of the matrix products" in capfd.readouterr().out


def test_memory_is_read_in_a_process_of_its_own(capfd):
    words = "--batch-size 64 --classes 30000 --dimension 8 --worker"
    grown = {}
    for name in ("JAX, dense", "JAX, fused"):
        assert main(["fused_head", *words.split(), name]) == 0
        grown[name] = json.loads(capfd.readouterr().out)
    assert all(0 <= mebibytes < 1000 for mebibytes in grown.values())
