"""MNIST and CIFAR-10 are the published ones, to the bit, and nothing else passes for them."""

import gzip
import hashlib
import io
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from jax_arcface import data
from jax_arcface.data.conftest import CIFAR10_FILES, MNIST_FILES, REAL, assert_same, fake_files, needs_files
from jax_arcface.data.published import Published, unpickle
from jax_arcface.errors import UserError


def mnist_by_hand(prefix):
    """IDX as its page describes it: 4 bytes of magic, big-endian sizes, bytes."""
    folder = REAL / "MNIST" / "raw"
    content = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    magic, n, height, width = np.frombuffer(content, ">i4", count=4)
    assert (magic, height, width) == (2051, 28, 28)
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    assert np.frombuffer(labels, ">i4", count=2).tolist() == [2049, n]
    return np.frombuffer(content[16:], np.uint8).reshape(n, 28, 28, 1), np.frombuffer(labels[8:], np.uint8)


def cifar10_by_hand(files):
    """The batches as their page describes them: 1024 red bytes, then green, then blue, each row by row."""
    images, labels = [], []
    for file in files:
        batch = pickle.loads((REAL / "cifar-10-batches-py" / file).read_bytes(), encoding="bytes")
        images.append(np.stack([batch[b"data"][:, i * 1024 : (i + 1) * 1024] for i in range(3)], axis=-1))
        labels += batch[b"labels"]
    return np.concatenate(images).reshape(-1, 32, 32, 3), np.array(labels)


@needs_files
def test_mnist_is_the_published_one(cache):
    mnist = data.load("mnist", REAL, cache_dir=cache)
    assert (mnist.name, mnist.image_shape, mnist.class_names) == ("mnist", (28, 28, 1), tuple("0123456789"))
    for split, prefix in ((mnist.train, "train"), (mnist.test, "t10k")):
        images, labels = mnist_by_hand(prefix)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    # counts as they are known everywhere
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    mean, std = data.channel_statistics(mnist.train.images)
    assert (round(mean[0] / 255, 4), round(std[0] / 255, 4)) == (0.1307, 0.3081)


@needs_files
def test_cifar10_is_the_published_one(cache):
    cifar10 = data.load("cifar10", REAL, cache_dir=cache)
    assert (cifar10.name, cifar10.image_shape, cifar10.num_classes) == ("cifar10", (32, 32, 3), 10)
    assert " ".join(cifar10.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"
    for split, files in ((cifar10.train, [f"data_batch_{i}" for i in range(1, 6)]), (cifar10.test, ["test_batch"])):
        images, labels = cifar10_by_hand(files)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
    mean, std = data.channel_statistics(cifar10.train.images)
    assert (mean / 255).round(4).tolist() == [0.4914, 0.4822, 0.4465]
    assert (std / 255).round(4).tolist() == [0.247, 0.2435, 0.2616]


@needs_files
def test_mnist_in_the_environments_folder_resized(cache, monkeypatch):
    monkeypatch.setenv("ARCFACE_DATA_DIR", str(REAL))
    mnist = data.load("mnist", image_size=20, cache_dir=cache)
    assert mnist.image_shape == (20, 20, 1)
    image = mnist_by_hand("t10k")[0][-1, ..., 0]
    expected = Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mnist.test.images[-1, ..., 0], np.asarray(expected))
    assert len(mnist.train.images) == 60_000


@needs_files
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_second_start_decodes_nothing(name, cache, monkeypatch):
    first = data.load(name, REAL, cache_dir=cache)
    monkeypatch.setattr(Published, "read", lambda *args: pytest.fail("a published file was read again"))
    second = data.load(name, REAL, cache_dir=cache)
    assert isinstance(second.train.images, np.memmap)
    assert_same(first, second)


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [("mnist", "MNIST/raw", MNIST_FILES), ("cifar10", "cifar-10-batches-py", CIFAR10_FILES)],
)
def test_damaged_file_is_named_with_both_checksums(name, folder, files, cache, tmp_path):
    fake_files(tmp_path / folder, files)
    found = hashlib.sha256(b"not what was published").hexdigest()
    with pytest.raises(UserError, match=rf"{folder}/\S+ is damaged: its SHA-256 is {found}, expected [0-9a-f]{{64}}"):
        data.load(name, tmp_path, cache_dir=cache)
    assert not cache.exists()


@needs_files
def test_one_flipped_bit_is_found_behind_a_filled_cache(cache, tmp_path):
    shutil.copytree(REAL / "MNIST", tmp_path / "MNIST")
    data.load("mnist", tmp_path, cache_dir=cache)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is damaged: .* expected f7ae60f92e00ec6d"):
        data.load("mnist", tmp_path, cache_dir=cache)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(print), pickle.dumps({b"data": os.system}), b"", b"text", pickle.dumps(np.zeros(3))[:-20]],
    ids=["builtin", "os.system", "empty", "text", "truncated"],
)
def test_pickle_of_anything_else_is_refused(content):
    with pytest.raises(UserError, match="data_batch_1 is not a batch of CIFAR-10"):
        unpickle(content, "data_batch_1")


def test_pickle_that_calls_something_is_not_called(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(UserError, match="test_batch"):
        unpickle(pickle.dumps(Trap(), protocol=2), "test_batch")
    assert not (tmp_path / "sprung").exists()
    pickle.load(io.BytesIO(pickle.dumps(Trap(), protocol=2)))  # the trap works
    assert (tmp_path / "sprung").exists()
