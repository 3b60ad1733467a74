"""The convolution of the backbones: oneDNN's on a CPU where it is installed, XLA's elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface import onednn
from jax_arcface.onednn import Convolution
from jax_arcface.sums import channel_sums

NHWC = ("NHWC", "HWIO", "NHWC")  # the layouts of images, kernel and results


def convolve(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]] | str,
    bias: Array | None = None,
    **rest: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of images and kernel, plus a bias, computed by oneDNN where that can do it.

    It can on a CPU that is JAX's only device, with the extra `cpu` installed, in float32 and bfloat16, without dilation
    or groups. `vmap` then calls it once for each. Forward-mode differentiation, `jax.export` and lowering for another
    platform are not there: ARCFACE_ONEDNN=0 in the environment leaves all to XLA, which can.

    Args:
      images: [B, H, W, I].
      kernel: [h, w, I, O].
      strides: (down, right).
      padding: ((top, bottom), (left, right)), "SAME" or "VALID".
      bias: float32 [O], or of the dtype of images.
      rest: as `jax.lax.conv_general_dilated`; with `dimension_numbers` other than NHWC, HWIO, NHWC that is what is
        called.

    Returns:
      [B, H', W', O].

    >>> import jax.numpy as jnp
    >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), (1, 1), "SAME", dimension_numbers=NHWC)[0, :, :, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    convolution = _described(images, kernel, strides, padding, rest)
    if convolution is None or not onednn.supports(convolution := convolution._replace(bias=bias is not None)):
        results = jax.lax.conv_general_dilated(images, kernel, strides, padding, **rest)
        return results if bias is None else _add_bias(results, bias)
    return (
        _forward(convolution, images, kernel)
        if bias is None
        else _biased(convolution, images, kernel, bias.astype(jnp.float32))
    )


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.astype(x.dtype)


_add_bias.defvjp(
    lambda x, bias: (_add_bias(x, bias), bias),
    lambda bias, gradient: (gradient, channel_sums(gradient.astype(bias.dtype))),
)


def _described(
    images: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]] | str, rest: dict
) -> Convolution | None:
    """The convolution, if it is a plain one."""
    rest = {name: value for name, value in rest.items() if value is not None}
    numbers = jax.lax.conv_dimension_numbers(images.shape, kernel.shape, rest.pop("dimension_numbers", None))
    nhwc = jax.lax.conv_dimension_numbers(images.shape, kernel.shape, NHWC)
    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in rest.pop(name, ()))
    groups = rest.pop("feature_group_count", 1)
    if rest or dilated or groups != 1 or numbers != nhwc or images.dtype != kernel.dtype:
        return None
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], tuple(strides), padding)
    (top, bottom), (left, right) = padding
    down, across = strides
    height = (images.shape[1] + top + bottom - kernel.shape[0]) // down + 1
    width = (images.shape[2] + left + right - kernel.shape[1]) // across + 1
    results = (images.shape[0], height, width, kernel.shape[3])
    return Convolution(
        images.shape, kernel.shape, results, (down, across), (top, left), (bottom, right), images.dtype.name
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
