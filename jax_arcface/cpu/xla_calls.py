"""Python functions as operations of XLA's on a CPU: through `jax.ffi`, on XLA's own buffers.

Nothing is compiled: XLA's call frame (xla/ffi/api/c_api.h, version 0.1 and later, which only append to its structures)
is reached by ctypes.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax

_API_VERSION = (0, 1)
_METADATA, _INTERNAL = 1, 13  # an extension's type; an error's code


class _Extension(ctypes.Structure):
    pass


_Extension._fields_ = (("struct_size", c_size_t), ("type", c_int), ("next", POINTER(_Extension)))


class _Version(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("extensions", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", POINTER(_Metadata)))


class _ErrorArguments(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extensions", c_void_p),
        ("message", ctypes.c_char_p),
        ("code", c_int),
    )


class _Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extensions", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArguments))),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extensions", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
    )


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extensions", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extensions", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("inputs", _Buffers),
        ("outputs", _Buffers),
    )


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_handlers: list[Any] = []  # XLA keeps their addresses only


def register(name: str, run: Callable[..., None]) -> None:
    """Makes `run` known to XLA under this name, for `jax.ffi.ffi_call`; a name can be given once.

    Args:
      run: what XLA calls with the addresses of the inputs, then of the outputs, which it has to fill. What it raises
        becomes an error of the program that called it.
    """

    @_Handler
    def handle(frame_pointer: Any) -> int | None:
        frame = frame_pointer.contents
        try:
            if frame.extensions and frame.extensions.contents.type == _METADATA:  # asks what this was written for
                extension = ctypes.cast(frame.extensions, POINTER(_MetadataExtension)).contents
                version = extension.metadata.contents.version
                version.major, version.minor = _API_VERSION
            else:
                buffers = (some.buffers[i] for some in (frame.inputs, frame.outputs) for i in range(some.size))
                run(*(buffer.contents.data for buffer in buffers))
        except BaseException:  # Ctrl-C too: what leaves this function leaves XLA without an answer
            message = traceback.format_exc().encode()
            arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL)
            return frame.api.contents.create_error(byref(arguments))
        return None

    _handlers.append(handle)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handle), platform="cpu")
