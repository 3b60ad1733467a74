"""From the angle between an embedding and its class to the target's logit: psi(theta) = cos(m1 theta + m2) - m3."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

BEYOND_PI = ("monotone", "linear", "wrap")
GRADIENTS = ("exact", "straight_through")


@dataclasses.dataclass(frozen=True)
class Margin:
    """The combined margin of ArcFace, equation 4 (Deng et al., CVPR 2019): psi(theta) = cos(m1 theta + m2) - m3.

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

    >>> Margin.arcface()
    Margin(m1=1.0, m2=0.5, m3=0.0, beyond_pi='monotone', gradient='exact')
    """

    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0
    beyond_pi: str = "monotone"
    gradient: str = "exact"

    def __post_init__(self) -> None:
        for name in ("m1", "m2", "m3"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; a margin must be finite")
        if self.m1 <= 0:
            raise ValueError(f"m1 is {self.m1}; the multiplicative margin must be > 0")
        if abs(self.m2) >= math.pi:
            raise ValueError(f"m2 is {self.m2}; the angular margin is in radians and must lie between -pi and pi")
        for name, known in (("beyond_pi", BEYOND_PI), ("gradient", GRADIENTS)):
            if getattr(self, name) not in known:
                words = ", ".join(map(repr, known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {words}")
        if self.beyond_pi == "linear" and self.m1 != 1:
            raise ValueError(f"m1 is {self.m1}; beyond_pi='linear' is defined for m1 = 1 only")

    @classmethod
    def softmax(cls, **policies: Any) -> Margin:
        """No margin: the normalised softmax (NormFace, Wang et al. 2017)."""
        return cls(**policies)

    @classmethod
    def sphereface(cls, m: float = 1.35, **policies: Any) -> Margin:
        """psi = cos(m theta) (SphereFace, Liu et al. 2017); m is a factor."""
        return cls(m1=m, **policies)

    @classmethod
    def cosface(cls, m: float = 0.35, **policies: Any) -> Margin:
        """psi = cos(theta) - m (CosFace, Wang et al. 2018); m is in units of cosine."""
        return cls(m3=m, **policies)

    @classmethod
    def arcface(cls, m: float = 0.5, **policies: Any) -> Margin:
        """psi = cos(theta + m) (ArcFace, Deng et al. 2019); m is in radians."""
        return cls(m2=m, **policies)

    def grown(self, share: float) -> Margin:
        """This margin after a share of its warm-up, from none (0) to itself (1).

        >>> Margin.arcface(0.5).grown(0.2).m2
        0.1
        """
        return dataclasses.replace(self, m1=1 + share * (self.m1 - 1), m2=share * self.m2, m3=share * self.m3)


def target_cosine(cosine: Tensor, margin: Margin) -> Tensor:
    """psi: what takes the place of cos(theta) for each example's own class, before the scale.

    Args:
      cosine: cos(theta), float32 or float64, any shape; values beyond +-1 count as +-1.

    Returns:
      Values of the same shape and dtype. The derivative is finite everywhere: at cos(theta) = +-1, where that of the
      arc cosine is not, it is the one of the representable number next to it.

    >>> target_cosine(torch.tensor([0.0, 1.0]), Margin.arcface(0.5))  # -sin(0.5), cos(0.5)
    tensor([-0.4794,  0.8776])
    """
    psi: Tensor = _TargetCosine.apply(cosine, margin)
    return psi


class _TargetCosine(torch.autograd.Function):
    """psi with its derivative written out, since that of torch.atan2 is 0/0 at theta = 0 and theta = pi."""

    @staticmethod
    def forward(cosine: Tensor, margin: Margin) -> Tensor:
        return _psi(cosine.clamp(-1, 1), margin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Margin], output: Tensor) -> None:
        cosine, ctx.margin = inputs
        ctx.save_for_backward(cosine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (cosine,), (gradient,) = ctx.saved_tensors, gradients
        if ctx.margin.gradient == "straight_through":
            return gradient, None
        inside = 1 - torch.finfo(cosine.dtype).eps / 2  # the largest number below 1
        return gradient * _psi_derivative(cosine.clamp(-inside, inside), ctx.margin), None


def _angles(c: Tensor, margin: Margin) -> tuple[Tensor, Tensor, Tensor]:
    """sin(theta), theta and phi = m1 theta + m2; by atan2, which keeps all digits where acos loses half of them."""
    sine = ((1 - c) * (1 + c)).sqrt()
    theta = torch.atan2(sine, c)
    return sine, theta, margin.m1 * theta + margin.m2


def _psi(c: Tensor, margin: Margin) -> Tensor:
    _, _, phi = _angles(c, margin)
    psi = phi.cos()
    if margin.beyond_pi == "monotone":
        k = (phi / math.pi).floor()
        psi = _sign(k) * psi - 2 * k
    elif margin.beyond_pi == "linear":
        psi = torch.where(phi > math.pi, c - margin.m2 * math.sin(margin.m2), psi)
    return psi - margin.m3


def _psi_derivative(c: Tensor, margin: Margin) -> Tensor:
    """d psi / d cos(theta) = m1 sin(phi) / sin(theta), with the sign of the branch."""
    sine, _, phi = _angles(c, margin)
    slope = margin.m1 * phi.sin() / sine
    if margin.beyond_pi == "monotone":
        slope = _sign((phi / math.pi).floor()) * slope
    elif margin.beyond_pi == "linear":
        slope = torch.where(phi > math.pi, torch.ones_like(slope), slope)
    return slope


def _sign(k: Tensor) -> Tensor:
    """(-1)^k."""
    return 1 - 2 * k.remainder(2)
