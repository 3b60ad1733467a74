"""oneDNN's convolutions on a CPU, in place of XLA's, which take two to three times as long.

XLA calls them through `jax.ffi` on its own buffers. Nothing is compiled at installation: the library is that of the
wheel `onednn-cpu-gomp` (the extra `cpu`), and both it and XLA's call frame are reached by ctypes. Whoever calls asks
`supports` first, which is false where the library is missing, does not load or has no such convolution, and where
ARCFACE_ONEDNN is 0 in the environment (another value changes nothing).

Shapes are XLA's: images [B, H, W, I], kernels [h, w, I, O], results [B, H', W', O].
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.metadata
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_WHEEL = "onednn-cpu-gomp"
_DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t

Kind = Literal["forward", "input gradient", "kernel gradient"]


class Convolution(NamedTuple):
    """A convolution's shapes, strides and padding; what one of oneDNN's programs is made for.

    Args:
      images: (B, H, W, I). kernel: (h, w, I, O). results: (B, H', W', O).
      strides: (down, right). before, after: pixels of padding (top, left) and (bottom, right).
      dtype: the name of the dtype of all three.
    """

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    results: tuple[int, ...]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dtype: str


def supports(convolution: Convolution) -> bool:
    """Whether oneDNN is there and can do this convolution and both its gradients."""
    if convolution.dtype not in _DTYPES or 0 in (*convolution.images, *convolution.results) or _library() is None:
        return False
    with _one_registers:
        return _registered(convolution)


def apply(kind: Kind, convolution: Convolution, first: Array, second: Array) -> Array:
    """One of the three products, as an operation that XLA calls.

    Args:
      kind: `forward` is of (images, kernel), `input gradient` of (results' gradient, kernel), `kernel gradient` of
        (images, results' gradient).
      convolution: one that is supported.
      first, second: those two.
    """
    shape = getattr(convolution, _OUTPUTS[kind])
    output = jax.ShapeDtypeStruct(shape, convolution.dtype)
    return jax.ffi.ffi_call(_target(kind, convolution), output, vmap_method="sequential")(first, second)


_OUTPUTS: dict[Kind, str] = {"forward": "results", "input gradient": "images", "kernel gradient": "kernel"}


# ---- oneDNN's C interface (its reference: https://uxlfoundation.github.io/oneDNN, "C API")

_CPU, _IN_ORDER, _ANY, _FORWARD_TRAINING, _DIRECT = 1, 1, 1, 64, 1
_WEIGHTS_MD, _DIFF_WEIGHTS_MD = 131, 132  # dnnl_query_t
_SRC, _DST, _WEIGHTS, _DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 1, 17, 33, 129, 145, 161  # arguments of a primitive
_NONE, _ALLOCATE = c_void_p(0), c_void_p(-1)

# A program owns the memory of its reordered kernel, and each already uses all cores.
_one_at_a_time = threading.Lock()
_one_registers = threading.Lock()  # XLA takes a name once, and several threads may trace the same convolution


class _Refused(RuntimeError):
    """A status of oneDNN's that is not success."""


class _Argument(ctypes.Structure):
    _fields_ = (("index", c_int), ("memory", c_void_p))


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("ARCFACE_ONEDNN") == "0":
        return None
    try:
        files = importlib.metadata.files(_WHEEL) or ()
        path = next(file for file in files if file.name == "libdnnl.so.3").locate()
        library = ctypes.CDLL(str(path))
        library.dnnl_primitive_desc_query_md.restype = c_void_p
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError, AttributeError):
        return None
    return library


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(_library(), name)(*arguments):
        raise _Refused(f"oneDNN's {name} returned status {status}")


def _new(name: str, *arguments: Any) -> c_void_p:
    handle = c_void_p()
    _call(name, byref(handle), *arguments)
    return handle


@functools.cache
def _engine() -> tuple[c_void_p, c_void_p]:
    engine = _new("dnnl_engine_create", _CPU, c_size_t(0))
    stream = _new("dnnl_stream_create", engine, _IN_ORDER)
    atexit.register(_finish)
    return engine, stream


def _finish() -> None:
    """Waits at exit until XLA has computed all: a convolution that begins after Python's end never returns."""
    # What a thread starts is computed in order, so this one's last tells; of what others started, their results tell.
    jax.block_until_ready((jnp.zeros(()), jax.live_arrays()))


def _numbers(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


def _layout(sizes: Sequence[int], strides: Sequence[int], dtype: int) -> c_void_p:
    create = "dnnl_memory_desc_create_with_strides"
    return _new(create, len(sizes), _numbers(sizes), dtype, _numbers(strides))


def _image_layout(shape: Sequence[int], dtype: int) -> c_void_p:
    """[B, H, W, C] in memory, for oneDNN's order of axes, which is B, C, H, W."""
    b, h, w, c = shape
    return _layout((b, c, h, w), (h * w * c, 1, w * c, c), dtype)


def _program(kind: Kind, convolution: Convolution) -> Callable[[int, int, int], None]:
    """What computes one product, from the addresses of two inputs and the output."""
    engine, stream = _engine()
    dtype = _DTYPES[convolution.dtype]
    height, width, inputs, outputs = convolution.kernel
    oihw = (outputs, inputs, height, width)
    images, results = (_image_layout(shape, dtype) for shape in (convolution.images, convolution.results))
    kernel = _layout(oihw, (1, outputs, width * inputs * outputs, inputs * outputs), dtype)
    inner = _new("dnnl_memory_desc_create_with_tag", 4, _numbers(oihw), dtype, _ANY)  # the layout that oneDNN likes
    steps = [_numbers(v) for v in (convolution.strides, (0, 0), convolution.before, convolution.after)]
    create = "dnnl_convolution_{}_primitive_desc_create"
    forward = _new(
        create.format("forward"), engine, _FORWARD_TRAINING, _DIRECT, images, inner, _NONE, results, *steps, _NONE
    )
    description, query = forward, _WEIGHTS_MD
    if kind == "input gradient":
        name = create.format("backward_data")
        description = _new(name, engine, _DIRECT, images, inner, results, *steps, forward, _NONE)
    elif kind == "kernel gradient":
        name, query = create.format("backward_weights"), _DIFF_WEIGHTS_MD
        description = _new(name, engine, _DIRECT, images, inner, _NONE, results, *steps, forward, _NONE)
    chosen = c_void_p(_library().dnnl_primitive_desc_query_md(description, query, 0))  # type: ignore[union-attr]
    product = _new("dnnl_primitive_create", description)
    before_and_after = (chosen, kernel) if kind == "kernel gradient" else (kernel, chosen)
    source, target = before_and_after
    reorder = _new(
        "dnnl_primitive_create", _new("dnnl_reorder_primitive_desc_create", source, engine, target, engine, _NONE)
    )
    x, y, k = (_new("dnnl_memory_create", layout, engine, _NONE) for layout in (images, results, kernel))
    reordered = _new("dnnl_memory_create", chosen, engine, _ALLOCATE)

    def execute(primitive: c_void_p, *arguments: tuple[int, c_void_p]) -> None:
        array = (_Argument * len(arguments))(*(_Argument(*pair) for pair in arguments))
        _call("dnnl_primitive_execute", primitive, stream, len(arguments), array)

    def run(first: int, second: int, output: int) -> None:
        memories = {"forward": (x, k, y), "input gradient": (y, k, x), "kernel gradient": (x, y, k)}[kind]
        with _one_at_a_time:
            for memory, address in zip(memories, (first, second, output), strict=True):
                _call("dnnl_memory_set_data_handle", memory, c_void_p(address))
            if kind == "kernel gradient":
                execute(product, (_SRC, x), (_DIFF_DST, y), (_DIFF_WEIGHTS, reordered))
                execute(reorder, (_SRC, reordered), (_DST, k))
            else:
                execute(reorder, (_SRC, k), (_DST, reordered))
                if kind == "forward":
                    execute(product, (_SRC, x), (_WEIGHTS, reordered), (_DST, y))
                else:
                    execute(product, (_DIFF_DST, y), (_WEIGHTS, reordered), (_DIFF_SRC, x))
            _call("dnnl_stream_wait", stream)

    return run


# ---- XLA's call frame (xla/ffi/api/c_api.h, version 0.1 and later, which only append to these structures)

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


@functools.cache
def _registered(convolution: Convolution) -> bool:
    try:
        for kind in _OUTPUTS:
            _target(kind, convolution)
    except _Refused:
        return False
    return True


@functools.cache
def _target(kind: Kind, convolution: Convolution) -> str:
    """The name under which XLA knows a product; it is registered the first time."""
    run = _program(kind, convolution)

    @_Handler
    def handle(frame_pointer: Any) -> int | None:
        frame = frame_pointer.contents
        try:
            if frame.extensions and frame.extensions.contents.type == _METADATA:  # asks what this was written for
                extension = ctypes.cast(frame.extensions, POINTER(_MetadataExtension)).contents
                version = extension.metadata.contents.version
                version.major, version.minor = _API_VERSION
            else:
                buffers = (*frame.inputs.buffers[:2], frame.outputs.buffers[0])
                run(*(buffer.contents.data for buffer in buffers))
        except BaseException:  # Ctrl-C too: what leaves this function leaves XLA without an answer
            message = traceback.format_exc().encode()
            arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL)
            return frame.api.contents.create_error(byref(arguments))
        return None

    _handlers.append(handle)
    sizes = ".".join("x".join(map(str, part)) for part in convolution[:-1])
    name = f"jax_arcface.onednn.{kind.replace(' ', '_')}.{sizes}.{convolution.dtype}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handle), platform="cpu")
    return name
