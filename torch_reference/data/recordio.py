"""RecordIO, MXNet's format of training images, as face recognition exchanges it: `train.rec` and `train.idx`."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torch_reference.data.images import Record
from torch_reference.data.listed import Listed
from torch_reference.errors import UserError
from torch_reference.files import check_file, one_line, read_bytes

_LARGEST_RECORDS = 2**44  # bytes
_LARGEST_INDEX = 2**33


def read_records(path: Path) -> Listed:
    """The images of a `.rec` file, by the keys in the `.idx` file beside it.

    A record's label is that of its header, or the first of those that follow the header, where its flag counts some.
    Where record 0 has such labels, the images are the records from 1 to its first label, which is not among them
    (insightface); elsewhere all records are images (im2rec). Labels are whole numbers.

    Raises:
      UserError: a file that is missing, damaged (it says where) or holds fewer than two classes.
    """
    index = path.with_suffix(".idx")
    check_file(path, _LARGEST_RECORDS)
    places = _read_index(index, os.path.getsize(path))
    with open(path, "rb") as file:
        keys = list(places)
        faces = False
        if 0 in places:
            flag, labels, _ = _parse(path, places[0], _record(path, file, places[0]))
            if faces := flag > 0:
                end = _class(labels[0])
                if end is None or not 2 <= end <= len(places):
                    raise _wrong(path, places[0], "it gives no number of images that can be right")
                keys = list(range(1, end))
                if missing := [key for key in keys if key not in places]:
                    raise UserError(f"{one_line(index)} lacks the record {missing[0]}, which must be an image")
        classes = []
        for key in keys:
            _, labels, _ = _parse(path, places[key], _record(path, file, places[key], images=False))
            label = _class(labels[0])
            if label is None:
                raise _wrong(path, places[key], f"its label, {labels[0]}, is not the number of a class")
            classes.append(label)
    known = sorted(set(classes))
    if len(known) < 2:
        raise UserError(f"{one_line(path)} holds images of one class: it must hold two or more")
    if faces and os.path.lexists(path.with_name("property")):
        _check_property(path.with_name("property"), known[-1])
    images = [
        Record(f"{one_line(path)}, the image at byte {places[key]:,}", functools.partial(_image, path, places[key]))
        for key in keys
    ]
    return Listed(path.stem, path, images, [str(label) for label in classes], [str(label) for label in known])


def _read_index(index: Path, size: int) -> dict[int, int]:
    """Where each record of a file of that size begins, by its key."""
    places: dict[int, int] = {}
    for number, line in enumerate(read_bytes(index, _LARGEST_INDEX).splitlines(), start=1):
        numbers = line.split(b"\t")
        if len(numbers) != 2 or not all(digits.isdigit() and len(digits) <= 18 for digits in numbers):
            raise UserError(f"{one_line(index)}, line {number}, is not a key, a tab and a place")
        key, place = int(numbers[0]), int(numbers[1])
        if key in places or place > size - 8:
            wrong = "repeats a key" if key in places else "names a place where the records have ended"
            raise UserError(f"{one_line(index)}, line {number}, {wrong}")
        places[key] = place
    if not places:
        raise UserError(f"{one_line(index)} is empty")
    return places


def _image(path: Path, place: int) -> bytes:
    check_file(path, _LARGEST_RECORDS)
    with open(path, "rb") as file:
        return _parse(path, place, _record(path, file, place))[2]


def _record(path: Path, file: BinaryIO, place: int, images: bool = True) -> bytes:
    """A record's content; without `images`, its beginning, with all labels at least."""
    content = b""
    needed = 24
    for part in _parts(path, file, place):
        content += part
        if not images and len(content) >= 24:
            needed = 24 + 4 * int.from_bytes(content[:4], "little")
            if len(content) >= needed:
                break
    return content


def _parts(path: Path, file: BinaryIO, place: int) -> Iterator[bytes]:
    """The pieces of a record: what was cut out between two of them, the magic number itself, is one as well."""
    magic = struct.pack("<I", 0xCED7230A)
    size = os.fstat(file.fileno()).st_size
    at, first = place, True
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise _wrong(path, place, "it is cut off")
        (word,) = struct.unpack_from("<I", head, 4)
        kind, length = word // 2**29, word % 2**29
        if head[:4] != magic or kind not in ((0, 1) if first else (2, 3)):
            raise _wrong(path, place, f"what begins at byte {at:,} is not its {'first' if first else 'next'} part")
        if at + 8 + length > size:
            raise _wrong(path, place, "it is cut off")
        if not first:
            yield magic
        yield file.read(length)
        if kind in (0, 3):
            return
        at, first = at + 8 + (length + 3) // 4 * 4, False


def _parse(path: Path, place: int, content: bytes) -> tuple[int, tuple[float, ...], bytes]:
    """A record's flag, its labels, of which there is one at least, and the encoded image."""
    if len(content) < 24:
        raise _wrong(path, place, "it is shorter than its header")
    flag, label, _, _ = struct.unpack_from("<IfQQ", content)
    image = 24 + 4 * flag
    if len(content) < image:
        raise _wrong(path, place, f"it is shorter than the {flag:,} labels that it has")
    return flag, struct.unpack_from(f"<{flag}f", content, 24) if flag else (label,), content[image:]


def _class(label: float) -> int | None:
    """The whole number that a label is; None where it is none, or one that float32 has no neighbours of."""
    return int(label) if 0 <= label <= 2**24 and label.is_integer() else None


def _check_property(path: Path, largest: int) -> None:
    numbers = read_bytes(path, 1000).rstrip().split(b",")
    if len(numbers) != 3 or not all(digits.isdigit() and len(digits) <= 9 for digits in numbers):
        raise UserError(f"{one_line(path)} is not of the form classes,height,width")
    if largest >= int(numbers[0]):
        raise UserError(f"{one_line(path)} has {int(numbers[0])} classes, but the records have the label {largest}")


def _wrong(path: Path, place: int, why: str) -> UserError:
    return UserError(f"{one_line(path)}: the record at byte {place:,} is damaged: {why}")
