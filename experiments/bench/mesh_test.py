import json
import os
import subprocess
import sys

import pytest

from experiments.__main__ import main


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=1,classes=4", "data=2,classes=2", "data=4,classes=1", "data=1,classes=1"])
def test_what_the_devices_send_and_hold_is_what_the_formulas_say(mesh, tmp_path):
    path = tmp_path / "mesh.json"
    words = f"--mesh {mesh} --batch-size 64 --classes 65536 --dimension 64 --steps 1 --json {path}"
    command = [sys.executable, "-m", "experiments", "bench", "mesh", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["bytes"] == found["bytes_by_formula"]
    assert abs(found["memory"] - found["memory_by_formula"]) < 2**24  # blocks of classes


@pytest.mark.parametrize("words", ["--mesh 8", "--mesh data=3,classes=1", "--classes 13"])
def test_a_mesh_that_does_not_fit_is_one_line_and_status_2(words, capsys):
    assert main(["bench", "mesh", *words.split()]) == 2
    assert "must" in capsys.readouterr().err
