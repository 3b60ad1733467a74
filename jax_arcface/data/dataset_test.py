"""Channel statistics are those of Python's integers and fractions."""

import numpy as np
import pytest

from jax_arcface import data
from jax_arcface.data import Dataset, Split, hold_out
from jax_arcface.errors import UserError


@pytest.mark.parametrize("shape", [(3, 2, 5, 1), (5, 8, 8, 3), (70_000, 1, 1, 2), (3, 1200, 1200, 3)])
def test_channel_statistics_are_exact(shape):
    """Against Python's integers and fractions, over more than one piece too."""
    from fractions import Fraction

    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean, std = data.channel_statistics(images)
    assert mean.dtype == std.dtype == np.float64
    for channel in range(shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256).tolist()
        n = sum(counts)
        exact = Fraction(sum(level * count for level, count in enumerate(counts)), n)
        assert mean[channel] == float(exact)
        variance = Fraction(sum(level**2 * count for level, count in enumerate(counts)), n) - exact**2
        np.testing.assert_allclose(std[channel], float(variance) ** 0.5, rtol=1e-12)


def test_channel_statistics_do_not_overflow_when_all_is_white():
    images = np.full((200_000, 1, 1, 1), 255, np.uint8)
    mean, std = data.channel_statistics(images)
    assert (mean, std) == (255, 1)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 2, 1)), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2, 2, 1), np.uint8)]
)
def test_channel_statistics_reject_other_arrays(images):
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, C\]"):
        data.channel_statistics(images)


def test_classes_held_out_are_in_no_other_split():
    rng = np.random.default_rng(0)
    labels, names = rng.integers(0, 5, 60).astype(np.int32), ("a", "b", "c", "d", "e")
    images = np.repeat(labels.astype(np.uint8), 4).reshape(60, 2, 2, 1)  # each image shows its class
    whole = Dataset("letters", Split(images[:40], labels[:40]), Split(images[40:], labels[40:]), names)
    found = hold_out(whole, ["d", "b"])
    assert (found.class_names, found.unseen_names) == (("a", "c", "e"), ("b", "d"))
    for split, classes, rows in (
        (found.train, [0, 2, 4], np.arange(40)),
        (found.test, [0, 2, 4], np.arange(40, 60)),
        (found.unseen, [1, 3], np.arange(40, 60)),
    ):
        rows = [row for row in rows if labels[row] in classes]
        np.testing.assert_array_equal(split.images, images[rows])
        np.testing.assert_array_equal(split.labels, [classes.index(labels[row]) for row in rows])


@pytest.mark.parametrize("names", [("z",), ("a", "a"), ("a", "b", "c", "d")])
def test_classes_that_cannot_be_held_out(names):
    empty = Split(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32))
    with pytest.raises(UserError):
        hold_out(Dataset("letters", empty, empty, ("a", "b", "c", "d", "e")), names)
