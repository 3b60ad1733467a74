"""The picture of a run's embeddings."""

import os
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jax_arcface.cli.figures import angles, draw_embeddings, plane, spread

NAMES = ("airplane", "automobile", "a much longer name", *"defghijklmnopqrstuvwxyz")


def directions(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1)


def drawn(path, *arguments, **options):
    """The figure, after it has been written."""
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        original = Figure.savefig
        patch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k)))
        draw_embeddings(path, *arguments, **options)
    return figures[-1]


# 10 classes that lie close together, 26 in more classes than dimensions, sub-centres, and all prototypes in one place
ARRANGEMENTS = {
    "plane": np.random.default_rng(0).normal([5, 0], 1, (10, 2)),
    "more classes": np.random.default_rng(1).normal(size=(26, 8)),
    "subcentres": np.random.default_rng(2).normal(size=(3, 4, 16)),
    "one direction": np.ones((10, 2)),
    "one direction in many dimensions": np.ones((10, 16)),
}


@pytest.mark.parametrize("true_length", [False, True])
@pytest.mark.parametrize("prototypes", ARRANGEMENTS.values(), ids=ARRANGEMENTS.keys())
def test_each_class_is_named_once_within_the_picture_and_none_lies_on_another(prototypes, true_length, tmp_path):
    count, dim = len(prototypes), prototypes.shape[-1]
    embeddings, labels = np.random.default_rng(0).normal(size=(200, dim)), np.arange(200) % count
    figure = drawn(tmp_path / "p.png", embeddings, labels, prototypes, NAMES[:count], true_length=true_length)
    figure.draw_without_rendering()
    left, canvas = figure.axes[0], figure.bbox
    texts = [text for text in left.texts if text.get_text() in NAMES]
    assert sorted(text.get_text() for text in texts) == sorted(NAMES[:count])
    boxes = [text.get_window_extent() for text in texts]
    assert all(canvas.x0 <= b.x0 and b.x1 <= canvas.x1 and canvas.y0 <= b.y0 and b.y1 <= canvas.y1 for b in boxes)
    pairs = [(one, other) for one in range(count) for other in range(one)]
    if count <= 12:
        assert not any(boxes[one].overlaps(boxes[other]) for one, other in pairs)
    else:  # along their spokes
        at = left.transData.transform([text.get_position() for text in texts])
        height = figure.dpi * texts[0].get_fontsize() / 72
        assert all(np.linalg.norm(at[one] - at[other]) > height for one, other in pairs)
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"
    assert os.listdir(tmp_path) == ["p.png"]


def test_two_dimensions_are_directions_or_of_true_length():
    embeddings, prototypes = directions(10, 100, 200) * [[3.0], [0.5], [7.0]], 5 * directions(0, 90)
    shown = plane(embeddings, prototypes)
    np.testing.assert_allclose(shown.points, directions(10, 100, 200), atol=1e-12)
    np.testing.assert_allclose(shown.prototypes, directions(0, 90), atol=1e-12)
    shown = plane(embeddings, prototypes, true_length=True)
    np.testing.assert_array_equal(shown.points, embeddings)
    np.testing.assert_allclose(shown.prototypes, 7 * directions(0, 90), atol=1e-12)


def test_more_dimensions_are_mapped_so_that_the_prototypes_stand_evenly_round_a_circle():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 16)), rng.normal(size=(7, 16))
    shown = plane(x, w)
    np.testing.assert_allclose(np.linalg.norm(shown.prototypes, axis=1), 1, rtol=1e-9)
    around = np.sort(np.degrees(np.arctan2(*shown.prototypes.T[::-1])))
    np.testing.assert_allclose(np.diff(around), 360 / 7, rtol=1e-9)
    np.testing.assert_allclose(plane(w, w).points, shown.prototypes, atol=1e-9)  # points and spokes share one map
    both = plane(np.concatenate([x, -x]), w).points  # an affine map of the directions: the middle of x and -x is fixed
    np.testing.assert_allclose(both[:50] + both[50:], np.tile(both[0] + both[50], (50, 1)), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_angles_are_spread_in_their_order_and_no_further_than_needed(seed):
    around, gap = np.random.default_rng(seed).uniform(0, 2 * np.pi, 8), 0.5
    moved = spread(around, gap)
    ring = np.sort(moved % (2 * np.pi))
    assert np.diff(ring, append=ring[0] + 2 * np.pi).min() > gap - 1e-9
    far_apart = np.arange(8) * 2 * np.pi / 8 + 0.1
    np.testing.assert_allclose(np.exp(1j * spread(far_apart, gap)), np.exp(1j * far_apart))


def test_angles_to_prototypes_in_degrees():
    # 31 degrees from a, 59 from b and 149 from c; then one of class b, 11 degrees from it
    own, other = angles(directions(31, 101), directions(0, 90, 180)[:, None], np.array([0, 1]))
    np.testing.assert_allclose([own, other], [[31, 11], [59, 79]])
    subcentres = np.stack([directions(0, 120), directions(90, 250)])
    own, other = angles(directions(115), subcentres, np.array([0]))
    np.testing.assert_allclose([own, other], [[5], [25]])


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        draw_embeddings(tmp_path / "picture.png", directions(1), np.array([0]), directions(0, 90), NAMES[:2])
    assert os.listdir(tmp_path) == []
