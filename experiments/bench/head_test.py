import argparse
import io
import json

import numpy as np
import pytest

from experiments.bench import head, turns

SHAPE = argparse.Namespace(batch_size=4, classes=300, dimension=8, block_size=128, keep_freed_memory=False)


def test_contenders_compute_the_same():
    values = {name: one.make(SHAPE)() for name, one in head.CONTENDERS.items() if "compiled" not in name}
    dense = values.pop("PyTorch, dense")
    assert np.isnan(values.pop("matrix products in blocks"))
    assert values.pop("PyTorch, a tenth of the classes") < dense  # of fewer classes
    assert values.pop("JAX, fused, bfloat16 products") == pytest.approx(dense, rel=0.02)
    assert len(values) == 3
    for value in values.values():
        assert value == pytest.approx(dense, rel=1e-4)


def test_freed_memory_cannot_be_kept_where_the_user_has_tuned_glibc(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    kept = argparse.Namespace(**vars(SHAPE) | {"keep_freed_memory": True})
    assert head.headline(kept) == "head, B = 4, C = 300, D = 8, freed memory kept"
    for name in ("JAX, fused", "PyTorch, dense"):
        with pytest.raises(ValueError, match="--keep-freed-memory needs glibc"):
            head.CONTENDERS[name].make(kept)


def test_a_contender_answers_in_lines(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ANOTHER", "1")
    turns.work(head.CONTENDERS["JAX, dense"], SHAPE, io.StringIO("go\ngo\n"))
    first, *runs, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["first_seconds"] > 0
    assert first["value"] > 0
    assert first["environment"]["OMP_NUM_THREADS"] == "1"
    assert "ANOTHER" not in first["environment"]
    assert [list(run) for run in runs] == [["milliseconds"]] * 2
    assert last["mebibytes"] > 50
