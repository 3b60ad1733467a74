"""What the data tests share. The published files are looked for in ARCFACE_DATA_DIR, then in ../shared/data."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = next(
    (
        Path(folder)
        for folder in (os.environ.get("ARCFACE_DATA_DIR"), Path(__file__).parents[3] / "shared" / "data")
        if folder and Path(folder).is_dir()
    ),
    None,
)
needs_files = pytest.mark.skipif(
    REAL is None, reason="the published files are neither in ARCFACE_DATA_DIR nor in ../shared/data beside the checkout"
)

MNIST_FILES = [f"{split}-{part}-ubyte.gz" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")]
CIFAR10_FILES = ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch, tmp_path):
    """No test reads the user's folders or reaches the network."""
    monkeypatch.delenv("ARCFACE_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))

    def unplugged(*args, **kwargs):
        raise ConnectionError("the network is unplugged")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)


@pytest.fixture
def cache(tmp_path):
    """A cache folder that is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path):
    """A good folder: two classes, both splits."""
    root = tmp_path / "pets"
    for level, name in enumerate(
        ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    ):
        save_image(root / name, 10 * level)
    return root


def save_image(path, pixels):
    """Saves grey levels [H, W] or [H, W, 3], or one grey level as an 8x8 image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), pixels) if np.isscalar(pixels) else np.asarray(pixels)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def break_image(root):
    """Cuts off an image of the good folder."""
    path = root / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:45])  # its header is whole


def fake_files(folder, files):
    """Files that are not the published ones, under their names."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"not what was published")


def assert_same(one, other):
    """The same classes, and the same arrays in the right types."""
    assert one.class_names == other.class_names
    for a, b in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert (a.images.dtype, a.labels.dtype) == (b.images.dtype, b.labels.dtype) == (np.uint8, np.int32)
