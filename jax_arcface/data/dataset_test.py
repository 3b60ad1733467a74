"""Channel statistics are those of Python's integers and fractions."""

import numpy as np
import pytest

from jax_arcface import data


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
