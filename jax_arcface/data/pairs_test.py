"""Files of pairs are read as their publishers describe them, and others are refused before they run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from jax_arcface.data.pairs import read_bin, read_csv_pairs, read_lfw_pairs, read_pairs
from jax_arcface.errors import UserError
from jax_arcface.faces.conftest import FACES, needs_faces


@pytest.mark.parametrize("same", [[True, False], [1, 0], (True, False)])
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("arrays", [False, True])
def test_bin(tmp_path, protocol, arrays, same):
    images = [b"abc", b"de", b"f", b"gh"]
    held = [np.frombuffer(image, np.uint8)[:, None] for image in images] if arrays else images
    (tmp_path / "x.bin").write_bytes(pickle.dumps((held, same), protocol))
    pairs = read_bin(tmp_path / "x.bin")
    assert [image.read() for image in pairs.images] == images
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 2], [1, 3], [True, False])


def test_equal_images_are_held_once(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([b"a", b"b", b"b", b"c", b"a", b"c"], [True, False, True])))
    pairs = read_pairs(tmp_path / "x.bin")
    assert [image.read() for image in pairs.images] == [b"a", b"b", b"c"]
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 1, 0], [1, 2, 2])
    assert [image.name.split()[1] for image in pairs.images] == ["1", "2", "4"]


class _Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("held", [_Evil(), ([b"a"], [True]), ([], []), ([b"a", 3], [True]), ([b"a", b"b"], [7]), 5])
def test_refused(tmp_path, monkeypatch, held):
    monkeypatch.chdir(tmp_path)
    Path("x.bin").write_bytes(pickle.dumps(held))
    with pytest.raises(UserError):
        read_bin(Path("x.bin"))
    assert not Path("ran").exists()


def test_cut_short(tmp_path):
    whole = pickle.dumps(([b"abc", b"de"], [True]))
    for size in range(len(whole)):
        (tmp_path / "x.bin").write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_bin(tmp_path / "x.bin")


def test_lfw(tmp_path):
    for name, count in (("A", 2), ("B", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{name}_000{i + 1}.jpg").touch()
    (tmp_path / "pairs.txt").write_text("1\t1\nA\t1\t2\nA\t2\tB\t1\n")
    pairs = read_lfw_pairs(tmp_path / "pairs.txt", tmp_path)
    assert [file.name for file in pairs.images] == ["A_0001.jpg", "A_0002.jpg", "B_0001.jpg"]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 1], [1, 2], [True, False])
    assert read_pairs(tmp_path / "pairs.txt", tmp_path).images == pairs.images
    with pytest.raises(UserError, match="folder"):
        read_pairs(tmp_path / "pairs.txt")
    (tmp_path / "B/B_0001.jpg").rename(tmp_path / "B/B_0001.png")
    assert read_lfw_pairs(tmp_path / "pairs.txt", tmp_path).images[2].name == "B_0001.png"
    for text in ("", "1\t1\nA\t1\t2\n", "1\t1\nA\t1\t2\nA\t2\tB\t9\n", "1\t1\nA\t1\t2\nA\t2\t..\t1\n", "x\n"):
        (tmp_path / "pairs.txt").write_text(text)
        with pytest.raises(UserError):
            read_lfw_pairs(tmp_path / "pairs.txt", tmp_path)


def test_csv(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / name).touch()
    path = tmp_path / "x.csv"
    path.write_text("same,file1,note,file2\n1,a,,b\n0,b,,c\n1,a,,a\n0,c,,a\n0,c,,b\n\n")
    pairs = read_pairs(path, tmp_path / "images")
    assert [file.name for file in pairs.images] == ["a", "b", "c"]
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 1, 0, 2, 2], [1, 2, 0, 0, 1])
    assert (pairs.same.tolist(), pairs.fold.tolist()) == ([True, False, True, False, False], [0, 0, 1, 1, 0])
    with pytest.raises(UserError, match=r"3 of 3 images are not there.*a"):
        read_csv_pairs(path)
    path.write_text("file1,file2,same,fold\nimages/a,images/b,1,7\nimages/a,images/c,0,7\nimages/b,images/c,0,2\n")
    assert read_pairs(path).fold.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file1,file2,same\n",
        "file1,file2\na,a\n",
        "file1,file2,same,same\na,a,1,1\n",
        "file1,file2,same\na,a,yes\n",
        "file1,file2,same\na,a\n",
        "file1,file2,same\na,,1\n",
        "file1,file2,same,fold\na,a,1,first\n",
        'file1,file2,same\n"a,a,1\n',
        "file1,file2,same\nb,a,1\n",
        "a b 1\n",
    ],
)
def test_csv_refused(tmp_path, text):
    (tmp_path / "a").touch()
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError):
        read_pairs(tmp_path / "x.csv")


@needs_faces
def test_real_files():
    assert len(read_bin(FACES / "insightface/small_lfw.bin").same) == 10
    whole = read_bin(FACES / "lfw/lfw_112_mtcnn.bin")
    assert (len(whole.images), whole.same.sum(), np.bincount(whole.fold).tolist()) == (7701, 3000, [600] * 10)
    with pytest.raises(UserError):  # the images of nine folds are not there
        read_lfw_pairs(FACES / "lfw/pairs.txt", FACES / "lfw/images")
