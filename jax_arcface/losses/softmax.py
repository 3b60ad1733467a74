"""From embeddings and prototypes to logits, and from logits to a scalar."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jax_arcface.losses import checks
from jax_arcface.losses.margins import Margin, target_cosine

# Vectors whose largest entry is smaller than this count as zero: one over it still fits float32.
_SMALLEST = 2.0**-100
# Entries beyond this count as this where squared lengths are taken: sums of their squares fit float32.
_LARGEST = 2.0**40


def normalize(vectors: ArrayLike) -> Array:
    """Scales vectors to length 1.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [..., D] in float32 (float64 for float64). A zero vector (largest magnitude below 2^-100) stays zero and takes no
      gradient. Gradients that do not fit the dtype of `vectors` saturate at its largest number.

    >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = upcast(jnp.asarray(vectors))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    is_zero = largest < _SMALLEST  # false for NaN, which goes on
    # now at most 4, so that squares stay in range; one over a divisor above 1 / tiny would be flushed to zero
    tiny = float(jnp.finfo(jnp.result_type(x, jnp.float32)).tiny)
    x = jnp.where(is_zero, 0, x / jnp.clip(largest, _SMALLEST, 1 / tiny))
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(is_zero, 1, squares))


def lengths(vectors: ArrayLike) -> Array:
    """The lengths |v| of vectors.

    Args:
      vectors: [..., D], any float dtype. Neither large nor small entries overflow or underflow.

    Returns:
      [...] in float32 (float64 for float64). A zero vector (largest magnitude below 2^-100) has length 0 and takes no
      gradient.

    >>> lengths(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([5., 0.], dtype=float32)
    """
    x = upcast(jnp.asarray(vectors))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    is_zero = largest < _SMALLEST
    tiny = float(jnp.finfo(jnp.result_type(x, jnp.float32)).tiny)
    largest = jnp.clip(largest, _SMALLEST, 1 / tiny)  # as in `normalize`
    scaled = jnp.where(is_zero, 0, x / largest)
    squares = jnp.sum(scaled * scaled, axis=-1)
    return jnp.where(is_zero, 0, largest)[..., 0] * jnp.sqrt(jnp.where(is_zero[..., 0], 1, squares))


def cosines(embeddings: ArrayLike, prototypes: ArrayLike) -> Array:
    """cos(theta) between every embedding and every class.

    Args:
      embeddings: [B, D], any float dtype and any length.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class, of which the nearest counts (Deng et al.,
        "Sub-center ArcFace", ECCV 2020); a tie's gradient goes to the first.

    Returns:
      [B, C] in float32 (float64 where either is float64).

    Raises:
      ValueError: shapes that do not fit.

    >>> cosines(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    Array([[ 1.,  0., -1.]], dtype=float32)
    """
    return _cosines(*checked_vectors(embeddings, prototypes))


@jax.jit
def _cosines(embeddings: Array, prototypes: Array) -> Array:
    x, w = normalize(embeddings), normalize(prototypes.reshape(-1, prototypes.shape[-1]))
    # full precision also where accelerators would round float32 inputs: an angle near 0 has no digits to lose
    cosine = jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST)
    if prototypes.ndim == 3:
        cosine = cosine.reshape(len(x), *prototypes.shape[:2])
        nearest = jnp.argmax(cosine, axis=-1, keepdims=True)
        cosine = jnp.take_along_axis(cosine, nearest, axis=-1)[..., 0]
    return cosine


def margin_logits(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    filter_above: float | None = None,
) -> Array:
    """Logits with the margin on each example's own class: s psi(theta_y), and s cos(theta_j) elsewhere.

    Pure; works under jit, vmap and grad. ArcFace (Deng et al., CVPR 2019), equation 4.

    Args:
      embeddings: [B, D], any float dtype; only their direction counts.
      prototypes: [C, D], or [C, K, D] with K sub-centres a class; only their direction counts.
      labels: [B], integers in [0, C).
      margin: see `Margin`; its numbers may be arrays [B], one for each example.
      scale: s, > 0, a scalar (checked where it is known outside jit).
      filter_above: a wrong class whose cosine exceeds this gets the logit 0 and no gradient: likely the same person
        under another name (inter-class filtering, as in the training code of ArcFace's authors). None filters nothing.

    Returns:
      [B, C] in float32 (float64 for float64). Inside jit and vmap labels cannot be looked at: an
      example whose label lies outside [0, C) gets NaN logits, never a wrong number.

    Raises:
      ValueError: shapes that do not fit, a scale that is not > 0 and finite, or, outside jit, a label outside [0, C).
      TypeError: labels that are not integers.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0], [0.0, -1.0]])
    >>> print(margin_logits(x, w, jnp.array([0]), Margin.arcface(0.5), scale=10.0).round(3))  # 10 cos(pi/4 + 0.5), 0
    [[2.815 0.   ]]
    """
    embeddings, prototypes = checked_vectors(embeddings, prototypes)
    labels = checked_labels(labels, len(embeddings), len(prototypes))
    checks.positive(scale=scale)
    return _margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)


@jax.jit
def _margin_logits(
    embeddings: Array, prototypes: Array, labels: Array, margin: Margin, scale: Array, filter_above: Array | None
) -> Array:
    cosine = _cosines(embeddings, prototypes)
    margin = jax.tree.map(lambda m: jnp.broadcast_to(m, labels.shape), margin)
    psi = target_cosine(own_class(cosine, labels), margin)
    if filter_above is not None:
        cosine = jnp.where(cosine > filter_above, 0, cosine)
    return with_own_class(cosine, labels, psi) * one_or_nan(labels, cosine.shape[1])[:, None] * scale


def margin_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    margin: Margin,
    scale: ArrayLike = 64.0,
    label_smoothing: float = 0.0,
    filter_above: float | None = None,
) -> Array:
    """The margin softmax loss, the mean over the batch: cross entropy of `margin_logits` (ArcFace, equation 4).

    Args:
      embeddings, prototypes, labels, margin, scale, filter_above: as in `margin_logits`.
      label_smoothing: as in `softmax_loss`.

    Returns:
      A scalar, float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError, TypeError: as `margin_logits` and `softmax_loss`.

    >>> x, w = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(margin_softmax_loss(x, w, jnp.array([0]), Margin.cosface(0.35), scale=1.0).round(4))  # log(1 + e^-0.65)
    0.4201
    """
    logits = margin_logits(embeddings, prototypes, labels, margin, scale, filter_above)
    return softmax_loss(logits, labels, label_smoothing)


def softmax_loss(logits: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0) -> Array:
    """Cross entropy with integer labels, the mean over the batch.

    Args:
      logits: [B, C], any float dtype.
      labels: [B], integers in [0, C).
      label_smoothing: the share of the target distribution that is spread evenly over all classes, in [0, 1).

    Returns:
      A scalar, float32 (float64 for float64). NaN inside jit if a label lies outside [0, C).

    Raises:
      ValueError: shapes that do not fit, a label smoothing outside [0, 1), or, outside jit, a label outside [0, C).
      TypeError: labels that are not integers.

    >>> print(softmax_loss(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4))  # log 4
    1.3863
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 1")
    logits = upcast(jnp.asarray(logits))
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; they must be [B, C]")
    classes = logits.shape[1]
    labels = checked_labels(labels, *logits.shape)
    # none is larger: this keeps XLA from taking a product and its difference to the largest, rounded, as one, which for
    # large logits would be far from 0
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logits = jnp.where(logits > largest, largest, logits)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.clip(0, classes - 1))
    if label_smoothing:
        even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    return jnp.mean(losses * one_or_nan(labels, classes))


def linear_softmax_loss(
    embeddings: ArrayLike, weights: ArrayLike, bias: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0
) -> Array:
    """Softmax loss of a linear layer, nothing normalised: cross entropy of W_j . x + b_j (ArcFace, equation 1).

    Args:
      embeddings: [B, D], any float dtype.
      weights: W, [C, D]. bias: b, [C].
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.

    Returns:
      A scalar, float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(linear_softmax_loss(x, w, jnp.zeros(2), jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    return softmax_loss(linear_logits(embeddings, weights, bias), labels, label_smoothing)


def linear_logits(embeddings: ArrayLike, weights: ArrayLike, bias: ArrayLike) -> Array:
    """W_j . x + b_j, [B, C], of embeddings x [B, D], weights W [C, D] and bias b [C].

    Raises:
      ValueError: shapes that do not fit.

    >>> linear_logits(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0.0, 0.5]))
    Array([[2. , 0.5]], dtype=float32)
    """
    embeddings, weights = checked_vectors(embeddings, weights)
    bias = jnp.asarray(bias)
    if weights.ndim != 2 or bias.shape != weights.shape[:1]:
        raise ValueError(f"weights {weights.shape} and bias {bias.shape} do not fit: they must be [C, D] and [C]")
    return jnp.matmul(upcast(embeddings), upcast(weights).T, precision=jax.lax.Precision.HIGHEST) + upcast(bias)


def modified_softmax_loss(
    embeddings: ArrayLike, prototypes: ArrayLike, labels: ArrayLike, label_smoothing: float = 0.0
) -> Array:
    """Modified softmax loss: cross entropy of |x| cos(theta_j) (SphereFace, Liu et al., CVPR 2017, equation 5).

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.

    Returns:
      A scalar, float32 (float64 for float64).

    >>> x, w = jnp.array([[2.0, 0.0]]), jnp.array([[9.0, 0.0], [0.0, 9.0]])
    >>> print(modified_softmax_loss(x, w, jnp.array([0])).round(4))  # log(1 + e^-2)
    0.1269
    """
    return softmax_loss(lengths(embeddings)[:, None] * cosines(embeddings, prototypes), labels, label_smoothing)


def a_softmax_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    m: int = 4,
    lam: ArrayLike = 5.0,
    label_smoothing: float = 0.0,
) -> Array:
    """A-Softmax: cross entropy with |x| (lambda cos(theta) + psi(theta)) / (1 + lambda) for the example's own class.

    psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]; the other classes have
    |x| cos(theta_j). SphereFace (Liu et al., CVPR 2017), equation 7, with the annealing of its published training.

    Args:
      embeddings: [B, D], any float dtype; their length counts.
      prototypes: [C, D]; only their direction counts.
      labels, label_smoothing: as in `softmax_loss`, which tells what is raised.
      m: the multiplicative margin, a whole number.
      lam: lambda, >= 0 and finite; see `annealed_lambda`.

    Returns:
      A scalar, float32 (float64 for float64).

    Raises:
      ValueError, TypeError: as `margin_logits`; and an m or a lambda out of range.

    >>> x, w = jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(a_softmax_loss(x, w, jnp.array([0]), m=4, lam=0.0).round(3))  # psi(pi/2) = 1 - 4: log(1 + e^8)
    8.0
    """
    checks.whole(m=m)
    checks.at_least_zero(lam=lam)
    psi = margin_logits(embeddings, prototypes, labels, Margin.sphereface(m), scale=1.0)
    annealed = (lam * cosines(embeddings, prototypes) + psi) / (1 + lam)
    return softmax_loss(lengths(embeddings)[:, None] * annealed, labels, label_smoothing)


def annealed_lambda(step: ArrayLike, first: float = 1000.0, last: float = 5.0, decay: float = 0.12) -> Array:
    """lambda of A-Softmax in step t, from 0: max(last, first / (1 + decay t)), as in SphereFace's published training.

    The published code starts one step later, at first / (1 + decay).

    >>> print(annealed_lambda(jnp.array([0, 75, 10000])))
    [1000.  100.    5.]
    """
    return jnp.maximum(last, first / (1 + decay * jnp.asarray(step, float)))


# What other losses share --------------------------------------------------------------------------------------------


def checked_vectors(embeddings: ArrayLike, prototypes: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays, once they are found to be [B, D] and [C, D] or [C, K, D].

    Raises:
      ValueError: they are not.

    >>> checked_vectors(jnp.ones((5, 4)), jnp.ones((6, 3)))
    Traceback (most recent call last):
    ...
    ValueError: embeddings (5, 4) and prototypes (6, 3) do not fit: they must be [B, D] and [C, D] or [C, K, D]
    """
    embeddings, prototypes = jnp.asarray(embeddings), jnp.asarray(prototypes)
    if embeddings.ndim != 2 or prototypes.ndim not in (2, 3) or embeddings.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            f"embeddings {embeddings.shape} and prototypes {prototypes.shape} do not fit: "
            "they must be [B, D] and [C, D] or [C, K, D]"
        )
    return embeddings, prototypes


def checked_labels(labels: ArrayLike, batch: int, classes: int | None = None) -> Array:
    """Labels as an array, once they are found to be integers [B] and, where C is given, to lie in [0, C).

    Inside jit they cannot be looked at: what lies outside stays outside, as int32. Without C any integers will do, and
    the result may number them anew.

    Raises:
      ValueError, TypeError: they are not.

    >>> checked_labels([0, 3], batch=2, classes=3)
    Traceback (most recent call last):
    ...
    ValueError: labels must lie in [0, 3); found 3
    """
    if not isinstance(labels, Array):
        labels = np.asarray(labels)  # looked at before 64 bits become 32
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels have dtype {labels.dtype}; they must be integers")
    if labels.shape != (batch,):
        raise ValueError(f"labels have shape {labels.shape}; one for each row of the batch is expected: ({batch},)")
    if classes is None:
        # where 64 bits become 32, two labels must not become one
        return labels if isinstance(labels, Array) else jnp.asarray(np.unique(labels, return_inverse=True)[1])
    if isinstance(labels, jax.core.Tracer):
        narrow = labels.astype(jnp.int32)
        return jnp.where(narrow.astype(labels.dtype) == labels, narrow, -1)  # 2^32 must not become class 0
    wrong = np.asarray(labels)
    wrong = wrong[(wrong < 0) | (wrong >= classes)]
    if wrong.size:
        raise ValueError(f"labels must lie in [0, {classes}); found {wrong[0]}")
    return jnp.asarray(labels, jnp.int32)


def one_or_nan(labels: Array, classes: int) -> Array:
    """1 for a label in [0, C), else NaN, [B]; a factor, so that the gradient becomes NaN as well.

    >>> print(one_or_nan(jnp.array([0, 3]), classes=3))
    [ 1. nan]
    """
    return jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan)


def own_class(values: Array, labels: Array) -> Array:
    """What stands in each row [B, C] at the example's own class, [B]; NaN for a label outside [0, C).

    >>> own_class(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0]))
    Array([2., 3.], dtype=float32)
    """
    classes = values.shape[1]
    own = jnp.take_along_axis(values, labels.clip(0, classes - 1)[:, None], axis=1)[:, 0]
    return own * one_or_nan(labels, classes)


def with_own_class(values: Array, labels: Array, own: Array) -> Array:
    """`values` [B, C] with `own` [B] at each example's own class.

    >>> with_own_class(jnp.zeros((2, 3)), jnp.array([2, 0]), jnp.array([7.0, 8.0]))
    Array([[0., 0., 7.],
           [8., 0., 0.]], dtype=float32)
    """
    return jnp.where(jnp.arange(values.shape[1]) == labels[:, None], own[:, None], values)


def squared_distances(cosine: Array) -> Array:
    """|u - v|^2 = 2 - 2c of vectors of length 1, from their cosine c of any shape; never below 0.

    >>> squared_distances(jnp.array([1.0, 0.0, -1.0]))
    Array([0., 2., 4.], dtype=float32)
    """
    return jax.nn.relu(2 - 2 * cosine)  # whose derivative at 0 is 0


def bounded(vectors: ArrayLike) -> Array:
    """`upcast`, with entries beyond +-2^40 set to that, without gradient, so that sums of squares do not overflow.

    >>> bounded(jnp.array([1.0, 1e30])) == jnp.array([1.0, 2.0**40])
    Array([ True,  True], dtype=bool)
    """
    return jnp.clip(upcast(jnp.asarray(vectors)), -_LARGEST, _LARGEST)


def upcast(x: Array) -> Array:
    """Numbers of any shape in float32 (float64 stays), with a gradient that saturates where a narrow dtype ends.

    >>> upcast(jnp.ones(2, jnp.bfloat16))
    Array([1., 1.], dtype=float32)
    """
    return saturated(x) if x.dtype in (jnp.float16, jnp.bfloat16) else x


@jax.custom_vjp
def saturated(x: Array) -> Array:
    """Numbers of any shape in float32; a gradient that their dtype cannot hold becomes its largest number.

    >>> float(jax.grad(lambda x: 1e9 * saturated(x))(jnp.ones((), jnp.float16)))
    65504.0
    """
    return x.astype(jnp.float32)


def _saturated_forward(x: Array) -> tuple[Array, Array]:
    return x.astype(jnp.float32), jnp.zeros((), x.dtype)


def _saturated_backward(like: Array, gradient: Array) -> tuple[Array]:
    largest = float(jnp.finfo(like.dtype).max)
    return (jnp.clip(gradient, -largest, largest).astype(like.dtype),)


saturated.defvjp(_saturated_forward, _saturated_backward)
