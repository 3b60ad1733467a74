"""The convolution of the backbones: oneDNN's on a CPU where it is installed, XLA's elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.cpu import onednn
from jax_arcface.cpu.onednn import Convolution
from jax_arcface.cpu.sums import channel_sums

NHWC = ("NHWC", "HWIO", "NHWC")  # the layouts of images, kernel and results


def convolve(
    images: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    bias: Array | None = None,
) -> Array:
    """A convolution (a cross-correlation, as everywhere), computed by oneDNN where that can do it, else by XLA.

    It can on a CPU that is JAX's only device, with the extra `cpu` installed, in float32 and bfloat16. `vmap` then
    calls it once for each. Forward-mode differentiation, `jax.export` and lowering for another platform are not there:
    ARCFACE_ONEDNN=0 in the environment leaves all to XLA, which can.

    Args:
      images: [B, H, W, I].
      kernel: [h, w, I, O], of the same dtype.
      strides: (down, right).
      padding: rows and columns of zeros, ((top, bottom), (left, right)).
      bias: [O], any float dtype.

    Returns:
      [B, H', W', O].

    >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), (1, 1), ((1, 1), (1, 1)))[0, :, :, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    fits = images.ndim == kernel.ndim == 4 and images.dtype == kernel.dtype  # else XLA tells what is wrong
    described = _described(images, kernel, strides, padding, bias is not None) if fits else None
    if described is None or not onednn.supports(described):
        results = jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=NHWC)
        return results if bias is None else _add_bias(results, bias)
    if bias is None:
        return _forward(described, images, kernel)
    return _biased(described, images, kernel, bias.astype(jnp.float32))


def _described(
    images: Array, kernel: Array, strides: tuple[int, int], padding: Sequence[tuple[int, int]], bias: bool
) -> Convolution:
    (top, bottom), (left, right) = padding
    down, across = strides
    height = (images.shape[1] + top + bottom - kernel.shape[0]) // down + 1
    width = (images.shape[2] + left + right - kernel.shape[1]) // across + 1
    return Convolution(
        images.shape,
        kernel.shape,
        (images.shape[0], height, width, kernel.shape[3]),
        strides,
        before=(top, left),
        after=(bottom, right),
        dtype=images.dtype.name,
        bias=bias,
    )


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype)


_add_bias.defvjp(
    lambda x, bias: (_add_bias(x, bias), bias),
    lambda bias, gradient: (gradient, channel_sums(gradient.astype(bias.dtype))),
)


# A convolution is linear in each of two arrays, and so is each of its gradients: each is the others' gradient.
# A bias is added by oneDNN on the way, and its gradient comes with the kernel's.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(convolution: Convolution, images: Array, kernel: Array) -> Array:
    return onednn.apply("forward", convolution, images, kernel)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _biased(convolution: Convolution, images: Array, kernel: Array, bias: Array) -> Array:
    return onednn.apply("forward", convolution, images, kernel, bias)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_images(convolution: Convolution, results: Array, kernel: Array) -> Array:
    return onednn.apply("input gradient", convolution, results, kernel)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_kernel(convolution: Convolution, images: Array, results: Array) -> Array:
    return onednn.apply("kernel gradient", convolution, images, results)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_kernel_and_bias(convolution: Convolution, images: Array, results: Array) -> tuple[Array, Array]:
    kernel, bias = onednn.apply("kernel gradient", convolution, images, results)
    return kernel, bias


def _plain(convolution: Convolution) -> Convolution:
    return convolution._replace(bias=False)


_forward.defvjp(
    lambda convolution, images, kernel: (_forward(convolution, images, kernel), (images, kernel)),
    lambda convolution, saved, d: (_to_images(convolution, d, saved[1]), _to_kernel(convolution, saved[0], d)),
)
_biased.defvjp(
    lambda convolution, images, kernel, bias: (_biased(convolution, images, kernel, bias), (images, kernel)),
    lambda convolution, saved, d: (
        _to_images(convolution, d, saved[1]),
        *_to_kernel_and_bias(convolution, saved[0], d),
    ),
)
_to_images.defvjp(
    lambda convolution, results, kernel: (_to_images(convolution, results, kernel), (results, kernel)),
    lambda convolution, saved, d: (
        _forward(_plain(convolution), d, saved[1]),
        _to_kernel(_plain(convolution), d, saved[0]),
    ),
)
_to_kernel.defvjp(
    lambda convolution, images, results: (_to_kernel(convolution, images, results), (images, results)),
    lambda convolution, saved, d: (_to_images(convolution, saved[1], d), _forward(convolution, saved[0], d)),
)
_to_kernel_and_bias.defvjp(
    lambda convolution, images, results: (_to_kernel_and_bias(convolution, images, results), (images, results)),
    lambda convolution, saved, d: (_to_images(convolution, saved[1], d[0]), _biased(convolution, saved[0], *d)),
)
