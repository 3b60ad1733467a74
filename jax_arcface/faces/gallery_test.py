"""Galleries against numpy, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from jax_arcface.errors import UserError
from jax_arcface.faces.gallery import Gallery, crop_size, embed_crops, probe_of, unit
from jax_arcface.models import trained

RNG = np.random.default_rng(0)
PROBE = RNG.normal(size=8).astype(np.float32)


class Mean(nnx.Module):
    """A network whose embedding is the mean of each quarter of an image, for each channel."""

    def eval(self):
        pass

    def __call__(self, x):
        n, size = len(x), x.shape[1] // 2
        return x.reshape(n, 2, size, 2, size, -1).mean((2, 4)).reshape(n, -1)


def model(channels=3, shape=(112, 112)):
    names = [field.name for field in dataclasses.fields(trained.Model)]
    fields = dict.fromkeys(names) | {
        "backbone": Mean(),
        "image_shape": (*shape, channels),
        "class_names": (),
        "prototypes": None,
    }
    fields |= {"mean": np.full(channels, 100.0), "std": np.ones(channels), "embedding_dim": 4 * channels}
    return trained.Model(**{name: fields[name] for name in names})


def gallery():
    embeddings = RNG.normal(size=(6, 8))
    return embeddings, Gallery.empty(PROBE).added(embeddings, list("abbcca"), [f"{i}.jpg" for i in range(6)])


def test_the_nearest_are_numpys():
    embeddings, faces = gallery()
    probes = RNG.normal(size=(3, 8))
    for probe, ranked in zip(probes, faces.nearest(probes), strict=True):
        cosine = embeddings @ probe / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(probe)
        expected = {name: max(c for c, n in zip(cosine, "abbcca", strict=True) if n == name) for name in "abc"}
        assert [match.name for match in ranked] == sorted(expected, key=expected.get, reverse=True)
        np.testing.assert_allclose([match.cosine for match in ranked], sorted(expected.values())[::-1], atol=1e-6)
        assert ranked[0].file == f"{cosine.argmax()}.jpg"


def test_it_is_written_read_added_to_and_taken_from(tmp_path):
    _, faces = gallery()
    path = tmp_path / "deep" / "gallery.npz"
    faces.write(path)
    read = Gallery.read(path)
    for field in dataclasses.fields(Gallery):
        np.testing.assert_allclose(getattr(read, field.name), getattr(faces, field.name), atol=1e-7) if field.name in (
            "embeddings",
            "probe",
        ) else np.testing.assert_array_equal(getattr(read, field.name), getattr(faces, field.name))
    more = read.added(np.ones((1, 8)), ["d"], ["d.jpg"]).without({"0.jpg", "5.jpg"})
    assert more.names == tuple("bbccd")
    assert more.nearest(np.ones((1, 8)))[0][0][:2] == ("d", pytest.approx(1))
    np.testing.assert_allclose(np.linalg.norm(more.embeddings, axis=1), 1, atol=1e-6)


def test_what_is_no_gallery(tmp_path):
    _, faces = gallery()
    path = tmp_path / "gallery.npz"
    good = {
        "embeddings": faces.embeddings,
        "names": np.array(faces.names),
        "files": np.array(faces.files),
        "probe": faces.probe,
    }
    bad = [
        {"names": good["names"][:-1]},
        {"probe": good["probe"][:-1]},
        {"names": np.arange(6)},
        {"embeddings": np.zeros((6, 8))},
        {"embeddings": np.ones((6, 8), int)},
        {"names": good["names"].reshape(2, 3), "files": good["files"].reshape(2, 3)},
    ]
    for change in bad:
        np.savez(path, **(good | change))
        with pytest.raises(UserError):
            Gallery.read(path)
    with pytest.raises(UserError, match="no face"):
        Gallery.empty(PROBE).write(path)
    for embeddings in (np.zeros((1, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(UserError):
            unit(embeddings)


def test_another_model_is_noticed():
    faces = Gallery.empty(PROBE)
    faces.check_model(3 * PROBE + 1e-4)
    for probe in (-PROBE, RNG.normal(size=8), PROBE[:7]):
        with pytest.raises(UserError, match="another model"):
            faces.check_model(probe)


@pytest.mark.parametrize("channels", [3, 1])
def test_embeddings_of_crops(channels):
    crops = RNG.integers(0, 256, (67, 112, 112, 3), np.uint8)
    pixels = crops.astype(float) if channels == 3 else np.round(crops @ [0.299, 0.587, 0.114])[..., None]
    means = pixels.reshape(67, 2, 56, 2, 56, channels).mean((2, 4)) - 100
    both = means + means[:, :, ::-1]
    for flip, expected in ((False, means), (True, both)):
        expected = expected.reshape(67, -1)
        found = embed_crops(model(channels), crops, flip)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1)[:, None], atol=1e-4)
    assert probe_of(model(channels)).shape == (4 * channels,)
    with pytest.raises(UserError):
        crop_size(model(shape=(112, 96)))
