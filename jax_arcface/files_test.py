"""Each way in which a file can be wrong is one UserError with the file's name."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from jax_arcface import files
from jax_arcface.errors import UserError


def refused(read, path):
    """The message; it has one line and names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name[:50] in message
    return message


# ---- places where no file is


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "folder", "dangling", "loop", "missing", "x" * 300):
        for read in (files.read_json, files.read_safetensors, lambda path: files.read_npz(path, ["a"])):
            refused(read, tmp_path / name)
    refused(files.read_json, tmp_path / "pipe" / "below")
    with pytest.raises(UserError, match="null"):
        files.read_json(tmp_path / "a\0b")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)  # takes no room
    assert "1,099,511,627,776 bytes" in refused(files.read_json, tmp_path / "large.json")


# ---- JSON


@pytest.mark.parametrize(
    "content",
    [
        *(b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"3", b"", b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1'),
        *(b'{"a": 1%s}' % (b"0" * 400), b'{"a": 1%s}' % (b"0" * 5000), b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}"),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_no_json_object(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    refused(files.read_json, tmp_path / "config.json")


def test_brackets_in_a_string_are_no_depth(tmp_path):
    value = {"a": '"' + "[" * 1000 + "\\", "b": [[[[1]]]], "c": 2**63, "d": "\u00e9\U0001f600"}
    for ascii_only in (True, False):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=ascii_only))
        assert files.read_json(tmp_path / "x.json") == value


DATASET = {"name": "x", "image_shape": [8, 9, 1], "class_names": ["a", "b"], "mean": [33.5], "std": [2]}


def test_a_description_of_a_data_set(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    assert files.read_dataset(tmp_path / "dataset.json") == DATASET


@pytest.mark.parametrize(
    "change",
    [{"std": value} for value in ([0], [0.0], [-1], [True], [1e-300], [1, 1], ["1"], [None], 1, [])]
    + [{"mean": value} for value in ([-1], [256], [10**18], [True], [])]
    + [{"image_shape": value} for value in ([8, 9, 0], [8, 9, 2], [0, 9, 1], [8, 10**9, 1], [8, 9], [8, 9, 1.0], None)]
    + [{"class_names": value} for value in ([], [1], "ab", None)]
    + [{"name": 3}],
    ids=str,
)
def test_a_description_that_no_data_set_has(change, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET | change))
    refused(files.read_dataset, tmp_path / "dataset.json")


# ---- npz


def npy(header, data=b"", version=b"\1\0"):
    header = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


def zipped(content, name="a.npy", method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_bytes(content, marks, offset, value):
    """The archive with the two bytes changed that lie so far behind each of its headers' marks."""
    content = bytearray(content)
    for mark in marks:
        at = content.index(mark) + offset[mark]
        content[at : at + 2] = struct.pack("<H", value)
    return bytes(content)


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
GOOD = zipped(saved(np.arange(3.0)))
NPZ = {
    "a renamed .npy": saved(np.arange(3)),
    "no archive": b"hello",
    "nothing": b"",
    "cut off": GOOD[:-30],
    "a member that is no array": zipped(b"hello"),
    "a member without its suffix": zipped(saved(np.arange(3)), name="a"),
    "16 TB": zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 2000000), }", b"\0" * 64)),
    "(((": zipped(npy("(((")),
    "10^30": zipped(npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},), }}")),
    "negative": zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }")),
    "encrypted": with_bytes(GOOD, [LOCAL, CENTRAL], {LOCAL: 6, CENTRAL: 8}, 1),
    "method 99": with_bytes(GOOD, [LOCAL, CENTRAL], {LOCAL: 8, CENTRAL: 10}, 99),
    "bad deflate": with_bytes(GOOD, [LOCAL, CENTRAL], {LOCAL: 8, CENTRAL: 10}, 8),
    "a wrong checksum": GOOD.replace(np.float64(2).tobytes(), np.float64(3).tobytes()),
    "long double": zipped(saved(np.arange(3, dtype=np.longdouble))),
    "complex": zipped(saved(np.ones(3, complex))),
    "booleans": zipped(saved(np.ones(3, bool))),
    "dates": zipped(saved(np.array(["2020-01-01"], "M8[D]"))),
    "records": zipped(saved(np.zeros(3, [("x", "<f4")]))),
    "objects": zipped(saved(np.array([{}], object))),
    "D = 0": zipped(saved(np.ones((3, 0)))),
    "NaN": zipped(saved(np.array([1, np.nan]))),
    "infinity": zipped(saved(np.array([1, np.inf], np.float16))),
    "no Unicode": zipped(npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"\0\0\x11\0")),
}


@pytest.mark.parametrize("content", NPZ.values(), ids=NPZ.keys())
def test_npz_that_is_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    refused(lambda path: files.read_npz(path, ["a"]), tmp_path / "x.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "x.npz").write_bytes(zipped(saved(np.zeros(2**20)), method=zipfile.ZIP_DEFLATED))
    refused(lambda path: files.read_npz(path, ["a"], limit=2**20), tmp_path / "x.npz")
    assert files.read_npz(tmp_path / "x.npz", ["a"])["a"].shape == (2**20,)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "|i1", ">i2", "<u4", "<u8", "<U3", ">U2"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_as_numpy_writes_it(dtype, shape, order, tmp_path):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype, order=order)
    np.savez_compressed(tmp_path / "x.npz", a=array, b=array)
    read = files.read_npz(tmp_path / "x.npz", ["a"], optional=["c"])
    assert list(read) == ["a"]
    np.testing.assert_array_equal(read["a"], array)
    assert read["a"].dtype == array.dtype.newbyteorder("=")


# ---- safetensors


def tensors(dtype, shape, data):
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


TENSORS = {
    "NaN": tensors("F32", [1], b"\xff" * 4),
    "NaN in bfloat16": tensors("BF16", [1], b"\xff" * 2),
    "F8": tensors("F8_E4M3", [4], b"\0" * 4),
    "booleans": tensors("BOOL", [4], b"\0" * 4),
    "complex": tensors("C64", [1], b"\0" * 8),
    "cut off": tensors("F32", [2], b"\0" * 8)[:-1],
    "too long": tensors("F32", [2], b"\0" * 9),
    "10^30": tensors("F32", [10**30], b"\0" * 4),
    "a header of 2^63 bytes": struct.pack("<Q", 2**63),
    "a deep header": struct.pack("<Q", 10**5) + b"[" * 10**5,
    "text": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("content", TENSORS.values(), ids=TENSORS.keys())
def test_safetensors_that_are_refused(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(files.read_safetensors, tmp_path / "x.safetensors")


def test_weights_are_floating_point_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    for dtype in (np.int32, np.uint8):
        safetensors.numpy.save_file({"a": np.ones(2, dtype)}, path)
        refused(lambda path: files.read_safetensors(path, "f"), path)
        assert files.read_safetensors(path)["a"].dtype == dtype


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([[1.5, -2.0, 0.0], [3.140625, 2.0**100, 2.0**-130]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "x.safetensors").write_bytes(tensors("BF16", [2, 3], halves))
    read = files.read_safetensors(tmp_path / "x.safetensors")["a"]
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.float32
