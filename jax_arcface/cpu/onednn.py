"""oneDNN as a process has it: by the compiled handler of `onednn.cc`, with the library of a wheel.

Both are optional: the wheel `onednn-cpu-gomp` is the extra `cpu`, and the handler is built at installation where there
is a C++ compiler.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import threading
from typing import NamedTuple

import jax

TARGET = "jax_arcface.onednn"  # XLA's name of the handler
DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t
_WHEEL = "onednn-cpu-gomp"
_INTERFACE = 1  # what `jax_arcface_interface` has to return: a handler may be older than this file
_lock = threading.Lock()  # XLA takes a name once


class Library(NamedTuple):
    """The handler with oneDNN loaded, or why there is none.

    Args:
      handler: the functions of `onednn.cc`; None where `missing` says why.
      version: oneDNN's, "3.2".
      missing: the end of a sentence.
    """

    handler: ctypes.CDLL | None = None
    version: str = ""
    missing: str = ""


def library() -> Library:
    """What this process has; the first call loads it and makes it known to XLA."""
    with _lock:
        return _load()


@functools.cache
def _load() -> Library:
    path = _library_path()
    if path is None:
        return Library(missing=f"the wheel {_WHEEL} (the extra `cpu`) is not installed")
    spec = importlib.util.find_spec("jax_arcface.cpu._onednn")
    if spec is None or spec.origin is None:
        return Library(missing="jax_arcface was installed without a C++ compiler")
    try:
        handler = ctypes.CDLL(spec.origin)
        if (found := handler.jax_arcface_interface()) != _INTERFACE:
            return Library(missing=f"{spec.origin} was built for another version of jax_arcface (interface {found})")
        if not (version := handler.jax_arcface_open(path.encode())):
            return Library(missing=f"{path} could not be loaded as oneDNN 3")
        handler.jax_arcface_supports.argtypes = ctypes.POINTER(ctypes.c_int64), ctypes.c_size_t
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler.jax_arcface_call), platform="cpu")
    except Exception as error:  # whatever an unknown version of jaxlib, or a damaged file, raises
        return Library(missing=f"XLA does not take its handler: {error}")
    return Library(handler, f"{version // 1000}.{version % 1000}")


def _library_path() -> str | None:
    try:
        files = importlib.metadata.files(_WHEEL) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == "libdnnl.so.3"), None)


@functools.cache
def supports(operation: tuple[int, ...]) -> bool:
    """Whether oneDNN, which must be there, can do an operation: the integers of `make_program` in the handler."""
    handler = library().handler
    assert handler is not None
    return bool(handler.jax_arcface_supports((ctypes.c_int64 * len(operation))(*operation), len(operation)))
