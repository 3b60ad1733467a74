"""MXNet's RecordIO, in which face recognition keeps its training images: `train.rec`, `train.idx` and `property`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

import numpy as np

from jax_arcface.data.images import Encoded, read_image, size_and_grey
from jax_arcface.data.listing import Listing
from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write, open_file, read_bytes, shown

# A record is one part, or several where its data hold the magic number: a part each before, between and after.
# Each part is the magic number, a word with the part's place (3 bits) and length (29 bits), and data padded to 4 bytes.
_MAGIC = 0xCED7230A
_WHOLE, _START, _MIDDLE, _END = range(4)
_PART = struct.Struct("<II")
# An image's record begins with the number of further labels (float32, they follow), its label and two numbers.
_HEADER = struct.Struct("<IfQQ")

_MAX_BYTES = 2**44
_MAX_INDEX_BYTES = 2**33
_EXACT = 2**24  # up to here float32 has each whole number


class Record(NamedTuple):
    """A record: the number of labels that follow its header, its labels, float32 [max(flag, 1)], and its image."""

    flag: int
    labels: np.ndarray
    image: bytes


@dataclasses.dataclass(frozen=True)
class Records:
    """A `.rec` file, read at random access.

    Args:
      path: of the `.rec` file.
      offsets: where each record begins, by its key, in the order of the `.idx` file.
    """

    path: Path
    offsets: dict[int, int]

    @classmethod
    def open(cls, path: Path) -> Records:
        """The `.rec` file with the `.idx` file beside it; raises UserError where one is missing or damaged."""
        index = path.with_suffix(".idx")
        if not os.path.lexists(index):
            raise UserError(f"{shown(index)} is not there: {shown(path)} needs it to find its records")
        with open_file(path, _MAX_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
        offsets: dict[int, int] = {}
        for number, line in enumerate(read_bytes(index, _MAX_INDEX_BYTES).splitlines(), start=1):
            fields = re.fullmatch(rb"([0-9]{1,18})\t([0-9]{1,18})", line)
            if fields is None:
                raise UserError(f"line {number:,} of {shown(index)} must be a key, a tab and an offset")
            key, offset = map(int, fields.groups())
            if key in offsets:
                raise UserError(f"line {number:,} of {shown(index)} has the key {key}, which it had before")
            if offset + _PART.size > size:
                raise UserError(f"line {number:,} of {shown(index)} points behind the end of {shown(path)}")
            offsets[key] = offset
        if not offsets:
            raise UserError(f"{shown(index)} names no records")
        return cls(path, offsets)

    def read(self, key: int) -> Record:
        """The record of a key; raises UserError where it is damaged."""
        with open_file(self.path, _MAX_BYTES) as file:
            return _record(self.path, file, self.offsets[key])

    def read_labels(self, keys: Iterable[int]) -> Iterator[Record]:
        """The records of these keys, one after the other, their images left out or cut short."""
        with open_file(self.path, _MAX_BYTES) as file:
            for key in keys:
                yield _record(self.path, file, self.offsets[key], whole=False)


def list_records(path: Path) -> Listing:
    """The images in a `.rec` file, in the order of its keys; a fifth of each class is the test split.

    Where record 0 has further labels (insightface), the first says where its images end: their keys are 1 to there.
    Elsewhere (MXNet's im2rec) each record is an image. An image's class is its first label, a whole number.

    Raises:
      UserError: a file that is damaged (the record's offset is named), or labels that are no classes.
    """
    records = Records.open(path)
    keys: Sequence[int] = list(records.offsets)
    first = records.read(0) if 0 in records.offsets else None
    is_faces = first is not None and first.flag > 0
    if first is not None and is_faces:
        end = _whole_number(first.labels[0])
        if end is None or end < 2 or end - 1 >= len(keys):
            raise _damaged(path, records.offsets[0], "it does not say where the images end")
        keys = range(1, end)
        if missing := next((key for key in keys if key not in records.offsets), None):
            raise UserError(f"{shown(path.with_suffix('.idx'))} does not name record {missing}, an image")
    classes = np.empty(len(keys), np.int64)
    for i, (key, record) in enumerate(zip(keys, records.read_labels(keys), strict=True)):
        number = _whole_number(record.labels[0])
        if number is None:
            raise _damaged(path, records.offsets[key], f"its label is {record.labels[0]}, which is no class")
        classes[i] = number
    names, numbers = np.unique(classes, return_inverse=True)
    if len(names) < 2:
        raise UserError(f"{shown(path)} has images of one class only: at least two are needed")
    files = [path, path.with_suffix(".idx")]
    if is_faces and os.path.lexists(path.with_name("property")):
        files.append(path.with_name("property"))
        _check_property(files[-1], int(names[-1]), path)
    class_names = tuple(map(str, names.tolist()))
    return Listing(path.stem, path.parent, _Images(records, keys), numbers.astype(np.int32), class_names, None, files)


class _Images(Sequence[Encoded]):
    """The images of these keys, read when they are asked for."""

    def __init__(self, records: Records, keys: Sequence[int]):
        self._records, self._keys = records, keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, i: int) -> Encoded: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, i: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(i, slice):
            return _Images(self._records, self._keys[i])
        key = self._keys[i]
        name = f"the image at byte {self._records.offsets[key]:,} of {shown(self._records.path)}"
        return Encoded(name, functools.partial(_image, self._records, key))


def _image(records: Records, key: int) -> bytes:
    return records.read(key).image


def _check_property(path: Path, largest: int, records: Path) -> None:
    fields = re.fullmatch(rb"([0-9]{1,9}),[0-9]{1,9},[0-9]{1,9}\s*", read_bytes(path, 1000))
    if fields is None:
        raise UserError(f"{shown(path)} must be the number of classes, height and width, with commas between them")
    if largest >= int(fields[1]):
        raise UserError(f"{shown(records)} has the label {largest}, but {shown(path)} is of {int(fields[1])} classes")


def _record(path: Path, file: BinaryIO, offset: int, whole: bool = True) -> Record:
    """The record at a place in the file, or at least its labels."""
    data = _read(path, file, offset, None if whole else _HEADER.size)
    if len(data) < _HEADER.size:
        raise _damaged(path, offset, f"it has {len(data)} bytes, fewer than its header")
    flag, label, _, _ = _HEADER.unpack_from(data)
    end = _HEADER.size + 4 * flag
    if len(data) < end and not whole:
        data = _read(path, file, offset, end)
    if len(data) < end:
        raise _damaged(path, offset, f"it claims {flag:,} labels and has {len(data):,} bytes")
    labels = np.frombuffer(data, "<f4", flag, _HEADER.size) if flag else np.array([label])
    return Record(flag, labels.astype(np.float32), data[end:])


def _read(path: Path, file: BinaryIO, offset: int, enough: int | None) -> bytes:
    """A record's data, joined with the magic number where it was taken out; or about as many bytes as are enough."""
    size = os.fstat(file.fileno()).st_size
    data, place, awaited = bytearray(), offset, (_WHOLE, _START)
    while True:
        file.seek(place)
        start = file.read(_PART.size)
        if len(start) < _PART.size:
            raise _damaged(path, offset, "the file ends within it")
        magic, word = _PART.unpack(start)
        kind, length = word >> 29, word & (2**29 - 1)
        if magic != _MAGIC or kind not in awaited:
            raise _damaged(path, offset, f"at byte {place:,} no part of a record begins")
        if place + _PART.size + length > size:
            raise _damaged(path, offset, "the file ends within it")
        if kind in (_MIDDLE, _END):
            data += _MAGIC.to_bytes(4, "little")
        data += file.read(length if enough is None else min(length, max(enough - len(data), 0)))
        if kind in (_WHOLE, _END) or (enough is not None and len(data) >= enough):
            return bytes(data)
        place, awaited = place + _PART.size + -(-length // 4) * 4, (_MIDDLE, _END)


def _damaged(path: Path, offset: int, why: str) -> UserError:
    return UserError(f"the record at byte {offset:,} of {shown(path)} is damaged: {why}")


def _whole_number(label: np.float32) -> int | None:
    return int(label) if np.isfinite(label) and 0 <= label <= _EXACT and label == int(label) else None


def write_records(path: str | os.PathLike[str], images: Iterable[tuple[int, bytes]], *, layout: str = "faces") -> int:
    """Writes encoded images as RecordIO: a `.rec` and an `.idx` file, and `property` for faces.

    Args:
      path: of the `.rec` file.
      images: each image's label and its encoded bytes, which are kept as they are. For faces the labels count from 0,
        each class's images together.
      layout: `faces`, with records for the identities and for the whole, as insightface has it; or `im2rec`.

    Returns:
      The number of images written.

    Raises:
      ValueError: another layout, labels in another order, or numbers that float32 cannot hold.
      UserError: a path that cannot be written, or a first image that is none.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train.rec"
    >>> write_records(path, [(0, b"one image"), (0, b"another"), (1, b"a third")], layout="im2rec")
    3
    >>> Records.open(path).read(2)
    Record(flag=0, labels=array([1.], dtype=float32), image=b'a third')
    """
    if layout not in ("faces", "im2rec"):
        raise ValueError(f"the layout is {layout!r}; it must be faces or im2rec")
    path, is_faces = Path(path), layout == "faces"
    ends: list[int] = []  # for each identity, the key after its last image
    first_image = b""
    with contextlib.ExitStack() as stack:
        record_file = stack.enter_context(open(stack.enter_context(atomic_write(path)), "wb"))
        index_file = stack.enter_context(open(stack.enter_context(atomic_write(path.with_suffix(".idx"))), "w"))

        def write(key: int, label: float, further: Sequence[int], content: bytes) -> None:
            index_file.write(f"{key}\t{record_file.tell()}\n")
            header = _HEADER.pack(len(further), label, key, 0) + np.array(further, "<f4").tobytes()
            record_file.write(_encoded(header + content))

        key = before = int(is_faces)
        for label, content in images:
            if is_faces and label not in (len(ends) - 1, len(ends)):
                raise ValueError(f"the label {label} follows {len(ends) - 1}: labels must count from 0, class by class")
            if not 0 <= label < _EXACT or key >= _EXACT:
                raise ValueError(f"image {key} with the label {label}: RecordIO holds numbers below {_EXACT:,}")
            if is_faces and label == len(ends):
                ends.append(key)
            write(key, label, (), content)
            first_image = first_image or content
            key += 1
            if is_faces:
                ends[-1] = key
        count = key - before
        if is_faces:
            start = 1
            for identity, end in enumerate(ends):
                write(key + identity, 0, (start, end), b"")
                start = end
            write(0, 0, (key, key + len(ends)), b"")
            (width, height), _ = read_image(Encoded("the first image", lambda: first_image), size_and_grey)
            with atomic_write(path.with_name("property")) as file:
                file.write_text(f"{len(ends)},{height},{width}")
    return count


def _encoded(data: bytes) -> bytes:
    """A record's parts: the magic number, where it stands at a multiple of 4 bytes, is left out between two of them."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    places = (4 * np.flatnonzero(words == _MAGIC)).tolist()
    starts, ends = [0, *(place + 4 for place in places)], [*places, len(data)]
    parts = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        kind = _WHOLE if not places else _START if i == 0 else _END if i == len(places) else _MIDDLE
        parts.append(_PART.pack(_MAGIC, kind << 29 | (end - start)) + data[start:end] + bytes(-(end - start) % 4))
    return b"".join(parts)
