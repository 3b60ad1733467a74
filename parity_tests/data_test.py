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


# A list of own images beside the images 0.png ... 5.png, and whether it can be loaded.
LISTS = {
    "good.csv": (b"file,label\n" + b"".join(b"%d.png,%d\n" % (i, i % 2) for i in range(6)), True),
    "good.txt": (b"".join(b"%d.png\t%d\n" % (i, i % 2) for i in range(6)), True),
    "windows.TXT": (b"".join(b"%d.png\t%d\r\n" % (i, i % 2) for i in range(6)), True),
    "lines of an old Mac.csv": (b"file,label\r0.png,a\r1.png,b\r2.png,a\r", True),
    "a quoted line break.csv": (b'file,label,note\n0.png,a,"1\n2"\n1.png,b,\n2.png,a,\n', True),
    "a label with a line break.csv": (b'file,label\n0.png,"a\n"\n1.png,b\n2.png,a\n', False),
    "a mark of the byte order.csv": (b"\xef\xbb\xbffile,label\n0.png,a\n1.png,b\n2.png,a\n", True),
    "spaces count.csv": (b"file,label\n0.png, a\n1.png,a\n2.png,a\n", True),
    "splits.csv": (b"file,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,valid\n3.png,a,val\n", True),
    "an unknown split.csv": (b"file,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,\n", False),
    "a split in capitals.csv": (b"file,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,Test\n", False),
    "a class in test alone.csv": (b"file,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,test\n", False),
    "no test images.csv": (b"file,label,split\n0.png,a,train\n1.png,b,train\n", False),
    "semicolons.csv": (b"file;label\n0.png;a\n1.png;b\n2.png;a\n", False),
    "two labels.csv": (b"file,label,label\n0.png,a,a\n1.png,b,b\n2.png,a,a\n", False),
    "a field too many.csv": (b"file,label\n0.png,a,a\n1.png,b\n2.png,a\n", False),
    "an open quote.csv": (b'file,label\n0.png,a\n1.png,b\n2.png,"a\n', False),
    "a long field.csv": (b"file,label\n" + b"x" * 140_000 + b",a\n", False),
    "a null.csv": (b"file,label\n0\0.png,a\n1.png,b\n2.png,a\n", False),
    "twice.csv": (b"file,label\n0.png,a\n1.png,b\n./0.png,a\n", False),
    "missing.txt": (b"0.png\ta\n1.png\tb\n9.png\ta\n", False),
    "two tabs.txt": (b"0.png\ta\n1.png\tb\n2.png\ta\t1\n", False),
    "no label.txt": (b"0.png\ta\n1.png\tb\n2.png\t\n", False),
    "no name.txt": (b"0.png\ta\n1.png\tb\n\ta\n", False),
    "one class.txt": (b"0.png\ta\n1.png\ta\n", False),
    "one image a class.txt": (b"0.png\ta\n1.png\tb\n", False),
    "not UTF-8.txt": (b"0.png\t\xff\n1.png\tb\n2.png\tb\n", False),
    "empty.csv": (b"", False),
    "empty.txt": (b"", False),
    "no image.txt": (b"0.png\ta\n1.png\tb\nno image.txt\tb\n", False),
}


@pytest.mark.parametrize(("name", "content", "good"), [(name, *what) for name, what in LISTS.items()], ids=LISTS)
def test_both_load_or_refuse_the_same_lists(name, content, good, tmp_path):
    for level in range(6):
        Image.new("L", (2, 3), level).save(tmp_path / f"{level}.png")
    file = tmp_path / name
    file.write_bytes(content)
    loads = (lambda: jax_data.load(str(file), cache_dir=tmp_path / "cache"), lambda: torch_data.load(str(file)))
    if good:
        here, there = (load() for load in loads)
        assert (here.name, here.class_names) == (there.name, there.class_names)
        for one, other in ((here.train, there.train), (here.test, there.test)):
            assert np.array_equal(one.images, other.images)
            assert np.array_equal(one.labels, other.labels)
    else:
        for load in loads:
            with pytest.raises(ValueError, match=r"\w") as caught:
                load()
            assert type(caught.value).__name__ == "UserError"
            assert "\n" not in str(caught.value)
