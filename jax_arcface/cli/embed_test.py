"""`embed` against what the run holds and against numpy."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jax_arcface import data
from jax_arcface.__main__ import main


@pytest.fixture
def images(tmp_path):
    """The first of scikit-learn's digits, as docs/recipe.md stores them."""
    pixels = load_digits().images[:6].astype(int)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(((255 * pixels + 8) // 16).astype(np.uint8)):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_a_data_set_is_what_the_run_holds(run_copy, tmp_path):
    assert main(["embed", str(run_copy), "digits", "--out", str(tmp_path / "deep" / "test.npz")]) == 0
    assert main(["embed", str(run_copy), "digits", "--split", "train"]) == 0
    held, found = np.load(run_copy / "embeddings.npz"), np.load(tmp_path / "deep" / "test.npz")
    for name in ("embeddings", "labels", "prototypes", "class_names"):
        np.testing.assert_array_equal(found[name], held[name])
    assert len(np.load(run_copy / "embeddings-digits-train.npz")["labels"]) == 1438


def test_image_files_are_embedded_and_what_they_show_is_printed(run_copy, images, capsys):
    held = (run_copy / "embeddings.npz").read_bytes()
    assert main(["embed", str(run_copy), str(images)]) == 0
    assert (run_copy / "embeddings.npz").read_bytes() == held
    found = np.load(run_copy / "embeddings-images.npz")
    x, w = found["embeddings"].astype(float), found["prototypes"].astype(float)
    cosine = (x / np.linalg.norm(x, axis=1)[:, None]) @ (w / np.linalg.norm(w, axis=1)[:, None]).T
    np.testing.assert_array_equal(found["predictions"], cosine.argmax(axis=1))
    rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [Path(row[0]).name for row in rows] == [f"{number}.png" for number in range(6)]
    assert [row[1] for row in rows] == [found["class_names"][number] for number in cosine.argmax(axis=1)]
    np.testing.assert_allclose([float(row[2]) for row in rows], cosine.max(axis=1), atol=6e-4)
    degrees = np.degrees(np.arccos(cosine.max(axis=1)))
    np.testing.assert_allclose([float(row[3].removesuffix("°")) for row in rows], degrees, atol=0.06)
    # they are images of the data set
    assert main(["embed", str(run_copy), "digits", "--split", "train"]) == 0
    known = np.concatenate([np.load(run_copy / "embeddings-digits-train.npz")["embeddings"],
                            np.load(run_copy / "embeddings.npz")["embeddings"]])  # fmt: skip
    assert all(np.abs(known - one).max(axis=1).min() < 1e-4 for one in found["embeddings"])


def test_one_file_of_another_size(run_copy, tmp_path):
    Image.fromarray(np.full((30, 20), 128, np.uint8)).save(tmp_path / "grey.png")
    assert main(["embed", str(run_copy), "grey.png"]) == 0
    assert np.load(run_copy / "embeddings-grey.npz")["embeddings"].shape == (1, 16)


def test_a_data_set_of_other_images_is_refused_by_its_own_shape(run_copy, refused, monkeypatch):
    split = data.Split(np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.int32))
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: data.Dataset("cifar10", split, split, ("a", "b")))
    said = refused("embed", run_copy, "cifar10")
    assert "32x32" in said
    assert "8x8" in said


def test_mistakes(run_copy, refused, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"meow")
    (tmp_path / "there").mkdir()
    refused("embed", run_copy, "missing.png")
    refused("embed", run_copy, "cat.png")
    refused("embed", run_copy, "cat.png", "--split", "train")
    refused("embed", run_copy, "digits", "--split", "validation")
    refused("embed", run_copy, "digits", "--out", "there")
    refused("embed", run_copy.parent, "digits")
    assert not list(tmp_path.glob(".there*"))
