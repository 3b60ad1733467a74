"""Tests of trained.py: a run directory written here by hand, as docs/recipe.md describes it."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from torch_reference import Classifier, Head, arcface, cosines, load_model, softmax
from torch_reference.errors import UserError
from torch_reference.models.backbones import make_backbone
from torch_reference.models.weights import initialise, to_arrays

CONFIG = {"backbone": "lenet", "embedding_dim": 6, "width": 0.1, "dropout": 0.2, "precision": "float32", "loss": "?"}
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 9, 9, 2), np.uint8)


def write(run, objective=None, config=(), arrays=()):
    """A run with images of two channels (grey levels of which the mean is taken, and divided by the deviation)."""
    model = Classifier(make_backbone("lenet", (9, 9, 1), 6, 0.1), Head(objective or arcface(), 6, 3))
    initialise(model, 0)
    if model.head.bias is not None:
        torch.nn.init.normal_(model.head.bias)
    described = {
        "name": "mine",
        "image_shape": [9, 9, 1],
        "class_names": ["a", "b", "c"],
        "mean": [100.0],
        "std": [50.0],
    }
    (run / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    (run / "dataset.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(to_arrays(model) | dict(arrays), run / "model.safetensors")
    return model.eval()


@pytest.mark.parametrize("objective", [arcface(), arcface(subcenters=3), softmax()])
def test_a_model_embeds_and_predicts(objective, tmp_path):
    model, loaded = write(tmp_path, objective), load_model(tmp_path)
    images = IMAGES[..., :1]
    x = torch.from_numpy(((images.astype(np.float32) - 100) / 50).transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = model.backbone(x)
        scores = model(x)
    found = loaded.embed(images, batch_size=3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert loaded.predict(images, batch_size=2).tolist() == scores.argmax(dim=1).tolist()
    assert loaded.class_names == ("a", "b", "c")
    assert (loaded.bias is None) == (model.head.bias is None)
    if loaded.bias is None:
        torch.testing.assert_close(cosines(torch.from_numpy(found), torch.from_numpy(loaded.prototypes)), scores)


def test_no_images(tmp_path):
    write(tmp_path)
    model = load_model(str(tmp_path))
    assert model.embed(IMAGES[:0, ..., :1]).shape == (0, 6)
    assert model.predict(IMAGES[:0, ..., :1]).shape == (0,)


def test_images_of_another_kind(tmp_path):
    write(tmp_path)
    model = load_model(tmp_path)
    for images in (IMAGES, IMAGES[..., :1].astype(np.float32), IMAGES[:, :8, :, :1]):
        with pytest.raises(ValueError, match=r"the model takes uint8 \(N, 9, 9, 1\)"):
            model.embed(images)


@pytest.mark.parametrize(
    ("config", "arrays", "named"),
    [
        ({"backbone": "vgg"}, {}, "backbone"),
        ({"backbone": None}, {}, "backbone"),
        ({"embedding_dim": "6"}, {}, "embedding_dim"),
        ({"embedding_dim": 7}, {}, "embedding.bn2"),
        ({"embedding_dim": 10**9}, {}, "embedding.bn2"),
        ({"width": 64}, {}, "embedding.bn1"),
        ({"width": True}, {}, "width"),
        ({"precision": "float16"}, {}, "precision"),
        ({}, {"head.prototypes": np.zeros((2, 6), np.float32)}, "head.prototypes"),
        ({}, {"head.bias": np.zeros(2, np.float32)}, "head.bias"),
        ({}, {"backbone.more": np.zeros(2, np.float32)}, "more"),
    ],
)
def test_what_does_not_fit_is_named(config, arrays, named, tmp_path):
    write(tmp_path, config=config, arrays=arrays)
    with pytest.raises(UserError, match=named):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "dataset.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(tmp_path)
