"""Pickles from elsewhere: text, numbers, collections and numpy arrays of bytes are read, and nothing is run."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

# Others can take memory for what is not there, or refer to what is outside.
_OPCODES = re.compile(
    "PROTO|FRAME|MARK|STOP|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BINBYTES8|"
    "EMPTY_(DICT|LIST|TUPLE)|TUPLE[123]?|LIST|APPENDS?|SETITEMS?|(LONG_)?BIN(PUT|GET)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|"
    "BUILD"
)
_MAX_MEMO = 2**20  # entries; a pickle that names a later one makes room for all before it


def read_pickle(content: bytes) -> Any:
    """What a pickle holds; strings of Python 2 are bytes.

    Raises:
      pickle.UnpicklingError: it names or holds anything but text, numbers, None, arrays of bytes, and dicts, lists and
        tuples of such. It is refused before it is run.
      Exception: any, of a pickle that is broken.

    >>> read_pickle(pickle.dumps({"a": [b"x", 1]}))
    {'a': [b'x', 1]}
    """
    for opcode, argument, _ in pickletools.genops(content):
        if not _OPCODES.fullmatch(opcode.name) or ("BINPUT" in opcode.name and int(argument or 0) > _MAX_MEMO):
            raise pickle.UnpicklingError(f"it has a {opcode.name} {str(argument)[:80]}")
    held = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    _check_plain(held)
    return held


def _rebuild(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    del kind, shape, dtype  # what comes next sets them, from the bytes that are there
    return np.empty(0, np.uint8)


def _dtype(name: Any, *rest: Any) -> Any:
    if name not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"it has an array of type {name}")
    return np.dtype("u1")  # whatever else is said of it: numpy's own recipe trusts what it is given


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it has bytes in an encoding that is not latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Admits what makes bytes and numpy arrays of bytes, for a pickle can call anything that it can name."""

    _ADMITTED: Mapping[tuple[str, str], Any] = types.MappingProxyType(
        {
            ("_codecs", "encode"): _encode,  # as Python 3 writes bytes for Python 2
            ("numpy.core.multiarray", "_reconstruct"): _rebuild,
            ("numpy._core.multiarray", "_reconstruct"): _rebuild,  # as numpy 2 writes it
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._ADMITTED[module, name]


def _check_plain(value: Any) -> None:
    """Refuses what is neither text, a number, an array, nor a collection of such, as a function that was named."""
    if isinstance(value, dict):
        for pair in value.items():
            _check_plain(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif not isinstance(value, bytes | str | int | np.ndarray | None):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
