"""`export`: the files it writes, as others read them, beside what the run holds."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from jax_arcface import data
from jax_arcface.__main__ import main


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's test images."""
    return data.load("digits").test.images


def held(run):
    """What the run holds of these images, at unit length."""
    embeddings = np.load(run / "embeddings.npz")["embeddings"]
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_onnx(run_copy, digits, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    (run_copy / "threshold.json").write_text('{"threshold": 0.25}')
    assert main(["export", str(run_copy)]) == 0
    assert "exported.onnx" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(run_copy / "exported.onnx", providers=["CPUExecutionProvider"])
    for images in (digits, digits[:1]):
        found = session.run(["embeddings"], {"images": images})[0]
        np.testing.assert_allclose(found, held(run_copy)[: len(images)], atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == [str(number) for number in range(10)]
    assert json.loads(facts["config"])["width"] == 0.125
    assert json.loads(facts["metrics"])["epoch"] == 3
    assert json.loads(facts["threshold"]) == {"threshold": 0.25}
    card = (run_copy / "exported.md").read_text()
    assert "0.25" in card
    assert "digits" in card


def test_stablehlo(run_copy, digits, tmp_path):
    out = tmp_path / "deep" / "model.stablehlo"
    Image.fromarray(digits[0, :, :, 0]).save(tmp_path / "digit.png")
    assert main(["export", str(run_copy), "--out", str(out), "--check", str(tmp_path / "digit.png")]) == 0
    embed = jax.export.deserialize(bytearray(out.read_bytes())).call
    np.testing.assert_allclose(embed(digits), held(run_copy), atol=1e-5)
    assert out.with_suffix(".md").is_file()


def test_a_card_names_no_folder_of_the_machine(run_copy, tmp_path):
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(config | {"dataset": "/home/ann/people", "data_dir": "/home/ann"}))
    described = json.loads((run_copy / "dataset.json").read_text())
    (run_copy / "dataset.json").write_text(json.dumps(described | {"name": "/home/ann/people"}))
    (run_copy / "evaluation.json").write_text('{"run": "/home/ann/run", "accuracy": 0.5}')
    assert main(["export", str(run_copy), "--out", str(tmp_path / "a.safetensors")]) == 0
    card, file = (tmp_path / "a.md").read_text(), (tmp_path / "a.safetensors").read_bytes()
    assert "/home" not in card
    assert b"/home" not in file
    assert "people" in card


def test_weights(run_copy, tmp_path):
    assert main(["export", str(run_copy), "--format", "safetensors", "--out", str(tmp_path / "a.weights")]) == 0
    found = safetensors.numpy.load_file(tmp_path / "a.weights")
    wanted = safetensors.numpy.load_file(run_copy / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)
    with safetensors.safe_open(tmp_path / "a.weights", "numpy") as file:
        assert "data_dir" not in json.loads(file.metadata()["config"])


@pytest.mark.slow
def test_int8(run_copy, digits, tmp_path, capsys):
    """Smaller, nearly the same embeddings, the same metadata."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    sizes = []
    for flags in ([], ["--int8", "digits"]):
        assert main(["export", str(run_copy), "--out", str(tmp_path / "a.onnx"), *flags]) == 0
        sizes.append((tmp_path / "a.onnx").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]  # the narrower the network, the more is not weights
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["embeddings"], {"images": digits})[0]
    assert (found * held(run_copy)).sum(axis=1).mean() > 0.98
    assert "config" in session.get_modelmeta().custom_metadata_map


def test_mistakes(run_copy, refused, tmp_path):
    refused("export", run_copy, "--format", "onxx")
    refused("export", run_copy, "--out", "model")
    refused("export", run_copy, "--out", "model.md")
    refused("export", run_copy, "--out", "model.bin")
    refused("export", run_copy, "--out", tmp_path)
    refused("export", run_copy, "--format", "safetensors", "--check", tmp_path)
    refused("export", run_copy, "--format", "safetensors", "--int8", "digits")
    refused("export", tmp_path / "nowhere")
    (run_copy / "model.safetensors").unlink()
    refused("export", run_copy)
