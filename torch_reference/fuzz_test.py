"""Whatever is done to a file, it is read as another reader reads it, or refused with a UserError."""

import dataclasses
import io
import json
import math
import pickle
import random
import resource
import struct
import time
import zipfile
import zlib
from unittest.mock import ANY

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps

from torch_reference import files
from torch_reference.data import images, pairs, published, recordio
from torch_reference.errors import UserError
from torch_reference.training import config as configs

TOKENS = {
    "text": [
        b"1e400",
        b"-0",
        b"12345678901234567890123",
        b"[" * 99,
        b"null",
        b"false",
        b"NaN",
        b'"',
        b"\\",
        b"\xc3",
        b"]",
    ],
    "npz": [b"99999999999999999999", b"<i8", b"|S3", b">f8", b"<f16", b"<c16", b"|O", b"[('a','<f4')]", b"()", b"(0,)"],
    "tensors": [b"F64", b"BF16", b"F8_E5M2", b"BOOL", b"U16", b"C64", b"-1", b"[3,2]", b"[6]", b"99999999999", b"1.0"],
    "bytes": [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80", b"GIF89a", b"BM", b"P5", b"\xff\xd8\xff"],
}


def harm(content: bytes, chance: random.Random, tokens: str) -> bytes:
    """Up to three changes to the content: a bit, a byte, a piece lost, repeated, overwritten or the end cut off."""
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice([1, 1, 2, 4, 8, 30]))
        before, piece, after = content[:at], content[at:end], content[end:]
        content = chance.choice(
            [
                before + bytes(byte ^ (1 << chance.randrange(8)) for byte in piece[:1]) + piece[1:] + after,
                before + chance.randbytes(len(piece)) + after,
                before + after,
                before + piece * chance.choice([2, 3, 50]) + after,
                before + chance.choice(TOKENS[tokens]) + (after if chance.random() < 0.7 else piece + after),
                content if chance.random() < 0.7 else before,
            ]
        )
    return content


def some_json(chance):
    value = {"name": "digits", "sizes": [8, 8, 1], "mean": [1.5e2], "more": {"yes": True, "none": None, "\u00fc": "\n"}}
    return harm(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode(), chance, "text")


def some_config(chance):
    return harm(json.dumps(dataclasses.asdict(configs.recipe("cifar10"))).encode(), chance, "text")


def some_npz(chance):
    array = chance.choice(
        [
            np.ones((2, 3), np.float32),
            np.arange(4),
            np.array(["a", "bc"]),
            np.eye(3, dtype=">f8").T,
            np.array(7, np.uint8),
        ]
    )
    npy = io.BytesIO()
    np.save(npy, array)
    inside = chance.random() < 0.6
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        file.writestr("labels.npy", harm(npy.getvalue(), chance, "npz") if inside else npy.getvalue())
    return archive.getvalue() if inside else harm(archive.getvalue(), chance, "bytes")


def some_tensors(chance):
    tensors = {"weight": torch.ones(2, 3), "half": torch.tensor([0.5, -2]).bfloat16(), "step": torch.tensor(3)}
    content = safetensors.torch.save(tensors)
    size = struct.unpack("<Q", content[:8])[0]
    if chance.random() < 0.3:
        return harm(content, chance, "bytes")
    header = harm(content[8 : 8 + size], chance, "tensors")
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def some_image(chance):
    pixels = np.frombuffer(chance.randbytes(6 * 5 * 3), np.uint8).reshape(6, 5, 3)
    image, file = Image.fromarray(pixels).convert(chance.choice(["RGB", "L"])), io.BytesIO()
    kind = chance.choice(["PNG", "JPEG", "WEBP", "BMP", "PPM"])
    exif = Image.Exif()
    exif[274] = chance.randint(1, 8)
    image.save(file, kind, exif=exif)
    content = harm(file.getvalue(), chance, "bytes")
    return _mend(content) if kind == "PNG" else content


def _mend(png):
    """The PNG with the checksum that each of its chunks should have, or they would hide the rest."""
    whole, at = png[:8], 8
    while at + 12 <= len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        if at + 12 + size > len(png):
            break
        body = png[at + 4 : at + 8 + size]
        whole += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return whole + png[at:]


def some_idx(chance):
    return harm(bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 5]) + bytes(range(15)), chance, "bytes")


def some_pairs(chance):
    encoded = [b"abc", b"de", b"f", b"de"]
    if chance.random() < 0.5:
        encoded = [np.frombuffer(image, np.uint8)[:, None] for image in encoded]
    return harm(pickle.dumps((encoded, [True, False]), chance.randint(2, 4)), chance, "bytes")


def ours_pairs(path):
    found = pairs.read_pairs(path)
    return [
        [found.images[i].read() for i in (first, second)] + [same]
        for first, second, same in zip(found.first, found.second, found.same.tolist(), strict=True)
    ]


class Unpickler(pickle._Unpickler):
    """Python's own, which makes of arrays of bytes no arrays."""

    class Array:
        def __init__(self, kind, *_):
            assert kind is Unpickler.Array or kind in ("u1", b"u1")

        def __setstate__(self, state):
            if state[0] == 1:  # an array, and no type
                assert math.prod(state[1]) == len(state[4])
                self.content = state[4]

    def find_class(self, module, name):
        if name == "encode":
            return lambda text, encoding: {"latin1": text.encode("latin1")}[encoding]
        assert name in ("_reconstruct", "ndarray", "dtype")
        return Unpickler.Array


def pythons_pairs(path):
    try:
        encoded, same = Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception:  # such as a frame that is too long, which means nothing to us
        return ANY
    content = [getattr(image, "content", image) for image in encoded]
    return [[content[2 * i], content[2 * i + 1], bool(one)] for i, one in enumerate(same)]


def numpys(path):
    with np.load(path) as file:
        return file["labels"]


def torchs(path):
    return {name: tensor for name, tensor in safetensors.torch.load(path.read_bytes()).items()}


def ours_image(path):
    with images.opened(path) as image:
        if image.width * image.height > 10**6:
            image.convert("RGB")  # decoded, but not compared
            return None
        return np.asarray(images.upright(image).convert("RGB"))


def pillows(path):
    with Image.open(path) as image:
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:
            image.load()
        return np.asarray(image.convert("RGB"))


def by_hand_idx(path):
    content = path.read_bytes()
    axes = content[3]
    sizes = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    return np.array(list(content[4 + 4 * axes :]), np.uint8).reshape(sizes)


def some_records(chance):
    """A .rec file and its .idx file behind it, of which the last four bytes give the size; one of them is harmed."""
    records, index = b"", b""
    layouts = [[], [], [], [1.0, 0.5]], [[4.0, 5.0], [], [], []], [[4.0], [2.0, 1.0], [], [], [1.0, 3.0]]
    labels = chance.choice(layouts)
    for key, more in enumerate(labels):
        content = struct.pack(f"<IfQQ{len(more)}f", len(more), key // 2, key, 0, *more) + b"image" * key
        pieces = [content[:16], content[16:20], content[20:]] if chance.random() < 0.3 else [content]
        index += f"{key}\t{len(records)}\n".encode()
        for number, piece in enumerate(pieces):
            kind = 0 if len(pieces) == 1 else number + 1
            records += struct.pack("<II", 0xCED7230A, kind * 2**29 + len(piece)) + piece + bytes(-len(piece) % 4)
    if chance.random() < 0.7:
        records = harm(records, chance, "bytes")
    else:
        index = harm(index, chance, "text")
    return records + index + struct.pack("<I", len(index))


def ours_records(path):
    content = path.read_bytes()
    end = len(content) - 4 - struct.unpack("<I", content[-4:])[0]
    path.with_suffix(".rec").write_bytes(content[:end])
    path.with_suffix(".idx").write_bytes(content[end:-4])
    listed = recordio.read_records(path.with_suffix(".rec"))
    return {i: (name, image.read()) for i, (name, image) in enumerate(zip(listed.classes, listed.images, strict=True))}


def by_hand_records(path):
    records, places = path.with_suffix(".rec").read_bytes(), {}
    for line in path.with_suffix(".idx").read_text().splitlines():
        key, place = line.split("\t")
        places[int(key)] = int(place)

    def content(place):
        word = int.from_bytes(records[place + 4 : place + 8], "little")
        length = word & 0x1FFF_FFFF
        piece = records[place + 8 :][:length]
        assert records[place : place + 4] == b"\x0a\x23\xd7\xce"
        assert len(piece) == length
        ends = word >> 29 in (0, 3)
        return piece if ends else piece + b"\x0a\x23\xd7\xce" + content(place + 8 + length + -length % 4)

    def labels_and_image(place):
        whole = content(place)
        more = int.from_bytes(whole[:4], "little")
        labels = np.frombuffer(whole[24:], "<f4", more) if more else np.frombuffer(whole[4:8], "<f4")
        return more, labels, whole[24 + 4 * more :]

    keys = list(places)
    if 0 in places and labels_and_image(places[0])[0]:
        keys = list(range(1, int(labels_and_image(places[0])[1][0])))
    found = [labels_and_image(places[key]) for key in keys]
    return {i: (str(int(labels[0])), image) for i, (_, labels, image) in enumerate(found)}


READERS = {
    "JSON": (some_json, files.read_json, lambda path: json.loads(path.read_bytes())),
    "configuration": (some_config, configs.read, None),
    "npz": (some_npz, lambda path: files.read_npz(path, ["labels"])["labels"], numpys),
    "safetensors": (some_tensors, files.read_safetensors, torchs),
    "image": (some_image, ours_image, pillows),
    "RecordIO": (some_records, ours_records, by_hand_records),
    "pairs": (some_pairs, ours_pairs, pythons_pairs),
    "IDX": (some_idx, lambda path: published.read_idx(path.read_bytes(), "labels"), by_hand_idx),
}


def same(one, other):
    if isinstance(other, torch.Tensor):
        other = (other.float() if other.dtype == torch.bfloat16 else other).numpy()
    if isinstance(one, np.ndarray):
        return one.dtype.kind == other.dtype.kind and one.shape == other.shape and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other


def count_read(what, inputs, path):
    """How many of so many harmed files are read; the others are refused."""
    make, read, other_reader = READERS[what]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_well = 0
    for number in range(inputs):
        content = make(random.Random(f"{what} {number}"))
        path.write_bytes(content)
        began = time.process_time()
        try:
            value = read(path)
        except UserError:
            value = None
        except Exception as error:
            raise AssertionError(f"{what}, number {number}: {content[:300]!r}") from error
        assert time.process_time() - began < 10, f"{what}, number {number}"
        if value is not None:
            read_well += 1
            assert other_reader is None or same(value, other_reader(path)), (
                f"{what}, number {number}: {content[:300]!r}"
            )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 700 * 1024  # kB; 100 million pixels are 400 MB
    return read_well


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", READERS)
def test_a_few_hundred_files(what, tmp_path):
    assert 0 < count_read(what, 300, tmp_path / "file.npz") < 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", READERS)
def test_ten_thousand_files(what, tmp_path):
    assert 0 < count_read(what, 10_000, tmp_path / "file.npz") < 10_000
