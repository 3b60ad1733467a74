import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jax_arcface import data as jax_data
from parity_tests.cases import Unavailable
from parity_tests.cases.data import CASES
from torch_reference import data as torch_data


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    try:
        case.check()
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_every_data_set_has_a_case():
    assert set(jax_data.DATASETS) == set(torch_data.DATASETS) <= {name for case in CASES for name in case.covers}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("minst", {}),
        ("nowhere", {}),
        ("./nowhere/at/all", {}),
        ("n" * 300, {}),
        ("./" + "n" * 300, {}),
        ("digits", {"data_dir": "x"}),
        ("digits", {"image_size": 0}),
        ("digits", {"image_fit": "squeeze"}),
        ("digits", {"image_fit": "pad", "image_size": 9}),
    ],
)
def test_both_refuse_the_same_mistake(name, options):
    for module in (jax_data, torch_data):
        with pytest.raises(ValueError, match=r"\w"):
            module.load(name, **options)


def image(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), "red").save(path, kind)


# What is done to a good folder, and whether it can be loaded after that.
HARMS = {
    "nothing": (lambda root: None, True),
    "a pipe": (lambda root: os.mkfifo(root / "cat" / "x.png"), False),
    "a dangling link": (lambda root: (root / "cat" / "x.png").symlink_to("gone"), False),
    "a link to itself": (lambda root: (root / "cat" / "x.png").symlink_to("x.png"), False),
    "a link to another image": (lambda root: (root / "cat" / "x.png").symlink_to("0.png"), True),
    "a folder called as an image": (lambda root: (root / "cat" / "x.png").mkdir(), True),
    "a folder called as a GIF": (lambda root: (root / "cat" / "x.gif").mkdir(), True),
    "a GIF": (lambda root: image(root / "cat" / "x.gif", "GIF"), False),
    "a GIF called .png": (lambda root: image(root / "cat" / "x.png", "GIF"), False),
    "a hidden GIF": (lambda root: image(root / "cat" / ".x.gif", "GIF"), True),
    "a TIFF": (lambda root: image(root / "cat" / "x.TIF", "TIFF"), False),
    "PostScript called .png": (lambda root: image(root / "cat" / "x.png", "EPS"), False),
    "a JPEG called .png": (lambda root: image(root / "cat" / "x.png", "JPEG"), True),
    "a WebP": (lambda root: image(root / "cat" / "x.webp", "WEBP"), True),
    "notes": (lambda root: (root / "cat" / "notes.txt").write_text("no image"), True),
    "an empty image": (lambda root: (root / "cat" / "x.png").touch(), False),
    "half an image": (lambda root: os.truncate(root / "cat" / "1.png", 45), False),
    "another size": (lambda root: Image.new("RGB", (9, 8)).save(root / "cat" / "x.png"), False),
    "16 bits": (lambda root: Image.new("I;16", (9, 9)).save(root / "cat" / "x.png"), False),
    "a class with a line break": (lambda root: image(root / "a\nb" / "0.png"), False),
    "a class of bytes that are not UTF-8": (lambda root: image(root / os.fsdecode(b"a\xff") / "0.png"), False),
    "a class in another script": (lambda root: image(root / "\u732b \u0645\u06cc\u200c\u062e" / "0.png"), True),
    "an image with a line break": (lambda root: image(root / "cat" / "a\nb.png"), True),
    "an empty class": (lambda root: (root / "bird").mkdir(), False),
    "one class": (lambda root: shutil.rmtree(root / "dog"), False),
    "a file in the place of the folder": (lambda root: (shutil.rmtree(root), root.touch()), False),
    "nothing there": (lambda root: shutil.rmtree(root), False),
    "train without test": (lambda root: image(root / "train" / "cat" / "0.png"), False),
    "test without train": (lambda root: image(root / "test" / "cat" / "0.png"), False),
    "train and val": (
        lambda root: [image(root / part / name / "0.png") for part in ("train", "val") for name in ("cat", "dog")],
        True,
    ),
}


@pytest.mark.parametrize(("harm", "good"), HARMS.values(), ids=HARMS.keys())
def test_both_load_or_refuse_the_same_folders(harm, good, tmp_path):
    root = tmp_path / "pets"
    for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
        image(root / f"{name}.png")
    harm(root)
    loads = (lambda: jax_data.load(str(root), cache_dir=tmp_path / "cache"), lambda: torch_data.load(str(root)))
    if good:
        here, there = (load() for load in loads)
        assert here.class_names == there.class_names
        assert np.array_equal(here.train.images, there.train.images)
        assert np.array_equal(here.test.labels, there.test.labels)
    else:
        for load in loads:
            with pytest.raises(ValueError, match=r"\w") as caught:
                load()
            assert type(caught.value).__name__ == "UserError"
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.png", "gone.png", "dangling.png", "n" * 300 + ".png", "a\0.png"])
def test_both_refuse_what_is_no_image_to_embed(name, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for module in (jax_data, torch_data):
        with pytest.raises(ValueError, match=r"\w") as caught:
            module.read_images(tmp_path / name, (8, 8, 3))
        assert type(caught.value).__name__ == "UserError"
