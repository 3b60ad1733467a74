"""CSV files and label lists name the user's images: what they give, and what is wrong with them."""

import os

import numpy as np
import pytest

from jax_arcface import data
from jax_arcface.data.conftest import save_image
from jax_arcface.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Six images whose grey levels are their numbers."""
    for i in range(6):
        save_image(tmp_path / "images" / f"{i}.png", i)
    return tmp_path


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


def test_csv_with_a_split_column(photos, cache):
    """In the file's order; quoted names; classes by code point; other columns and unused splits do not count."""
    (photos / "pets.csv").write_bytes(
        b'\xef\xbb\xbfage,label,split,file\r\n3,"dog, big",train,images/3.png\r\n4,Cat,test,images/1.png\r\n\r\n'
        b"5,Cat,train,images/0.png\r\n" + f"1,Cat,val,images/2.png\r\n1,Cat,train,{photos}/images/5.png\r\n".encode()
    )
    pets = data.load(str(photos / "pets.csv"), cache_dir=cache)
    assert (pets.name, pets.class_names) == ("pets", ("Cat", "dog, big"))
    assert (levels(pets.train), pets.train.labels.tolist()) == ([3, 0, 5], [1, 0, 0])
    assert (levels(pets.test), pets.test.labels.tolist()) == ([1], [0])
    assert pets.train.labels.dtype == np.int32


def test_a_list_without_splits_gets_a_folders(photos, cache):
    """The same images as a folder, whose split the folder's tests check; here the classes' rows alternate."""
    rows = [(f"images/{i}.png", "even" if i % 2 == 0 else "odd") for i in range(6)]
    (photos / "list.txt").write_text("".join(f"{file}\t{label}\n" for file, label in rows))
    (photos / "list.csv").write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    for file, label in rows:
        save_image(photos / "folder" / label / os.path.basename(file), int(file[-5]))
    folder = data.load(str(photos / "folder"), cache_dir=cache)
    for name in ("list.txt", "list.csv"):
        listed = data.load(str(photos / name), cache_dir=cache)
        assert listed.class_names == folder.class_names
        assert sorted(levels(listed.test)) == sorted(levels(folder.test))
        assert levels(listed.train) == sorted(levels(listed.train))
        assert [("even", "odd")[level % 2] for level in levels(listed.train)] == [
            listed.class_names[label] for label in listed.train.labels
        ]


def test_a_changed_list_is_read_again(photos, cache):
    file = photos / "list.txt"
    file.write_text("".join(f"images/{i}.png\t{i % 2}\n" for i in range(6)))
    before = data.load(str(file), cache_dir=cache)
    file.write_text("".join(f"images/{i}.png\t{i // 3}\n" for i in range(6)))
    after = data.load(str(file), cache_dir=cache)
    assert before.train.labels.tolist() != after.train.labels.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\nimages/0.png,y\nb.png,y\n", r"^2 of 3 images are not there, the first: \S*/a\.png$"),
        ("file,label\nimages/0.png,x\nimages/1.png,y\nimages/../images/0.png,x\n", "1 images twice.*lines 2 and 4$"),
        ("file,label,split\nimages/0.png,x,train\nimages/1.png,y,dev\n", "line 3 .* split 'dev'.*train or test"),
        ("file,label,split\nimages/0.png,x,train\nimages/1.png,y,train\n", "has no test split"),
        ("file,label,split\nimages/0.png,x,test\nimages/1.png,y,test\n", "has no images to train on"),
        ("path,label\nimages/0.png,x\n", r"must name the columns file and label.*\(found: path, label\)"),
        ("file,label\nimages/0.png\n", "line 2 .* has 1 fields; the first line names 2"),
        ('file,label\n"images/0.png,x\n', "line 2 .* is not CSV"),
        ("file,label\nimages/0.png,x\nimages/1.png,x\n", "has 1 classes to train on"),
        ("file,label\nimages/0.png,x\nimages/1.png,y\n", "has one image a class"),
        ("file,label\nimages/0.png,\n", "line 2 .* has the label ''"),
        ("file,label\nimages,x\n", r"1 of 1 images are not there, the first: \S*/images$"),
        ("", "must name the columns"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named(text, message, photos, cache):
    (photos / "pets.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        data.load(str(photos / "pets.csv"), cache_dir=cache)


def test_a_line_of_a_list_that_is_none_is_named(photos, cache):
    (photos / "label.txt").write_text("images/0.png\t0\nimages/1.png 1\n")
    with pytest.raises(UserError, match=r"line 2 of \S*label\.txt"):
        data.load(str(photos / "label.txt"), cache_dir=cache)


def test_a_list_beside_the_working_folder_needs_no_separator(photos, cache, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / "label.txt").write_text("".join(f"images/{i}.png\t{i % 2}\n" for i in range(6)))
    assert data.load("label.txt", cache_dir=cache).num_classes == 2
