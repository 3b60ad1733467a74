"""The margin softmax loss without the [B, C] logits: classes are read in blocks, forwards and once more backwards.

With cosines c_ij = u_i . v_j of unit vectors, z_ij = s c_ij and the target's logit z_iy = s psi(c_iy), the loss is

    L = mean_i (log sum_j exp z_ij - z_iy) = mean_i softplus(r_i - z_iy),    r_i = log sum_{j != y} exp z_ij.

Forwards, r_i is summed up block by block over a running maximum, and c_iy comes from the labels' prototypes alone.
Backwards, each block's c_ij are computed again, and with d = d L / d (what the variable holds)

    d c_ij = s d r_i exp(z_ij - r_i) for j != y,    d u_i = sum_j d c_ij v_j,    d v_j = sum_i d c_ij u_i,

while d c_iy and d r_i are left to automatic differentiation of L: vectors [B], whatever the margin. A block's d v_j
goes through the normalisation into its rows of d w before the next block is read. (Milakov and Gimelshein, "Online
normalizer calculation for softmax", arXiv 1805.02867, is the source of the running maximum.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jax_arcface.cpu import Implementation, product
from jax_arcface.losses import checks
from jax_arcface.losses.margins import Margin, target_cosine
from jax_arcface.losses.mesh import Shard, equally_varying, on_each_device, shard_of, varying_as
from jax_arcface.losses.reduction import Reduction, checked_weights, reduce, without_ignored
from jax_arcface.losses.softmax import linear_logits
from jax_arcface.losses.vectors import checked_labels, checked_vectors, cosines, normalize

_MIB = 2**20
# From so many cosines on, B x C x K, the fused loss takes about as much time as the dense one, or less, and less memory
# (docs/performance.md).
MANY_COSINES = 2**21
_Carry = TypeVar("_Carry")
_FourArrays: TypeAlias = tuple[Array, Array, Array, Array]


def fused_margin_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    label_smoothing: float = 0.0,
    filter_above: ArrayLike | None = None,
    *,
    block_size: int | None = None,
    matmul_dtype: DTypeLike | None = None,
    implementation: Implementation = "auto",
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> Array:
    """`margin_softmax_loss` and its gradients in memory that does not grow with B x C.

    Pure; works under jit, vmap and grad, on a mesh (`losses/mesh.py`), and twice under grad unless prototypes are
    bfloat16; not under jvp, since its backward pass, which reads the classes once more, is written by hand. Its inputs
    and their gradients apart, it holds a few arrays [block_size, B] and [block_size, D] (and a copy of the prototypes
    where they are bfloat16). ArcFace (Deng et al., CVPR 2019), equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class; only their direction counts.
      labels: [B], integers in [0, C).
      margin, scale, filter_above: as in `margin_logits`. label_smoothing: as in `margin_softmax_loss`.
      block_size: how many classes are read at a time; it need not divide C. None takes as many, in steps of 128, as let
        a block's prototypes and cosines, block_size x K x (D + B) numbers, fill 8 MiB of float32 on a CPU (measured:
        docs/performance.md) and 64 MiB elsewhere (not measured).
      matmul_dtype: what the factors of the large matrix products are rounded to, say `jnp.bfloat16`; sums stay in
        float32, and the target's cosine is computed as without. None rounds nothing.
      implementation: of the large matrix products, as in `jax_arcface.cpu.product`.
      reduction, weights: as in `softmax_loss`.

    Returns:
      A scalar, or [B] with `reduction="none"`; float32 (float64 for float64). NaN inside jit for a label outside
      [0, C).

    Raises:
      ValueError, TypeError: as `margin_softmax_loss`; and a scale that is no scalar, no classes, a block size that is
        not a whole number above 0, or a `matmul_dtype` that is no float dtype.
      NotImplementedError: a second derivative where prototypes are bfloat16.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = fused_margin_softmax_loss(x, w, jnp.array([0]), Margin.cosface(0.35), scale=1.0, block_size=1)
    >>> print(loss.round(4))  # log(1 + e^-0.65)
    0.4201
    """
    loss, _ = loss_and_correct(
        embeddings,
        prototypes,
        labels,
        margin,
        scale,
        label_smoothing,
        filter_above,
        block_size=block_size,
        matmul_dtype=matmul_dtype,
        implementation=implementation,
        reduction=reduction,
        weights=weights,
    )
    return loss


def loss_and_correct(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    label_smoothing: float = 0.0,
    filter_above: ArrayLike | None = None,
    *,
    block_size: int | None = None,
    matmul_dtype: DTypeLike | None = None,
    implementation: Implementation = "auto",
    reduction: Reduction = "mean",
    weights: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """`fused_margin_softmax_loss`, and which embeddings have their largest cosine with their own class, without margin.

    The loss knows that from its forward pass; `nearest_class` would need another. Arguments and errors are those of
    `fused_margin_softmax_loss`.

    Returns:
      The loss, and bool [B]. It is false, too, where another class is exactly as near (there `nearest_class` gives the
      first of the two), for a label outside [0, C), and where the weight is 0. With `matmul_dtype` the other classes'
      cosines are those of rounded factors.

    >>> x, w = jnp.array([[1.0, 0.0], [2.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> loss_and_correct(x, w, jnp.array([0, 1]), Margin.arcface(0.5))[1].tolist()
    [True, False]
    """
    embeddings, prototypes, block_size = _checked(embeddings, prototypes, block_size)
    weights = checked_weights(weights, len(embeddings))
    labels = checked_labels(labels, len(embeddings), shard_of(prototypes, embeddings, labels).total, weights)
    checks.positive(scale=scale)
    checks.below_one(label_smoothing=label_smoothing)
    if jnp.ndim(scale):
        raise ValueError(f"scale has shape {jnp.shape(scale)}; it must be a scalar")
    if matmul_dtype is not None and not jnp.issubdtype(matmul_dtype, jnp.floating):
        raise ValueError(f"matmul_dtype is {matmul_dtype!r}; it must be a float dtype or None")
    embeddings = without_ignored(embeddings, weights)
    margin = jax.tree.map(lambda m: jnp.broadcast_to(m, labels.shape), margin)
    losses, correct = _losses(
        (embeddings, labels, margin),
        prototypes,
        (jnp.asarray(scale), None if filter_above is None else jnp.asarray(filter_above)),
        smoothing=float(label_smoothing),
        block_size=block_size,
        matmul_dtype=None if matmul_dtype is None else jnp.dtype(matmul_dtype),
        implementation=implementation,
    )
    return reduce(losses, weights, reduction), (correct if weights is None else correct & (weights != 0))


def default_block_size(embeddings: Array, prototypes: Array) -> int:
    """How many classes are read at a time where no `block_size` is given, for [B, D] and [C, D] or [C, K, D]."""
    room = (8 if jax.default_backend() == "cpu" else 64) * _MIB // 4
    numbers = math.prod(prototypes.shape[1:-1]) * sum(embeddings.shape)  # a class
    return max(room // numbers // 128, 1) * 128


def _checked(embeddings: ArrayLike, prototypes: ArrayLike, block_size: int | None) -> tuple[Array, Array, int]:
    """Both as arrays, once they are found to fit, and how many classes to read at a time."""
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    if 0 in prototypes.shape:
        raise ValueError(f"prototypes have shape {prototypes.shape}; they must hold at least one number")
    if block_size is None:
        return embeddings, prototypes, default_block_size(embeddings, prototypes)
    checks.whole(block_size=block_size)
    return embeddings, prototypes, int(block_size)


def has_many_cosines(embeddings: ArrayLike, prototypes: ArrayLike) -> bool:
    """Whether a training takes the fused loss for embeddings [B, D] and prototypes [C, D] or [C, K, D].

    >>> has_many_cosines(jnp.zeros((128, 64)), jnp.zeros((10, 64)))
    False
    >>> has_many_cosines(jnp.zeros((128, 8)), jnp.zeros((100_000, 8)))
    True
    """
    return jnp.shape(embeddings)[0] * math.prod(jnp.shape(prototypes)[:-1]) >= MANY_COSINES


def nearest_class(embeddings: ArrayLike, prototypes: ArrayLike, *, block_size: int | None = None) -> Array:
    """The class whose prototype has the largest cosine with each embedding, without the [B, C] cosines.

    Args:
      embeddings: [B, D]. prototypes: [C, D], or [C, K, D] with K sub-centres.
      block_size: as in `fused_margin_softmax_loss`.

    Returns:
      [B], the first of equals.

    Raises:
      ValueError: shapes that do not fit, no classes, or a block size that is not a whole number above 0.

    >>> nearest_class(jnp.array([[2.0, 1.0], [0.0, -1.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
    [1, 1]
    """
    embeddings, prototypes, block_size = _checked(embeddings, prototypes, block_size)
    embeddings, prototypes = jax.lax.stop_gradient((embeddings, prototypes))  # as bits cannot be differentiated
    return _nearest_class(embeddings, prototypes, block_size=block_size)


@functools.partial(jax.jit, static_argnames=("block_size",))
def _nearest_class(embeddings: Array, prototypes: Array, *, block_size: int) -> Array:
    def here(embeddings: Array, prototypes: Array, _: tuple, total: int | None) -> Array:
        shard = shard_of(prototypes, embeddings, total=total)
        u, prototypes = equally_varying(normalize(embeddings), prototypes)
        settings = _Settings(False, min(block_size, len(prototypes)), None)

        def add(start: Array | int, block: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
            largest, found = so_far
            c, _ = _nearest(_product(_unit_rows(block, u.dtype), u.T, settings), block)
            if shard.is_padded(len(prototypes)):
                c = jnp.where(_is_padding(shard.total - shard.first, start, block), -jnp.inf, c)
            larger = c.max(axis=0) > largest
            number = shard.first + start + c.argmax(axis=0)
            return jnp.where(larger, c.max(axis=0), largest), jnp.where(larger, number, found)

        none = jnp.full(len(u), -jnp.inf, u.dtype), jnp.zeros(len(u), int)
        largest, found = _over_blocks(settings.block_size, prototypes, add, varying_as(u, none))
        return shard.min(jnp.where(largest == shard.max(largest), found, shard.total))

    return on_each_device(here, embeddings, prototypes)


@jax.jit
def classify(embeddings: ArrayLike, prototypes: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """The class of each embedding, [B]: the largest W x + b with a bias, else the nearest prototype.

    Args:
      embeddings: [B, D]. prototypes: [C, D], or [C, K, D] with K sub-centres. bias: [C], of a linear classifier.

    >>> x, w = jnp.array([[2.0, 1.0], [0.0, -1.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> classify(x, w).tolist(), classify(x, w, jnp.array([3.0, 0.0])).tolist()
    ([1, 1], [0, 0])
    """
    if bias is not None:
        return jnp.argmax(linear_logits(embeddings, prototypes, bias), axis=-1)
    if has_many_cosines(embeddings, prototypes):
        return nearest_class(embeddings, prototypes)
    return jnp.argmax(cosines(embeddings, prototypes), axis=-1)


class _Settings(NamedTuple):
    with_sum: bool  # of the logits
    block_size: int
    matmul_dtype: np.dtype | None
    implementation: Implementation = "auto"


@functools.partial(jax.jit, static_argnames=("smoothing", "block_size", "matmul_dtype", "implementation"))
def _losses(
    of_examples: tuple[Array, Array, Margin],
    prototypes: Array,
    of_all: tuple[Array, Array | None],
    *,
    smoothing: float,
    block_size: int,
    matmul_dtype: np.dtype | None,
    implementation: Implementation,
) -> tuple[Array, Array]:
    if not jnp.issubdtype(prototypes.dtype, jnp.floating):
        prototypes = prototypes.astype(float)

    def here(
        of_examples: tuple[Array, Array, Margin],
        prototypes: Array,
        of_all: tuple[Array, Array | None],
        total: int | None,
    ) -> tuple[Array, Array]:
        (embeddings, labels, margin), (scale, filter_above) = of_examples, of_all
        shard = shard_of(prototypes, embeddings, labels, total=total)
        u = normalize(embeddings)
        u = u.astype(jnp.result_type(u, prototypes))  # float64 if either is
        scale = scale.astype(u.dtype)
        settings = _Settings(bool(smoothing), min(block_size, len(prototypes)), matmul_dtype, implementation)
        cosine, largest, total_exp, sum_others, nearest = _of_all_devices(
            settings, shard, u, prototypes, labels, scale, filter_above
        )
        target = scale * target_cosine(cosine, margin)
        losses = jax.nn.softplus((largest - target) + jnp.log(total_exp))  # near numbers first: no digits are lost
        if smoothing:
            losses += smoothing * (target - (sum_others + target) / shard.total)
        is_class = (labels >= 0) & (labels < shard.total)
        return losses * jnp.where(is_class, 1, jnp.nan), is_class & (scale * cosine > nearest)

    return on_each_device(here, of_examples, prototypes, of_all)


def _of_all_devices(
    settings: _Settings,
    shard: Shard,
    u: Array,
    prototypes: Array,
    labels: Array,
    scale: Array,
    filter_above: Array | None,
) -> tuple[Array, Array, Array, Array, Array]:
    """`_all_classes`, of the classes of all devices: each looks at its own, and what they found, [B], is exchanged."""
    inputs = equally_varying(u, prototypes, labels - shard.first, scale)
    count = jnp.asarray(shard.total - shard.first) if shard.is_padded(len(prototypes)) else None
    cosine, largest, total, sums, nearest = _all_classes(settings, *inputs, filter_above, count)
    if shard.axis is None:
        return cosine, largest, total, sums, nearest
    is_here = (inputs[2] >= 0) & (inputs[2] < len(prototypes))
    of_all = shard.max(largest)
    return (
        shard.sum(jnp.where(is_here, cosine, 0)),
        of_all,
        shard.sum(total * jnp.exp(largest - of_all)),
        shard.sum(sums),
        shard.max(nearest),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_classes(
    settings: _Settings,
    u: Array,
    prototypes: Array,
    labels: Array,
    scale: Array,
    filter_above: Array | None,
    count: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """What the loss needs to know of all classes, from unit vectors u [B, D]; rows from `count` on are no classes.

    Returns:
      c_iy; b_i = max_{j != y} z_ij, a constant to differentiation; sum_{j != y} exp(z_ij - b_i); sum_{j != y} z_ij, or
      0 where it is not wanted; and max_{j != y} s c_ij, which is b_i but for the filter, a constant too. Each [B].
    """
    u_t = u.T

    def add(start: Array | int, block: Array, so_far: _FourArrays) -> _FourArrays:
        largest, total, sums, nearest = so_far
        c, _ = _nearest(_product(_unit_rows(block, u.dtype), u_t, settings), block)
        z = scale * _filtered(c, filter_above)
        is_no_other = _is_target(labels, start, block) | _is_padding(count, start, block)
        if settings.with_sum:
            sums += jnp.where(is_no_other, 0, z).sum(axis=0)
        z = jnp.where(is_no_other, -jnp.inf, z)
        larger = jnp.maximum(largest, z.max(axis=0))
        total = total * jnp.exp(largest - larger) + jnp.exp(z - larger).sum(axis=0)
        if filter_above is None:
            return larger, total, sums, larger
        return larger, total, sums, jnp.maximum(nearest, jnp.where(is_no_other, -jnp.inf, scale * c).max(axis=0))

    zeros = jnp.zeros(len(u), u.dtype)
    lowest = jnp.full(len(u), jnp.finfo(u.dtype).min, u.dtype)  # not -inf, which would make NaN of a lone class
    none = varying_as(u, (lowest, zeros, zeros, lowest))
    found = _over_blocks(settings.block_size, prototypes, add, none)
    own = normalize(prototypes[labels.clip(0, len(prototypes) - 1)])  # [B, D] or [B, K, D]
    cosine = jnp.einsum("b...d,bd->b...", own, u, precision=jax.lax.Precision.HIGHEST)
    return cosine.max(axis=tuple(range(1, cosine.ndim))), *found


def _forward(settings: _Settings, *inputs: Array | None) -> tuple[tuple[Array, Array, Array, Array, Array], tuple]:
    outputs = _all_classes(settings, *inputs)
    _, largest, *_ = outputs
    return outputs, (*inputs, largest)


def _backward(settings: _Settings, residuals: tuple, cotangents: tuple[Array, ...]) -> tuple:
    u, prototypes, labels, scale, filter_above, count, largest = residuals
    d_cosine, _, d_total, d_sum, _ = cotangents
    u_t = u.T

    def add(start: Array | int, block: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_u_t, d_bits, s_d_scale = so_far
        v = _unit_rows(block, u.dtype)
        _, normalization = jax.vjp(lambda block: _unit_rows(block, u.dtype), block)
        c, nearest = _nearest(_product(v, u_t, settings), block)
        is_target = _is_target(labels, start, block)
        # the target's logit may be so much larger that its exp is infinite, which would make second derivatives NaN
        is_no_other = is_target | _is_padding(count, start, block)
        z = jnp.where(is_no_other, -jnp.inf, scale * _filtered(c, filter_above))
        d_c = jnp.exp(z - largest) * (scale * d_total)
        if settings.with_sum:
            d_c += scale * d_sum
        if filter_above is not None:
            d_c = jnp.where(c > filter_above, 0, d_c)
        s_d_scale += jnp.where(is_target, 0, d_c * c).sum(axis=0)  # d z_ij / d s = c_ij; dropped where not asked for
        d_c = jnp.where(is_target, d_cosine, d_c)
        if block.ndim == 3:  # to the nearest sub-centre only
            is_nearest = jnp.arange(block.shape[1])[:, None] == nearest
            d_c = jnp.where(is_nearest, d_c[:, None], 0).reshape(-1, len(u))
        (d_block,) = normalization(_product(d_c, u, settings))
        d_bits = jax.lax.dynamic_update_slice_in_dim(d_bits, _bits(d_block), start, axis=0)
        return d_u_t + _product(v, d_c, settings, transposed=True), d_bits, s_d_scale

    none = varying_as(u, (jnp.zeros_like(u_t), jnp.zeros_like(_bits(prototypes)), jnp.zeros_like(largest)))
    d_u_t, d_bits, s_d_scale = _over_blocks(settings.block_size, prototypes, add, none)
    return d_u_t.T, _from_bits(d_bits, prototypes.dtype), None, s_d_scale.sum() / scale, None, None


_all_classes.defvjp(_forward, _backward)


def _over_blocks(
    block_size: int, prototypes: Array, add: Callable[[Array | int, Array, _Carry], _Carry], carry: _Carry
) -> _Carry:
    """Calls `add(first class, block of prototypes, carry)` for all blocks; what is left over is a smaller one."""
    bits = _bits(prototypes)

    def step(k: Array, carry: _Carry) -> _Carry:
        start = k * block_size
        block = jax.lax.dynamic_slice_in_dim(bits, start, block_size)
        return add(start, _from_bits(block, prototypes.dtype), carry)

    whole, rest = divmod(len(prototypes), block_size)
    carry = jax.lax.fori_loop(0, whole, step, carry)
    return add(whole * block_size, prototypes[whole * block_size :], carry) if rest else carry


def _bits(x: Array) -> Array:
    """bfloat16 as integers: XLA's CPU backend reads and writes a block of it by way of the whole array in float32."""
    return _integers(x) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: Array, dtype: DTypeLike) -> Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


@jax.custom_jvp
def _integers(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@_integers.defjvp
def _integers_jvp(primals: tuple, tangents: tuple) -> Any:
    raise NotImplementedError("bfloat16 prototypes have no second derivatives; convert them to float32")


def _unit_rows(block: Array, dtype: DTypeLike) -> Array:
    """Prototypes [b, D] or [b, K, D] as unit vectors [b, D] or [b K, D].

    The barriers keep it to itself, so that it is compiled alike forwards and backwards: were c_ij the next number
    backwards, exp(z_ij - b_i) would be s times as far from what was summed up forwards.
    """
    rows = jax.lax.optimization_barrier(block.reshape(-1, block.shape[-1]))
    return jax.lax.optimization_barrier(normalize(rows).astype(dtype))


def _product(a: Array, b: Array, settings: _Settings, transposed: bool = False) -> Array:
    """a b, or a^T b, of factors rounded to `matmul_dtype`, in the dtype that they had."""
    dtype = a.dtype
    if settings.matmul_dtype is not None:
        a, b = a.astype(settings.matmul_dtype), b.astype(settings.matmul_dtype)
    return product(a, b, dtype, transposed=transposed, implementation=settings.implementation)


def _nearest(cosine: Array, block: Array) -> tuple[Array, Array | None]:
    """From cosines [b K, B], those of the nearest sub-centres [b, B], and which they are, [b, 1, B]."""
    if block.ndim == 2:
        return cosine, None
    cosine = cosine.reshape(*block.shape[:2], -1)
    return cosine.max(axis=1), cosine.argmax(axis=1, keepdims=True)


def _filtered(cosine: Array, filter_above: Array | None) -> Array:
    return cosine if filter_above is None else jnp.where(cosine > filter_above, 0, cosine)


def _is_target(labels: Array, start: Array | int, block: Array) -> Array:
    """Which of a block's classes are whose target, [b, B]."""
    return labels == start + jnp.arange(len(block))[:, None]


def _is_padding(count: Array | int | None, start: Array | int, block: Array) -> Array | bool:
    """Which of a block's rows are no classes, [b, 1]."""
    return False if count is None else start + jnp.arange(len(block))[:, None] >= count
