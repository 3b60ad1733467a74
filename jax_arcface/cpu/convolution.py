"""The convolution of the backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import ad

from jax_arcface.cpu.onednn import DTYPES
from jax_arcface.cpu.operations import Implementation, Operation, Run, Transpose, compute
from jax_arcface.cpu.sums import channel_sums

_WORTH_COMPILING = 1000  # numbers of an image: XLA compiles its own convolution faster, and of few either is fast

NHWC = ("NHWC", "HWIO", "NHWC")  # the layouts of images, kernel and results


def convolve(
    images: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    bias: Array | None = None,
    *,
    groups: int = 1,
    implementation: Implementation = "auto",
) -> Array:
    """A convolution (a cross-correlation, as everywhere).

    oneDNN can compute it in float32 and bfloat16, in a program for one CPU device that is not exported.

    Args:
      images: [B, H, W, I].
      kernel: [h, w, I / groups, O], of the same dtype.
      strides: (down, right).
      padding: rows and columns of zeros, ((top, bottom), (left, right)).
      bias: [O], any float dtype.
      groups: of channels; each group of results is computed from its own group of the images' channels.
      implementation: "onednn", "xla", or "auto", which takes oneDNN where it is installed and can.

    Returns:
      [B, H', W', O].

    Raises:
      TypeError: shapes or dtypes that do not fit.
      ValueError: "onednn" where that cannot compute it, when the program is lowered.

    >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), (1, 1), ((1, 1), (1, 1)))[0, :, :, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    operation = Convolution(
        "forward",
        images.shape[1:3],
        kernel.shape[:2],
        tuple(strides),
        tuple(before for before, _ in padding),
        tuple(after for _, after in padding),
        bias is not None,
        groups,
    )
    biases = () if bias is None else (bias.astype(jnp.promote_types(bias.dtype, jnp.float32)),)
    return compute(operation, images, kernel, *biases, implementation=implementation)[0]


@dataclasses.dataclass(frozen=True)
class Convolution(Operation):
    """A convolution, or a gradient of one. It is linear in images and kernel, and so is each gradient in its two.

    Args:
      kind: "forward", from images and kernel (and bias) to results; "input gradient", from results and kernel to
        images; "kernel gradient", from images and results to the kernel (and the bias).
      image_size: (H, W). kernel_size: (h, w).
      strides: (down, right). before, after: pixels of padding (top, left) and (bottom, right).
      bias: whether there is one; never with an input gradient.
      groups: of channels.
    """

    kind: Literal["forward", "input gradient", "kernel gradient"]
    image_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    bias: bool = False
    groups: int = 1

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        """The function, in JAX."""
        return self._computed(self._convolve, *arrays)

    def by_xla_on_cpu(self, *arrays: Array) -> tuple[Array, ...]:
        """With groups, the sum over the kernel's places: XLA makes one loop of it, many times as fast as its own."""
        height, width, channels = (arrays[1] if self.kind == "kernel gradient" else arrays[0]).shape[1:]
        known = all(isinstance(size, int) for size in (height, width))
        if self.groups == 1 or not known or height * width * channels < _WORTH_COMPILING:
            return self.by_xla(*arrays)
        return self._computed(self._sum_of_places, *arrays)

    def _computed(self, convolve: Callable[[Array, Array], Array], *arrays: Array) -> tuple[Array, ...]:
        first, second, *bias = arrays
        if self.kind == "forward":
            results = convolve(first, second)
            return (results + bias[0].astype(results.dtype) if self.bias else results,)
        if self.kind == "input gradient":
            shape = (first.shape[0], *self.image_size, second.shape[2] * self.groups)
            return (_transposed(lambda images: convolve(images, second), shape, first),)
        shape = (*self.kernel_size, first.shape[-1] // self.groups, second.shape[-1])
        kernel = _transposed(lambda kernel: convolve(first, kernel), shape, second)
        return (kernel, channel_sums(second.astype(_bias_dtype(second)))) if self.bias else (kernel,)

    def _convolve(self, images: Array, kernel: Array) -> Array:
        padding = tuple(zip(self.before, self.after, strict=True))
        return jax.lax.conv_general_dilated(
            images, kernel, self.strides, padding, dimension_numbers=NHWC, feature_group_count=self.groups
        )

    def _sum_of_places(self, images: Array, kernel: Array) -> Array:
        padding = tuple(zip(self.before, self.after, strict=True))
        images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
        total: Array | float = 0.0
        for channel in range(kernel.shape[2]):
            # of each group the channel of this number, once for each of the group's results
            part = images if kernel.shape[2] == 1 else images[..., channel :: kernel.shape[2]]
            if kernel.shape[3] != self.groups:
                part = jnp.repeat(part, kernel.shape[3] // self.groups, axis=-1)
            for row in range(kernel.shape[0]):
                for column in range(kernel.shape[1]):
                    down = slice(row, images.shape[1] - kernel.shape[0] + row + 1, self.strides[0])
                    right = slice(column, images.shape[2] - kernel.shape[1] + column + 1, self.strides[1])
                    total = total + part[:, down, right] * kernel[row, column, channel]
        return jnp.asarray(total)

    def for_onednn(self, *arrays: jax.ShapeDtypeStruct) -> tuple[int, ...] | None:
        """The operation's integers for the handler."""
        first, second, *bias = arrays
        if first.dtype != second.dtype or first.dtype.name not in DTYPES or any(b.dtype != jnp.float32 for b in bias):
            return None
        inputs = second.shape[2] * self.groups if self.kind == "input gradient" else first.shape[3]
        images = (first.shape[0], *self.image_size, inputs)
        results = [
            (size + before + after - side) // stride + 1
            for size, before, after, side, stride in zip(
                self.image_size, self.before, self.after, self.kernel_size, self.strides, strict=True
            )
        ]
        sizes = (*images, *self.kernel_size, second.shape[3], *results)
        if 0 in sizes:
            return None
        kind = ("forward", "input gradient", "kernel gradient").index(self.kind)
        steps = (*self.strides, *self.before, *self.after)
        grouped = (self.groups,) if self.groups > 1 else ()
        return (kind, DTYPES[first.dtype.name], *sizes, *steps, int(self.bias), *grouped)

    def maps_rows(self) -> bool:
        """Whether more images are as good as `vmap` over them."""
        return self.kind != "kernel gradient"

    def tangents(self, run: Run, primals: Sequence[Array], tangents: Sequence[Any]) -> Sequence[Any]:
        """The results' tangents: a sum of a term for each of the two that it is linear in.

        The second takes a bias with it, so that backwards one call gives the gradients of kernel and bias.
        """
        (first, second, *_), (to_first, *others) = primals, tangents
        found: list[Any] = []
        if any(type(t) is not ad.Zero for t in others):
            rest = [ad.instantiate_zeros(t) for t in others]
            found = run(self, first, *rest)
        if type(to_first) is not ad.Zero:
            (term, *_) = run(dataclasses.replace(self, bias=False), to_first, second)
            found = [found[0] + term, *found[1:]] if found else [term]
        if self.bias and self.kind == "kernel gradient" and len(found) == 1:  # the bias's does not depend on images
            found.append(jnp.zeros((*found[0].shape[:-4], second.shape[-1]), _bias_dtype(second)))
        return found

    def transpose(self, unknown: Sequence[bool]) -> Transpose:
        """Of the arguments that are unknown, in which the operation is linear."""
        plain = dataclasses.replace(self, bias=False)
        forward, to_images, to_kernel = (dataclasses.replace(plain, kind=kind) for kind in _KINDS)
        if self.kind == "forward":
            if unknown[0]:
                return Transpose(to_images, (-1, 1), (0,))
            return Transpose(dataclasses.replace(to_kernel, bias=self.bias), (0, -1), (1, 2)[: 1 + self.bias])
        if self.kind == "input gradient":
            return Transpose(forward, (-1, 1), (0,)) if unknown[0] else Transpose(to_kernel, (-1, 0), (1,))
        if unknown[0]:
            return Transpose(to_images, (1, -1), (0,))
        return Transpose(dataclasses.replace(forward, bias=self.bias), (0, -1, -2)[: 2 + self.bias], (1,))


_KINDS: tuple[Literal["forward"], Literal["input gradient"], Literal["kernel gradient"]] = (
    "forward",
    "input gradient",
    "kernel gradient",
)


def _bias_dtype(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _transposed(function: Callable[[Array], Array], shape: tuple[int, ...], cotangent: Array) -> Array:
    """The transpose of a linear function of an array of this shape."""
    like = jax.lax.full_like(cotangent, 0, shape=shape)
    return jax.vjp(function, like)[1](cotangent)[0]
