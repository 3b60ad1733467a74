"""Tests of data.py."""

import gzip
import hashlib
import os
import pickle
import shutil
import socket

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from torch_reference import data
from torch_reference.data import _torchvision
from torch_reference.data.published import PUBLISHED
from torch_reference.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch, tmp_path):
    """No test reads the user's folders or reaches the network."""
    monkeypatch.delenv("ARCFACE_DATA_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch" / "hub"))

    def unplugged(*args, **kwargs):
        raise ConnectionError("the network is unplugged")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)


def save_image(path, pixels):
    """Saves grey levels [H, W] or [H, W, 3], or one grey level as an 8x8 image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), pixels) if np.isscalar(pixels) else np.asarray(pixels)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


# ---- digits


def split_draws():
    key = int.from_bytes(hashlib.sha256(b"arcface/split/0/0").digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def test_digits_are_the_recipes():
    raw = load_digits()
    draw, test = split_draws(), set()
    for label in range(10):
        examples = [i for i in range(len(raw.target)) if raw.target[i] == label]
        ranked = sorted(zip(draw.random(len(examples)).tolist(), examples, strict=True))
        test.update(example for _, example in ranked[: round(len(examples) / 5)])
    digits = data.load("digits")
    for split, chosen in ((digits.test, sorted(test)), (digits.train, sorted(set(range(len(raw.target))) - test))):
        assert split.labels.tolist() == raw.target[chosen].tolist()
        np.testing.assert_array_equal(split.images[..., 0], np.floor(raw.images[chosen] * 255 / 16 + 0.5))
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert digits.class_names == tuple("0123456789")


def test_digits_resized():
    plain, resized = data.load("digits"), data.load("digits", image_size=12)
    expected = Image.fromarray(plain.test.images[7, ..., 0]).resize((12, 12), Image.Resampling.BILINEAR)
    assert resized.image_shape == (12, 12, 1)
    np.testing.assert_array_equal(resized.test.images[7, ..., 0], np.asarray(expected))


# ---- channel_statistics


def test_channel_statistics_are_numpys():
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 2, 3), dtype=np.uint8)
    images[..., 2] = 9
    mean, std = data.channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], images[..., :2].std(axis=(0, 1, 2)), rtol=1e-12)
    assert std[2] == 1


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 2, 1)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 2, 1), np.uint8)]
)
def test_channel_statistics_of_anything_else_are_refused(images):
    with pytest.raises(ValueError, match="images must be uint8"):
        data.channel_statistics(images)


# ---- the published files


def test_mnist_is_the_published_one(published):
    mnist = data.load("mnist", published)
    raw = published / "MNIST" / "raw"
    for split, prefix in ((mnist.train, "train"), (mnist.test, "t10k")):
        images = gzip.decompress((raw / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        assert split.images.tobytes() == images[16:]
        assert split.images.shape == (int.from_bytes(images[4:8], "big"), 28, 28, 1)
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    mean, std = data.channel_statistics(mnist.train.images)
    assert (mean[0] / 255, std[0] / 255) == pytest.approx((0.1307, 0.3081), abs=5e-5)  # as everybody quotes them
    assert sorted(path.suffix for path in raw.iterdir()) == [".gz"] * 4  # nothing was unpacked there


def test_cifar10_is_the_published_one(published, monkeypatch):
    monkeypatch.setenv("ARCFACE_DATA_DIR", str(published))
    cifar = data.load("cifar10")
    assert (cifar.train.images.shape, cifar.test.images.shape) == ((50000, 32, 32, 3), (10000, 32, 32, 3))
    assert cifar.class_names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert (cifar.train.labels[:5].tolist(), cifar.test.labels[:5].tolist()) == ([6, 9, 9, 4, 1], [3, 8, 8, 0, 6])
    mean, _ = data.channel_statistics(cifar.train.images)
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    with (published / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        row = pickle.load(file, encoding="bytes")[b"data"][17]  # its checksum was verified above
    np.testing.assert_array_equal(cifar.test.images[17], row.reshape(3, 32, 32).transpose(1, 2, 0))


def write_traps(root, sprung):
    """Writes files in the place of CIFAR-10's that make the folder `sprung` when they are unpickled."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(sprung),)

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file in PUBLISHED["cifar10"].sha256:
        (folder / file).write_bytes(pickle.dumps(Trap()))
    return folder


def test_a_pickle_that_is_not_cifar10s_is_never_loaded(tmp_path):
    folder = write_traps(tmp_path, tmp_path / "sprung")
    with pytest.raises(UserError, match=r"batches\.meta is damaged: its SHA-256 is [0-9a-f]{64}, expected f962"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "test_batch").read_bytes())  # the trap works
    assert (tmp_path / "sprung").exists()


def test_one_damaged_file_is_named(published, tmp_path):
    shutil.copytree(published / "MNIST", tmp_path / "MNIST")
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    labels.chmod(0o600)
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        data.load("mnist", tmp_path)


def test_some_of_the_files_are_not_enough(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(UserError, match=r"holds only some of the files of mnist: train-labels-idx1-ubyte\.gz, "):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_what_is_not_there_and_cannot_be_downloaded(name):
    with pytest.raises(UserError, match=f"{name} is not at hand: no data folder is given, and torchvision cannot") as e:
        data.load(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("given", ["data_dir", "variable"])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_nothing_is_written_into_a_folder_that_the_user_gave(name, given, tmp_path, monkeypatch):
    monkeypatch.setattr(_torchvision, "datasets", lambda: pytest.fail("torchvision was asked"))
    folder = tmp_path / "nowhere"
    monkeypatch.setenv("ARCFACE_DATA_DIR", str(folder))
    for wrong in (r"there is no folder \S+/nowhere", r"\S+/nowhere does not hold it"):
        message = rf"{name} is not at hand: {wrong}: put \S+/{{.*data folder or in the environment variable"
        with pytest.raises(UserError, match=message):
            data.load(name, folder if given == "data_dir" else None)
        assert list(tmp_path.rglob("*")) == ([folder] if folder.exists() else [])
        folder.mkdir(exist_ok=True)


def test_what_is_downloaded_is_verified_before_it_is_unpickled(tmp_path, monkeypatch):
    def download(url, root, filename, md5):  # what stands at the place of CIFAR-10 on the network
        assert (url.rsplit("/", 1)[1], filename, len(md5)) == ("cifar-10-python.tar.gz", filename, 32)
        write_traps(root, tmp_path / "sprung")

    monkeypatch.setattr(_torchvision.datasets().utils, "download_and_extract_archive", download)
    with pytest.raises(UserError, match=r"torch/hub/datasets/cifar-10-batches-py/batches\.meta is damaged"):
        data.load("cifar10")
    assert not (tmp_path / "sprung").exists()


def test_mnist_is_downloaded_into_the_cache_and_read_from_there(published, tmp_path, monkeypatch):
    def download(root, download):
        assert download
        shutil.copytree(published / "MNIST", root / "MNIST")

    monkeypatch.setattr(_torchvision.datasets(), "MNIST", download)
    assert data.load("mnist").test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (tmp_path / "torch" / "hub" / "datasets" / "MNIST" / "raw").is_dir()


# ---- a folder of images


def test_folder_with_both_splits(tmp_path):
    root = tmp_path / "pets"
    save_image(root / "train" / "dog" / "b.png", 40)
    save_image(root / "train" / "dog" / "a.PNG", 30)
    save_image(root / "train" / "cat" / "x.png", 10)
    save_image(root / "test" / "dog" / "y.png", 50)
    for ignored in ("train/notes.txt", "train/cat/notes.txt", "train/cat/.hidden.png", "train/.cache/z.png"):
        (root / ignored).parent.mkdir(exist_ok=True)
        (root / ignored).write_text("not an image")
    save_image(root / "train" / "cat" / "deeper" / "1.png", 99)
    pets = data.load(str(root))
    assert (pets.name, pets.class_names, pets.image_shape) == ("pets", ("cat", "dog"), (8, 8, 1))
    assert pets.train.images[:, 0, 0, 0].tolist() == [10, 30, 40]
    assert pets.train.labels.tolist() == [0, 1, 1]
    assert (pets.test.images.max(), pets.test.labels.tolist()) == (50, [1])


def test_folder_without_splits_gets_the_recipes(tmp_path):
    """Eleven images and two: round(2.2) = 2 and at least 1 are test examples, those with the smallest draws."""
    for i in range(11):
        save_image(tmp_path / "pets" / "cat" / f"{i:02}.png", i)
    for i in range(2):
        save_image(tmp_path / "pets" / "dog" / f"{i}.png", 100 + i)
    draw = split_draws()
    cats, dogs = draw.random(11).tolist(), draw.random(2).tolist()
    expected = [*sorted(cats.index(u) for u in sorted(cats)[:2]), 100 + dogs.index(min(dogs))]
    pets = data.load(str(tmp_path / "pets"))
    assert pets.test.images[:, 0, 0, 0].tolist() == expected
    assert pets.train.images[:, 0, 0, 0].tolist() == [i for i in [*range(11), 100, 101] if i not in expected]


def test_folder_of_colours_and_sizes(tmp_path):
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (10, 14, 3)), rng.integers(0, 256, (6, 6))
    save_image(tmp_path / "train" / "a" / "1.png", colour)
    save_image(tmp_path / "train" / "b" / "1.png", grey)
    save_image(tmp_path / "test" / "a" / "1.jpeg", grey)
    mixed = data.load(f"{tmp_path}/", image_size=9, image_fit="stretch")
    assert mixed.image_shape == (9, 9, 3)
    expected = Image.fromarray(colour.astype(np.uint8)).resize((9, 9), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mixed.train.images[0], np.asarray(expected))
    expected = Image.fromarray(grey.astype(np.uint8)).resize((9, 9), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mixed.train.images[1], np.asarray(expected)[..., None].repeat(3, axis=-1))


@pytest.fixture
def pets(tmp_path):
    """A good folder: two classes, both splits."""
    root = tmp_path / "pets"
    for level, name in enumerate(
        ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    ):
        save_image(root / name, 10 * level)
    assert data.load(str(root)).train.labels.tolist() == [0, 0, 1]
    return root


MISTAKES = {
    "text as image": (
        lambda root: (root / "test" / "cat" / "1.png").write_text("hello"),
        r"test/cat/1\.png is not an image that can be read",
    ),
    "16 bits": (
        lambda root: Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(root / "train" / "cat" / "2.png"),
        r"train/cat/2\.png has more than 8 bits a pixel",
    ),
    "sizes": (
        lambda root: save_image(root / "test" / "dog" / "1.png", np.zeros((4, 6))),
        r"train/cat/1\.png is 8x8, \S*test/dog/1\.png is 6x4\): give an image size N",
    ),
    "one class": (lambda root: shutil.rmtree(root / "train" / "dog"), r"pets/train holds one class only \(cat\)"),
    "empty class": (lambda root: (root / "train" / "bird").mkdir(), r"train/bird holds no images \(\*\.png, "),
    "class without training images": (
        lambda root: save_image(root / "test" / "bird" / "1.png", 1),
        r"pets/test has classes that \S+pets/train has not: bird$",
    ),
    "no test split": (lambda root: shutil.rmtree(root / "test"), r"pets has train/CLASS but no test/CLASS"),
    "empty": (lambda root: [shutil.rmtree(root / "train"), shutil.rmtree(root / "test")], r"pets holds no folders"),
    "not there": (lambda root: shutil.rmtree(root), r"pets is not a folder"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_folder_is_named(make, message, pets):
    make(pets)
    with pytest.raises(UserError, match=message) as caught:
        data.load(str(pets))
    assert "\n" not in str(caught.value)


def test_one_image_a_class_cannot_be_split(tmp_path):
    for name in ("cat", "dog"):
        save_image(tmp_path / "pets" / name / "1.png", 1)
    with pytest.raises(UserError, match="one image a class"):
        data.load(str(tmp_path / "pets"))


def test_read_images_of_a_folder_and_of_a_file(pets):
    files, images = data.read_images(pets, (4, 4, 3))
    names = ["test/cat/1.png", "test/dog/1.png", "train/cat/1.png", "train/cat/2.png", "train/dog/1.png"]
    assert files == names
    assert images.shape == (5, 4, 4, 3)
    assert images[:, 0, 0, 2].tolist() == [30, 40, 0, 10, 20]
    assert data.read_images(pets / "train" / "cat" / "2.png", (8, 8, 1))[1].max() == 10
    with pytest.raises(UserError, match="nope is not there: give an image or a folder of images"):
        data.read_images(pets / "nope", (8, 8, 1))


# ---- names and options


@pytest.mark.parametrize(("name", "near"), [("minst", "mnist"), ("CIFAR-10", "cifar10"), ("digit", "digits")])
def test_unknown_name_gets_the_nearest_and_all_known(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"did you mean '{near}'.*digits, mnist, cifar10"):
        data.load(name)


@pytest.mark.parametrize("name", ["digits", "./pets"])
def test_data_folder_without_effect_is_an_error(name, tmp_path):
    with pytest.raises(UserError, match="has no effect"):
        data.load(name, tmp_path)


def test_image_size_must_be_positive():
    with pytest.raises(UserError, match="image size 0"):
        data.load("digits", image_size=0)
