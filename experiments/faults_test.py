"""Killed trainings come to the same result; a difference is found where there is one."""

import shutil

import pytest

from experiments import faults


def test_a_difference_is_found(tmp_path):
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    (wanted / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 3.5}\n')
    (wanted / "model.safetensors").write_bytes(b"weights")
    run = shutil.copytree(wanted, tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 4.0}\n')
    assert faults._differences(run, wanted) == []
    (run / "metrics.jsonl").write_text('{"epoch": 2, "seconds": 3.5}\n')
    (run / "model.safetensors").unlink()
    (run / ".half").touch()
    assert len(faults._differences(run, wanted)) == 3


@pytest.mark.slow
def test_a_few_kills():
    assert faults.main(["--quick"]) == 0
