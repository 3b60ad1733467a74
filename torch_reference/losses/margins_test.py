"""Tests of margins.py: values and derivatives against mpmath, written from the equations."""

import dataclasses

import mpmath
import numpy as np
import pytest
import torch

from torch_reference.losses.margins import Margin, angles, target_cosine

MARGINS = [
    Margin.softmax(),
    Margin.sphereface(1.35),
    Margin.sphereface(4.0),
    Margin.sphereface(1.7, beyond_pi="wrap"),
    Margin.cosface(0.35),
    Margin.arcface(0.5),
    Margin.arcface(0.5, beyond_pi="linear"),
    Margin.arcface(0.5, beyond_pi="wrap"),
    Margin(m1=1.2, m2=0.4, m3=0.15),
    Margin(m2=-0.4),
]


def oracle(theta, margin):
    """psi and d psi / d cos(theta) at theta, 0 < theta < pi."""
    m1, m2, m3 = mpmath.mpf(margin.m1), mpmath.mpf(margin.m2), mpmath.mpf(margin.m3)
    phi = m1 * theta + m2
    derivative = m1 * mpmath.sin(phi) / mpmath.sin(theta)
    if margin.beyond_pi == "linear" and phi > mpmath.pi:
        return mpmath.cos(theta) - m2 * mpmath.sin(m2) - m3, mpmath.mpf(1)
    if margin.beyond_pi == "monotone":
        k = mpmath.floor(phi / mpmath.pi)
        return (-1) ** int(k) * mpmath.cos(phi) - 2 * k - m3, (-1) ** int(k) * derivative
    return mpmath.cos(phi) - m3, derivative


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_values_and_derivatives_are_mpmaths(margin, dtype, bound):
    # an odd number of angles that miss the jump of "linear" at pi - m2 by far more than rounding
    cosine = torch.linspace(-0.999, 0.999, 127, dtype=dtype).requires_grad_()
    psi = target_cosine(cosine, margin)
    psi.sum().backward()
    with mpmath.workdps(60):
        expected = [oracle(mpmath.acos(mpmath.mpf(c.item())), margin) for c in cosine.detach()]
    values, slopes = np.array(expected, dtype=float).T
    np.testing.assert_allclose(psi.detach().double(), values, rtol=bound, atol=bound)
    np.testing.assert_allclose(cosine.grad.double(), slopes, rtol=bound, atol=bound)
    assert psi.dtype == cosine.grad.dtype == dtype


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_at_one_and_minus_one_the_derivative_is_that_of_the_number_next_to_it(margin, dtype):
    cosine = torch.tensor([1.0, -1.0], dtype=dtype, requires_grad=True)
    psi = target_cosine(cosine, margin)
    psi.sum().backward()
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(60):
        ends = [oracle(angle, margin)[0] for angle in (mpmath.mpf("1e-50"), mpmath.pi - mpmath.mpf("1e-50"))]
        inside = [mpmath.acos(sign * (1 - mpmath.mpf(eps) / 2)) for sign in (1, -1)]
        slopes = [oracle(theta, margin)[1] for theta in inside]
    np.testing.assert_allclose(psi.detach().double(), np.array(ends, float), rtol=0, atol=8 * eps * margin.m1)
    np.testing.assert_allclose(cosine.grad.double(), np.array(slopes, float), rtol=1e-3)


def test_beyond_one_counts_as_one():
    cosine = torch.tensor([1.5, -1.5])
    assert torch.equal(target_cosine(cosine, Margin.arcface()), target_cosine(cosine.sign(), Margin.arcface()))


@pytest.mark.parametrize("margin", [margin for margin in MARGINS if margin.beyond_pi == "monotone"], ids=str)
def test_monotone_falls_all_the_way(margin):
    theta = torch.linspace(0, torch.pi, 2001, dtype=torch.float64)
    assert (target_cosine(theta.cos(), margin).diff() < 0).all()


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_gradcheck_twice(margin):
    cosine = torch.tensor([-0.97, -0.5, 0.013, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: target_cosine(c, margin), cosine)
    assert torch.autograd.gradgradcheck(lambda c: target_cosine(c, margin), cosine)


def test_one_margin_for_each_example():
    cosine = torch.linspace(-0.9, 0.9, 5, dtype=torch.float64)
    fields = {"m1": [1.0, 1.3, 2.0, 4.0, 1.1], "m2": [0.5, 0.4, 0.0, 0.3, -0.2], "m3": [0.0, 0.1, 0.2, 0.3, 0.4]}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in fields.items()}
    one_by_one = [target_cosine(c, Margin(*values)) for c, *values in zip(cosine, *fields.values(), strict=True)]
    np.testing.assert_allclose(target_cosine(cosine, Margin(**tensors)), torch.stack(one_by_one), rtol=1e-15)
    assert target_cosine(cosine.float(), Margin(**tensors)).dtype == torch.float32


@pytest.mark.parametrize("policy", ["monotone", "linear", "wrap"])
@pytest.mark.parametrize("shape", [(5,), ()], ids=["one each", "one for all"])
def test_the_derivatives_by_the_margins(policy, shape):
    cosine = torch.tensor([-0.97, -0.5, 0.013, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    fields = {"m2": 0.7, "m3": 0.1} if policy == "linear" else {"m1": 1.2, "m2": 0.7, "m3": 0.1}
    margins = [torch.full(shape, m, dtype=torch.float64, requires_grad=True) for m in fields.values()]

    def psi(cosine, *margins):
        return target_cosine(cosine, Margin(**dict(zip(fields, margins, strict=True)), beyond_pi=policy))

    assert (angles(cosine) + 0.7 > torch.pi).any()
    assert torch.autograd.gradcheck(psi, (cosine, *margins))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-15), (torch.float32, 4e-7)], ids=str)
def test_angles_and_their_derivative_are_mpmaths(dtype, bound):
    eps = torch.finfo(dtype).eps
    cosine = torch.cat([torch.linspace(-0.999, 0.999, 126), torch.tensor([1.0, -1.0, 1 - eps, eps - 1])]).to(dtype)
    cosine.requires_grad_()
    theta = angles(cosine)
    theta.sum().backward()
    largest = 1 - mpmath.mpf(eps) / 2
    with mpmath.workdps(60):
        exact = [mpmath.mpf(c.item()) for c in cosine.detach()]
        values = [float(mpmath.acos(c)) for c in exact]
        slopes = [float(-1 / mpmath.sqrt(1 - max(-largest, min(largest, c)) ** 2)) for c in exact]
    np.testing.assert_allclose(theta.detach().double(), values, rtol=bound, atol=bound)
    np.testing.assert_allclose(cosine.grad.double(), slopes, rtol=4 * bound)
    assert theta.dtype == cosine.grad.dtype == dtype
    assert torch.equal(angles(torch.tensor([1.5, -1.5])), angles(torch.tensor([1.0, -1.0])))


def test_gradcheck_of_angles_twice():
    cosine = torch.tensor([-0.97, -0.5, 0.013, 0.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(angles, cosine)
    assert torch.autograd.gradgradcheck(angles, cosine)


def test_straight_through_has_the_values_and_the_slope_one():
    cosine = torch.tensor([-1.0, -0.3, 0.8, 1.0], requires_grad=True)
    exact, straight = Margin.arcface(), Margin.arcface(gradient="straight_through")
    psi = target_cosine(cosine, straight)
    psi.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(psi, target_cosine(cosine, exact))
    assert cosine.grad.tolist() == [1, 2, 3, 4]


def test_presets():
    assert Margin.softmax() == Margin(1.0, 0.0, 0.0)
    assert Margin.sphereface() == Margin(m1=1.35)
    assert Margin.cosface() == Margin(m3=0.35)
    assert Margin.arcface() == Margin(m2=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Margin.arcface().m2 = 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m1": 0}, "m1 is 0; the multiplicative margin must be > 0"),
        ({"m2": 4}, "m2 is 4; the angular margin is in radians and must lie between -pi and pi"),
        ({"m2": -4}, "m2 is -4; the angular margin"),
        ({"m1": float("nan")}, "m1 is nan; a margin must be finite"),
        ({"m3": float("inf")}, "m3 is inf; a margin must be finite"),
        ({"m1": 1.3, "beyond_pi": "linear"}, "beyond_pi='linear' is defined for m1 = 1 only"),
        ({"m1": torch.ones(2), "beyond_pi": "linear"}, "beyond_pi='linear' is defined for m1 = 1 only"),
        ({"beyond_pi": "x"}, "beyond_pi is 'x'; it must be one of 'monotone', 'linear', 'wrap'"),
        ({"gradient": "x"}, "gradient is 'x'; it must be one of 'exact', 'straight_through'"),
    ],
)
def test_a_bad_margin_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Margin(**values)


@pytest.mark.parametrize("name", ["m1", "m2", "m3"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("0.5", TypeError),
        (None, TypeError),
        (0.5 + 0j, TypeError),
        ([0.5], TypeError),
        (torch.tensor([0.5j]), TypeError),
        (torch.tensor([True]), TypeError),
        (float("nan"), ValueError),
        (10**400, ValueError),
        (-(10**400), ValueError),
        (10**5000, ValueError),
    ],
    ids=["str", "None", "complex", "list", "complex tensor", "bool tensor", "nan", "huge", "-huge", "unprintable"],
)
def test_what_is_no_finite_number_is_no_margin(name, value, error):
    with pytest.raises(error, match=f"^{name} "):
        Margin(**{name: value})
