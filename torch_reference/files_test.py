"""What is wrong with a file is said in a UserError that names it."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from torch_reference import files
from torch_reference.errors import UserError


def complaint(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert path.name[:40] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def read_a(path):
    return files.read_npz(path, ["a"])["a"]


@pytest.mark.parametrize("read", [files.read_json, files.read_json_lines, read_a, files.read_safetensors])
def test_what_is_not_a_file(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it: to open it would never end
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "folder", "nowhere", "circle", "gone", 300 * "n"):
        complaint(read, tmp_path / name)


def test_too_many_bytes(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**41)
    for read in (files.read_json, read_a, files.read_safetensors):
        assert "too large" in complaint(read, tmp_path / "sparse")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "1",
            '{"mean": NaN}',
            '{"mean": 1e400}',
            '{"epochs": 1%s}' % ("0" * 400),
            '{"name": "\\udc80"}',
        ),
        *("[" * 100_000, '{"a":' * 20 + "1" + "}" * 20),
    ],
    ids=lambda text: text[:20],
)
def test_no_json_of_ours(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    complaint(files.read_json, tmp_path / "config.json")


def test_json_lines(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert files.read_json_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step"\n')
    assert "line 2" in complaint(files.read_json_lines, tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "std": [[0], [-2.0], [False], [2, 2], ["2"], None, {}],
        "mean": [[-0.1], [255.1], [[]], []],
        "image_shape": [[8, 8, 0], [8, 8, 4], [-8, -8, 1], [8, 8], [8, 8, True], [10**12, 8, 1], "88"],
        "class_names": [[], ["a", 2], {"a": 1}],
        "name": [None],
    }.items(),
)
def test_no_data_set(name, values, tmp_path):
    good = {"name": "d", "image_shape": [8, 8, 1], "class_names": ["a"], "mean": [0], "std": [0.5]}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(good))
    assert files.read_dataset(path) == good
    for value in values:
        path.write_text(json.dumps({**good, name: value}))
        complaint(files.read_dataset, path)


def write_member(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", content)


def header_of(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        b"\x93NUMPY\1\0\3\0(((",
        header_of("(4000000, 1000000)") + bytes(100),  # 16 TB
        header_of(f"({10**30},)"),
        header_of("(2,)") + bytes(7),
        header_of("(2,)") + bytes(9),
        header_of("(2, 0)"),
        header_of("(1,)", "<f16") + bytes(16),
        header_of("(1,)", "<c8") + bytes(8),
        header_of("(1,)", "|b1") + bytes(1),
        header_of("(1,)", "|O") + bytes(8),
        header_of("(1,)", "<U1") + b"\0\xd8\0\0",
        header_of("(1,)") + b"\0\0\xc0\x7f",
    ],
    ids=lambda content: repr(content[10:80]),
)
def test_members_that_are_no_arrays(content, tmp_path):
    write_member(tmp_path / "a.npz", content)
    complaint(read_a, tmp_path / "a.npz")


def test_archives_that_are_none(tmp_path):
    np.savez(tmp_path / "good.npz", a=np.arange(4))
    good = (tmp_path / "good.npz").read_bytes()
    local, central = 0, good.index(b"PK\1\2")
    np.save(tmp_path / "array.npy", np.arange(4))
    bad = {"renamed": (tmp_path / "array.npy").read_bytes(), "text": b"text", "half": good[: len(good) // 2]}
    for what, offset, value in (("encrypted", 6, 1), ("method 99", 8, 99), ("bad deflate", 8, 8)):
        content = bytearray(good)
        content[local + offset] = content[central + offset + 2] = value
        bad[what] = bytes(content)
    for what, content in bad.items():
        (tmp_path / f"{what}.npz").write_bytes(content)
        complaint(read_a, tmp_path / f"{what}.npz")
    assert read_a(tmp_path / "good.npz").tolist() == [0, 1, 2, 3]


def test_an_archive_that_unpacks_to_too_much(tmp_path):
    write_member(tmp_path / "a.npz", header_of("(1000000,)") + bytes(4_000_000), zipfile.ZIP_DEFLATED)
    assert "too large" in complaint(lambda path: files.read_npz(path, ["a"], largest=10**6), tmp_path / "a.npz")
    assert read_a(tmp_path / "a.npz").shape == (1_000_000,)


@pytest.mark.parametrize(
    "array", [np.float16(3), np.eye(3, 2, dtype=">f8").T, np.arange(6, dtype=">u2"), np.array(["\u00e9"])]
)
def test_arrays_come_as_they_were(array, tmp_path):
    np.savez(tmp_path / "x.npz", a=array)
    read = read_a(tmp_path / "x.npz")
    assert (read.tolist(), read.dtype) == (array.tolist(), array.dtype.newbyteorder("="))


TENSORS = {
    **{dtype: torch.ones(2, dtype=dtype) for dtype in (torch.float8_e4m3fn, torch.bool, torch.complex64)},
    "NaN": torch.tensor([1, float("nan")]),
    "NaN in bfloat16": torch.tensor([1, float("nan")], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=map(str, TENSORS))
def test_tensors_that_do_not_belong_there(tensor, tmp_path):
    safetensors.torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    complaint(files.read_safetensors, tmp_path / "model.safetensors")


def test_weights_that_are_integers(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2, dtype=torch.int32)}, tmp_path / "model.safetensors")
    complaint(lambda path: files.read_safetensors(path, kinds="f"), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:5], lambda b: b"\xff" * 8 + b[8:]]
)
def test_safetensors_of_another_size(damage, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(safetensors.torch.save({"a": torch.ones(3, 2), "b": torch.ones(())})))
    complaint(files.read_safetensors, path)


def test_tensors_are_torchs(tmp_path):
    tensors = {
        str(dtype): (torch.arange(6).reshape(2, 3) - 2).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64)
    }
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = files.read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(torch.from_numpy(read[name]).to(tensor.dtype), tensor)
