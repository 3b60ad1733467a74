"""Published weights: the real MobileFaceNet beside onnxruntime, and files that are not what they should be."""

import numpy as np
import pytest
from PIL import Image

from torch_reference import load_model
from torch_reference.errors import UserError


def test_the_published_mobilefacenet_embeds_as_onnxruntime_does(faces):
    onnxruntime = pytest.importorskip("onnxruntime")
    files = [faces / "orl" / f"s{person}" / "1.pgm" for person in (1, 2, 3)]
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((112, 112))) for file in files])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(faces / "mobilefacenet" / "MobileFaceNet.onnx")
    expected = [session.run(None, {"input0": one[None]})[0][0] for one in x]
    model = load_model(faces / "mobilefacenet" / "mobilefacenet.pt")
    np.testing.assert_allclose(model.embed(images), expected, atol=2e-5)
    assert (model.image_shape, model.embedding_dim, model.class_names) == ((112, 112, 3), 128, ())
    with pytest.raises(ValueError, match="no classes"):
        model.predict(images)
    # [-1, 1] is another network's input
    assert (
        np.abs(
            load_model(faces / "mobilefacenet" / "mobilefacenet.pt", normalise="half").embed(images) - expected
        ).max()
        > 0.1
    )


def test_what_is_no_file_of_weights(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="tensors can be read"):
        load_model(tmp_path / "x.pt")
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "y.pth")
