"""MTCNN against float64 numpy, the package that its weights come from, and the published landmarks of LFW."""

import pickle
import pickletools

import numpy as np
import pytest
from PIL import Image

from jax_arcface.errors import UserError
from jax_arcface.faces import mtcnn
from jax_arcface.faces.conftest import FACES, needs_faces, needs_weights
from jax_arcface.faces.detection import choose
from jax_arcface.faces.mtcnn import MTCNN, pyramid, read_weights, suppress

FILES = {"p_net": "pnet", "r_net": "rnet", "o_net": "onet"}


def lfw(count, start=0):
    """Photos of LFW, with the points of the face in the middle."""
    rows = [line.split() for line in (FACES / "lfw" / "landmarks5_mtcnn.txt").read_text().splitlines()]
    there = [(FACES / "lfw" / "images" / row[0], row) for row in rows]
    there = [(file, row) for file, row in there if file.exists()][start : start + count]
    return [np.asarray(Image.open(file)) for file, _ in there], [
        np.array(row[1:], float).reshape(5, 2) for _, row in there
    ]


# The networks in float64 numpy, from the paper's figure 2.


def conv(x, kernel, bias):
    h, w = kernel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (h, w), axis=(1, 2))
    return np.einsum("nyxchw,hwco->nyxo", windows, kernel) + bias


def pool(x, size, ceil):
    n = [-(-(s - size) // 2) + 1 if ceil else (s - size) // 2 + 1 for s in x.shape[1:3]]
    return np.array(
        [[x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size].max(axis=(1, 2)) for j in range(n[1])] for i in range(n[0])]
    ).transpose(2, 0, 1, 3)


def prelu(x, slopes):
    return np.maximum(x, 0) + slopes * np.minimum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[..., 1]


def expected(name, w, pixels):
    """The network's results; a pool of 3 that begins with an even size has a last window of 2 (Caffe rounds up)."""
    w = [a.astype(np.float64) for a in w]
    x = (pixels.astype(np.float64) - 127.5) / 128
    if name == "p_net":
        x = pool(prelu(conv(x, *w[:2]), w[2]), 2, ceil=False)
        x = prelu(conv(prelu(conv(x, *w[3:5]), w[5]), *w[6:8]), w[8])
        return softmax(conv(x, *w[11:13])), conv(x, *w[9:11])
    x = pool(prelu(conv(x, *w[:2]), w[2]), 3, ceil=True)
    x = pool(prelu(conv(x, *w[3:5]), w[5]), 3, ceil=False)
    x = prelu(conv(x, *w[6:8]), w[8])
    dense = 9
    if name == "o_net":
        x = prelu(conv(pool(x, 2, ceil=True), *w[9:11]), w[11])
        dense = 12
    x = np.stack([one.transpose(1, 0, 2).ravel() for one in x])  # columns before rows
    x = prelu(x @ w[dense] + w[dense + 1], w[dense + 2])
    results = [x @ w[i] + w[i + 1] for i in range(dense + 3, len(w), 2)]
    if name == "o_net":
        results[1] = np.stack([results[1][:, :5], results[1][:, 5:]], -1)
    return softmax(results.pop()), *results


@needs_weights
@pytest.mark.parametrize(("name", "shape"), [("p_net", (1, 96, 64)), ("r_net", (16, 24, 24)), ("o_net", (16, 48, 48))])
def test_networks(name, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    weights = read_weights(mtcnn.find_weights() / f"{FILES[name]}.lz4", mtcnn.SHAPES[FILES[name]])
    found = MTCNN()._nets[name](pixels)
    for ours, theirs in zip(found, expected(name, weights, pixels), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("size", [(250, 250), (112, 92), (37, 900), (20, 20), (3000, 4000), (19, 500)])
def test_levels_lie_side_by_side(size):
    """No two share a pixel, none leaves the image, windows begin at even places, and each level has half the area."""
    levels, (height, width) = pyramid(*size, 20)
    taken = np.zeros((height, width), bool)
    for h, w, top, left in levels:
        assert top % 2 == left % 2 == 0
        here = taken[top : top + h, left : left + w]
        assert here.shape == (h, w)
        assert not here.any()
        here[:] = True
    scales = [level.height / size[0] for level in levels]
    for i, level in enumerate(levels):
        first = min(0.6, (2e6 / (size[0] * size[1])) ** 0.5)
        assert 0 <= level.height - size[0] * first * 0.709**i < 1
        assert 0 <= level.width - size[1] * first * 0.709**i < 1
    # the next level would be smaller than a window
    assert min(size) * (scales[-1] if scales else 0.6) * (0.709 if scales else 1) < 12 + 1


def test_suppression_is_that_of_its_definition():
    rng = np.random.default_rng(1)
    for of_smaller in (False, True):
        corner, sides = rng.uniform(0, 60, (80, 2)), rng.uniform(5, 40, (80, 2))
        boxes, scores = np.concatenate([corner, corner + sides], 1), rng.uniform(size=80)
        kept = []
        for i in np.argsort(-scores):
            for j in kept:
                width, height = (
                    max(0.0, min(boxes[i][k + 2], boxes[j][k + 2]) - max(boxes[i][k], boxes[j][k])) for k in (0, 1)
                )
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
                if width * height > 0.4 * (min(areas) if of_smaller else sum(areas) - width * height):
                    break
            else:
                kept.append(i)
        assert suppress(boxes, scores, 0.4, of_smaller).tolist() == kept
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


@needs_weights
def test_a_damaged_or_hostile_file_of_weights_is_refused_and_nothing_in_it_is_run(tmp_path):
    import lz4.frame

    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (ran.touch, ())

    good = lz4.frame.decompress((mtcnn.find_weights() / "pnet.lz4").read_bytes())
    bad = [b"", good[: len(good) // 2], good + b"more", good.replace(b"f4", b"O8", 1)[::-1], pickle.dumps(Hostile())]
    bad += [lz4.frame.compress(content) for content in bad] + [lz4.frame.compress(bytes(10**8))]
    nan = bytearray(good)
    nan[1000:1004] = b"\xff\xff\xff\xff"
    bad.append(lz4.frame.compress(bytes(nan)))
    assert any(code.name == "REDUCE" for code, _, _ in pickletools.genops(pickle.dumps(Hostile())))
    for content in bad:
        (tmp_path / "pnet.lz4").write_bytes(content)
        with pytest.raises(UserError):
            MTCNN(folder=tmp_path)._nets  # noqa: B018
    assert not ran.exists()


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        MTCNN().detect(np.zeros((50, 50, 3), np.uint8))


@needs_weights
def test_what_is_no_photo():
    for image in (np.zeros((50, 50), np.uint8), np.zeros((50, 50, 3))):
        with pytest.raises(ValueError, match="photo"):
            MTCNN().detect(image)
    with pytest.raises(ValueError, match="12 pixels"):
        MTCNN(min_face=5)
    assert len(MTCNN().detect(np.zeros((5, 200, 3), np.uint8))) == 0


@needs_weights
@needs_faces
def test_a_face_is_found_wherever_it_is():
    """Twice in one photo, once smaller; the points move with it."""
    (photo,), (points,) = lfw(1)
    small = np.asarray(Image.fromarray(photo).resize((125, 125), Image.Resampling.BOX))
    both = np.full((256, 384, 3), 90, np.uint8)
    both[3:253, 5:255], both[100:225, 257:382] = photo, small
    faces = MTCNN().detect(both)
    assert len(faces) == 2
    assert (faces.scores > 0.9).all()
    places = [points + np.array([5, 3]), points / 2 + np.array([257, 100])]
    assert np.abs(faces.points[np.argsort(faces.boxes[:, 0])] - places).max() < 5
    assert len(MTCNN(min_face=120).detect(both)) == 1


@needs_weights
@needs_faces
@pytest.mark.slow
def test_lfw_beside_the_published_landmarks():
    photos, points = lfw(60)
    distances = []
    for photo, expected_points in zip(photos, points, strict=True):
        face = choose(MTCNN().detect(photo), "central", photo.shape)
        assert len(face) == 1
        distances.append(np.linalg.norm(face.points[0] - expected_points, axis=1))
    assert np.median(distances) < 2
    assert np.percentile(distances, 99) < 6


@needs_weights
@needs_faces
@pytest.mark.slow
def test_lfw_beside_the_package():
    """It cuts candidates out with plain interpolation, and takes the mean over an area for the pyramid."""
    pytest.importorskip("tensorflow", reason="the package mtcnn needs TensorFlow")
    import mtcnn as package

    theirs, distances = package.MTCNN(), []
    for photo in lfw(12, start=100)[0]:
        found = theirs.detect_faces([photo], output_type="numpy", fit_to_image=False)
        face = choose(MTCNN().detect(photo), "central", photo.shape).points[0]
        other = np.stack([found[:, 6:11], found[:, 11:16]], -1)
        distances.append(np.linalg.norm(other - face, axis=2).mean(axis=1).min())
    assert np.median(distances) < 1.5
