"""Files: written whole or not at all, and read with care, since anybody may have made them.

Every reader here returns a value of the stated kind or raises one `UserError` that names the file. What a file claims
about itself (sizes, counts, depth) is checked before memory is taken for it, and nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import textwrap
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jax_arcface.errors import UserError

Arrays = dict[str, np.ndarray]

MAX_JSON_BYTES = 2**28  # a hundred bytes for each of 2.7 million class names
MAX_JSON_DEPTH = 16
MAX_ARRAY_BYTES = 2**36
MAX_SIDE = 20_000  # pixels of an image

# The dtypes of numpy and of safetensors that are numbers, by kind: f, i and u.
_NUMBERS = {
    **{f"f{size}": f"F{8 * size}" for size in (2, 4, 8)},
    **{f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iu" for size in (1, 2, 4, 8)},
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


@contextlib.contextmanager
def open_file(path: Path, limit: int) -> Iterator[BinaryIO]:
    """Opens a regular file of at most `limit` bytes for reading; a pipe is refused, not waited for.

    Raises:
      UserError: no such file, not a regular file, more bytes, or a failure while it is read.
    """
    try:
        # without O_NONBLOCK opening a pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise UserError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', error)}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{shown(path)} is not a file" + (" but a folder" if stat.S_ISDIR(found.st_mode) else ""))
        if found.st_size > limit:
            raise UserError(f"{shown(path)} has {found.st_size:,} bytes; {limit:,} are the most that are read")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises as `open_file` does."""
    with open_file(path, limit) as file:
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; see `parse_json`.

    Raises:
      UserError: no such file, or not a JSON object.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES), shown(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file, one on each line; see `parse_json`.

    Raises:
      UserError: no such file, or a line that is not a JSON object.
    """
    lines = read_bytes(path, MAX_JSON_BYTES).splitlines()
    return [parse_json(line, f"line {number} of {shown(path)}") for number, line in enumerate(lines, start=1)]


def parse_json(content: bytes, source: str) -> dict[str, Any]:
    """A JSON object (RFC 8259) from UTF-8 text, at most 16 levels deep, whose numbers fit 64 bits.

    Raises:
      UserError: anything else; `source` is named.

    >>> parse_json(b'{"a": [1, 2.5]}', "here")
    {'a': [1, 2.5]}
    >>> parse_json(b'{"a": NaN}', "here")
    Traceback (most recent call last):
    ...
    jax_arcface.errors.UserError: here is not JSON: NaN is not a number of JSON
    """
    if _depth(content) > MAX_JSON_DEPTH:
        raise UserError(f"{source} is not valid: it is nested more than {MAX_JSON_DEPTH} levels deep")
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_no_number, object_pairs_hook=_once
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails at half of a surrogate pair
    except ValueError as error:
        raise UserError(f"{source} is not JSON: {brief(error, with_type=False)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source} must hold a JSON object, not {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose names stands once: readers differ in which of two they take."""
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _depth(content: bytes) -> int:
    """How deep brackets are nested, outside strings."""
    brackets = np.frombuffer(_STRING.sub(b"", content).translate(None, _NOT_BRACKETS), np.uint8)
    return int(np.cumsum(np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)).max(initial=0))


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else 2**64
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:50]} is too large")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = (), *, limit: int = MAX_ARRAY_BYTES) -> Arrays:
    """The arrays of these names in an .npz file, and those of the `optional` ones that are there.

    Admitted are integers of up to 64 bits, floating-point numbers of 16, 32 and 64 bits, all finite, and text; none may
    be empty. They come in the machine's byte order.

    Args:
      path: the file.
      names: arrays that must be there.
      optional: arrays that may be there.
      limit: the most bytes that all these arrays may have together.

    Raises:
      UserError: no such file, a file that is not or not only what `numpy.savez` writes, or a missing array.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.npz"
    >>> np.savez(path, a=np.arange(3), b=np.ones(2))
    >>> read_npz(path, ["a"])
    {'a': array([0, 1, 2])}
    """
    arrays: Arrays = {}
    with open_file(path, limit) as file:
        if file.read(4) != b"PK\3\4":  # zipfile would also take an archive behind something else
            raise UserError(f"{shown(path)} is not an .npz file that can be read: it does not begin as one")
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist()}
                for name in (*names, *optional):
                    member = members.get(f"{name}.npy")
                    if member is None and name in names:
                        raise UserError(f"{shown(path)} has no array {name!r}; it must hold {', '.join(names)}")
                    if member is not None:
                        limit -= member.file_size
                        if limit < 0:
                            raise UserError(f"{shown(path)} is too large: {name} has {member.file_size:,} bytes")
                        arrays[name] = _npy(archive.read(member), f"{shown(path)}: {name}")
        except (UserError, OSError):
            raise
        except Exception as error:  # zipfile has no one error for all that may be wrong
            raise UserError(f"{shown(path)} is not an .npz file that can be read ({brief(error)})") from None
    return arrays


# As numpy writes it: a literal of Python, of which nothing else is understood here.
_NUMBER = rb"(?:0|[1-9]\d{0,17})"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=])([a-zA-Z])(\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \((|%b,|%b(?:, %b)+,?)\),? ?\}[ \n]*" % (_NUMBER, _NUMBER, _NUMBER)
)


def _npy(content: bytes, what: str) -> np.ndarray:
    """The array in the content of an .npy file, of format version 1 or 2."""
    prefix = {b"\1\0": 10, b"\2\0": 12}.get(content[6:8]) if content[:6] == b"\x93NUMPY" else None
    start = 0 if prefix is None else prefix + int.from_bytes(content[8:prefix], "little")
    header = _NPY_HEADER.fullmatch(content[prefix : min(start, 2**16)])
    if prefix is None or header is None:
        raise UserError(f"{what} is not an array of numbers or text that can be read")
    order, kind, size, fortran, axes = (part.decode() for part in header.groups())
    if f"{kind}{size}" not in _NUMBERS and kind != "U":
        raise UserError(f"{what} has the type {kind}{size}; it must be of integers, floating-point numbers or text")
    dtype = np.dtype(f"{order}{kind}{size}")
    shape = tuple(int(axis) for axis in re.findall(r"\d+", axes))
    if len(shape) > 32 or 0 in (*shape, dtype.itemsize):
        raise UserError(f"{what} has no entries: its shape is {shape}")
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise UserError(f"{what} is damaged: it has {len(content) - start:,} bytes for the shape {shape}")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran == "True" else "C")
    array = np.array(array, dtype.newbyteorder("="), order="C")
    if kind == "U":
        points = array.reshape(-1).view(np.uint32)
        if ((points >= 0x110000) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise UserError(f"{what} has text that is not Unicode")
    check_finite(array, what)
    return array


def check_finite(array: np.ndarray, what: str) -> None:
    """Raises UserError where floating-point numbers are infinite or NaN."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{what} has values that are not finite numbers")


def read_safetensors(path: Path, kinds: Collection[str] = "fiu", *, limit: int = MAX_ARRAY_BYTES) -> Arrays:
    """All tensors of a safetensors file.

    Args:
      path: the file.
      kinds: which kinds of numbers are admitted: "f" for floating-point numbers of 16, 32 and 64 bits and bfloat16
        (which comes as float32), "i" and "u" for integers. Booleans, complex numbers and 8-bit floating-point numbers
        never are.
      limit: the most bytes that the file may have.

    Raises:
      UserError: no such file, a damaged one, or a tensor of another kind or with values that are not finite.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, path)
    >>> read_safetensors(path)
    {'a': array([1., 1.], dtype=float32)}
    """
    admitted = [name for dtype, name in _NUMBERS.items() if dtype[0] in kinds] + ["BF16"] * ("f" in kinds)
    with open_file(path, limit) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size < MAX_JSON_BYTES else b""
        described = parse_json(header, f"{shown(path)} is not a safetensors file that can be read: its header")
    arrays: Arrays = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:  # checks that the header fits the file
            dtypes = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
            for name, dtype in dtypes.items():
                if dtype not in admitted:
                    raise UserError(
                        f"{shown(path)} has {name!r} of type {dtype}; it must be {', '.join(sorted(admitted))}"
                    )
                if dtype == "BF16":
                    start, end = described[name]["data_offsets"]
                    halves = _read_part(path, 8 + size + start, end - start)
                    array = (np.frombuffer(halves, "<u2").astype(np.uint32) << 16).view(np.float32)
                    arrays[name] = array.reshape(described[name]["shape"])
                else:
                    arrays[name] = tensors.get_tensor(name)
                check_finite(arrays[name], f"{shown(path)}: {name}")
    except UserError:
        raise
    except Exception as error:  # safetensors' own, and numpy's for what safetensors accepts
        raise UserError(f"{shown(path)} is not a safetensors file that can be read ({brief(error)})") from None
    return arrays


def _read_part(path: Path, start: int, size: int) -> bytes:
    """So many bytes of a file from a place in it."""
    with open_file(path, MAX_ARRAY_BYTES) as file:
        file.seek(start)
        return file.read(size)


def read_dataset(path: Path) -> dict[str, Any]:
    """What a run's `dataset.json` holds: name, image_shape, class_names, and mean and std of each channel.

    Raises:
      UserError: no such file, or values that no data set has.
    """
    described = read_json(path)
    match described:
        case {
            "name": str(),
            "image_shape": [int(height), int(width), int(channels)],
            "class_names": [_, *_] as names,
            "mean": list(mean),
            "std": list(std),
        } if (
            0 < height <= MAX_SIDE
            and 0 < width <= MAX_SIDE
            and channels in (1, 3)
            and all(isinstance(name, str) for name in names)
            and len(mean) == len(std) == channels
            and not any(isinstance(number, bool) for number in (*mean, *std, height, width, channels))
            and all(isinstance(level, int | float) for level in (*mean, *std))
            and all(0 <= level <= 255 for level in mean)
            and all(1e-9 < level <= 255 for level in std)
        ):
            return described
    raise UserError(
        f"{shown(path)} does not describe a data set: it must have a name, an image_shape [H, W, 1 or 3], class_names, "
        f"and a mean (0 to 255) and a std (above 0) for each channel"
    )


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed on one line, whatever bytes it has."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def brief(error: Exception, with_type: bool = True) -> str:
    """An error on one line, not too long."""
    text = " ".join((f"{type(error).__name__}: {error}" if with_type else str(error)).split())
    return textwrap.shorten(text if text.isprintable() else ascii(text)[1:-1], 200, placeholder=" ...")
