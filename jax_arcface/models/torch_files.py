"""Reads the tensors of PyTorch's `.pt` and `.pth` files, without PyTorch and without running what they hold.

Such a file is a pickle that describes a state dict, and the bytes of its storages: in a zip archive, or (before
PyTorch 1.6) one after the other. A pickle is a program; here a small interpreter follows the few instructions that
describe tensors, and nothing else is imported or called.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jax_arcface.errors import UserError
from jax_arcface.files import MAX_ARRAY_BYTES, Arrays, brief, open_file, shown

_MAX_PICKLE = 2**26  # bytes; that of a network with 100,000 tensors has 15 million
_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in a file of PyTorch before 1.6

# bfloat16 is the upper half of a float32
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "u1",
}

# Below these names a training's checkpoint holds the network's state dict, the first that is there.
_INSIDE = ("state_dict_backbone", "backbone", "state_dict", "model_state_dict", "model")


def read_torch(path: Path) -> Arrays:
    """The tensors of a state dict that `torch.save` wrote, on whatever device they were.

    Of a checkpoint with more in it, such as an optimiser's state, those of the network. bfloat16 comes as float32. The
    arrays are read-only, and equal tensors share memory.

    Raises:
      UserError: no such file, a damaged one, one that holds anything but tensors, numbers and text in dictionaries, or
        values that are not finite.
    """
    with open_file(path, MAX_ARRAY_BYTES) as file:
        begins = file.read(4)
        file.seek(0)
        try:
            held, storage = (_of_zip if begins == b"PK\3\4" else _of_stream)(file)
            return {name: _array(tensor, storage, name) for name, tensor in _tensors(held).items()}
        except OSError:
            raise
        except Exception as error:  # of pickletools, zipfile and numpy, for what may be wrong
            raise UserError(
                f"{shown(path)} is not a PyTorch file whose tensors can be read ({brief(error, with_type=False)})"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something that a pickle names, `module name`; it is not looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    bfloat16: bool


_Storage = Callable[[str], bytes]


def _of_zip(file: BinaryIO) -> tuple[Any, _Storage]:
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    (description,) = (name for name in members if name.endswith("/data.pkl"))
    folder = description.removesuffix("data.pkl")
    if members[description].file_size > _MAX_PICKLE:
        raise ValueError("its pickle is too large")
    if f"{folder}byteorder" in members and members[f"{folder}byteorder"].file_size != len("little"):
        raise ValueError("it was written by a big-endian machine")
    size = sum(info.file_size for info in archive.infolist())
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()) or size > MAX_ARRAY_BYTES:
        raise ValueError("its storages are compressed, which PyTorch's are not")
    read: dict[str, bytes] = {}

    def storage(key: str) -> bytes:
        if key not in read:
            read[key] = archive.read(f"{folder}data/{key}")
        return read[key]

    return _interpreted(io.BytesIO(archive.read(description))), storage


def _of_stream(file: BinaryIO) -> tuple[Any, _Storage]:
    if _interpreted(file) != _MAGIC:
        raise ValueError("it begins with something else")
    version, machine = _interpreted(file), _interpreted(file)
    if version != 1001 or not machine["little_endian"]:
        raise ValueError("it was written by another version, or by a big-endian machine")
    sizes: dict[str, int] = {}
    held, keys = _interpreted(file, sizes), _interpreted(file)
    read: dict[str, bytes] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        width = sizes[key]
        read[key] = file.read(min(count * width, MAX_ARRAY_BYTES))
        if len(read[key]) != count * width:
            raise ValueError("it is cut off")
    return held, read.__getitem__


def _interpreted(file: BinaryIO, sizes: dict[str, int] | None = None) -> Any:
    """What the pickle that the file goes on with describes; `sizes` takes the bytes of an element of each storage."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    start = file.tell()

    def since_mark() -> list[Any]:
        place = marks.pop()
        found = stack[place:]
        del stack[place:]
        return found

    for opcode, argument, position in pickletools.genops(file):
        if (position or 0) > start + _MAX_PICKLE or len(memo) > _MAX_PICKLE // 8:
            raise ValueError("its pickle is too large")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_Name(str(argument)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module} {name}"))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = since_mark()
                stack[-1].extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "BINPERSID":
                stack.append(_storage(stack.pop(), sizes))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(function, arguments))
            case "BUILD":  # an OrderedDict's attributes, such as the versions of its modules
                stack.pop()
            case "STOP":
                (value,) = stack
                return value
            case other:
                raise ValueError(f"its pickle has a {other}")
    raise ValueError("its pickle does not end")


def _storage(described: Any, sizes: dict[str, int] | None) -> tuple[str, str, int]:
    """(NumPy's dtype or "bfloat16", key, first element) of a storage, or of the part of one that is a view."""
    match described:
        case ("storage", _Name(name=kind), str(key), str(), int(), *views) if len(views) <= 1:
            pass
        case _:
            raise ValueError("it refers to something that is no storage")
    kind = kind.removeprefix("torch ")
    if kind not in _STORAGES:
        raise ValueError(f"it has a {kind}, which is read nowhere")
    if sizes is not None:
        sizes[key] = np.dtype(_STORAGES[kind]).itemsize
    first = views[0][1] if views and views[0] is not None else 0
    return kind, key, first


def _called(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name(name="collections OrderedDict"), ():
            return {}
        case _Name(name="collections OrderedDict"), (list(pairs),):
            return dict(pairs)
        case _Name(name="torch._utils _rebuild_tensor_v2"), ((kind, key, first), int(offset), shape, strides, *_):
            sizes = (*shape, *strides, offset, first)
            if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
                raise ValueError("a tensor's shape is none")
            return _Tensor(_STORAGES[kind], key, first + offset, tuple(shape), tuple(strides), kind[0:2] == "BF")
        case _Name(name="torch._utils _rebuild_parameter"), (_Tensor() as tensor, *_):
            return tensor
    raise ValueError(f"it needs {getattr(function, 'name', function)!r}, and only tensors are read")


def _tensors(held: Any) -> dict[str, _Tensor]:
    """A state dict, or the network's of a checkpoint."""
    if not isinstance(held, dict):
        raise ValueError("it holds no state dict")
    found = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, _Tensor)}
    if found:
        return found
    for name in _INSIDE:
        if isinstance(held.get(name), dict):
            return _tensors(held[name])
    raise ValueError(f"it holds no state dict, but {', '.join(map(repr, list(held)[:5])) or 'nothing'}")


def _array(tensor: _Tensor, storage: _Storage, name: str) -> np.ndarray:
    flat = np.frombuffer(storage(tensor.key), tensor.dtype)
    count = math.prod(tensor.shape)
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if count and (tensor.offset + reach >= len(flat) or count > len(flat)):
        raise ValueError(f"its {name} is larger than its storage")
    if len(tensor.shape) > 32:
        raise ValueError(f"its {name} has {len(tensor.shape)} axes")
    strides = [stride * flat.itemsize for stride in tensor.strides]
    array = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    if tensor.bfloat16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"its {name} has values that are not finite numbers")
    return array
