"""The published formulas, typed from the papers in float64 numpy, against ours: docs/published.md says why they differ.

Each pair agrees where our definition is the paper's, and differs elsewhere by no more than the page says.
"""

import functools
import math

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jax_arcface.losses import (
    Margin,
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    magface_loss,
    margin_softmax_loss,
    target_cosine,
)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


THETA = np.linspace(0.001, math.pi - 0.001, 2001)


def example(batch=32, dim=8, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(batch, dim)), rng.normal(size=(classes, dim))
    return x * rng.uniform(1, 30, (batch, 1)), w, rng.integers(classes, size=batch)


def cosines(x, w):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T


def cross_entropy(logits, y):
    return -log_softmax(logits, axis=1)[np.arange(len(y)), y].mean()


def with_own(logits, y, own):
    return np.where(np.arange(logits.shape[1]) == y[:, None], own[:, None], logits)


@functools.cache
def psi(m, beyond_pi):
    with jax.enable_x64(True):
        return np.asarray(target_cosine(np.cos(THETA), Margin(m2=m, beyond_pi=beyond_pi)))


def test_arcface_past_pi():
    """Equation 3 alone is `wrap`; the published code's cos(theta) - m sin(m) past pi is `linear`."""
    m = 0.5
    inside = THETA + m <= math.pi
    bare, linear = np.cos(THETA + m), np.where(inside, np.cos(THETA + m), np.cos(THETA) - m * math.sin(m))
    for policy in ("monotone", "linear", "wrap"):
        np.testing.assert_allclose(psi(m, policy)[inside], bare[inside], atol=1e-12)
    np.testing.assert_allclose(psi(m, "wrap"), bare, atol=1e-12)
    np.testing.assert_allclose(psi(m, "linear"), linear, atol=1e-12)
    assert abs(psi(m, "monotone") - linear).max() == pytest.approx(2 * math.cos(m / 2) - 2 + m * math.sin(m), abs=0.002)
    assert abs(psi(m, "monotone") - bare).max() == pytest.approx(2 - 2 * math.cos(m), abs=0.002)


def test_magface_with_an_easy_margin():
    """Its published default has the margin only where cos(theta) > 0; past pi / 2 ours goes on."""
    for m in (0.45, 0.8):
        easy = np.where(np.cos(THETA) > 0, np.cos(THETA + m), np.cos(THETA))
        near = THETA < math.pi / 2
        np.testing.assert_allclose(psi(m, "monotone")[near], easy[near], atol=1e-12)
        assert abs(psi(m, "monotone") - easy).max() == pytest.approx(math.sin(m), abs=0.002)


def test_magface_without_one():
    """Section 3: cos(theta + m(a)), m linear in a, and lambda g(a)."""
    x, w, y = example()
    a = np.clip(np.linalg.norm(x, axis=1), 10, 110)
    theta = np.arccos(cosines(x, w))[np.arange(len(y)), y]
    m = 0.45 + 0.35 * (a - 10) / 100
    wanted = cross_entropy(8 * with_own(cosines(x, w), y, np.cos(theta + m)), y) + 35 * (a / 110**2 + 1 / a).mean()
    assert magface_loss(x, w, y, scale=8.0, beyond_pi="wrap") == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 8])
def test_curricularface(dim):
    """Equations 10 to 13. At D = 2 many angles pass pi with the margin, where the equations alone are `wrap`."""
    x, w, y = example(dim=dim)
    cosine, t = cosines(x, w), 0.0
    own = cosine[np.arange(len(y)), y]
    t = 0.01 * own.mean() + 0.99 * t
    target = np.cos(np.arccos(own) + 0.5)
    logits = np.where(cosine > target[:, None], cosine * (t + cosine), cosine)
    wanted = cross_entropy(8 * with_own(logits, y, target), y)
    wrap, monotone = (
        curricularface_loss(x, w, y, 0.0, Margin.arcface(0.5) if p is None else Margin(m2=0.5, beyond_pi=p), 8.0)[0]
        for p in ("wrap", None)
    )
    assert wrap == pytest.approx(wanted, rel=1e-12)
    assert (np.arccos(own) + 0.5 > math.pi).any() == (abs(monotone - wanted) > 1e-9)


def test_adaface():
    """Equation 17 with the margins of equations 15 and 16; ours clips theta - m z to [0, pi]."""
    x, w, y = example()
    n, cosine = np.linalg.norm(x, axis=1), cosines(x, w)
    mean, std = 0.01 * n.mean() + 0.99 * 15, 0.01 * n.std(ddof=1) + 0.99 * 5
    z = np.clip((n - mean) / (std + 0.001) * 0.333, -1, 1)
    theta = np.arccos(cosine)[np.arange(len(y)), y]
    assert ((theta - 0.4 * z > 0) & (theta - 0.4 * z < math.pi)).all()
    wanted = cross_entropy(8 * with_own(cosine, y, np.cos(theta - 0.4 * z) - 0.4 * z - 0.4), y)
    assert adaface_loss(x, w, y, 15.0, 5.0, scale=8.0)[0] == pytest.approx(wanted, rel=1e-12)
    # at theta = 0 and z = 1 the equation has cos(m), we have 1
    far = adaface_loss(30 * np.eye(2), np.eye(2), np.arange(2), 0.0, 0.0, rate=0.0, scale=1.0)[0]
    assert far == pytest.approx(math.log1p(math.exp(0.8 - 1)), rel=1e-12)
    assert far - math.log1p(math.exp(0.8 - math.cos(0.4))) == pytest.approx(-0.036, abs=0.002)
    # of one example the standard deviation has no degree of freedom: 0 / 0 in the formula, 0 here
    assert np.isfinite(adaface_loss(x[:1], w, y[:1], 20.0, 100.0)[0])


@pytest.mark.parametrize("batch", [31, 32])
def test_adacos(batch):
    """Section 4: s = log(B) / cos(min(pi / 4, median theta)); of an even batch, the mean of the middle two."""
    x, w, y = example(batch)
    cosine, own = cosines(x, w), np.arange(6) == y[:, None]
    b = np.where(own, 0, np.exp(2 * cosine)).sum(axis=1).mean()
    theta = np.arccos(cosine[own])
    s = math.log(b) / math.cos(min(math.pi / 4, np.median(theta)))
    loss, scale = adacos_loss(x, w, y, 2.0)
    assert scale == pytest.approx(s, rel=1e-12)
    assert loss == pytest.approx(cross_entropy(s * cosine, y), rel=1e-12)


def test_cosface_is_the_published_one():
    x, w, y = example()
    cosine = cosines(x, w)
    wanted = cross_entropy(8 * (cosine - 0.35 * (np.arange(6) == y[:, None])), y)
    assert margin_softmax_loss(x, w, y, Margin.cosface(0.35), 8.0) == pytest.approx(wanted, rel=1e-12)
