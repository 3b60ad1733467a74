"""The files as their own readers compute them."""

import io

import numpy as np
import pytest
import safetensors.numpy
import torch

from torch_reference.export import card
from torch_reference.export.formats import FORMATS, difference
from torch_reference.export.quantise import to_int8
from torch_reference.models.backbones import BACKBONES, make_backbone
from torch_reference.models.trained import Model


def model_of(name):
    """A network with statistics and slopes that training might have left."""
    generator = torch.Generator().manual_seed(0)
    backbone = make_backbone(name, (16, 20, 3), 8, 0.125)
    for value in [*backbone.parameters(), *backbone.buffers()]:
        if value.is_floating_point() and value.ndim == 1:
            value.data = torch.rand(value.shape, generator=generator) + 0.1
    classes = np.ones((2, 8), np.float32)
    return Model(
        backbone, (16, 20, 3), 8, ("a", "b"), classes, None, np.array([9.0, 99, 199]), np.array([40.0, 50, 60])
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_a_program(name, file_format):
    """For several images and for one, and at unit length."""
    if file_format == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra export")
        pytest.importorskip("onnxruntime", reason="needs the extra export")
    model = model_of(name)
    embed = FORMATS[file_format].read(FORMATS[file_format].write(model, {"model": "mine"}))
    assert difference(model, embed, IMAGES) < 1e-5
    assert difference(model, embed, IMAGES[:1]) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(embed(IMAGES), axis=1), 1, rtol=1e-5)


def test_metadata(tmp_path):
    model = model_of("lenet")
    facts = card.metadata(card.describe(model, tmp_path))
    extra = dict.fromkeys(facts, "")
    torch.export.load(io.BytesIO(FORMATS["pt2"].write(model, facts)), extra_files=extra)
    assert {name: text if isinstance(text, str) else text.decode() for name, text in extra.items()} == facts
    (tmp_path / "model.safetensors").write_bytes(FORMATS["safetensors"].write(model, facts))
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == facts
        found = {name.removeprefix("backbone."): torch.tensor(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    assert (found.pop("head.prototypes") == 1).all()
    make_backbone("lenet", (16, 20, 3), 8, 0.125).load_state_dict(found)


@pytest.mark.slow
def test_int8():
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    model = model_of("lenet")
    content = FORMATS["onnx"].write(model, {"model": "mine"})
    small = to_int8(content, IMAGES)
    assert len(small) < 0.8 * len(content)
    one, other = (FORMATS["onnx"].read(file)(IMAGES) for file in (content, small))
    assert (one * other).sum(axis=1).min() > 0.98
