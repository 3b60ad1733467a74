"""Lists of own images: beside the parity tests, what they give is checked by hand."""

import pytest
from PIL import Image

from torch_reference import data
from torch_reference.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for level in range(4):
        Image.new("L", (3, 2), level).save(tmp_path / f"{level}.png")
    return tmp_path


def test_rows_of_a_csv_file(folder):
    (folder / "x.csv").write_text("split,file,label\ntest,2.png,b\ntrain,3.png,b\ntrain,0.png,a\nvalid,1.png,a\n")
    x = data.load(str(folder / "x.csv"))
    assert (x.name, x.class_names, x.image_shape) == ("x", ("a", "b"), (2, 3, 1))
    assert (x.train.images[:, 0, 0, 0].tolist(), x.train.labels.tolist()) == ([3, 0], [1, 0])
    assert (x.test.images[:, 0, 0, 0].tolist(), x.test.labels.tolist()) == ([2], [1])


def test_lines_of_a_list(folder):
    (folder / "label.txt").write_text("".join(f"{i}.png\t{i // 2}\n" for i in range(4)))
    x = data.load(str(folder / "label.txt"))
    assert sorted(x.train.labels.tolist()) == sorted(x.test.labels.tolist()) == [0, 1]
    levels = {}
    for split in (x.train, x.test):
        levels |= dict(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))
    assert levels == {0: 0, 1: 0, 2: 1, 3: 1}


def test_missing_images_are_counted_and_the_first_is_named(folder):
    (folder / "label.txt").write_text("0.png\t0\ngone.png\t1\nlost.png\t1\n")
    with pytest.raises(UserError, match=r"names 2 images that are not there: \S*gone\.png"):
        data.load(str(folder / "label.txt"))
