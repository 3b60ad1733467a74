"""What the two programs export of one run: the same embeddings, the same weights, cards of the same facts."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_arcface import __main__ as jax_program
from parity_tests.cases.evaluation import runs
from torch_reference import __main__ as torch_program
from torch_reference import data, load_model


@pytest.mark.slow
def test_pytorch_reads_the_state_dict_that_jax_writes(tmp_path):
    """And PyTorch's own loading of it, strict, finds every name."""
    run = runs("short").by_torch
    assert jax_program.main(["export", str(run), "--out", str(tmp_path / "a.pt")]) == 0
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    wanted = safetensors.numpy.load_file(run / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.numpy(), wanted[name])
    names = {name.removeprefix("backbone."): t for name, t in found.items() if name.startswith("backbone.")}
    load_model(run).backbone.load_state_dict(names)


@pytest.mark.slow
def test_onnx_files_of_both_agree(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    run, images, found, facts = runs("short").by_torch, data.load("digits").test.images, [], []
    for program, main in (("jax", jax_program.main), ("torch", torch_program.main)):
        out = Path(tmp_path, f"{program}.onnx")
        assert main(["export", str(run), "--out", str(out)]) == 0
        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        found.append(session.run(["embeddings"], {"images": images})[0])
        facts.append(dict(session.get_modelmeta().custom_metadata_map))
    held = np.load(run / "embeddings.npz")["embeddings"]
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    for embeddings in found:
        np.testing.assert_allclose(embeddings, held, atol=1e-5)
    here, there = facts
    assert here.keys() == there.keys()
    assert all(here[name] == there[name] for name in here.keys() - {"versions", "mean", "std"})
    for name in ("mean", "std"):
        assert json.loads(here[name]) == pytest.approx(json.loads(there[name]))
