"""The user's images come out as Pillow has them, in the order of the recipe."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jax_arcface import data
from jax_arcface.data.conftest import break_image, save_image

# a folder as a data set
from jax_arcface.errors import UserError


def test_folder_with_both_splits(cache, tmp_path):
    root = tmp_path / "pets"
    save_image(root / "train" / "dog" / "b.png", 40)
    save_image(root / "train" / "dog" / "a.PNG", 30)
    save_image(root / "train" / "cat" / "x.png", 10)
    save_image(root / "test" / "dog" / "y.png", 50)
    for ignored in ("train/notes.txt", "train/cat/notes.txt", "train/cat/.hidden.png", "train/.cache/z.png"):
        (root / ignored).parent.mkdir(exist_ok=True)
        (root / ignored).write_text("not an image")
    pets = data.load(str(root), cache_dir=cache)
    assert (pets.name, pets.class_names, pets.image_shape) == ("pets", ("cat", "dog"), (8, 8, 1))
    assert pets.train.images[:, 0, 0, 0].tolist() == [10, 30, 40]
    assert pets.train.labels.tolist() == [0, 1, 1]
    assert (pets.test.images.max(), pets.test.labels.tolist()) == (50, [1])


def test_folder_without_splits_gets_the_recipes(cache, tmp_path):
    """Eleven images and two: round(2.2) = 2 and at least 1 are test examples, those with the smallest draws."""
    for i in range(11):
        save_image(tmp_path / "pets" / "cat" / f"{i:02}.png", i)
    for i in range(2):
        save_image(tmp_path / "pets" / "dog" / f"{i}.png", 100 + i)
    key = int.from_bytes(hashlib.sha256(b"arcface/split/0/0").digest()[:16], "little")
    draw = np.random.Generator(np.random.Philox(key=key))
    cats, dogs = draw.random(11).tolist(), draw.random(2).tolist()
    expected = [*sorted(cats.index(u) for u in sorted(cats)[:2]), 100 + dogs.index(min(dogs))]
    pets = data.load(str(tmp_path / "pets"), cache_dir=cache)
    assert pets.test.images[:, 0, 0, 0].tolist() == expected
    assert pets.test.labels.tolist() == [0, 0, 1]
    assert pets.train.images[:, 0, 0, 0].tolist() == [i for i in [*range(11), 100, 101] if i not in expected]


def test_folder_of_colours_and_sizes(cache, tmp_path):
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (10, 14, 3)), rng.integers(0, 256, (6, 6))
    save_image(tmp_path / "train" / "a" / "1.png", colour)
    save_image(tmp_path / "train" / "b" / "1.png", grey)
    save_image(tmp_path / "test" / "a" / "1.jpeg", grey)
    mixed = data.load(f"{tmp_path}/", image_size=9, image_fit="stretch", cache_dir=cache)
    assert mixed.image_shape == (9, 9, 3)
    expected = Image.fromarray(colour.astype(np.uint8)).resize((9, 9), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mixed.train.images[0], np.asarray(expected))
    expected = Image.fromarray(grey.astype(np.uint8)).resize((9, 9), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(mixed.train.images[1], np.asarray(expected)[..., None].repeat(3, axis=-1))


def test_folder_keeps_a_common_size_that_is_not_square(cache, tmp_path):
    pixels = np.arange(15).reshape(3, 5)
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        save_image(tmp_path / name, pixels)
    kept = data.load(str(tmp_path), cache_dir=cache)
    assert kept.image_shape == (3, 5, 1)
    np.testing.assert_array_equal(kept.train.images[1, ..., 0], pixels)


def test_the_good_folder_is_good(pets, cache):
    assert data.load(str(pets), cache_dir=cache).train.labels.tolist() == [0, 0, 1]


MISTAKES = {
    "unreadable image": (break_image, r"train/dog/1\.png is not an image that can be read"),
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
    "empty class in test": (lambda root: (root / "test" / "dog" / "1.png").unlink(), r"test/dog holds no images"),
    "class without training images": (
        lambda root: save_image(root / "test" / "bird" / "1.png", 1),
        r"pets/test has classes that \S+pets/train has not: bird$",
    ),
    "no test split": (lambda root: shutil.rmtree(root / "test"), r"pets has train/CLASS but no test/CLASS"),
    "no train split": (lambda root: shutil.rmtree(root / "train"), r"pets has test/CLASS but no train/CLASS"),
    "empty": (lambda root: [shutil.rmtree(root / "train"), shutil.rmtree(root / "test")], r"pets holds no folders"),
    "not there": (lambda root: shutil.rmtree(root), r"pets is not a folder"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_folder_is_named(make, message, pets, cache):
    make(pets)
    with pytest.raises(UserError, match=message) as caught:
        data.load(str(pets), cache_dir=cache)
    assert "\n" not in str(caught.value)


def test_folder_with_one_image_a_class_cannot_be_split(tmp_path, cache):
    for name in ("cat", "dog"):
        save_image(tmp_path / "pets" / name / "1.png", 1)
    with pytest.raises(UserError, match="one image a class"):
        data.load(str(tmp_path / "pets"), cache_dir=cache)


# images without labels


def test_images_of_a_folder_in_the_order_of_their_names(tmp_path):
    # "-" stands before "/", and capitals before small letters
    levels = {"Z.JPG": 200, "a-b.png": 10, "a/b/c.jpeg": 20, "a/x.PNG": 30, "b.jpg": 40}
    for name in sorted(levels, reverse=True):
        save_image(tmp_path / name, levels[name])
    for ignored in (".hidden.png", ".hidden/x.png", "a/.hidden/x.png", "notes.txt", "a/png"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    names, images = data.read_images(tmp_path, (8, 8, 1))
    assert names == ["Z.JPG", "a-b.png", "a/b/c.jpeg", "a/x.PNG", "b.jpg"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    assert images[:, 0, 0, 0].tolist() == [200, 10, 20, 30, 40]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_is_converted_then_resized(mode, channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.fromarray(pixels).convert(mode).save(path)
    names, images = data.read_images(path, (6, 9, channels), image_fit="stretch")
    assert (names, images.dtype) == ([path.name], np.uint8)
    expected = Image.open(path).convert("L" if channels == 1 else "RGB").resize((9, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images, np.asarray(expected).reshape(1, 6, 9, channels))


def test_single_file_needs_no_suffix(tmp_path):
    save_image(tmp_path / "image.png", 7)
    (tmp_path / "image.png").rename(tmp_path / "image")
    names, images = data.read_images(str(tmp_path / "image"), (8, 8, 3))
    assert (names, np.unique(images).tolist()) == (["image"], [7])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_those_of_the_folder_data_set(channels, pets, cache):
    if channels == 3:
        save_image(pets / "train" / "cat" / "2.png", np.random.default_rng(0).integers(0, 256, (12, 10, 3)))
    train = data.load(str(pets), image_size=5, cache_dir=cache).train.images
    assert train.shape == (3, 5, 5, channels)
    names, images = data.read_images(pets / "train", (5, 5, channels))
    assert names == ["cat/1.png", "cat/2.png", "dog/1.png"]
    np.testing.assert_array_equal(images, train)


IMAGE_MISTAKES = {
    "not there": (lambda root: shutil.rmtree(root), r"pets is not there: give an image or a folder of images"),
    "no images": (
        lambda root: [shutil.rmtree(root / "train"), shutil.rmtree(root / "test")],
        r"pets holds no images \(\*\.png, \*\.jpg, ",
    ),
    "unreadable image": (break_image, r"train/dog/1\.png is not an image that can be read"),
    "broken link": (
        lambda root: (root / "test" / "link.png").symlink_to("nothing"),
        r"test/link\.png does not exist",
    ),
    "16 bits": MISTAKES["16 bits"],
}


@pytest.mark.parametrize(("make", "message"), IMAGE_MISTAKES.values(), ids=IMAGE_MISTAKES.keys())
def test_mistake_with_images_is_named(make, message, pets):
    make(pets)
    with pytest.raises(UserError, match=message) as caught:
        data.read_images(pets, (8, 8, 1))
    assert "\n" not in str(caught.value)


def test_single_unreadable_file_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is not an image that can be read"):
        data.read_images(tmp_path / "notes.txt", (8, 8, 1))


def test_folder_that_cannot_be_listed_is_named(pets, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"train/dog cannot be read|test/dog cannot be read"):
        data.read_images(pets, (8, 8, 1))


def test_images_have_one_channel_or_three(pets):
    with pytest.raises(ValueError, match="not 2"):
        data.read_images(pets, (8, 8, 2))
