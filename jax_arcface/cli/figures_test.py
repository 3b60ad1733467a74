"""The picture of a run's embeddings."""

import os
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jax_arcface.cli.figures import draw_embeddings

NAMES = tuple("abcdefghijklmnopqrstuvwxyz")


def directions(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws, and gives the left and the right axes."""
    figures = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k)))

    def drawn(*arguments):
        draw_embeddings(tmp_path / "picture.png", *arguments)
        assert os.listdir(tmp_path) == ["picture.png"]
        return figures[-1].axes

    return drawn


@pytest.mark.parametrize("shape", [(10, 2), (10, 16), (3, 4, 16), (26, 8)])
def test_picture_opens_and_is_not_blank(shape, drawn, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(shape[0], size=200)
    drawn(rng.normal(size=(200, shape[-1])), labels, rng.normal(size=shape), NAMES[: shape[0]])
    with Image.open(tmp_path / "picture.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_two_dimensions_are_drawn_as_they_are_whatever_their_length(drawn):
    embeddings = directions(10, 100, 200) * [[3.0], [0.1], [7.0]]
    left, _ = drawn(embeddings, np.array([0, 1, 1]), 5 * directions(0, 90), NAMES[:2])
    points = np.asarray(left.collections[0].get_offsets())
    np.testing.assert_allclose(points, directions(10, 100, 200), atol=1e-12)
    spokes = [line.get_xydata() for line in left.lines]
    np.testing.assert_allclose(spokes, np.stack([np.zeros((2, 2)), directions(0, 90)], axis=1), atol=1e-12)
    assert [text.get_text() for text in left.texts] == ["a", "b"]


def bars(axes, which):
    """Where the histogram's bars stand, in degrees, with their heights."""
    counts = {}
    for bar in axes.containers[which]:
        if bar.get_height():
            counts[int(bar.get_x())] = int(bar.get_height())
    return counts


def test_histograms_hold_the_angles_in_degrees(drawn):
    # 31 degrees from a, 59 from b and 149 from c; then one of class b, 11 degrees from it
    _, right = drawn(directions(31, 31, 101), np.array([0, 0, 1]), directions(0, 90, 180), NAMES[:3])
    assert bars(right, 0) == {30: 2, 10: 1}  # bars are 2 degrees wide
    assert bars(right, 1) == {58: 2, 78: 1}
    assert right.get_xlabel() == "degrees"


def test_nearest_subcentre_counts(drawn):
    prototypes = np.stack([directions(0, 120), directions(90, 250)])
    _, right = drawn(directions(115), np.array([0]), prototypes, NAMES[:2])
    assert bars(right, 0) == {4: 1}
    assert bars(right, 1) == {24: 1}


def test_many_images_are_thinned_out(drawn):
    rng = np.random.default_rng(0)
    left, right = drawn(rng.normal(size=(6000, 2)), np.zeros(6000, int), directions(0, 90), NAMES[:2])
    assert len(left.collections[0].get_offsets()) == 5000
    assert sum(bars(right, 0).values()) == 6000


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        draw_embeddings(tmp_path / "picture.png", directions(1), np.array([0]), directions(0, 90), NAMES[:2])
    assert os.listdir(tmp_path) == []
