"""The run directories of both programs: the same files, fields, tensors and numbers."""

import json

import numpy as np
import pytest
import safetensors.numpy

from parity_tests.cases.evaluation import runs


@pytest.fixture(scope="module")
def pair():
    return runs("short").pair


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_same_files(pair):
    here, there = ({str(p.relative_to(run)) for p in run.rglob("*")} for run in pair)
    assert here == there


@pytest.mark.parametrize("name", ["config.json", "dataset.json"])
def test_the_same_json(name, pair):
    here, there = (json.loads((run / name).read_text()) for run in pair)
    assert here == there


def test_metrics_have_the_same_numbers(pair):
    here, there = (metrics(run) for run in pair)
    assert len(here) == len(there) == 2
    one_image = {"train_accuracy": 1 / 1024, "test_accuracy": 1 / 359}
    for one, other in zip(here, there, strict=True):
        assert list(one) == list(other)
        for key in set(one) - {"seconds", "images_per_second"}:
            # float32, 64 ulp as everywhere; in an accuracy one image may lie between two classes
            bound = {"rtol": 64 * np.finfo(np.float32).eps, "atol": one_image.get(key, 0)}
            np.testing.assert_allclose(one[key], other[key], **bound, err_msg=key)


@pytest.mark.parametrize("name", ["model.safetensors", "embeddings.npz"])
def test_the_same_arrays(name, pair):
    load = np.load if name.endswith(".npz") else safetensors.numpy.load_file
    here, there = (
        {key: (array.shape, array.dtype.kind) for key, array in dict(load(run / name)).items()} for run in pair
    )
    assert here == there
