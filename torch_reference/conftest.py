"""What several test files use: where the published data sets are, and small runs."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """These tests are small: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published():
    """The folder with the published files of MNIST and CIFAR-10."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    for folder in (os.environ.get("ARCFACE_DATA_DIR"), beside):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("the published files are neither in ARCFACE_DATA_DIR nor in ../shared/data beside the checkout")
