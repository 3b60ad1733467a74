import json

import numpy as np

from experiments.__main__ import main
from experiments.mahalanobis import compare


def test_learns_which_direction_matters():
    """Two classes apart in one direction; noise a hundred times larger in the others, which the learnt A ignores."""
    rng = np.random.default_rng(0)

    def draw(n):
        labels = rng.integers(0, 2, n)
        noise = rng.normal(size=(n, 3)) * 10
        return np.c_[labels + rng.normal(size=n) * 0.05, noise], labels

    found = compare(*draw(300), *draw(200), dimensions=4)
    assert found["euclidean"] < 0.7
    assert found["mahalanobis"] > 0.95


def test_pixels_of_the_digits(tmp_path, capsys):
    path = tmp_path / "nca.json"
    words = ["mahalanobis", "digits", "--examples", "300", "--dimensions", "8", "--json", str(path)]
    assert main(words) == 0
    found = json.loads(path.read_text())
    assert (found["what"], found["examples"], found["tested"]) == ("pixels of digits", 300, 359)
    assert found["mahalanobis"] > 0.8
    assert f"mahalanobis  {100 * found['mahalanobis']:.2f} %" in capsys.readouterr().out
