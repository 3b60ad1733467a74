"""Files of image pairs, against what was put into them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from torch_reference.data.pairs import read_bin, read_lfw_pairs, read_pairs
from torch_reference.errors import UserError

IMAGES = [b"one", b"two", b"two", b"four"]


def contents(pairs):
    return [image.read() for image in pairs.images]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("as_arrays", [False, True])
def test_a_pickle_is_read_without_running_it(protocol, as_arrays, tmp_path):
    held = [np.frombuffer(image, np.uint8)[:, None] for image in IMAGES] if as_arrays else IMAGES
    (tmp_path / "x.bin").write_bytes(pickle.dumps((held, [True, False]), protocol))
    pairs = read_pairs(tmp_path / "x.bin")
    assert contents(pairs) == [b"one", b"two", b"four"]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 1], [1, 2], [True, False])
    assert [image.name.split()[1] for image in pairs.images] == ["1", "2", "4"]


def test_a_pickle_of_python_2(tmp_path):
    # (["ab", "c"], [True]) by its cPickle, protocol 2: strings are bytes
    content = b"\x80\x02]q\x01(U\x02abU\x01ce]q\x02\x88a\x86q\x03."
    assert pickle.loads(content, encoding="bytes") == ([b"ab", b"c"], [True])
    (tmp_path / "x.bin").write_bytes(content)
    assert contents(read_bin(tmp_path / "x.bin")) == [b"ab", b"c"]


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    "held",
    [
        (Trap(), [True]),
        (IMAGES, [True]),
        ([], []),
        (IMAGES, [1, 2]),
        (IMAGES, ["yes", "no"]),
        ([b"", b"a"], [True]),
        ([np.zeros(3), np.zeros(3)], [True]),
        {"a": 1},
        7,
    ],
)
def test_another_pickle_is_refused(held, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.bin").write_bytes(pickle.dumps(held))
    with pytest.raises(UserError):
        read_pairs(Path("x.bin"))
    assert not Path("sprung").exists()


def test_a_pickle_cut_short_is_refused(tmp_path):
    whole = pickle.dumps((IMAGES, [True, False]))
    for size in range(len(whole)):
        (tmp_path / "x.bin").write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_bin(tmp_path / "x.bin")


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_lfw(tmp_path):
    put(tmp_path, "Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bo/Bo_0003.png")
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nAnn\t1\t2\nAnn\t2\tBo\t3\nAnn\t2\t1\nBo\t3\tAnn\t1\n")
    pairs = read_pairs(path, tmp_path)
    assert [file.name for file in pairs.images] == ["Ann_0001.jpg", "Ann_0002.jpg", "Bo_0003.png"]
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 1, 1, 2], [1, 2, 0, 0])
    assert (pairs.same.tolist(), pairs.fold.tolist()) == ([True, False] * 2, [0, 0, 1, 1])
    with pytest.raises(UserError, match="folder"):
        read_pairs(path)
    for text in ("1\t1\nAnn\t1\t2\n", "1\t1\nAnn\t1\t2\nAnn\t2\tBo\t9\n", "1\t1\nAnn\t1\t2\n..\t2\tBo\t3\n"):
        path.write_text(text)
        with pytest.raises(UserError):
            read_lfw_pairs(path, tmp_path)


def test_csv(tmp_path):
    put(tmp_path, "a", "b", "c")
    path = tmp_path / "x.csv"
    path.write_text("same,file1,note,file2\n1,a,,b\n0,b,,c\n1,a,,a\n0,c,,a\n0,c,,b\n\n")
    pairs = read_pairs(path)
    assert [file.name for file in pairs.images] == ["a", "b", "c"]
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 1, 0, 2, 2], [1, 2, 0, 0, 1])
    assert (pairs.same.tolist(), pairs.fold.tolist()) == ([True, False, True, False, False], [0, 0, 1, 1, 0])
    with pytest.raises(UserError, match="3 images that are not there"):
        read_pairs(path, tmp_path / "nowhere")
    path.write_text("file1,file2,same,fold\na,b,1,7\na,c,0,7\nb,c,0,2\n")
    assert read_pairs(path).fold.tolist() == [1, 1, 0]
    header = "file1,file2,same\n"
    for text in (
        "",
        header,
        "file1,file2\na,b\n",
        header + "a,b,yes\n",
        header + 'a,"b,1\n',
        "a b\n",
        header + "a,1\n",
    ):
        path.write_text(text)
        with pytest.raises(UserError):
            read_pairs(path)


def test_the_file_of_lfw(faces):
    pairs = read_pairs(faces / "lfw/lfw_112_mtcnn.bin")
    assert (len(pairs.images), pairs.same.sum(), np.bincount(pairs.fold).tolist()) == (7701, 3000, [600] * 10)
    with pytest.raises(UserError):  # .bin holds its images
        read_pairs(faces / "lfw/lfw_112_mtcnn.bin", faces)
