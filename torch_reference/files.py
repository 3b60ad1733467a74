"""Files: how they are written, whole or not at all, and how those of others are read.

A file from someone else may claim anything. Each reader below returns its content or raises a `UserError` with the
file's name; it asks for no memory that the file's own bytes do not account for, and runs nothing that a file holds.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import stat
import struct
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torch_reference.errors import UserError

Arrays = dict[str, np.ndarray]

LARGEST_JSON = 2**28  # bytes
DEEPEST_JSON = 16  # levels
LARGEST_ARRAYS = 2**36  # bytes
LONGEST_SIDE = 20_000  # pixels of an image

# safetensors' names of the numbers that are read; bfloat16 (BF16) is the upper half of a float32
_TENSOR_TYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file beside `path`, which takes its place if nothing goes wrong.

    Raises:
      UserError: a place where nothing can be written, or no room left.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_bytes(path: Path, largest: int) -> bytes:
    """What is in a file of at most so many bytes.

    Raises:
      UserError: as `check_file`, or a disk that fails.
    """
    check_file(path, largest)
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, MemoryError) as error:
        raise UserError(f"{one_line(path)} cannot be read: {one_line(error)}") from None


def check_file(path: Path, largest: int) -> None:
    """Raises UserError where no file is, but for example a folder or a pipe, or one of more than so many bytes."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{one_line(path)} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"{one_line(path)} cannot be read: {one_line(error)}") from None
    if not stat.S_ISREG(found.st_mode):  # before anything opens it: a pipe would wait for its writer
        raise UserError(f"{one_line(path)} is not a file that can be read: it is a folder, a pipe or a device")
    if found.st_size > largest:
        raise UserError(f"{one_line(path)} is too large: {found.st_size:,} bytes; at most {largest:,} are read")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: no such file, or what `as_json` raises.
    """
    return as_json(read_bytes(path, LARGEST_JSON), one_line(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file with one on each line.

    Raises:
      UserError: no such file, or a line for which `as_json` raises it.
    """
    content = read_bytes(path, LARGEST_JSON)
    return [as_json(line, f"{one_line(path)}, line {i},") for i, line in enumerate(content.splitlines(), start=1)]


def as_json(content: bytes, source: str) -> dict[str, Any]:
    """The JSON object that the bytes are in UTF-8: 16 levels deep at most, its numbers finite and of 64 bits at most.

    Raises:
      UserError: they are nothing of the kind; it begins with `source`.

    >>> as_json(b'{"epochs": 3, "scale": null}', "config.json")
    {'epochs': 3, 'scale': None}
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_without_doubles)
        _check_json(value, DEEPEST_JSON)
    except RecursionError:
        raise UserError(f"{source} is not valid: it is nested more than {DEEPEST_JSON} levels deep") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{source} is not JSON: {one_line(str(error))}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source} must be a JSON object")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):  # which of them counts is up to the reader
        raise ValueError("a name is given two values in one object")
    return value


def _check_json(value: Any, levels: int) -> None:
    match value:
        case dict() | list() if levels == 0:
            raise ValueError(f"it has more than {DEEPEST_JSON} levels")
        case dict():
            for name, item in value.items():
                name.encode()
                _check_json(item, levels - 1)
        case list():
            for item in value:
                _check_json(item, levels - 1)
        case str():
            value.encode()  # fails for half of a surrogate pair
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        case int() if not -(2**63) <= value < 2**64:
            raise ValueError("it has a number of more than 64 bits")


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = (), largest: int = LARGEST_ARRAYS) -> Arrays:
    """The arrays of these names in an `.npz` file, and those of the `optional` ones that are there.

    An array is of integers, of finite floating-point numbers (16, 32 or 64 bits) or of text, and has an entry at least.

    Raises:
      UserError: no such file, none that `numpy.savez` writes, an array that is missing or of another kind, or more than
        `largest` bytes in all.
    """
    check_file(path, largest)
    arrays: Arrays = {}
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":  # zipfile finds archives in the middle of a file, too
                raise UserError(f"{one_line(path)} is not an .npz file that can be read: it begins with something else")
        with zipfile.ZipFile(path) as archive:
            there = archive.namelist()
            for name in names:
                if f"{name}.npy" not in there:
                    raise UserError(f"{one_line(path)} has no array {name!r}; it must hold {', '.join(names)}")
            for name in (*names, *optional):
                if f"{name}.npy" in there:
                    largest -= archive.getinfo(f"{name}.npy").file_size
                    if largest < 0:
                        raise UserError(f"{one_line(path)} is too large: {name} does not fit into the memory")
                    arrays[name] = _as_array(archive.read(f"{name}.npy"))
                    _check_array(arrays[name], f"{name} in {one_line(path)}")
    except UserError:
        raise
    except Exception as error:  # many kinds: of the archive, of what compresses it, of numpy
        raise UserError(f"{one_line(path)} is not an .npz file that can be read: {one_line(error)}") from None
    return arrays


def _as_array(content: bytes) -> np.ndarray:
    """An .npy file's array; raises many kinds of errors."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, columns_first, dtype = header(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError("its size is not that of its shape and type")
    flat = np.frombuffer(content, dtype, offset=file.tell())
    array = flat.reshape(shape[::-1]).T if columns_first else flat.reshape(shape)
    return np.array(array, dtype.newbyteorder("="), order="C")


def _check_array(array: np.ndarray, what: str) -> None:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind in "iuU" or (kind == "f" and size <= 8)):
        raise UserError(f"{what} has the type {array.dtype}; it must be of integers, floating-point numbers or text")
    if array.size == 0:
        raise UserError(f"{what} has the shape {array.shape}: it has no entries")
    if kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{what} has NaN or infinite values")
    if kind == "U":
        "".join(array.ravel().tolist()).encode()  # raises ValueError for what is no text


def read_safetensors(path: Path, kinds: str = "fiu", largest: int = LARGEST_ARRAYS) -> Arrays:
    """The tensors of a safetensors file.

    Those of `kinds` are read: "f" floating-point numbers of 16, 32 and 64 bits and bfloat16 (given as float32), "i" and
    "u" signed and unsigned integers.

    Raises:
      UserError: no such file, a damaged one, a tensor of another kind, or one with NaN or infinite values.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty.safetensors"
    >>> _ = path.write_bytes((2).to_bytes(8, "little") + b"{}")
    >>> read_safetensors(path)
    {}
    """
    content = read_bytes(path, largest)
    wrong = f"{one_line(path)} is not a safetensors file that can be read"
    if len(content) < 8 or (size := struct.unpack("<Q", content[:8])[0]) > min(len(content) - 8, 100_000_000):
        raise UserError(f"{wrong}: it is cut off or has no header")
    header = as_json(content[8 : 8 + size], f"{wrong}: its header")
    data = memoryview(content)[8 + size :]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError(f"{wrong}: its metadata is not text")
    arrays: Arrays = {}
    end = 0
    for name, entry in sorted(header.items(), key=_offsets):
        match entry:
            case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(first), int(last)]} if len(entry) == 3:
                pass
            case _:
                raise UserError(f"{wrong}: its header has no valid entry for {name!r}")
        if kind not in _TENSOR_TYPES or (kind[0] if kind != "BF16" else "F").lower() not in kinds:
            raise UserError(f"{one_line(path)} has {name!r} of the type {kind}, which does not belong there")
        dtype = np.dtype(_TENSOR_TYPES[kind])
        if not all(type(axis) is int and axis >= 0 for axis in shape) or first != end or len(shape) > 32:
            raise UserError(f"{wrong}: its header has no valid entry for {name!r}")
        if last - first != math.prod(shape) * dtype.itemsize or last > len(data):
            raise UserError(f"{wrong}: {name!r} is not as large as its shape")
        array = np.frombuffer(data[first:last], dtype).reshape(shape)
        if kind == "BF16":
            array = np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{one_line(path)} has NaN or infinite values in {name!r}")
        arrays[name] = array.copy()
        end = last
    if end != len(data):
        raise UserError(f"{wrong}: it holds {len(data):,} bytes and describes {end:,}")
    return arrays


def _offsets(item: tuple[str, Any]) -> tuple[int, int]:
    """Where a tensor begins and ends, to sort by; what has no such place comes first and is refused."""
    match item[1]:
        case {"data_offsets": [int(first), int(last)]}:
            return first, last
    return -1, -1


def read_dataset(path: Path) -> dict[str, Any]:
    """A run's `dataset.json`: `name`, `image_shape`, `class_names`, and each channel's `mean` and `std`.

    Raises:
      UserError: no such file, or one of them is missing or cannot be right.
    """
    values = read_json(path)

    def levels(name: str, low: float) -> bool:
        numbers, channels = values.get(name), values["image_shape"][2]
        return (
            isinstance(numbers, list)
            and len(numbers) == channels
            and all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
            and all(low <= number <= 255 for number in numbers)
        )

    def shape() -> bool:
        sizes = values.get("image_shape")
        if not isinstance(sizes, list) or [type(size) for size in sizes] != [int, int, int]:
            return False
        return 1 <= min(sizes) and max(sizes) <= LONGEST_SIDE and sizes[2] in (1, 3)

    names = values.get("class_names")
    for wrong in (
        not isinstance(values.get("name"), str) and "name is not text",
        not shape() and "image_shape is not [height, width, 1 or 3]",
        not (isinstance(names, list) and names and all(isinstance(name, str) for name in names))
        and "class_names is not a list of names",
        not (shape() and levels("mean", 0)) and "mean is not a grey level for each channel",
        not (shape() and levels("std", 1e-9)) and "std is not a positive number of grey levels for each channel",
    ):
        if wrong:
            raise UserError(f"{one_line(path)} describes no data set: {wrong}")
    return values


def one_line(thing: object) -> str:
    """A path, a text or an error as one printable line of at most 200 characters or so."""
    text = f"{type(thing).__name__}: {thing}" if isinstance(thing, Exception) else str(thing)
    if not isinstance(thing, Path):
        text = " ".join(text.split())
    if not text.isprintable():
        text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text if isinstance(thing, Path) else textwrap.shorten(text, 200, placeholder=" ...")
