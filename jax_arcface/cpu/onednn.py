"""oneDNN's operations on a CPU, in place of XLA's, which take up to three times as long.

XLA calls them on its own buffers (`xla_calls.py`). Nothing is compiled at installation: the library is that of the
wheel `onednn-cpu-gomp` (the extra `cpu`), reached by ctypes. Whoever calls asks `supports` first, which is false where
JAX has another device, where the library is missing, does not load or cannot do the operation, and where ARCFACE_ONEDNN
is 0 in the environment (another value changes nothing).

Shapes are XLA's: images [B, H, W, C], kernels [h, w, I, O].
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.metadata
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.cpu import xla_calls

_WHEEL = "onednn-cpu-gomp"
_DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t


Kind = Literal["forward", "input gradient", "kernel gradient", "gradient", "product"]


class Convolution(NamedTuple):
    """What a convolution's programs are made for. Its kinds:

    - `forward`, from (images, kernel) or (images, kernel, bias) to (results,)
    - `input gradient`, from (gradient of results, kernel) to (gradient of images,)
    - `kernel gradient`, from (images, gradient of results) to (gradient of kernel,), with a bias also its gradient

    Args:
      images: (B, H, W, I). kernel: (h, w, I, O). results: (B, H', W', O).
      strides: (down, right). before, after: pixels of padding (top, left) and (bottom, right).
      dtype: the name of the dtype of all three.
      bias: whether there is one, float32 [O].
    """

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    results: tuple[int, ...]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    dtype: str
    bias: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """None of which may be 0."""
        return self.images + self.results

    def outputs(self, kind: Kind) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each array that a program of this kind gives."""
        shapes = {"forward": self.results, "input gradient": self.images, "kernel gradient": self.kernel}
        bias = [_float32(self.kernel[-1])] if self.bias and kind == "kernel gradient" else []
        return [jax.ShapeDtypeStruct(shapes[kind], self.dtype), *bias]


class PReLU(NamedTuple):
    """What a PReLU's program is made for. Its one kind:

    - `gradient`, from (x, slope, gradient of y) to the gradients of x and of the slope, float32 [C]

    Args:
      shape: (B, H, W, C).
      dtype: the name of that of x and y.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """None of which may be 0."""
        return self.shape

    def outputs(self, kind: Kind) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each array that its program gives."""
        return [jax.ShapeDtypeStruct(self.shape, self.dtype), _float32(self.shape[-1])]


class Product(NamedTuple):
    """What a matrix product's program is made for. Its one kind:

    - `product`, from (a, b) to (a b,), or (a^T b,)

    Args:
      a: (m, k); where it is transposed, (k, m).
      b: (k, n).
      dtype: the name of that of a and b; the product is float32.
      transposed: whether it is a^T that b is multiplied by.
    """

    a: tuple[int, ...]
    b: tuple[int, ...]
    dtype: str
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.a[1 if self.transposed else 0], self.b[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """None of which may be 0."""
        return self.a + self.b

    def outputs(self, kind: Kind) -> list[jax.ShapeDtypeStruct]:
        """Shape and dtype of each array that its program gives."""
        return [_float32(*self.shape)]


Operation: TypeAlias = Convolution | PReLU | Product


def supports(operation: Operation) -> bool:
    """Whether oneDNN is there and can do all kinds of this operation."""
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not alone or 0 in operation.sizes or operation.dtype not in _DTYPES or _library() is None:
        return False
    with _one_registers:
        return _registered(operation)


def apply(kind: Kind, operation: Operation, *inputs: Array) -> Sequence[Array]:
    """Has XLA call one of oneDNN's programs.

    Args:
      kind: which of the operation's.
      operation: one that `supports` has found to be supported.
      inputs: as the operation says.

    Returns:
      The arrays that the operation says.

    Raises:
      NotImplementedError: oneDNN cannot do the operation.
    """
    with _one_registers:
        if not _registered(operation):
            raise NotImplementedError(f"oneDNN has no program for {operation}")
    return jax.ffi.ffi_call(_target(kind, operation), operation.outputs(kind), vmap_method="sequential")(*inputs)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


# ---- oneDNN's C interface (its reference: https://uxlfoundation.github.io/oneDNN, "C API")

_CPU, _IN_ORDER, _ANY, _DIRECT, _FORWARD_TRAINING = 1, 1, 1, 1, 64
_WEIGHTS_MD, _DIFF_WEIGHTS_MD = 131, 132  # dnnl_query_t
# arguments of a primitive
_SRC, _DST, _WEIGHTS, _BIAS, _DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS, _DIFF_BIAS = 1, 17, 33, 41, 129, 145, 161, 169
_NONE, _ALLOCATE = c_void_p(0), c_void_p(-1)

# A program owns the memory of its reordered kernel, and each already uses all cores.
_one_at_a_time = threading.Lock()
_one_registers = threading.Lock()  # XLA takes a name once, and several threads may trace the same operation


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
    """Waits at exit until XLA has computed all: an operation that begins after Python's end never returns."""
    # What a thread starts is computed in order, so this one's last tells; of what others started, their results tell.
    jax.block_until_ready((jnp.zeros(()), jax.live_arrays()))


def _numbers(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


def _layout(sizes: Sequence[int], strides: Sequence[int], dtype: str = "float32") -> c_void_p:
    create = "dnnl_memory_desc_create_with_strides"
    return _new(create, len(sizes), _numbers(sizes), _DTYPES[dtype], _numbers(strides))


def _image_layout(shape: Sequence[int], dtype: str = "float32") -> c_void_p:
    """[B, H, W, C] in memory, for oneDNN's order of axes, which is B, C, H, W."""
    b, h, w, c = shape
    return _layout((b, c, h, w), (h * w * c, 1, w * c, c), dtype)


def _memory(layout: c_void_p, address: c_void_p = _NONE) -> c_void_p:
    return _new("dnnl_memory_create", layout, _engine()[0], address)


def _reorder(source: c_void_p, target: c_void_p) -> c_void_p:
    engine, _ = _engine()
    description = _new("dnnl_reorder_primitive_desc_create", source, engine, target, engine, _NONE)
    return _new("dnnl_primitive_create", description)


Memories: TypeAlias = Sequence[c_void_p]
Primitive: TypeAlias = tuple[c_void_p, Mapping[int, c_void_p]]  # and its memory, by argument


def _program(primitives: Sequence[Primitive], memories: Memories) -> Callable[..., None]:
    """What runs these primitives in order, once the memories have the addresses that it is given."""
    _, stream = _engine()
    calls = [
        (primitive, len(named), (_Argument * len(named))(*(_Argument(*pair) for pair in named.items())))
        for primitive, named in primitives
    ]

    def run(*addresses: int) -> None:
        with _one_at_a_time:
            for memory, address in zip(memories, addresses, strict=True):
                _call("dnnl_memory_set_data_handle", memory, c_void_p(address))
            for primitive, count, arguments in calls:
                _call("dnnl_primitive_execute", primitive, stream, count, arguments)
            _call("dnnl_stream_wait", stream)

    return run


def _programs(operation: Operation) -> dict[Kind, Callable[..., None]]:
    """An operation's programs by kind; each is called with the addresses of its inputs, then of its outputs."""
    if isinstance(operation, Convolution):
        return _convolution(operation)
    return _prelu(operation) if isinstance(operation, PReLU) else _product(operation)


def _convolution(convolution: Convolution) -> dict[Kind, Callable[..., None]]:
    engine, _ = _engine()
    height, width, inputs, outputs = convolution.kernel
    oihw = (outputs, inputs, height, width)
    images, results = (_image_layout(shape, convolution.dtype) for shape in (convolution.images, convolution.results))
    kernel = _layout(oihw, (1, outputs, width * inputs * outputs, inputs * outputs), convolution.dtype)
    inner = _new("dnnl_memory_desc_create_with_tag", 4, _numbers(oihw), _DTYPES[convolution.dtype], _ANY)
    bias = _layout((outputs,), (1,)) if convolution.bias else _NONE
    steps = [_numbers(v) for v in (convolution.strides, (0, 0), convolution.before, convolution.after)]

    def described(name: str, *arguments: Any) -> c_void_p:
        return _new(f"dnnl_convolution_{name}_primitive_desc_create", engine, *arguments, _NONE)

    forward = described("forward", _FORWARD_TRAINING, _DIRECT, images, inner, bias, results, *steps)
    to_images = described("backward_data", _DIRECT, images, inner, results, *steps, forward)
    to_kernel = described("backward_weights", _DIRECT, images, inner, bias, results, *steps, forward)

    def program(description: c_void_p, query: int) -> Callable[..., None]:
        chosen = c_void_p(_library().dnnl_primitive_desc_query_md(description, query, 0))  # type: ignore[union-attr]
        convolve = _new("dnnl_primitive_create", description)
        x, y, k, liked = *map(_memory, (images, results, kernel)), _memory(chosen, _ALLOCATE)
        if description is to_images:
            reorder = _reorder(kernel, chosen), {_SRC: k, _DST: liked}
            return _program([reorder, (convolve, {_DIFF_DST: y, _WEIGHTS: liked, _DIFF_SRC: x})], (y, k, x))
        b = [_memory(bias)] if convolution.bias else []
        if description is to_kernel:
            reorder = _reorder(chosen, kernel), {_SRC: liked, _DST: k}
            arguments = {_SRC: x, _DIFF_DST: y, _DIFF_WEIGHTS: liked}
            if b:
                arguments[_DIFF_BIAS] = b[0]
            return _program([(convolve, arguments), reorder], (x, y, k, *b))
        reorder = _reorder(kernel, chosen), {_SRC: k, _DST: liked}
        arguments = {_SRC: x, _WEIGHTS: liked, _DST: y}
        if b:
            arguments[_BIAS] = b[0]
        return _program([reorder, (convolve, arguments)], (x, k, *b, y))

    return {
        "forward": program(forward, _WEIGHTS_MD),
        "input gradient": program(to_images, _WEIGHTS_MD),
        "kernel gradient": program(to_kernel, _DIFF_WEIGHTS_MD),
    }


def _prelu(prelu: PReLU) -> dict[Kind, Callable[..., None]]:
    engine, _ = _engine()
    channels = prelu.shape[-1]
    images, slopes = _image_layout(prelu.shape, prelu.dtype), _layout((1, channels, 1, 1), (channels, 1, 1, 1))
    create = "dnnl_prelu_{}_primitive_desc_create"
    forward = _new(create.format("forward"), engine, _FORWARD_TRAINING, images, slopes, images, _NONE)
    gradients = images, slopes, images
    backward = _new(create.format("backward"), engine, images, slopes, *gradients, forward, _NONE)
    memories = [_memory(layout) for layout in (images, slopes, images, images, slopes)]
    arguments = dict(zip((_SRC, _WEIGHTS, _DIFF_DST, _DIFF_SRC, _DIFF_WEIGHTS), memories, strict=True))
    return {"gradient": _program([(_new("dnnl_primitive_create", backward), arguments)], memories)}


def _product(product: Product) -> dict[Kind, Callable[..., None]]:
    engine, _ = _engine()
    rows, columns = product.shape
    inner = product.b[0]
    strides = (1, rows) if product.transposed else (inner, 1)
    layouts = (
        _layout((rows, inner), strides, product.dtype),
        _layout((inner, columns), (columns, 1), product.dtype),
        _layout((rows, columns), (columns, 1)),
    )
    a, b, result = layouts
    described = _new("dnnl_matmul_primitive_desc_create", engine, a, b, _NONE, result, _NONE)
    memories = [_memory(layout) for layout in layouts]
    arguments = dict(zip((_SRC, _WEIGHTS, _DST), memories, strict=True))
    return {"product": _program([(_new("dnnl_primitive_create", described), arguments)], memories)}


# ---- what XLA knows


@functools.cache
def _registered(operation: Operation) -> bool:
    """Whether XLA knows the operation's programs; they are made and registered the first time."""
    try:
        for kind, program in _programs(operation).items():
            xla_calls.register(_target(kind, operation), program)
    except _Refused:
        return False
    return True


def _target(kind: Kind, operation: Operation) -> str:
    """The name under which XLA knows a program."""
    parts = ("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in operation)
    return ".".join(["jax_arcface.onednn", type(operation).__name__, kind.replace(" ", "_"), *parts])
