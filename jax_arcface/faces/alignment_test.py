"""Alignment against Umeyama's decomposition in float64 numpy, scipy's interpolation and OpenCV's warp."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_sample_image

from jax_arcface.errors import UserError
from jax_arcface.faces.alignment import align, similarity, template

cv2 = pytest.importorskip("cv2", reason="OpenCV is what alignment is compared with")


def umeyama(source, target):
    """The 2x3 matrix of Umeyama (1991), equations 38 to 43, in float64."""
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, v = np.linalg.svd(y.T @ x / len(x))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ s @ v * (np.trace(np.diag(d) @ s) / x.var(0).sum())
    return np.concatenate([turn, (target.mean(0) - turn @ source.mean(0))[:, None]], 1)


def faces(rng, n, noise):
    """Five points of faces of 40 to 250 pixels, turned by up to 60 degrees, no longer similar to the template."""
    angle, scale = rng.uniform(-1, 1, n), rng.uniform(0.4, 2.2, n)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    points = scale[:, None, None] * ((template(112) - 56) @ turn)
    return points + rng.normal(0, noise, points.shape) * scale[:, None, None] + rng.uniform(150, 350, (n, 1, 2))


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")


@pytest.mark.parametrize("kind", ["faces", "mirrored", "noise"])
def test_similarity_is_umeyamas(kind):
    rng = np.random.default_rng(0)
    points = faces(rng, 50, 3.0)
    if kind == "mirrored":  # the best transform would be a reflection
        points[..., 0] = 500 - points[..., 0]
    if kind == "noise":
        points = rng.uniform(0, 500, points.shape)
    found = np.asarray(similarity(points.astype(np.float32), template(112).astype(np.float32)), np.float64)
    expected = np.stack([umeyama(one, template(112)) for one in points])
    inside = np.concatenate([rng.uniform(0, 500, (50, 40, 2)), np.ones((50, 40, 1))], 2)
    difference = np.einsum("fij,fkj->fki", found - expected, inside)
    assert np.abs(difference).max() < 1e-3  # pixels, anywhere in a photo of 500


def test_a_crop_is_scipys_interpolation_at_umeyamas_places(photo):
    rng = np.random.default_rng(1)
    points = faces(rng, 6, 2.0)
    points[0] -= points[0].mean(0)  # half outside the photo
    crops = np.asarray(align(photo[None], points, np.zeros(6, int)), np.float64)
    y, x = np.mgrid[:112, :112]
    for one, crop in zip(points, crops, strict=True):
        turn = umeyama(one, template(112))
        places = np.linalg.solve(turn[:, :2], np.stack([x.ravel(), y.ravel()]) - turn[:, 2:])
        channels = [
            map_coordinates(photo[..., c].astype(float), places[::-1], order=1, mode="grid-constant") for c in range(3)
        ]
        expected = np.stack(channels, -1).reshape(112, 112, 3)
        assert np.abs(crop - expected).max() < 0.51  # half a grey level of rounding
        # OpenCV rounds places to 1/32 of a pixel
        other = cv2.warpAffine(photo, turn, (112, 112)).astype(float)
        assert np.abs(crop - other).mean() < 0.5
        assert np.abs(crop - other).max() <= 8


def test_photos_in_one_batch_or_filled_up_give_the_same_crops(photo):
    points = faces(np.random.default_rng(2), 3, 1.0)
    small, right = photo[:300], photo[:300, 100:]
    padded = np.zeros((2, 320, 660, 3), np.uint8)
    padded[0, :300, :640], padded[1, :300, :540] = small, right
    moved = points - [100, 0]
    together = align(padded, np.concatenate([points, moved]), np.repeat([0, 1], 3))
    np.testing.assert_array_equal(together[:3], align(small[None], points, np.zeros(3, int)))
    np.testing.assert_array_equal(together[3:], align(right[None], moved, np.zeros(3, int)))


def test_sizes(photo):
    """A crop of 224 shows what one of 112 does; one of 128 shows 8 columns more on each side."""
    points = faces(np.random.default_rng(3), 1, 0.0)
    blurred = cv2.GaussianBlur(photo, (0, 0), 6)[None]
    small, large, wide = (np.asarray(align(blurred, points, size=size)) for size in (112, 224, 128))
    assert np.abs(large[:, ::2, ::2].astype(int) - small).max() <= 1
    np.testing.assert_allclose(wide[:, :112, 8:120].astype(int), small, atol=1)
    for size in (0, 100, -112):
        with pytest.raises(UserError):
            template(size)


def test_what_is_no_face_is_refused(photo):
    good = faces(np.random.default_rng(4), 1, 0.0)
    for points, owner in [
        (np.full((1, 5, 2), np.nan), None),
        (np.ones((1, 5, 2)), None),
        (good[0], None),
        (good, np.array([1])),
        (good, np.array([0, 0])),
    ]:
        with pytest.raises(ValueError):  # noqa: PT011
            align(photo[None], points, owner)
    assert align(photo[None], np.zeros((0, 5, 2)), np.zeros(0, int)).shape == (0, 112, 112, 3)
