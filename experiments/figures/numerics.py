"""How exact the usual formulations of cos(theta + m) are near theta = 0 and theta = pi, in three precisions.

Shows the error of the value and of its derivative by cos(theta), against arithmetic with 50 digits. The input is a
cosine that the precision can represent, and each formulation computes in that precision; this project's computes in
float32, as its heads do. Costs some seconds. Reached in float32: arccos and the square root lose four of the
derivative's seven digits round theta = 0.02, and at theta = 0 their derivative is infinite or no number; the clamped
cosine is wrong at the last number before 1, and its derivative at 1 is zero; this project's keeps all digits and is
finite. In half precision the others have that precision's error, clamping changes nothing, and this project's has
float32's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

M = 0.5
PRECISIONS = ("float32", "bfloat16", "float16")
FORMS = {
    "arccos": (r"$\cos(\arccos c + m)$", _style.BLUE, "o"),
    "clamped": (r"the same, $c$ clamped to $1 - 10^{-7}$", _style.ORANGE, "v"),
    "identity": (r"$c\,\cos m - \sqrt{1 - c^2}\,\sin m$", _style.GREEN, "s"),
    "straight_through": ("straight-through", _style.PINK, "D"),
    "project": ("this project", _style.RED, "*"),
}
# The share of an error that counts as none: below float32's rounding.
FLOOR = 1e-9


def numbers(study: Study) -> Numbers:
    """Relative errors by precision, end and formulation; a value or derivative that is not finite is null."""
    found: dict[str, Any] = {"m": M}
    for precision in PRECISIONS:
        found[precision] = {}
        for end in ("zero", "pi"):
            cosines = near(precision, end)
            exact = [truth(c, M) for c in cosines]
            found[precision][end] = {"angle": [t for t, _, _ in exact]} | {
                form: errors(form, precision, cosines, exact) for form in FORMS
            }
            at = slopes_at(precision, 1.0 if end == "zero" else -1.0)
            found[precision][end]["at_end"] = {form: shown(at[form]) for form in FORMS}
    return found


def slopes_at(precision: str, cosine: float) -> dict[str, float]:
    """The derivative of each formulation at a cosine of exactly 1 or -1."""
    import torch

    found = {}
    for form in FORMS:
        c = torch.tensor([cosine], dtype=torch.float32 if form == "project" else getattr(torch, precision))
        c.requires_grad_()
        (slope,) = torch.autograd.grad(_formulation(form)(c).sum(), c)
        found[form] = float(slope)
    return found


def shown(slope: float) -> str:
    """A derivative in a word.

    >>> shown(math.inf), shown(0.0), shown(1234.56)
    ('infinite', '0', '1235')
    """
    return "not a number" if math.isnan(slope) else "infinite" if math.isinf(slope) else f"{slope:.4g}"


def near(precision: str, end: str, points: int = 25) -> list[float]:
    """Cosines that a precision can represent, from the last one before the end to about a radian away."""
    import torch

    dtype = getattr(torch, precision)
    step = float(np.log10(torch.finfo(dtype).eps / 2))
    wished = 1 - np.logspace(step, math.log10(0.5), points)
    kept = torch.tensor(wished, dtype=torch.float64).to(dtype).double().unique().tolist()
    return [c if end == "zero" else -c for c in kept if c < 1]


def truth(cosine: float, m: float) -> tuple[float, float, float]:
    """The angle's distance to the nearer of 0 and pi, psi and d psi / d cos(theta), from 50 digits.

    >>> [round(x, 6) for x in truth(0.0, 0.5)]
    [1.570796, -0.479426, 0.877583]
    """
    import mpmath

    with mpmath.workdps(50):
        theta = mpmath.acos(mpmath.mpf(cosine))
        phi = theta + m
        past = phi > mpmath.pi  # where psi goes on falling, as -cos(phi) - 2
        value = -mpmath.cos(phi) - 2 if past else mpmath.cos(phi)
        slope = mpmath.fabs(mpmath.sin(phi)) / mpmath.sin(theta)
        return float(min(theta, mpmath.pi - theta)), float(value), float(slope)


def errors(
    form: str, precision: str, cosines: list[float], exact: list[tuple[float, float, float]]
) -> dict[str, list[float | None]]:
    """Errors of psi (absolute) and of its derivative (relative)."""
    import torch

    dtype = torch.float32 if form == "project" else getattr(torch, precision)
    c = torch.tensor(cosines, dtype=dtype, requires_grad=True)
    psi = _formulation(form)(c)
    (slope,) = torch.autograd.grad(psi.sum(), c)
    pairs = zip(psi.double().tolist(), slope.double().tolist(), exact, strict=True)
    value, derivative = zip(*((abs(p - v), abs(g / d - 1)) for p, g, (_, v, d) in pairs), strict=True)
    return {"value": [_finite(x) for x in value], "derivative": [_finite(x) for x in derivative]}


def _finite(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _formulation(form: str) -> Callable[[Any], Any]:
    import torch

    from torch_reference import Margin, target_cosine

    def monotone(cosine: Any, inside: Any) -> Any:
        return torch.where(cosine > math.cos(math.pi - M), inside, -inside - 2)

    def arccos(c: Any) -> Any:
        return monotone(c, torch.cos(torch.arccos(c) + M))

    forms: dict[str, Callable[[Any], Any]] = {
        "arccos": arccos,
        "clamped": lambda c: arccos(c.clamp(-1 + 1e-7, 1 - 1e-7)),
        "identity": lambda c: monotone(c, c * math.cos(M) - torch.sqrt(1 - c * c) * math.sin(M)),
        "straight_through": lambda c: arccos(c).detach() + c - c.detach(),
        "project": lambda c: target_cosine(c, Margin.arcface(M)),
    }
    return forms[form]


def draw(found: Numbers) -> Picture:
    """Rows: the value and the derivative, near 0 and near pi; columns: the precisions."""
    figure = _style.figure(8.4, 6.9)
    panels = figure.subplots(4, len(PRECISIONS), sharex="col", sharey="row")
    rows = [(end, what) for end in ("zero", "pi") for what in ("value", "derivative")]
    for row, (end, what) in enumerate(rows):
        for column, precision in enumerate(PRECISIONS):
            axes = panels[row, column]
            part = found[precision][end]
            for form, (label, colour, marker) in FORMS.items():
                error = [math.nan if x is None else max(x, FLOOR) for x in part[form][what]]
                size = {"*": 6, "o": 6}.get(marker, 3)
                look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size, "linewidth": 0.8}
                look |= {"markerfacecolor": "none" if marker == "o" else colour, "label": label}
                axes.plot(part["angle"], error, zorder=4 if form == "project" else 3, **look)
            axes.set(xscale="log", yscale="log")
            axes.set_ylim(FLOOR / 2, 3000)
            axes.grid(True)
            if row == 0:
                axes.set_title(precision)
            if row == 3:
                axes.set_xlabel(r"distance of $\theta$ to the end (rad)")
        words = {"value": "error of the value", "derivative": "relative error\nof the derivative"}[what]
        where = {"zero": r"near $\theta = 0$", "pi": r"near $\theta = \pi$"}[end]
        panels[row, 0].set_ylabel(f"{where}\n{words}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def caption(found: Numbers) -> str:
    """The caption."""
    at = found["float32"]["zero"]["at_end"]
    return (
        "Errors of psi = cos(theta + 0.5) (absolute) and of its derivative by cos(theta) (relative), against 50-digit "
        "arithmetic, for cosines that float32, bfloat16 and float16 can represent, up to the last one before 1 or -1; "
        "errors below 1e-9 are drawn there. Straight-through has the value right and takes 1 for the derivative on "
        "purpose. Half a radian from pi the derivative itself is 0, so its relative error grows for all. This project "
        "computes in float32 whatever the network's precision. At theta = 0 itself the float32 derivative is "
        f"{at['arccos']} with arccos, {at['clamped']} clamped, {at['identity']} with the square root, and "
        f"{at['project']} here."
    )


FIGURE = Figure(
    "Numerical error of the margin's formulations",
    caption,
    "seconds",
    numbers,
    draw,
    alt="Panels by number format and end of the range: error of value and derivative against the distance to cosine 1 "
    "or -1, a line for each way of computing the margin; this project's stays lowest.",
)
