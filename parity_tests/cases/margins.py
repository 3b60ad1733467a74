"""psi(theta) and its derivative: each preset, policy past pi and gradient; and what mpmath says of both twins."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import mpmath
import numpy as np
import torch

from jax_arcface.losses import margins as jax_margins
from parity_tests.cases import Case, bound_of, renamed
from parity_tests.compare import Difference, compare, difference
from torch_reference.losses import margins as torch_margins

POLICIES = torch_margins.BEYOND_PI
GRADIENTS = torch_margins.GRADIENTS

# (m1, m2, m3): the four presets as each class method gives them, all three margins together, and a negative angle
PRESETS: dict[str, tuple[float, float, float]] = {
    name: (float(margin.m1), float(margin.m2), float(margin.m3))
    for name, margin in (
        ("softmax", jax_margins.Margin.softmax()),
        ("sphereface", jax_margins.Margin.sphereface()),
        ("cosface", jax_margins.Margin.cosface()),
        ("arcface", jax_margins.Margin.arcface()),
    )
} | {"sphereface 4": (4.0, 0.0, 0.0), "combined": (1.1, 0.3, 0.2), "negative": (1.0, -0.4, 0.1)}


def presets(policy: str) -> dict[str, tuple[float, float, float]]:
    """The presets that a policy past pi is defined for."""
    return {name: values for name, values in PRESETS.items() if policy != "linear" or values[0] == 1}


def angles(m2: float, policy: str) -> np.ndarray:
    """Angles from 0 to pi with both ends, pi - m2 and both sides of each, float64.

    Under `linear` psi jumps at pi - m2 itself, where the last digit of theta decides which side is taken: the grid has
    both sides there, and not the point.
    """
    near = (1e-3, 1e-6, 1e-9)
    turn = math.pi - abs(m2)
    corners = [0.0, math.pi, *near, *(math.pi - d for d in near), *(turn - d for d in near), *(turn + d for d in near)]
    if policy != "linear":
        corners.append(turn)
    grid = np.concatenate([np.linspace(0, math.pi, 41), corners])
    if policy == "linear":
        grid = grid[(np.abs(grid + m2 - math.pi) > 1e-12)]
    return grid[(grid >= 0) & (grid <= math.pi)]


def cosine_grid(m2: float, policy: str, dtype: Any = np.float64) -> np.ndarray:
    """cos(theta) of `angles`, and two values outside [-1, 1], as rounding makes them."""
    grid = np.cos(angles(m2, policy))
    if dtype == np.float32:
        # a float32 cosine cannot tell apart angles that are closer than this
        phi = np.arccos(grid.astype(np.float32).astype(np.float64)) + m2
        grid = grid[np.abs(phi - math.pi) > 1e-6] if policy == "linear" else grid
    # under `linear` and with no margin the end itself is the jump
    ends = [1 + 1e-6] if policy == "linear" and m2 == 0 else [1 + 1e-6, -1 - 1e-6]
    grid = grid[grid > -1] if policy == "linear" and m2 == 0 else grid
    return np.concatenate([grid, ends]).astype(dtype)


def by_angle(cosine: np.ndarray) -> np.ndarray:
    """sin(theta) where the derivative is taken: it turns d / d cos(theta), up to 1e8, into d / d theta, of order 1."""
    inner = np.clip(cosine, -1 + np.finfo(cosine.dtype).epsneg, 1 - np.finfo(cosine.dtype).epsneg)
    return np.sqrt((1 - inner) * (1 + inner))


@functools.cache
def _jax_psi(policy: Any, gradient: Any) -> Callable[..., Any]:
    @jax.jit
    def psi(cosine, weight, m1, m2, m3):
        margin = jax_margins.Margin(m1, m2, m3, policy, gradient)
        value, back = jax.vjp(lambda c: jax_margins.target_cosine(c, margin), cosine)
        return value, back(weight)[0]

    return psi


def jax_psi(policy: str, gradient: str, cosine: np.ndarray, values: tuple[float, float, float]) -> dict[str, Any]:
    """psi, and d psi / d theta up to its sign, by `jax_arcface`."""
    with jax.enable_x64(cosine.dtype == np.float64):
        psi, slope = _jax_psi(policy, gradient)(cosine, by_angle(cosine), *values)
        return {"psi": np.asarray(psi), "derivative": np.asarray(slope)}


def torch_psi(policy: str, gradient: str, cosine: np.ndarray, values: tuple[float, float, float]) -> dict[str, Any]:
    """The same by `torch_reference`."""
    margin = torch_margins.Margin(*values, beyond_pi=policy, gradient=gradient)
    c = torch.tensor(cosine).requires_grad_()
    psi = torch_margins.target_cosine(c, margin)
    (slope,) = torch.autograd.grad(psi, c, torch.tensor(by_angle(cosine)))
    return {"psi": psi.detach().numpy(), "derivative": slope.numpy()}


def exact_psi(policy: str, cosine: np.ndarray, values: tuple[float, float, float]) -> dict[str, Any]:
    """The same in 50 digits, rounded to float64: from the definitions, by the arc cosine and a numerical k."""
    psi, slope = [], []
    with mpmath.workdps(50):
        m1, m2, m3 = map(mpmath.mpf, values)
        ends = float(1 - np.finfo(np.float64).epsneg)

        def branch(theta):
            phi = m1 * theta + m2
            if policy == "linear" and phi > mpmath.pi:
                # cos(theta) - m2 sin(m2), whose derivative by theta is -sin(theta)
                return mpmath.cos(theta) - m2 * mpmath.sin(m2), mpmath.sin(theta)
            if policy == "monotone":
                k = int(mpmath.floor(phi / mpmath.pi))
                return (-1) ** k * mpmath.cos(phi) - 2 * k, (-1) ** k * m1 * mpmath.sin(phi)
            return mpmath.cos(phi), m1 * mpmath.sin(phi)

        for c in cosine:
            psi.append(float(branch(mpmath.acos(min(max(mpmath.mpf(float(c)), -1), 1)))[0] - m3))
            slope.append(float(branch(mpmath.acos(min(max(mpmath.mpf(float(c)), -ends), ends)))[1]))
    return {"psi": np.array(psi), "derivative": np.array(slope)}


def _both(policy: str, gradient: str, dtype: str) -> Iterator[Difference]:
    for name, values in presets(policy).items():
        grid = cosine_grid(values[1], policy, np.dtype(dtype).type)
        here, there = jax_psi(policy, gradient, grid, values), torch_psi(policy, gradient, grid, values)
        for key in there:
            yield difference(f"{name}: {key}", here[key], there[key])


def _third(twin: str, policy: str) -> Iterator[Difference]:
    psi = {"jax_arcface": jax_psi, "torch_reference": torch_psi}[twin]
    for name, values in presets(policy).items():
        grid = cosine_grid(values[1], policy)
        found, expected = psi(policy, "exact", grid, values), exact_psi(policy, grid, values)
        for key in expected:
            yield difference(f"{name}: {key}", found[key], expected[key])


def _grown(dtype: str) -> Iterator[Difference]:
    """psi of random cosines, through `compare`: the same path that a user takes."""
    cosine = np.random.default_rng(0).uniform(-0.99, 0.99, (4, 5)).astype(dtype)
    for name, values in PRESETS.items():
        here, there = jax_margins.Margin(*values), torch_margins.Margin(*values)
        report = compare(
            functools.partial(jax_margins.target_cosine, margin=here),
            functools.partial(torch_margins.target_cosine, margin=there),
            cosine,
        )
        yield from renamed(f"{name}:", report.differences)


CASES = [
    *(
        Case(
            f"margin on a grid of angles: {policy}, {gradient} gradient",
            "margins",
            dtype,
            **bound_of(dtype),
            measure=functools.partial(_both, policy, gradient, dtype),
            covers=("Margin",),
        )
        for dtype, policy, gradient in itertools.product(("float64", "float32"), POLICIES, GRADIENTS)
    ),
    Case("margin of random cosines", "margins", "float64", **bound_of("float64"), measure=lambda: _grown("float64")),
    *(
        Case(
            f"{twin} against mpmath: margin, {policy}",
            "margins",
            "float64",
            **bound_of("float64"),
            measure=functools.partial(_third, twin, policy),
        )
        for twin, policy in itertools.product(("jax_arcface", "torch_reference"), POLICIES)
    ),
]
