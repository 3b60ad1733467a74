"""Damaged and hostile files: every reader raises a UserError, or gives what an independent reader gives."""

import dataclasses
import io
import json
import pickle
import resource
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageOps

from jax_arcface import files
from jax_arcface.data.images import read_files, read_image, size_and_grey
from jax_arcface.data.pairs import read_bin
from jax_arcface.data.published import decode_idx, unpickle
from jax_arcface.data.records import list_records
from jax_arcface.errors import UserError
from jax_arcface.training import config as configs

SECONDS = 10  # for one input, on a busy machine
MEGABYTES = 700  # an image of 100 million pixels is 400

INTERESTING = [
    *(b"", b"\0", b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8, b"\0" * 200, b"[" * 200, b"(((", b"{", b"}", b'"'),
    *(b"9" * 400, b"-1", b"1e308", b"1e999", b"NaN", b"Infinity", b"true", b"null", b"[]", b'"\\ud800"'),
    *(b"(1000000000000, 1000000000000)", b"'<f8'", b"'<c8'", b"'|O'", b"'<U9'", b"'<f16'", b"'|b1'", b"True"),
    *(b"BF16", b"F8_E4M3", b"BOOL", b"I64", b"C64", b"0,", b"18446744073709551615", b"r\xff\xff\xff\x0f"),
    *(b"(0, 4)", b"\\", b"\xed\xa0\x80", b"cos\nsystem\n"),
]


def mutated(rng, content):
    """The content with one to four damages: bits, bytes, pieces cut out, doubled, moved or replaced."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, len(content) + 1))
        length = int(min(rng.geometric(0.1), len(content) - start))
        piece = bytes(content[start : start + length])
        match rng.integers(0, 6):
            case 0 if start < len(content):
                content[start] ^= 1 << int(rng.integers(0, 8))
            case 1 if start < len(content):
                content[start] = int(rng.integers(0, 256))
            case 2:
                del content[start : start + length]
            case 3:
                content[start:start] = piece
            case 4:
                content[start : start + length] = INTERESTING[rng.integers(0, len(INTERESTING))]
            case 5 if rng.random() < 0.2:
                del content[start:]
    return bytes(content)


# Each reader: how to make the content of a good or hostile file, how we read it, how another reader does.


def json_content(rng):
    value = {"a": [1, 2.5, -3], "b": {"c": None, "d": [True, 'text \u00e9 "quoted\\']}, "e": 1e-3, "f": 2**40}
    return mutated(rng, json.dumps(value, ensure_ascii=bool(rng.integers(2))).encode())


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.ones(3, ">f4"),
    np.float16(2.5),
    np.array(["one", "two"]),
]


def npz_content(rng):
    """Damaged members in a whole archive (its checksums would hide them), or a damaged archive."""
    member = npy(ARRAYS[rng.integers(len(ARRAYS))], ((1, 0), (2, 0))[rng.integers(2)])
    whole = rng.random() < 0.5
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.integers(2)]) as archive:
        archive.writestr("a.npy", mutated(rng, member) if whole else member)
    return file.getvalue() if whole else mutated(rng, file.getvalue())


def safetensors_content(rng):
    content = safetensors.numpy.save(
        {"a": np.ones((2, 3), np.float32), "b": np.arange(4), "c": np.array(1, np.float16)}
    )
    if rng.random() < 0.5:
        return mutated(rng, content)
    (size,) = struct.unpack("<Q", content[:8])
    header = mutated(rng, content[8 : 8 + size])  # of the right length, so that it is looked into
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def image_content(rng):
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    kind = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF")[rng.integers(6)]
    file = io.BytesIO()
    image = Image.fromarray(pixels).convert(("RGB", "L")[rng.integers(2)])
    image.save(file, kind, **({"exif": orientation(rng.integers(9))} if kind in ("PNG", "JPEG", "WEBP") else {}))
    content = mutated(rng, file.getvalue())
    return with_checksums(content) if kind == "PNG" else content


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = int(number)
    return exif


def with_checksums(content):
    """A PNG file with its checksums mended as far as its chunks can be followed."""
    content, start = bytearray(content), 8
    while start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(content)


def idx_content(rng):
    return mutated(rng, struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24)))


# {"data": an array of 2 x 6 bytes, "labels": [3, 5]}, as Python 2 and its numpy pickled it
BATCH = (
    b"\x80\x02}q\0(U\4dataq\1cnumpy.core.multiarray\n_reconstruct\nq\2cnumpy\nndarray\nq\3K\0\x85U\1b\x87Rq\4"
    b"(K\1K\2K\6\x86cnumpy\ndtype\nq\5U\2u1K\0K\1\x87Rq\6(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89"
    b"U\x0cabcdefghijkltbU\6labelsq\7](K\3K\5eu."
)


def pickle_content(rng):
    return mutated(rng, BATCH)


def pairs_content(rng):
    return mutated(rng, pickle.dumps(([b"abc", b"de", b"f", b"ghi"], [True, False]), int(rng.integers(2, 5))))


def ours_pairs(path):
    pairs = read_bin(path)
    ends = np.stack([pairs.first, pairs.second], axis=1).ravel()
    return tuple(pairs.images[i].read() for i in ends), pairs.same.tolist()


def theirs_pairs(path):
    images, same = PythonsUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    return tuple(images), list(same)


def records_content(rng):
    """A .rec file in one of both layouts, and its .idx file, behind the size of the latter; one of them damaged."""
    magic = struct.pack("<I", 0xCED7230A)
    faces = rng.integers(2)
    labels = [(), (2.0, 3.0), (0.0, 1.0, 2.0)] if not faces else [(4.0, 6.0), (), (), ()]
    records, index = b"", b""
    for key, further in enumerate(labels):
        data = struct.pack("<IfQQ", len(further), key % 3, key, 0) + np.array(further, "<f4").tobytes() + b"abc" * key
        index += b"%d\t%d\n" % (key, len(records))
        pieces = [data] if rng.random() < 0.7 else [data[:12], data[12:28], data[28:]]
        for kind, piece in zip([0] if len(pieces) == 1 else [1, 2, 3], pieces, strict=True):
            records += magic + struct.pack("<I", kind << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)
    if rng.random() < 0.3:
        index = mutated(rng, index)
    else:
        records = mutated(rng, records)
    return struct.pack("<I", len(index)) + index + records


def ours_records(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<I", content[:4])
    path.with_suffix(".idx").write_bytes(content[4 : 4 + size])
    path.with_suffix(".rec").write_bytes(content[4 + size :])
    listing = list_records(path.with_suffix(".rec"))
    images = [image.read() for image in listing.images]
    return [(listing.class_names[label], image) for label, image in zip(listing.labels, images, strict=True)]


def theirs_records(path):
    """As MXNet's Python reads them, image by image."""
    content = path.read_bytes()
    (size,) = struct.unpack("<I", content[:4])
    index = dict(map(int, line.split(b"\t")) for line in content[4 : 4 + size].splitlines())

    def read(key):
        place, data = 4 + size + index[key], b""
        while True:
            magic, word = struct.unpack("<II", content[place : place + 8])
            assert magic == 0xCED7230A
            data += content[place + 8 : place + 8 + (word & 0x1FFFFFFF)]
            assert place + 8 + (word & 0x1FFFFFFF) <= len(content)
            if word >> 29 in (0, 3):
                break
            data += content[place : place + 4]
            place += 8 + ((word & 0x1FFFFFFF) + 3) // 4 * 4
        flag, label, _, _ = struct.unpack("<IfQQ", data[:24])
        return flag, struct.unpack(f"<{flag}f", data[24 : 24 + 4 * flag]) if flag else [label], data[24 + 4 * flag :]

    keys = range(1, int(read(0)[1][0])) if 0 in index and read(0)[0] else index
    return [(str(int(labels[0])), image) for _, labels, image in map(read, keys)]


def config_content(rng):
    return mutated(rng, json.dumps(dataclasses.asdict(configs.recipe("mnist"))).encode())


def ours_npz(path):
    return files.read_npz(path, ["a"])["a"]


def theirs_npz(path):
    with np.load(path) as file:
        return file["a"]


def theirs_safetensors(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    dtypes = {"F": "<f", "I": "<i", "U": "<u"}
    arrays = {}
    for name, entry in header.items():
        piece = data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            array = np.array([struct.unpack("<f", b"\0\0" + piece[i : i + 2])[0] for i in range(0, len(piece), 2)])
            arrays[name] = array.astype(np.float32).reshape(entry["shape"])
        else:
            dtype = f"{dtypes[entry['dtype'][0]]}{int(entry['dtype'][1:]) // 8}"
            arrays[name] = np.frombuffer(piece, dtype).reshape(entry["shape"])
    return arrays


def theirs_image(path):
    with Image.open(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:
            upright = image
        return np.asarray(upright.convert("RGB"))


def ours_image(path):
    (width, height), _ = read_image(path, size_and_grey)
    small = width * height < 10**6  # others are not decoded twice
    return read_files([path], (height, width, 3) if small else (8, 8, 3), "stretch", "", False)[0]


def theirs_idx(path):
    content = path.read_bytes()
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content[4 + 4 * len(shape) :], np.uint8).reshape(shape)


class PythonsUnpickler(pickle._Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: {"latin1": text.encode("latin1")}[encoding]
        assert (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
        return {"_reconstruct": lambda *_: np.empty(0, np.uint8), "ndarray": np.ndarray, "dtype": np.dtype}[name]


READERS = {
    "json": (json_content, files.read_json, lambda path: json.loads(path.read_text("utf-8"))),
    "npz": (npz_content, ours_npz, theirs_npz),
    "safetensors": (safetensors_content, files.read_safetensors, theirs_safetensors),
    "image": (image_content, ours_image, theirs_image),
    "idx": (idx_content, lambda path: decode_idx(path.read_bytes(), "x"), theirs_idx),
    "pickle": (
        pickle_content,
        lambda path: unpickle(path.read_bytes(), "x"),
        lambda path: PythonsUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load(),
    ),
    "pairs": (pairs_content, ours_pairs, theirs_pairs),
    "records": (records_content, ours_records, theirs_records),
    "config": (config_content, configs.read, None),
}


def assert_equal(one, other):
    assert isinstance(one, np.ndarray) == isinstance(other, np.ndarray)
    if isinstance(one, np.ndarray):
        assert (one.dtype.kind, one.shape) == (other.dtype.kind, other.shape)
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    else:
        assert one == other


def fuzz(name, inputs, path, seed):
    """Reads so many files; gives how many were accepted."""
    make, ours, theirs = READERS[name]
    accepted = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        content = make(np.random.default_rng((seed, number)))
        path.write_bytes(content)
        start = time.process_time()
        try:
            value = ours(path)
        except UserError:
            continue
        except Exception as error:
            raise AssertionError(f"input {number} of {name}: {error!r}\n{content[:500]!r}") from error
        finally:
            assert time.process_time() - start < SECONDS, number
        accepted += 1
        if theirs is not None and not (name == "image" and value.shape == (8, 8, 3)):
            try:
                other = theirs(path)
            except Exception:
                # Python's reader refuses some pickles whose content ours ignores, such as an array type's version
                assert name in ("pickle", "pairs")
                continue
            assert_equal(value, other)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    return accepted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_three_hundred_files(name, tmp_path):
    accepted = fuzz(name, 300, tmp_path / "x.npz", seed=1)
    assert 0 < accepted < 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_files(name, tmp_path):
    assert 0 < fuzz(name, 10_000, tmp_path / "x.npz", seed=2) < 10_000
