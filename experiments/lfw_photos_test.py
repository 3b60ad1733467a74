import json

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.lfw_photos import _accuracy
from jax_arcface.faces.conftest import FACES, needs_faces, needs_weights


@needs_weights
@needs_faces
@pytest.mark.slow
def test_faces_of_some_pairs(tmp_path, capsys):
    words = ["lfw_photos", str(FACES), "--pairs", "12", "--detection-only", "--json", str(tmp_path / "found.json")]
    assert main(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["faces found"] == found["photos"] > 12
    assert found["landmarks, median px"] < 2.5
    assert "faces found" in capsys.readouterr().out


def test_the_threshold_is_of_the_others():
    others, same = np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, True, False, False])
    assert _accuracy(np.array([0.7, 0.15]), np.array([True, False]), others, same) == pytest.approx(0.5)
