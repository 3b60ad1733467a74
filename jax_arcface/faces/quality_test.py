"""Quality: the pose of a model that scipy turns, and sharpness as scipy's Laplacian has it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from scipy.spatial.transform import Rotation
from sklearn.datasets import load_sample_image

from jax_arcface.faces import quality
from jax_arcface.faces.quality import Quality, measure, pose, sharpness


@pytest.mark.parametrize("seed", range(5))
def test_the_pose_is_how_the_model_was_turned(seed):
    """x to the right, y down, z to the viewer: a left-handed frame, so an angle about y has the other sign."""
    rng = np.random.default_rng(seed)
    yaw, pitch, roll = rng.uniform(-60, 60, 3)
    forward = Rotation.from_euler("y", yaw, degrees=True).as_matrix()  # z goes to +x
    up = Rotation.from_euler("x", -pitch, degrees=True).as_matrix()  # z goes to +y
    turn = Rotation.from_euler("z", roll, degrees=True).as_matrix()  # x goes to +y: clockwise, as y is down
    points = 3 * (quality._MODEL @ (turn @ up @ forward).T)[:, :2] + [300, 200]
    np.testing.assert_allclose(pose(points), (yaw, pitch, roll), atol=1e-6)


def test_sharpness():
    photo = load_sample_image("flower.jpg")[100:212, 200:312]
    grey = photo @ [0.299, 0.587, 0.114]
    laplacian = convolve2d(grey, [[0, 1, 0], [1, -4, 1], [0, 1, 0]], mode="valid")
    assert sharpness(photo) == pytest.approx(laplacian.var())
    assert sharpness(gaussian_filter(photo, (2, 2, 0))) < sharpness(photo) / 4


def test_what_is_too_low_is_said():
    assert Quality(100, 200, 5, 5, 80).doubts == ()
    assert len(Quality(20, 5, -60, 50, 0).doubts) == 4
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    found = measure(crop, np.array([10, 10, 40, 49]), quality.TEMPLATE)
    assert (found.size, len(found.doubts)) == (39, 1)
