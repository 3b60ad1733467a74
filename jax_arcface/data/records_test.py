"""RecordIO files, written here byte by byte, are read as they were written; what is damaged is named by its place."""

import io
import os
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from jax_arcface import data
from jax_arcface.data.conftest import REAL
from jax_arcface.data.records import Records, list_records
from jax_arcface.errors import UserError

MAGIC = bytes.fromhex("0a23d7ce")


def record(label, content, key=0):
    """A record with its header; a list of labels follows it."""
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, key, 0) + struct.pack(f"<{len(label)}f", *label) + content
    return struct.pack("<IfQQ", 0, label, key, 0) + content


def parts(content):
    """The content in pieces, as dmlc-core cuts them: where a word of four bytes is the magic number."""
    pieces, piece = [], b""
    for place in range(0, len(content), 4):
        word = content[place : place + 4]
        if word == MAGIC:
            pieces.append(piece)
            piece = b""
        else:
            piece += word
    pieces.append(piece)
    kinds = [0] if len(pieces) == 1 else [1, *[2] * (len(pieces) - 2), 3]
    written = b""
    for kind, one in zip(kinds, pieces, strict=True):
        written += MAGIC + struct.pack("<I", kind * 2**29 + len(one)) + one + b"\0" * (-len(one) % 4)
    return written


def write(path, records, end=b""):
    """Writes records by key, in this order, and their index; gives their offsets."""
    content, offsets = b"", {}
    for key, one in records.items():
        offsets[key] = len(content)
        content += parts(one)
    path.write_bytes(content + end)
    path.with_suffix(".idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in offsets.items()))
    return offsets


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (level, 0, 255)).save(file, "PNG")
    return file.getvalue()


def insightface(images):
    """Records as insightface lays them out: images first, identities, and record 0 at the end."""
    labels = [label for label, _ in images]
    end = len(images) + 1
    records = {key: record(float(label), content, key) for key, (label, content) in enumerate(images, start=1)}
    for key, label in enumerate(sorted(set(labels)), start=end):
        start = 1 + labels.index(label)
        records[key] = record([float(start), float(start + labels.count(label))], b"", key)
    records[0] = record([float(end), float(end + len(set(labels)))], b"")
    return records


IMAGES = [(0, png(1)), (0, png(2)), (4, png(3)), (4, png(4)), (4, png(5)), (11, png(6))]


def all_levels(dataset):
    """Each class's grey levels, over both splits."""
    found = {}
    for split in (dataset.train, dataset.test):
        for image, label in zip(split.images, split.labels, strict=True):
            found.setdefault(dataset.class_names[label], []).append(int(image[0, 0, 0]))
    return {name: sorted(levels) for name, levels in found.items()}


def test_insightfaces_layout(tmp_path, cache):
    write(tmp_path / "train.rec", insightface(IMAGES))
    (tmp_path / "property").write_text("12,2,3")
    faces = data.load(str(tmp_path / "train.rec"), cache_dir=cache)
    assert (faces.name, faces.class_names, faces.image_shape) == ("train", ("0", "4", "11"), (2, 3, 3))
    assert all_levels(faces) == {"0": [1, 2], "4": [3, 4, 5], "11": [6]}
    assert faces.train.images[0, 0, 0].tolist() in ([1, 0, 255], [2, 0, 255])


def test_im2recs_layout(tmp_path, cache):
    """Each record is an image, whichever keys there are, in the order of the index; further labels do not count."""
    records = {key: record(float(label), content) for key, (label, content) in zip([0, 7, 2, 3], IMAGES, strict=False)}
    records[9] = record([4.0, 0.5, -3.0], png(9))
    write(tmp_path / "x.rec", records)
    listing = list_records(tmp_path / "x.rec")
    assert (listing.class_names, listing.labels.tolist()) == (("0", "4"), [0, 0, 1, 1, 1])
    assert [image.read() for image in listing.images] == [content for _, content in IMAGES[:4]] + [png(9)]
    assert all_levels(data.load(str(tmp_path / "x.rec"), cache_dir=cache)) == {"0": [1, 2], "4": [3, 4, 9]}


@pytest.mark.parametrize(
    "content",
    [
        MAGIC,
        MAGIC * 3,
        b"abcd" + MAGIC + b"efgh",
        b"abcd" + MAGIC + b"e",
        b"ab" + MAGIC + b"cd",  # not at a multiple of four
        b"abcd" + MAGIC,
        b"",
        bytes(range(256)) * 9 + MAGIC + b"xyz",
    ],
    ids=range(8),
)
def test_the_magic_number_inside_data(content, tmp_path):
    write(tmp_path / "x.rec", {0: record(1.0, b"first"), 1: record(2.0, content), 2: record(3.0, b"last")})
    records = Records.open(tmp_path / "x.rec")
    assert [records.read(key).image for key in range(3)] == [b"first", content, b"last"]
    assert [float(one.labels[0]) for one in records.read_labels([2, 0, 1])] == [3, 1, 2]
    data.write_records(tmp_path / "y.rec", [(1, b"first"), (2, content), (3, b"last")], layout="im2rec")
    expected = {key: record(key + 1.0, one, key) for key, one in enumerate([b"first", content, b"last"])}
    assert (tmp_path / "y.rec").read_bytes() == b"".join(map(parts, expected.values()))


def test_the_magic_number_inside_a_header(tmp_path):
    """In the header's second id, and in the labels after it."""
    content = struct.pack("<IfQ", 1, 0, 0) + MAGIC + b"\0" * 4 + struct.pack("<f", 5) + b"image"
    write(tmp_path / "x.rec", {3: content})
    records = Records.open(tmp_path / "x.rec")
    assert (next(records.read_labels([3])).labels.tolist(), records.read(3).image) == ([5.0], b"image")


def test_what_is_written_is_insightfaces(tmp_path):
    images = [(0, png(1)), (0, png(2)), (1, png(3)), (2, png(4))]
    assert data.write_records(tmp_path / "train.rec", iter(images)) == 4
    expected = insightface(images)
    assert (tmp_path / "train.rec").read_bytes() == b"".join(map(parts, expected.values()))
    offsets = write(tmp_path / "other.rec", expected)
    assert Records.open(tmp_path / "train.rec").offsets == offsets
    assert (tmp_path / "property").read_text() == "3,2,3"


@pytest.mark.parametrize("labels", [[1], [0, 2], [0, 1, 0], [-1], [0, 2**24]])
def test_labels_that_cannot_be_written(labels, tmp_path):
    with pytest.raises(ValueError, match="label"):
        data.write_records(tmp_path / "train.rec", [(label, png(1)) for label in labels])
    assert os.listdir(tmp_path) == []


def patched(path, place, content):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


# What is done to the .rec or the .idx file; %d is the offset of record 4.
DAMAGES = {
    "magic": (lambda rec, idx, at: patched(rec, at, b"x"), "the record at byte %d of .*x.rec is damaged"),
    "length": (lambda rec, idx, at: patched(rec, at + 4, b"\xff\xff\xff\x1f"), "byte %d .* the file ends within it"),
    "an end without a start": (lambda rec, idx, at: patched(rec, at + 7, b"\x60"), "byte %d .* no part of a record"),
    "a start without an end": (lambda rec, idx, at: patched(rec, at + 7, b"\x20"), "byte %d .* no part of a record"),
    "labels": (lambda rec, idx, at: patched(rec, at + 8, b"\xff\xff\xff\xff"), "byte %d .* claims 4,294,967,295 lab"),
    "a label that is NaN": (lambda rec, idx, at: patched(rec, at + 12, b"\0\0\xc0\x7f"), "byte %d .* label is nan"),
    "a label of 1.5": (lambda rec, idx, at: patched(rec, at + 12, b"\0\0\xc0\x3f"), "byte %d .* label is 1.5"),
    "an image": (lambda rec, idx, at: patched(rec, at + 32, b"xx"), "the image at byte %d of .*x.rec is not an image"),
    "cut short": (lambda rec, idx, at: os.truncate(rec, at + 5), "line 4 of .*x.idx points behind the end"),
    "index gone": (lambda rec, idx, at: idx.unlink(), "x.idx is not there"),
    "index empty": (lambda rec, idx, at: idx.write_text(""), "names no records"),
    "index of words": (lambda rec, idx, at: idx.write_text("1 2\n"), "line 1 of .* must be a key, a tab and an offset"),
    "key twice": (lambda rec, idx, at: idx.write_text("1\t0\n1\t0\n"), "line 2 of .* has the key 1"),
    "offset": (lambda rec, idx, at: idx.write_text(f"1\t{at}\n2\t{at + 4}\n"), r"no part of a record begins"),
    "one class": (lambda rec, idx, at: idx.write_text("1\t0\n"), "images of one class only"),
    "an index for faces": (lambda rec, idx, at: idx.write_text(idx.read_text().replace("3\t", "33\t")), "record 3"),
    "property": (
        lambda rec, idx, at: rec.with_name("property").write_text("11,2,3"),
        "has the label 11, .* of 11 cl",
    ),
    "property of words": (
        lambda rec, idx, at: rec.with_name("property").write_text("x"),
        "must be the number of class",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(damage, message, tmp_path, cache):
    file = tmp_path / "x.rec"
    records = insightface(IMAGES)
    at = write(file, {key: records[key] for key in (1, 2, 3, 4, 0, 5, 6, 7, 8, 9)})[4]
    data.load(str(file), cache_dir=cache)
    damage(file, file.with_suffix(".idx"), at)
    with pytest.raises(UserError, match=message.replace("%d", f"{at:,}")):
        data.load(str(file), cache_dir=cache)


@pytest.mark.parametrize("labels", [[1e9, 1e9], [1.0, 2.0], [float("nan"), 2.0], [-3.0]])
def test_a_record_0_that_is_wrong(labels, tmp_path):
    offsets = write(tmp_path / "x.rec", {**insightface(IMAGES), 0: record(labels, b"")})
    with pytest.raises(UserError, match=f"byte {offsets[0]:,} .* does not say where the images end"):
        list_records(tmp_path / "x.rec")


@pytest.mark.slow
def test_real_faces_survive_the_way_there_and_back(tmp_path, cache):
    """insightface's ten training images: from its list to RecordIO, bit by bit."""
    archive = None if REAL is None else REAL / "faces" / "insightface" / "small_dataset.tar"
    if archive is None or not archive.is_file():
        pytest.skip("shared/data/faces/insightface/small_dataset.tar is missing")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "small_dataset"
    rows = [line.split("\t") for line in (folder / "label.txt").read_text().splitlines()]
    images = [(int(label), (folder / name).read_bytes()) for name, label in rows]
    data.write_records(tmp_path / "train.rec", images)
    assert (tmp_path / "property").read_text() == "10,112,112"
    listing = list_records(tmp_path / "train.rec")
    assert [image.read() for image in listing.images] == [content for _, content in images]
    # twice the images: then there are some to test on
    (folder / "twice.txt").write_text(
        "".join(f"{name}\t{label}\n{folder}/copy/{name}\t{label}\n" for name, label in rows)
    )
    (folder / "copy").mkdir()
    (folder / "images").rename(folder / "copy" / "images")
    (folder / "images").symlink_to(folder / "copy" / "images")
    listed = data.load(str(folder / "twice.txt"), cache_dir=cache)
    data.write_records(tmp_path / "twice.rec", [image for image in images for _ in range(2)])
    recorded = data.load(str(tmp_path / "twice.rec"), cache_dir=cache)
    for one, other in ((listed.train, recorded.train), (listed.test, recorded.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert listed.image_shape == (112, 112, 3)
