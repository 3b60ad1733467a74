"""The layers whose definition the recipe pins (`docs/recipe.md`) and Flax has otherwise, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jax_arcface.cpu import Implementation, channel_sums, convolve, prelu
from jax_arcface.cpu.operations import Operation, Transpose, compute


class FixedScale(nnx.Variable):
    """A batch norm's scale that is not trained."""


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, with PyTorch's definitions (Ioffe and Szegedy 2015).

    The biased variance normalises; the unbiased one enters the running variance, with weight 0.1 (Flax's own takes the
    biased one). Statistics are taken in float32 (float64 for float64). In training mode, as it is made, it takes the
    batch's statistics and updates the running ones; `eval()` makes it take those.

    Args:
      channels: size of the last axis.
      fixed_scale: whether the scale is not trained, but stays 1.

    >>> norm = BatchNorm(3)
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> norm(x).std(axis=0).round(3)
    Array([1., 1., 1.], dtype=float32)
    >>> jnp.round(100 * norm.mean[...])  # a tenth of the batch's mean, 4.5, 5.5, 6.5
    Array([45., 55., 65.], dtype=float32)
    """

    def __init__(self, channels: int, *, fixed_scale: bool = False):
        self.scale = (FixedScale if fixed_scale else nnx.Param)(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.use_running_average = False

    def __call__(self, x: Array) -> Array:
        """[..., C] to [..., C]."""
        dtype = x.dtype
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        scale, bias = self.scale[...], self.bias[...]
        if not self.use_running_average:
            y, mean, var = _normalise_batch(x, scale, bias)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean)
            self.var[...] = 0.9 * self.var[...] + 0.1 * jax.lax.stop_gradient(unbiased)
        else:
            y = (x - self.mean[...]) * (scale * jax.lax.rsqrt(self.var[...] + _EPSILON)) + bias
        return y.astype(dtype)


_EPSILON = 1e-5


@jax.custom_jvp
def _normalise_batch(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The normalised batch, its mean and its biased variance; the last two take no gradient.

    With a gradient of its own, since on a CPU that takes a third of the time of JAX's: it reads the batch twice.
    """
    y, mean, var, _ = _normalise(x, scale, bias)
    return y, mean, var


@_normalise_batch.defjvp
def _normalise_batch_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    x, scale, _ = primals
    y, mean, var, inverse = _normalise(*primals)
    (to_y,) = compute(_NormTangent(), x, mean, inverse, scale, *tangents)
    return (y, mean, var), (to_y, jnp.zeros_like(mean), jnp.zeros_like(var))


def _normalise(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array, Array]:
    count = x.size // x.shape[-1]
    mean = channel_sums(x) / count
    centred = x - mean
    var = channel_sums(centred * centred) / count
    inverse = jax.lax.rsqrt(var + _EPSILON)
    return centred * (scale * inverse) + bias, mean, var, inverse


@dataclasses.dataclass(frozen=True)
class _NormTangent(Operation):
    """From x, mean, 1 / std, scale and the tangents of x, scale and bias to that of the normalised batch."""

    xla_only = True

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        x, mean, inverse, scale, to_x, to_scale, to_bias = arrays
        count = x.size // x.shape[-1]
        normalised = (x - mean) * inverse
        along = to_x - channel_sums(to_x) / count - normalised * (channel_sums(normalised * to_x) / count)
        return ((scale * inverse) * along + normalised * to_scale + to_bias,)

    def transpose(self, unknown: Sequence[bool]) -> Transpose:
        return Transpose(_NormGradient(), (0, 1, 2, 3, -1), (4, 5, 6))


@dataclasses.dataclass(frozen=True)
class _NormGradient(Operation):
    """From x, mean, 1 / std, scale and the gradient of the normalised batch to those of x, scale and bias."""

    xla_only = True

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        x, mean, inverse, scale, gradient = arrays
        count = x.size // x.shape[-1]
        normalised = (x - mean) * inverse
        to_scale, to_bias = channel_sums(gradient * normalised), channel_sums(gradient)
        to_x = (scale * inverse) * (gradient - to_bias / count - normalised * (to_scale / count))
        return to_x, to_scale, to_bias


class PReLU(nnx.Module):
    """max(x, 0) + slope min(x, 0), one learnt slope for each channel, 0.25 at first (He et al. 2015, equation 1).

    Args:
      channels: C.
      implementation: as in `jax_arcface.cpu.prelu`.

    >>> PReLU(2)(jnp.array([[-4.0, 4.0]]))
    Array([[-1.,  4.]], dtype=float32)
    """

    def __init__(self, channels: int, *, implementation: Implementation = "auto"):
        self.slope = nnx.Param(jnp.full(channels, 0.25))
        self.implementation: Implementation = implementation

    def __call__(self, x: Array) -> Array:
        """[..., C] to [..., C]."""
        return prelu(x, self.slope[...], self.implementation)


class Conv(nnx.Module):
    """A convolution of images [B, H, W, I] by `convolve`, with zeros around them.

    Args:
      inputs, outputs: channels.
      size: the kernel's side, or (height, width).
      stride: down and right.
      padding: pixels on each side; None takes half of the size, rounded down.
      groups: of channels, each computed from its own share of the inputs.
      use_bias: whether there is one.
      dtype: of the computation; None takes that of images and kernel together.
      implementation: as in `convolve`.
      rngs: for the initial kernel, [height, width, inputs / groups, outputs].

    >>> Conv(3, 8, 5, stride=2, rngs=nnx.Rngs(0))(jnp.ones((1, 32, 32, 3))).shape
    (1, 16, 16, 8)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        draw = nnx.initializers.lecun_normal()
        height, width = (size, size) if isinstance(size, int) else size
        self.kernel = nnx.Param(draw(rngs.params(), (height, width, inputs // groups, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None
        self.stride, self.groups, self.dtype = stride, groups, dtype
        self.padding = tuple((side // 2 if padding is None else padding,) * 2 for side in (height, width))
        self.implementation: Implementation = implementation

    def __call__(self, x: Array) -> Array:
        """[B, H, W, I] to [B, H', W', O]."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        dtype = jnp.result_type(x, kernel) if self.dtype is None else self.dtype
        strides = (self.stride, self.stride)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        return convolve(x, kernel, strides, self.padding, bias, groups=self.groups, implementation=self.implementation)


@jax.custom_jvp
def max_pool(x: Array) -> Array:
    """The maximum of 2x2 windows, stride 2; an odd last row or column is dropped.

    A tie's gradient goes to the window's first maximum in row-major order. Written with `where`, since the gradient of
    XLA's windowed reduction is several times slower on a CPU, and with a gradient of its own, which takes half the time
    of that of the comparisons.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H // 2, W // 2, C].

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    return _pooled(x)[0]


def _pooled(x: Array) -> tuple[Array, Array]:
    """The maxima, and at which corner of its window each stands: 0 and 1 above, 2 and 3 below."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top, bottom = x[:, :height:2], x[:, 1:height:2]
    above, right_above = _first_max(top[:, :, :width:2], top[:, :, 1:width:2])
    below, right_below = _first_max(bottom[:, :, :width:2], bottom[:, :, 1:width:2])
    maxima, is_below = _first_max(above, below)
    return maxima, jnp.where(is_below, 2 + right_below, right_above.astype(jnp.uint8))


def _first_max(first: Array, second: Array) -> tuple[Array, Array]:
    """The larger of each two, the first of equal ones, and whether it is the second."""
    is_second = ~((first >= second) | jnp.isnan(first))
    return jnp.where(is_second, second, first), is_second


@max_pool.defjvp
def _max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    maxima, corner = _pooled(*primals)
    (tangent,) = compute(_PoolTangent(primals[0].shape[1:3]), corner, *tangents)
    return maxima, tangent


@dataclasses.dataclass(frozen=True)
class _PoolTangent(Operation):
    """From the maxima's corners and images of `size` to the images' numbers there."""

    size: tuple[int, ...]
    xla_only = True

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        corner, x = arrays
        height, width = (side // 2 * 2 for side in self.size)
        first, *others = (x[:, down:height:2, right:width:2] for down in (0, 1) for right in (0, 1))
        for place, numbers in enumerate(others, 1):
            first = jnp.where(corner == place, numbers, first)
        return (first,)

    def transpose(self, unknown: Sequence[bool]) -> Transpose:
        return Transpose(_PoolGradient(self.size), (0, -1), (1,))


@dataclasses.dataclass(frozen=True)
class _PoolGradient(Operation):
    """Each gradient in the corner of its window that had the maximum, zero in the others."""

    size: tuple[int, ...]
    xla_only = True

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        corner, gradient = arrays
        height, width = self.size
        odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
        corner, gradient = jnp.pad(corner, odd), jnp.pad(gradient, odd)
        corners = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
        spread = jnp.where(corner[:, :, None, :, None] == corners, gradient[:, :, None, :, None], 0)
        batch, rows, columns, channels = corner.shape
        return (spread.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width],)


@jax.custom_jvp
def global_max_pool(x: Array) -> Array:
    """The maximum over the pixels, [B, H, W, C] to [B, C]; a tie's gradient goes to the first in row-major order."""
    return x.max(axis=(1, 2))


@global_max_pool.defjvp
def _global_max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    pixels, tangent = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (*primals, *tangents))
    first = jnp.argmax(pixels, axis=1, keepdims=True)
    return tuple(jnp.take_along_axis(each, first, axis=1)[:, 0] for each in (pixels, tangent))  # type: ignore[return-value]


class Dropout(nnx.Dropout):
    """Dropout whose mask may be given.

    Args:
      rate: share of features dropped in training, in [0, 1).
      features: how many there are.
      rngs: their stream `dropout` draws masks that are not given.
    """

    def __init__(self, rate: float, features: int, *, rngs: nnx.Rngs):
        super().__init__(rate, rngs=rngs if rate > 0 else None)
        self.features = features

    def __call__(self, x: Array, mask: Array | None = None) -> Array:  # type: ignore[override]
        """[B, F] to [B, F]; `mask`, bool [B, F], is true where a feature is kept in training."""
        if mask is None:
            return super().__call__(x)
        return x if self.deterministic else jnp.where(mask, x / (1 - self.rate), 0)


def dropout_of(backbone: nnx.Module) -> Dropout:
    """A backbone's dropout layer; each of `BACKBONES` has one."""
    return next(module for _, module in nnx.iter_modules(backbone) if isinstance(module, Dropout))


class Embedding(nnx.Module):
    """The embedding layer: batch norm - dropout - fully connected - batch norm (ArcFace, section 3.1, "option E").

    Args:
      shape: (H, W, C) of the feature map.
      embedding_dim: D.
      dropout: share of features dropped in training, in [0, 1).
      dtype: of the matrix product; None takes the input's.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        embedding_dim: int,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        features = shape[0] * shape[1] * shape[2]
        self.dropout = Dropout(dropout, features, rngs=rngs)
        self.bn1 = BatchNorm(shape[2])
        self.fc = nnx.Linear(features, embedding_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(embedding_dim)

    def __call__(self, x: Array, dropout_mask: Array | None = None) -> Array:
        """[B, H, W, C] to [B, D].

        `dropout_mask`, bool [B, C H W], is true where a feature is kept in training; where None, it is drawn from the
        stream `dropout` of `rngs`.
        """
        return self.bn2(self.fc(self.dropout(flattened(self.bn1(x)), dropout_mask)))


def flattened(x: Array) -> Array:
    """[B, H, W, C] to [B, C H W], in PyTorch's order: channel, row, column."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def scaled(channels: int, width: float) -> int:
    """A number of channels times a factor, at least 1."""
    return max(1, round(channels * width))
