"""What several test files use: where the published data sets are, and batches that are hard to compute with."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ORDINARY = np.random.default_rng(0).normal(size=(6, 4))
HOSTILE_BATCHES = {
    "one example": (ORDINARY[:1], [2]),
    "one class": (ORDINARY, [1] * 6),
    "each of its own class": (ORDINARY, [0, 1, 2, 3, 4, 5]),
    "identical": (np.repeat(ORDINARY[:1], 6, axis=0), [0, 0, 1, 1, 2, 2]),
    "opposite": (ORDINARY[:1] * [[1], [-1], [1], [-1], [2], [-2]], [0, 0, 1, 1, 2, 2]),
    "zero": (np.zeros((6, 4)), [0, 0, 1, 1, 2, 2]),
    "some zero": (ORDINARY * [[1], [0], [1], [0], [1], [0]], [0, 0, 1, 1, 2, 2]),
    "long": (ORDINARY * 1e4, [0, 0, 1, 1, 2, 2]),
    "short": (ORDINARY * 2.0**-23, [0, 0, 1, 1, 2, 2]),
    "long and short": (ORDINARY * [[1e4], [1e-6], [1e4], [1e-6], [1], [1]], [0, 0, 1, 1, 2, 2]),
}


@pytest.fixture(params=list(HOSTILE_BATCHES))
def hostile_batch(request):
    """Embeddings, float64 [B, 4], and labels [B] below 6."""
    embeddings, labels = HOSTILE_BATCHES[request.param]
    return torch.from_numpy(embeddings), torch.tensor(labels)


@pytest.fixture
def assert_finite():
    """Asserts that a loss, and its gradient by each of the leaves, are finite numbers of the right dtype."""

    def check(loss, *leaves):
        assert loss.shape == ()
        assert loss.dtype == (torch.float64 if any(leaf.dtype == torch.float64 for leaf in leaves) else torch.float32)
        assert loss.isfinite()
        loss.backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            leaf.grad = None

    return check


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """These tests are small: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published():
    """The folder with the published files of MNIST and CIFAR-10."""
    return _shared("")


@pytest.fixture(scope="session")
def faces():
    """The folder with real faces, pairs of them and published weights."""
    return _shared("faces")


def _shared(name):
    beside = Path(__file__).parents[2] / "shared" / "data"
    for folder in (os.environ.get("ARCFACE_DATA_DIR"), beside):
        if folder and (Path(folder) / name).is_dir():
            return Path(folder) / name
    pytest.skip(f"published files {name} are neither in ARCFACE_DATA_DIR nor in ../shared/data beside the checkout")
