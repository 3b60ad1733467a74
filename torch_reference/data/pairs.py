"""Files of image pairs, same person or not: LFW's pairs.txt, CSV files and .bin files (`docs/recipe.md`, Evaluation).

A .bin file is a pickle, which Python would run. Here its opcodes are only read: what it names is never looked up.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_reference.data.images import Record
from torch_reference.errors import UserError
from torch_reference.files import one_line, read_bytes

_LARGEST = 2**32  # bytes
_MOST_FOLDS = 10


class ImagePairs(NamedTuple):
    """Images, and pairs of them.

    Args:
      images: files, or encoded images; none is there twice.
      first, second: indices of images. same: whether both are of one person. fold: counted from 0. All are [P].
    """

    images: tuple[Path | Record, ...]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class _Pair(NamedTuple):
    first: Path | bytes
    second: Path | bytes
    same: bool
    fold: int | None


def read_pairs(path: Path, images: Path | None = None) -> ImagePairs:
    """The pairs in a file, whose kind its content tells.

    Args:
      path: LFW's pairs.txt, a CSV file or a .bin file.
      images: the folder that the names in it are of: needed for LFW's, by default a CSV file's own.

    Raises:
      UserError: a file that is none of these, or damaged, or that names images that are not there.
    """
    content = read_bytes(path, _LARGEST)
    if content.startswith(b"\x80"):
        if images is not None:
            raise UserError(f"{one_line(path)} has its images in it: a folder with images has no effect")
        return read_bin(path)
    begin = content[:1000].partition(b"\n")[0]
    if begin.strip() and all(word.isdigit() for word in begin.rstrip().split(b"\t")):
        if images is None:
            raise UserError(f"{one_line(path)} numbers each person's images: give the folder with these")
        return read_lfw_pairs(path, images)
    if b"," not in begin:
        raise UserError(f"{one_line(path)} holds no pairs: it is no pairs.txt of LFW, no CSV and no .bin file")
    return read_csv_pairs(path, images)


def read_lfw_pairs(path: Path, images: Path) -> ImagePairs:
    """LFW's pairs.txt, view 2: folds with as many pairs of one person as of two.

    Image 7 of Ann is `Ann/Ann_0007.jpg`, or .png, in the folder `images`.

    Raises:
      UserError: another content, or images that are not there.
    """
    lines = [line.split("\t") for line in _text(path).splitlines() if line.strip()]
    header = [int(word) if _is_number(word, 6) else 0 for word in lines[0]] if lines else []
    if len(header) not in (1, 2) or 0 in header:
        raise UserError(f"{one_line(path)} does not begin with how many folds and pairs there are, as pairs.txt does")
    folds, each = (1, *header)[-2:]
    if len(lines) != 1 + 2 * folds * each:
        raise UserError(f"{one_line(path)} says that it has {2 * folds * each} pairs, and has {len(lines) - 1}")
    pairs = []
    for number, words in enumerate(lines[1:]):
        same = number // each % 2 == 0
        if same and len(words) == 3:
            words = [*words[:2], words[0], words[2]]
        elif same or len(words) != 4:
            words = []
        if not words or not (_is_name(words[0]) and _is_name(words[2]) and _is_number(words[1] + words[3], 8)):
            raise UserError(f"{one_line(path)}: {one_line(lines[number + 1])} is no pair of {'one' if same else 'two'}")
        files = [_either(images / name / f"{name}_{int(n):04}.jpg") for name, n in (words[:2], words[2:])]
        pairs.append(_Pair(files[0], files[1], same, number // (2 * each)))
    return _gathered(path, pairs)


def read_csv_pairs(path: Path, images: Path | None = None) -> ImagePairs:
    """A CSV file with the columns `file1`, `file2`, `same` (1 or 0) and, if it has folds, `fold`.

    Without folds, the pairs of one person, and those of two, go to the folds in turn; there are ten, or as many as
    there are pairs of one of the kinds.

    Args:
      path: the file. images: the folder of the images; by default its own.

    Raises:
      UserError: another content, or images that are not there.
    """
    folder, pairs = images or path.parent, []
    table = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = next(table, [])
        if [columns.count(name) for name in ("file1", "file2", "same")] != [1, 1, 1] or columns.count("fold") > 1:
            raise UserError(f"{one_line(path)} has no first line with file1, file2 and same")
        for values in filter(None, table):
            row = dict(zip(columns, values, strict=False))
            whole = len(values) == len(columns) and row["file1"] and row["file2"] and row["same"] in ("0", "1")
            if not whole or not _is_number(row.get("fold", "0"), 6):
                raise UserError(f"{one_line(path)}, line {table.line_num}, is no pair: {one_line(values)}")
            fold = int(row["fold"]) if "fold" in row else None
            pairs.append(_Pair(folder / row["file1"], folder / row["file2"], row["same"] == "1", fold))
    except csv.Error as error:
        raise UserError(f"{one_line(path)}, line {table.line_num}, is not CSV: {one_line(str(error))}") from None
    if not pairs:
        raise UserError(f"{one_line(path)} has no pairs")
    return _gathered(path, pairs)


def read_bin(path: Path, folds: int = _MOST_FOLDS) -> ImagePairs:
    """A pickle of encoded images, two for each pair, and of whether each pair is the same person.

    A fold is a part of the file, all of (nearly) one size.

    Raises:
      UserError: another content.
    """
    try:
        encoded, same = _unpickled(read_bytes(path, _LARGEST))
        images = [image.content if isinstance(image, _Array) else image for image in encoded]
        if not all(isinstance(image, bytes) and image for image in images):
            raise ValueError("its images are not bytes")
        if not isinstance(same, list | tuple) or not all(isinstance(one, int) and one in (0, 1) for one in same):
            raise ValueError("its answers are not True and False")
    except UserError:
        raise
    except Exception as error:  # of pickletools, or of what misleads `_unpickled`
        raise UserError(f"{one_line(path)} is no file of pairs, or damaged: {one_line(error)}") from None
    if len(same) == 0 or len(images) != 2 * len(same):
        raise UserError(f"{one_line(path)} has {len(same)} pairs, but {len(images)} images, not two for each")
    count, folds = len(same), min(folds, len(same))
    return _gathered(
        path, [_Pair(images[2 * i], images[2 * i + 1], bool(same[i]), i * folds // count) for i in range(count)]
    )


def _gathered(path: Path, pairs: Sequence[_Pair]) -> ImagePairs:
    """Each image once, in the order in which they are named."""
    index: dict[Path | bytes, int] = {}
    places = []  # of each image in the file
    for number, pair in enumerate(pairs):
        for end, image in enumerate((pair.first, pair.second)):
            if image not in index:
                index[image] = len(index)
                places.append(2 * number + end + 1)
    files = [image for image in index if isinstance(image, Path)]
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise UserError(f"{one_line(path)} names {len(missing):,} images that are not there: {one_line(missing[0])}")
    held = tuple(
        image
        if isinstance(image, Path)
        else Record(f"image {place} of {one_line(path)}", functools.partial(bytes, image))
        for image, place in zip(index, places, strict=True)
    )
    same = [pair.same for pair in pairs]
    folds = [pair.fold for pair in pairs]
    if None in folds:
        most = max(1, min(_MOST_FOLDS, same.count(True), same.count(False)))
        seen = {True: 0, False: 0}
        for number, kind in enumerate(same):
            folds[number] = seen[kind] % most
            seen[kind] += 1
    else:  # numbered from 0
        folds = np.unique(np.array(folds), return_inverse=True)[1].tolist()
    first, second = [index[pair.first] for pair in pairs], [index[pair.second] for pair in pairs]
    return ImagePairs(held, np.array(first), np.array(second), np.array(same), np.array(folds))


def _text(path: Path) -> str:
    try:
        return read_bytes(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{one_line(path)} is not text in UTF-8") from None


def _is_number(word: str, digits: int) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= digits


def _is_name(word: str) -> bool:
    return word not in ("", ".", "..") and not set(word) & set("/\\\0")


def _either(file: Path) -> Path:
    png = file.with_suffix(".png")
    return png if not os.path.isfile(file) and os.path.isfile(png) else file


# ---- pickles


class _Name(NamedTuple):
    """A global that a pickle names."""

    module: str
    name: str


_MARK = object()
_CODECS = _Name("_codecs", "encode")
_ARRAY, _TYPE = _Name("numpy", "ndarray"), _Name("numpy", "dtype")
_RECONSTRUCT = _Name("numpy.core.multiarray", "_reconstruct"), _Name("numpy._core.multiarray", "_reconstruct")


def _unpickled(content: bytes) -> Any:
    """What a pickle describes: bytes, text, numbers, lists, tuples, and arrays of bytes as `_Array`.

    Raises:
      ValueError: it has anything else.
      Exception: other ones, if it is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        at = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument.encode("latin-1"))  # of Python 2
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append([] if opcode.name == "EMPTY_LIST" else ())
            case "LIST" | "TUPLE":
                items = from_mark()
                stack.append(items if opcode.name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = from_mark()
                _list(stack[-1]).extend(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Name(*argument.split(" ")))
            case "STACK_GLOBAL":
                stack[-2:] = [_Name(*stack[-2:])]
            case "REDUCE":
                name, given = stack[-2:]
                stack[-2:] = [_made(name, given)]
            case "BUILD":
                state = stack.pop()
                _fill(stack[-1], state)
            case "STOP":
                (held,) = stack
                return held
            case _:
                raise ValueError(f"it has the opcode {opcode.name}")


def _list(item: Any) -> list[Any]:
    if not isinstance(item, list):
        raise ValueError("it appends to what is no list")
    return item


class _Array:
    """An array of bytes, which BUILD fills, or its type."""

    def __init__(self, is_type: bool = False):
        self.is_type, self.content = is_type, b""


def _made(name: Any, given: Any) -> Any:
    if name == _CODECS and len(given) == 2 and given[1] == "latin1":  # how Python 3 writes bytes for Python 2
        return given[0].encode("latin-1")
    if name in _RECONSTRUCT and given[0] == _ARRAY:
        return _Array()
    if name == _TYPE and given[0] in ("u1", b"u1"):
        return _Array(is_type=True)
    raise ValueError(f"it names {name}, with {given}")


def _fill(array: Any, state: Any) -> None:
    if not isinstance(array, _Array):
        raise ValueError("it fills what is no array")
    if array.is_type:
        return
    version, shape, kind, _, content = state
    if version != 1:
        raise ValueError(f"it has an array of the version {version}, which numpy does not know")
    if not isinstance(kind, _Array) or not kind.is_type or not isinstance(content, bytes):
        raise ValueError("it has an array that is not of bytes")
    if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) != len(content):
        raise ValueError(f"it has {len(content)} bytes in an array {shape}")
    array.content = content
