import json

import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import main
from experiments.mahalanobis import compare
from jax_arcface.__main__ import main as jax_arcface


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


def test_embeddings_of_a_run_on_resized_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 128, (12, 10)) + 127 * (label == "b")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pets" / label / f"{number}.png")
    run, little = str(tmp_path / "run"), ["--width", "0.05", "--embedding-dim", "4", "--batch-size", "4"]
    words = ["train", *little, "--dataset", str(tmp_path / "pets"), "--image-size", "16", "--epochs", "1"]
    assert jax_arcface([*words, "--out", run]) == 0
    assert main(["mahalanobis", run]) == 0
    assert "16 training and 4 test examples of dimension 4" in capsys.readouterr().out
    (tmp_path / "pets" / "b").rename(tmp_path / "pets" / "c")
    assert main(["mahalanobis", run]) == 2
    assert f"has other classes or other images than those {run} was trained on" in capsys.readouterr().err


def test_fewer_examples_than_dimensions(tmp_path):
    assert main(["mahalanobis", "digits", "--examples", "10", "--dimensions", "32"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "nosuch"),
        (["digits", "--examples", "0"], "--examples is 0; it must be at least 1"),
        (["digits", "--dimensions", "0"], "--dimensions is 0; it must be at least 1"),
        (["digits", "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["digits", "--examples", "20", "--json", __file__ + "/x"], f"{__file__}/x cannot be written"),
        ([], "the following arguments are required: RUN_OR_DATASET; see mahalanobis --help"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, said, capsys):
    assert main(["mahalanobis", *words]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
