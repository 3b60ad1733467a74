"""Angles in a plane where they are known, and the health of damaged sets."""

import numpy as np
import pytest

from jax_arcface.evaluation import angles
from jax_arcface.evaluation.health import health


def at(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_the_four_angles_of_a_plane():
    x = at(0, 20, 90, 110, 200) * np.array([[1], [5], [2], [2], [9]])  # lengths do not count
    labels = np.array([0, 0, 1, 1, 3])  # class 2 has no example
    found = angles.angle_statistics(x, labels, at(15, 100, 0, 190))
    # centres at 10, 100 and 200 degrees
    degrees = [np.degrees(value) for value in (found.w_ec, found.w_inter, found.intra, found.inter)]
    np.testing.assert_allclose(degrees, [(5 + 0 + 10) / 3, (85 + 85 + 90) / 3, 40 / 5, (90 + 90 + 100) / 3])
    theta = angles.target_angles(x, labels, at(15, 100, 0, 190))
    np.testing.assert_allclose(np.degrees(theta), [15, 5, 10, 10, 10])


def test_of_sub_centres_the_nearest_counts():
    prototypes = np.stack([at(15, 300), at(80, 95)])
    found = angles.angle_statistics(at(10, 90), [0, 1], prototypes)
    np.testing.assert_allclose(np.degrees([found.w_ec, found.w_inter]), [5, 80])
    np.testing.assert_allclose(np.degrees(angles.target_angles(at(10, 90), [0, 1], prototypes)), [5, 5])


def test_one_class_has_no_angle_to_another():
    with pytest.raises(ValueError, match="two classes"):
        angles.angle_statistics(at(0, 20), [0, 0])


def test_health_counts_what_is_wrong():
    rng = np.random.default_rng(0)
    x = np.zeros((5000, 4))
    x[:, :2] = rng.normal(size=(5000, 2))
    x[10], x[20, 0], x[30:33] = 0, np.nan, x[29]
    found = health(x, np.minimum(np.arange(5000), 4000))
    assert (found.zeros, found.non_finite, found.duplicates, found.singletons) == (1, 1, 3, 4000)
    assert found.collapsed_dimensions == 2
    assert found.effective_rank == pytest.approx(2, abs=0.01)
    assert found.norm_max == np.linalg.norm(np.delete(x, 20, axis=0), axis=1).max()
