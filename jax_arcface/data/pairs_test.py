"""Files of pairs are read as their publishers describe them, and others are refused before they run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from jax_arcface.data.pairs import read_bin, read_lfw_pairs
from jax_arcface.errors import UserError

FACES = Path(os.environ.get("ARCFACE_DATA_DIR", "../shared/data")) / "faces"


@pytest.mark.parametrize("same", [[True, False], [1, 0], (True, False)])
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("arrays", [False, True])
def test_bin(tmp_path, protocol, arrays, same):
    images = [b"abc", b"de", b"f", b"gh"]
    held = [np.frombuffer(image, np.uint8)[:, None] for image in images] if arrays else images
    (tmp_path / "x.bin").write_bytes(pickle.dumps((held, same), protocol))
    pairs = read_bin(tmp_path / "x.bin")
    assert pairs.images == tuple(images)
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0, 2], [1, 3], [True, False])


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
    for text in ("", "1\t1\nA\t1\t2\n", "1\t1\nA\t1\t2\nA\t2\tB\t9\n", "1\t1\nA\t1\t2\nA\t2\t..\t1\n", "x\n"):
        (tmp_path / "pairs.txt").write_text(text)
        with pytest.raises(UserError):
            read_lfw_pairs(tmp_path / "pairs.txt", tmp_path)


@pytest.mark.skipif(not FACES.is_dir(), reason="needs the files of faces")
def test_real_files():
    assert len(read_bin(FACES / "insightface/small_lfw.bin").images) == 20
    whole = read_bin(FACES / "lfw/lfw_112_mtcnn.bin")
    assert (len(whole.images), whole.same.sum(), np.bincount(whole.fold).tolist()) == (12000, 3000, [600] * 10)
    with pytest.raises(UserError):  # the images of nine folds are not there
        read_lfw_pairs(FACES / "lfw/pairs.txt", FACES / "lfw/images")
