"""A name leads to its data set, and a mistake to a message that helps."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jax_arcface import data
from jax_arcface.data import registry
from jax_arcface.data.conftest import CIFAR10_FILES, MNIST_FILES, assert_same, fake_files
from jax_arcface.errors import UserError


def test_import_is_light():
    script = (
        "import sys, jax_arcface.data\n"
        "print([name for name in ('tensorflow', 'tensorflow_datasets', 'sklearn') if name in sys.modules])\n"
        "import jax\n"
        "print(jax._src.xla_bridge.backends_are_initialized())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]


# digits


def test_digits_are_scikit_learns_digits_and_nothing_is_lost(cache):
    from sklearn.datasets import load_digits

    raw = load_digits()
    digits = data.load("digits", cache_dir=cache)
    assert (digits.name, digits.num_classes, digits.image_shape) == ("digits", 10, (8, 8, 1))
    assert digits.class_names == tuple("0123456789")
    levels = [int(255 * level / 16 + 0.5) for level in range(17)]
    expected = sorted(
        (np.take(levels, image.astype(int)).tobytes(), label) for image, label in zip(raw.data, raw.target, strict=True)
    )
    found = sorted(
        (image.astype(int).tobytes(), label)
        for split in (digits.train, digits.test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )
    assert found == expected


def test_digits_split_is_the_recipes(cache):
    """The split rule of docs/recipe.md, written from the page: its own generator, no numpy sorting of masks."""
    from sklearn.datasets import load_digits

    target = load_digits().target
    key = int.from_bytes(hashlib.sha256(b"arcface/split/0/0").digest()[:16], "little")
    draw = np.random.Generator(np.random.Philox(key=key))
    test = set()
    for label in range(10):
        examples = [i for i in range(len(target)) if target[i] == label]
        ranked = sorted(zip(draw.random(len(examples)).tolist(), examples, strict=True))
        test.update(example for _, example in ranked[: round(len(examples) / 5)])
    digits = data.load("digits", cache_dir=cache)
    assert digits.test.labels.tolist() == [target[i] for i in range(len(target)) if i in test]
    assert digits.train.labels.tolist() == [target[i] for i in range(len(target)) if i not in test]
    # a fifth of each class of 178, 182, 177, 183, 181, 182, 181, 179, 174 and 180
    assert np.bincount(digits.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    # two images of the test split, as scikit-learn numbers them
    first, last = min(test), max(test)
    raw = load_digits().images
    for image, example in ((digits.test.images[0], first), (digits.test.images[-1], last)):
        np.testing.assert_array_equal(image[..., 0], np.floor(raw[example] * 255 / 16 + 0.5))


def test_digits_resized(cache):
    plain = data.load("digits", cache_dir=cache)
    resized = data.load("digits", image_size=12, cache_dir=cache)
    assert resized.image_shape == (12, 12, 1)
    expected = Image.fromarray(plain.test.images[7, ..., 0]).resize((12, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized.test.images[7, ..., 0], np.asarray(expected))
    np.testing.assert_array_equal(resized.train.labels, plain.train.labels)


def test_digits_in_their_own_size_are_untouched(cache):
    assert_same(data.load("digits", image_size=8, cache_dir=cache), data.load("digits", cache_dir=cache))


# where the published files are looked for


def test_missing_files_are_named(cache, tmp_path):
    fake_files(tmp_path / "MNIST/raw", MNIST_FILES[:2])
    with pytest.raises(UserError) as caught:
        data.load("mnist", tmp_path, cache_dir=cache)
    message = str(caught.value)
    assert str(tmp_path / "MNIST/raw") in message
    assert all(file in message for file in MNIST_FILES[2:])
    assert not any(file in message for file in MNIST_FILES[:2])


def test_data_dir_wins_over_the_environment(cache, tmp_path, monkeypatch):
    fake_files(tmp_path / "environment" / "MNIST/raw", MNIST_FILES)
    fake_files(tmp_path / "argument" / "MNIST/raw", MNIST_FILES)
    monkeypatch.setenv("ARCFACE_DATA_DIR", str(tmp_path / "environment"))
    with pytest.raises(UserError, match=r"environment/MNIST/raw/\S+ is damaged"):
        data.load("mnist", cache_dir=cache)
    with pytest.raises(UserError, match=r"argument/MNIST/raw/\S+ is damaged"):
        data.load("mnist", tmp_path / "argument", cache_dir=cache)


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_a_data_folder_that_is_not_there_is_no_reason_to_look_elsewhere(given, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "find_prepared", lambda *_: pytest.fail("looked elsewhere"))
    monkeypatch.setattr(registry, "download_prepared", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setenv("ARCFACE_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(UserError) as caught:
        data.load("mnist", tmp_path / "typo" if given == "argument" else None, cache_dir=cache)
    assert_helps(str(caught.value), "mnist is not at hand: there is no folder", tmp_path / "typo")


def assert_helps(message, *parts):
    assert "\n" not in message
    for part in (*parts, "data folder", "ARCFACE_DATA_DIR"):
        assert str(part) in message


@pytest.mark.parametrize(("name", "files"), [("mnist", MNIST_FILES), ("cifar10", CIFAR10_FILES)])
def test_no_files_and_no_network(name, files, cache, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")

    def unplugged(*args, **kwargs):
        raise ConnectionError("the network is unplugged\nfor this test")

    monkeypatch.setattr("requests.sessions.Session.request", unplugged)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        data.load(name, tmp_path / "empty", cache_dir=cache)
    assert_helps(str(caught.value), name, tmp_path / "empty", *files, "the network is unplugged for this test")


def test_no_files_and_no_tfds(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError) as caught:
        data.load("mnist", cache_dir=cache)
    assert_helps(str(caught.value), "mnist", "no data folder", 'pip install "jax-arcface[tfds]"', *MNIST_FILES)


# names and options


@pytest.mark.parametrize(("name", "near"), [("minst", "mnist"), ("CIFAR-10", "cifar10"), ("digit", "digits")])
def test_unknown_name_gets_the_nearest_and_all_known(name, near, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"did you mean '{near}'.*digits, mnist, cifar10"):
        data.load(name, cache_dir=cache)


def test_unknown_name_like_no_other_gets_all_known(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no data set is called 'imagenet': give one of digits, mnist, cifar10"):
        data.load("imagenet", cache_dir=cache)


def test_known_name_wins_over_a_folder_and_other_folders_need_no_separator(pets, cache, monkeypatch):
    monkeypatch.chdir(pets.parent)
    assert data.load("pets", cache_dir=cache).class_names == ("cat", "dog")
    pets.rename(pets.parent / "digits")
    assert data.load("digits", cache_dir=cache).num_classes == 10


@pytest.mark.parametrize("size", [0, -3])
def test_image_size_must_be_positive(size, cache):
    with pytest.raises(UserError, match=f"image size {size}"):
        data.load("digits", image_size=size, cache_dir=cache)


@pytest.mark.parametrize("name", ["digits", "./pets"])
def test_data_folder_without_effect_is_an_error(name, cache, tmp_path):
    with pytest.raises(UserError, match="has no effect"):
        data.load(name, tmp_path, cache_dir=cache)


def test_data_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_data_error_is_a_user_error():
    assert issubclass(UserError, UserError)


def test_progress_is_shown_on_request_only(pets, tmp_path, capsys):
    data.load(str(pets), cache_dir=tmp_path / "one")
    assert capsys.readouterr() == ("", "")
    data.load(str(pets), cache_dir=tmp_path / "two", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "pets train" in err
    assert "images" in err
