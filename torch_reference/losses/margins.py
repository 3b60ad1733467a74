"""From the angle between an embedding and its class to the target's logit: psi(theta) = cos(m1 theta + m2) - m3."""

from __future__ import annotations

import dataclasses
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from torch_reference.losses import checks

BEYOND_PI = ("monotone", "linear", "wrap")
GRADIENTS = ("exact", "straight_through")


@dataclasses.dataclass(frozen=True)
class Margin:
    """The combined margin of ArcFace, equation 4 (Deng et al., CVPR 2019): psi(theta) = cos(m1 theta + m2) - m3.

    Each of m1, m2 and m3 is a number, or a tensor [B] with one for each example, whose values are not checked.

    Args:
      m1: multiplicative angular margin, > 0 (SphereFace); 1 is none.
      m2: additive angular margin in radians, -pi < m2 < pi (ArcFace); 0 is none.
      m3: additive cosine margin (CosFace); 0 is none.
      beyond_pi: what follows where phi = m1 theta + m2 exceeds pi, from where the bare cosine would rise again.
        `"monotone"`: (-1)^k cos(phi) - 2k with k = floor(phi / pi), which goes on falling (SphereFace, Liu et al.
        2017, equation 7); `"linear"`: cos(theta) - m2 sin(m2), for m1 = 1 only (early ArcFace code); `"wrap"`: the
        bare cosine.
      gradient: `"exact"`, the formula's derivative; or `"straight_through"`: d psi / d cos(theta) = 1.

    Raises:
      ValueError: a margin that is not finite or out of range, an unknown policy, or `"linear"` with m1 != 1.
      TypeError: a margin that is no real number or tensor.

    >>> Margin.arcface()
    Margin(m1=1.0, m2=0.5, m3=0.0, beyond_pi='monotone', gradient='exact')
    """

    m1: float | Tensor = 1.0
    m2: float | Tensor = 0.0
    m3: float | Tensor = 0.0
    beyond_pi: str = "monotone"
    gradient: str = "exact"

    def __post_init__(self) -> None:
        for name, is_right, rule in (
            ("m1", lambda m: m > 0, "the multiplicative margin must be > 0"),
            ("m2", lambda m: abs(m) < math.pi, "the angular margin is in radians and must lie between -pi and pi"),
            ("m3", lambda m: True, ""),
        ):
            margin = getattr(self, name)
            if isinstance(margin, Tensor):
                if margin.is_complex() or margin.dtype == torch.bool:
                    raise TypeError(f"{name} has dtype {margin.dtype}; a margin must be real")
                continue  # to look at its values is to wait for the device
            if not isinstance(margin, Real):
                raise TypeError(f"{name} is {margin!r}; a margin must be a number or a tensor")
            number = checks.as_float(margin)
            if not math.isfinite(number):
                raise ValueError(f"{name} is {number}; a margin must be finite")
            if not is_right(number):
                raise ValueError(f"{name} is {margin}; {rule}")
        for name, known in (("beyond_pi", BEYOND_PI), ("gradient", GRADIENTS)):
            if getattr(self, name) not in known:
                words = ", ".join(map(repr, known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {words}")
        if self.beyond_pi == "linear" and (isinstance(self.m1, Tensor) or self.m1 != 1):
            raise ValueError(f"m1 is {self.m1}; beyond_pi='linear' is defined for m1 = 1 only")

    @classmethod
    def softmax(cls, **policies: Any) -> Margin:
        """No margin: the normalised softmax (NormFace, Wang et al. 2017)."""
        return cls(**policies)

    @classmethod
    def sphereface(cls, m: float | Tensor = 1.35, **policies: Any) -> Margin:
        """psi = cos(m theta) (SphereFace, Liu et al. 2017); m is a factor."""
        return cls(m1=m, **policies)

    @classmethod
    def cosface(cls, m: float | Tensor = 0.35, **policies: Any) -> Margin:
        """psi = cos(theta) - m (CosFace, Wang et al. 2018); m is in units of cosine."""
        return cls(m3=m, **policies)

    @classmethod
    def arcface(cls, m: float | Tensor = 0.5, **policies: Any) -> Margin:
        """psi = cos(theta + m) (ArcFace, Deng et al. 2019); m is in radians."""
        return cls(m2=m, **policies)

    def grown(self, share: float) -> Margin:
        """This margin after a share of its warm-up, from none (0) to itself (1).

        >>> Margin.arcface(0.5).grown(0.2).m2
        0.1
        """
        return dataclasses.replace(self, m1=1 + share * (self.m1 - 1), m2=share * self.m2, m3=share * self.m3)


def angles(cosine: Tensor) -> Tensor:
    """theta = arccos(cos(theta)), in radians.

    Args:
      cosine: float32 or float64, any shape; values beyond +-1 count as +-1.

    Returns:
      Values in [0, pi] of the same shape and dtype. The derivative, -1 / sin(theta), is finite everywhere: at
      cos(theta) = +-1 it is the one of the representable number next to it.

    >>> angles(torch.tensor([1.0, 0.0, -1.0]))
    tensor([0.0000, 1.5708, 3.1416])
    """
    theta: Tensor = _Angles.apply(cosine)
    return theta


def target_cosine(cosine: Tensor, margin: Margin) -> Tensor:
    """psi: what takes the place of cos(theta) for each example's own class, before the scale.

    Args:
      cosine: cos(theta), float32 or float64, any shape; [B] where the margin has a value for each example. Values
        beyond +-1 count as +-1.

    Returns:
      Values of the same shape and dtype, differentiable by the margins as well. The derivative is finite everywhere: at
      cos(theta) = +-1, where that of the arc cosine is not, it is the one of the representable number next to it.

    >>> target_cosine(torch.tensor([0.0, 1.0]), Margin.arcface(0.5))  # -sin(0.5), cos(0.5)
    tensor([-0.4794,  0.8776])
    """
    m1, m2, m3 = (
        torch.as_tensor(m, dtype=cosine.dtype, device=cosine.device) for m in (margin.m1, margin.m2, margin.m3)
    )
    psi: Tensor = _TargetCosine.apply(cosine, m1, m2, m3, margin.beyond_pi, margin.gradient)
    return psi


class _Angles(torch.autograd.Function):
    """theta with its derivative written out, since that of torch.atan2 is 0/0 at theta = 0 and theta = pi."""

    @staticmethod
    def forward(cosine: Tensor) -> Tensor:
        return _theta_and_sine(cosine.clamp(-1, 1))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _, sine = _theta_and_sine(_inside(*ctx.saved_tensors))
        return -gradients[0] / sine


class _TargetCosine(torch.autograd.Function):
    """psi with its derivatives written out, for the same reason."""

    @staticmethod
    def forward(cosine: Tensor, m1: Tensor, m2: Tensor, m3: Tensor, beyond_pi: str, gradient: str) -> Tensor:
        c = cosine.clamp(-1, 1)
        phi = m1 * _theta_and_sine(c)[0] + m2
        psi = phi.cos()
        if beyond_pi == "monotone":
            k = (phi / math.pi).floor()
            psi = _sign(k) * psi - 2 * k
        elif beyond_pi == "linear":
            psi = torch.where(phi > math.pi, c - m2 * m2.sin(), psi)
        return psi - m3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.beyond_pi, ctx.gradient = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine, m1, m2, m3 = ctx.saved_tensors
        theta, sine = _theta_and_sine(_inside(cosine))
        phi = m1 * theta + m2
        by_phi = -phi.sin()  # d psi / d phi, with the sign of the branch
        if ctx.beyond_pi == "monotone":
            by_phi = _sign((phi / math.pi).floor()) * by_phi
        by_cosine, by_m1, by_m2, by_m3 = -m1 * by_phi / sine, by_phi * theta, by_phi, -torch.ones_like(phi)
        if ctx.beyond_pi == "linear":  # m1 = 1
            by_cosine = torch.where(phi > math.pi, 1.0, by_cosine)
            by_m2 = torch.where(phi > math.pi, -m2.sin() - m2 * m2.cos(), by_m2)
        if ctx.gradient == "straight_through":
            by_cosine = torch.ones_like(phi)
        inputs = ((cosine, by_cosine), (m1, by_m1), (m2, by_m2), (m3, by_m3))
        # a margin that all examples share takes the sum of their gradients
        return *((gradients[0] * by).sum_to_size(value.shape) for value, by in inputs), None, None


def _theta_and_sine(c: Tensor) -> tuple[Tensor, Tensor]:
    """theta and sin(theta), by atan2, which keeps all digits where acos loses half of them."""
    sine = ((1 - c) * (1 + c)).sqrt()
    return torch.atan2(sine, c), sine


def _inside(cosine: Tensor) -> Tensor:
    """The cosine, or the largest number below 1 in its place."""
    largest = 1 - torch.finfo(cosine.dtype).eps / 2
    return cosine.clamp(-largest, largest)


def _sign(k: Tensor) -> Tensor:
    """(-1)^k."""
    return 1 - 2 * k.remainder(2)
