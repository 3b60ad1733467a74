"""From cos(theta) to the target's logit: one formula, cos(m1 theta + m2) - m3, and its presets.

ArcFace (Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, arXiv 1801.07698),
equation 4, combines the multiplicative angular margin m1 of SphereFace, the additive angular margin m2 of ArcFace and
the additive cosine margin m3 of CosFace.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_arcface.losses import checks

BeyondPi = Literal["monotone", "linear", "wrap"]
Gradient = Literal["exact", "straight_through"]


@dataclasses.dataclass(frozen=True)
class Margin:
    """The combined margin: the target's logit is s (cos(m1 theta + m2) - m3) (ArcFace, equation 4).

    All three act together. A `Margin` is a pytree whose leaves are m1, m2 and m3, so that it can be an argument of a
    jitted function and be mapped over by `jax.vmap`; as a plain value it is hashable. An array [B] in place of a number
    gives each example of a batch its own. What JAX makes of a `Margin`, such as its gradient, is not checked.

    Args:
      m1: multiplicative angular margin, > 0 (SphereFace); 1 is none.
      m2: additive angular margin in radians, -pi < m2 < pi (ArcFace); 0 is none.
      m3: additive cosine margin (CosFace); 0 is none. It is subtracted (some slides print a plus sign).
      beyond_pi: what follows where m1 theta + m2 exceeds pi and the bare cosine would rise again.
        `"monotone"`: (-1)^k cos(m1 theta + m2) - 2k with k = floor((m1 theta + m2) / pi), continuous and falling
        everywhere (SphereFace, Liu et al. 2017, equation 7);
        `"linear"`: cos(theta) - m2 sin(m2), as in early ArcFace code (m1 = 1 only);
        `"wrap"`: the bare cosine.
      gradient: `"exact"`, the derivative of the formula; or `"straight_through"`, which takes d psi / d cos(theta) = 1.

    Raises:
      ValueError: a margin that is not finite or out of range, an unknown policy, or `"linear"` with m1 != 1.
      TypeError: a margin that is neither a real number nor an array of them.

    >>> Margin.arcface()
    Margin(m1=1.0, m2=0.5, m3=0.0, beyond_pi='monotone', gradient='exact')
    """

    m1: float | Array = 1.0
    m2: float | Array = 0.0
    m3: float | Array = 0.0
    beyond_pi: BeyondPi = "monotone"
    gradient: Gradient = "exact"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("beyond_pi", self.beyond_pi, get_args(BeyondPi)),
            ("gradient", self.gradient, get_args(Gradient)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")
        checks.positive(m1=self.m1)
        checks.angle(m2=self.m2)
        checks.finite(m3=self.m3)
        if self.beyond_pi == "linear" and not isinstance(self.m1, jax.core.Tracer) and np.any(np.asarray(self.m1) != 1):
            raise ValueError(f"m1 is {self.m1}; beyond_pi='linear' is defined for m1 = 1 only")

    @classmethod
    def softmax(cls) -> Margin:
        """No margin: normalised softmax (NormFace, Wang et al. 2017)."""
        return cls()

    @classmethod
    def sphereface(cls, m: float = 1.35) -> Margin:
        """The multiplicative angular margin cos(m theta) (Liu et al. 2017; 1.35 as in ArcFace, section 3.2)."""
        return cls(m1=m)

    @classmethod
    def cosface(cls, m: float = 0.35) -> Margin:
        """The additive cosine margin cos(theta) - m (Wang et al., CVPR 2018)."""
        return cls(m3=m)

    @classmethod
    def arcface(cls, m: float = 0.5) -> Margin:
        """The additive angular margin cos(theta + m), m in radians (Deng et al., CVPR 2019, equation 3)."""
        return cls(m2=m)


_NUMBERS, _WORDS = ("m1", "m2", "m3"), ("beyond_pi", "gradient")


def _flatten(margin: Margin) -> tuple[tuple, tuple]:
    return tuple(getattr(margin, name) for name in _NUMBERS), tuple(getattr(margin, name) for name in _WORDS)


def _flatten_with_keys(margin: Margin) -> tuple[tuple, tuple]:
    leaves, words = _flatten(margin)
    return tuple(zip(map(jax.tree_util.GetAttrKey, _NUMBERS), leaves, strict=True)), words


def _unflatten(words: tuple, leaves: Iterable) -> Margin:
    margin = object.__new__(Margin)  # whose leaves may be anything: shapes, shardings, gradients
    for name, value in zip((*_NUMBERS, *_WORDS), (*leaves, *words), strict=True):
        object.__setattr__(margin, name, value)
    return margin


jax.tree_util.register_pytree_with_keys(Margin, _flatten_with_keys, _unflatten, _flatten)


def target_cosine(cosine: Array, margin: Margin) -> Array:
    """psi(theta): what takes the place of cos(theta) for the target class.

    Args:
      cosine: cos(theta), any shape, float32 or float64; values outside [-1, 1], as rounding makes them, count as the
        nearest end.
      margin: the margin, in radians.

    Returns:
      psi, in the shape and dtype of `cosine`. Its derivative is finite everywhere: at cos(theta) = +-1, where the
      derivative of the arc cosine is not, it is the one at the representable number next to it.

    >>> import jax.numpy as jnp
    >>> jnp.round(1e4 * target_cosine(jnp.array([1.0, 0.0]), Margin.arcface(0.5)))  # cos 0.5, cos(pi/2 + 0.5)
    Array([ 8776., -4794.], dtype=float32)
    """
    m1, m2, m3 = (1.0 * m for m in (margin.m1, margin.m2, margin.m3))  # whole numbers have no tangents
    if margin.gradient == "straight_through":
        constant = jax.lax.stop_gradient(cosine)
        return _psi(constant, m1, m2, m3, margin.beyond_pi) + (cosine - constant)
    return _psi(cosine, m1, m2, m3, margin.beyond_pi)


def angles(cosine: Array) -> Array:
    """theta = arccos(cosine), in radians, with a derivative that is finite everywhere.

    Args:
      cosine: any shape, float32 or float64; values outside [-1, 1], as rounding makes them, count as the nearest end.

    Returns:
      theta in [0, pi], in the shape and dtype of `cosine`. At cosine = +-1 its derivative is the one at the
      representable number next to it.

    >>> import jax.numpy as jnp
    >>> angles(jnp.array([1.0, 0.0]))
    Array([0.       , 1.5707964], dtype=float32)
    """
    return _theta(cosine)


@jax.custom_jvp
def _theta(cosine: Array) -> Array:
    _, theta, _ = _sin_and_phi(jnp.clip(cosine, -1, 1), 1.0, 0.0)
    return theta


@_theta.defjvp
def _theta_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (cosine,), (d_cosine,) = primals, tangents
    sin, _, _ = _sin_and_phi(_inside(cosine), 1.0, 0.0)
    return _theta(cosine), -d_cosine / sin


def _inside(cosine: Array) -> Array:
    """The cosine, or the number next to +-1 where it is there or beyond."""
    limit = 1 - jnp.finfo(cosine.dtype).epsneg  # the largest number below 1
    return jnp.clip(cosine, -limit, limit)


def _sin_and_phi(cosine: Array, m1: Array | float, m2: Array | float) -> tuple[Array, Array, Array]:
    """sin(theta), theta and phi = m1 theta + m2, from cos(theta) in [-1, 1]."""
    sin = jnp.sqrt((1 - cosine) * (1 + cosine))  # 1 - cos(theta) is exact near 1: no digits are lost at small angles
    theta = jnp.arctan2(sin, cosine)
    return sin, theta, m1 * theta + m2


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _psi(cosine: Array, m1: Array, m2: Array, m3: Array, beyond_pi: BeyondPi) -> Array:
    cosine = jnp.clip(cosine, -1, 1)
    _, _, phi = _sin_and_phi(cosine, m1, m2)
    psi = jnp.cos(phi)
    if beyond_pi == "monotone":
        k = jnp.floor(phi / jnp.pi)
        psi = jnp.where(k % 2 == 0, psi, -psi) - 2 * k
    elif beyond_pi == "linear":
        psi = jnp.where(phi > jnp.pi, cosine - m2 * jnp.sin(m2), psi)
    return (psi - m3).astype(cosine.dtype)


@_psi.defjvp
def _psi_jvp(beyond_pi: BeyondPi, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    cosine, m1, m2, m3 = primals
    d_cosine, d_m1, d_m2, d_m3 = tangents
    sin, theta, phi = _sin_and_phi(_inside(cosine), m1, m2)
    slope = jnp.sin(phi)
    if beyond_pi == "monotone":
        slope = jnp.abs(slope)  # (-1)^k sin(phi)
    tangent = slope * (m1 * d_cosine / sin - theta * d_m1 - d_m2)
    if beyond_pi == "linear":
        tangent = jnp.where(phi > jnp.pi, d_cosine - (jnp.sin(m2) + m2 * jnp.cos(m2)) * d_m2, tangent)
    return _psi(cosine, m1, m2, m3, beyond_pi), (tangent - d_m3).astype(cosine.dtype)
