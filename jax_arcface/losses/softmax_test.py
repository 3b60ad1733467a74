"""Logits, losses and gradients against float64 numpy, and finite for whatever is finite."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.special import log_softmax

from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import (
    a_softmax_loss,
    annealed_lambda,
    linear_logits,
    linear_softmax_loss,
    margin_logits,
    margin_softmax_loss,
    modified_softmax_loss,
    softmax_loss,
)

BATCH, CLASSES, DIMENSION = 5, 6, 4
LABELS = np.array([0, 1, 1, 4, 5])  # classes 2 and 3 are absent
POLICIES = ["monotone", "linear", "wrap"]
MARGINS = [(1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.0, 0.3, 0.2), (1.35, 0.0, 0.0), (4.0, 0.2, 0.1)]


def margins_of(beyond_pi):
    return [m for m in MARGINS if beyond_pi != "linear" or m[0] == 1]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def example(seed=0):
    """Embeddings and prototypes of many lengths; the second embedding lies almost opposite to its prototype."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(BATCH, DIMENSION)), rng.normal(size=(CLASSES, DIMENSION))
    x[1] = 0.3 * rng.normal(size=DIMENSION) - 2 * w[LABELS[1]]
    return x * rng.uniform(0.1, 10, (BATCH, 1)), w * rng.uniform(0.1, 10, (CLASSES, 1))


def numpy_cosines(x, w):
    x, w = np.float64(x), np.float64(w)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)) @ (w / np.linalg.norm(w, axis=-1, keepdims=True)).T


def numpy_logits(x, w, labels, margin, beyond_pi="monotone", scale=64.0):
    """ArcFace's equation 4; past pi each further half turn is the first one again, 2 lower (SphereFace)."""
    m1, m2, m3 = margin
    logits = numpy_cosines(x, w)
    for row, label in zip(logits, labels, strict=True):
        phi, lower = m1 * np.arccos(np.clip(row[label], -1, 1)) + m2, 0
        if beyond_pi == "linear" and phi > np.pi:
            row[label] -= m2 * np.sin(m2) + m3
            continue
        while phi > np.pi and beyond_pi == "monotone":
            phi, lower = phi - np.pi, lower + 2
        row[label] = np.cos(phi) - lower - m3
    return scale * logits


def numpy_loss(x, w, labels, margin, beyond_pi="monotone", scale=64.0, smoothing=0.0):
    logs = log_softmax(numpy_logits(x, w, labels, margin, beyond_pi, scale), axis=1)
    target = (1 - smoothing) * np.eye(logs.shape[1])[labels] + smoothing / logs.shape[1]
    return -(target * logs).sum(axis=1).mean()


def numpy_gradient(f, x):
    """By central differences, an entry at a time."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-5 * max(abs(x[i]), 0.1)
        gradient[i] = (f(x + step) - f(x - step)) / (2 * step[i])
    return gradient


class Result(NamedTuple):
    logits: jax.Array
    loss: jax.Array
    dx: jax.Array
    dw: jax.Array
    d_margin: Margin
    d_scale: jax.Array


@functools.partial(jax.jit, static_argnums=5)
def _compiled(x, w, labels, margin, scale, smoothing):
    loss_and_gradients = jax.value_and_grad(margin_softmax_loss, argnums=(0, 1, 3, 4))
    loss, gradients = loss_and_gradients(x, w, labels, margin, scale, smoothing)
    return Result(margin_logits(x, w, labels, margin, scale), loss, *gradients)


def compute(x, w, labels, margin, scale=64.0, smoothing=0.0):
    """All that there is to know, under jit: compiled once for each dtype, shape and policy."""
    return _compiled(x, w, labels, margin, scale, smoothing)


jit_loss = jax.jit(margin_softmax_loss)


@pytest.mark.parametrize(
    ("dtype", "beyond_pi"),
    # narrow dtypes are float32 by the time an angle is taken
    [*itertools.product([jnp.float64, jnp.float32], POLICIES), (jnp.float16, "monotone"), (jnp.bfloat16, "monotone")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_logits_loss_and_gradients_match_numpy(dtype, beyond_pi):
    with jax.enable_x64(dtype == jnp.float64):
        x, w = (jnp.asarray(a, dtype) for a in example())
        x64, w64 = np.float64(x), np.float64(w)  # what is left of them in this dtype
        digits = 1e-12 if dtype == jnp.float64 else 2e-6
        rounding = 1e-7 if dtype == jnp.float64 else max(2e-5, float(jnp.finfo(dtype).eps))
        for margin, scale in zip(margins_of(beyond_pi), itertools.cycle([64.0, 10.0]), strict=False):
            result = compute(x, w, LABELS, Margin(*margin, beyond_pi), scale)
            assert result.logits.dtype == result.loss.dtype == (dtype if dtype == jnp.float64 else jnp.float32)
            assert result.dx.dtype == result.dw.dtype == dtype
            rest = (LABELS, margin, beyond_pi, scale)
            np.testing.assert_allclose(result.logits, numpy_logits(x64, w64, *rest), 0, digits * 64)
            np.testing.assert_allclose(result.loss, numpy_loss(x64, w64, *rest), 0, digits * 64)
            dx = numpy_gradient(lambda x, rest=rest: numpy_loss(x, w64, *rest), x64)
            dw = numpy_gradient(lambda w, rest=rest: numpy_loss(x64, w, *rest), w64)
            for got, wanted in ((result.dx, dx), (result.dw, dw)):
                np.testing.assert_allclose(np.float64(got), wanted, rounding, rounding * abs(wanted).max())


@pytest.mark.parametrize("beyond_pi", POLICIES)
def test_straight_through_gradient_is_softmax_minus_one_hot(beyond_pi):
    x, w = (np.float32(a) for a in example())
    for m in margins_of(beyond_pi):
        result = compute(x, w, LABELS, Margin(*m, beyond_pi, "straight_through"))
        assert result.loss == pytest.approx(numpy_loss(x, w, LABELS, m, beyond_pi), abs=1e-4)
        # d logit / d cos = s everywhere, so d loss / d x = s / B (p - onehot) d cos / d x
        d_logits = np.exp(log_softmax(numpy_logits(x, w, LABELS, m, beyond_pi), axis=1)) - np.eye(CLASSES)[LABELS]
        unit = [np.float64(a) / np.linalg.norm(np.float64(a), axis=1, keepdims=True) for a in (x, w)]
        across = unit[1][None] - (unit[0] @ unit[1].T)[:, :, None] * unit[0][:, None]
        wanted = 64 / BATCH * np.einsum("bc,bcd->bd", d_logits, across) / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(result.dx, wanted, 1e-4, 1e-4 * abs(wanted).max())


@pytest.mark.parametrize(("beyond_pi", "m1"), [("monotone", 2.2), ("linear", 1.0), ("wrap", 2.2)])
@pytest.mark.usefixtures("x64")
def test_check_grads_in_both_modes(beyond_pi, m1):
    @jax.jit
    def loss(x, w, m2, m3, scale):
        return margin_softmax_loss(x, w, LABELS, Margin(m1, m2, m3, beyond_pi), scale, 0.1)

    check_grads(loss, (*example(), 0.5, 0.2, 16.0), order=1, modes=("fwd", "rev"), rtol=1e-5)


def test_gradients_of_margin_and_scale_match_finite_differences():
    x, w = (np.float32(a) for a in example())
    m = (1.35, 0.3, 0.2)
    result = compute(x, w, LABELS, Margin(*m), 16.0)
    wanted = numpy_gradient(lambda p: numpy_loss(x, w, LABELS, p[:3], scale=p[3]), [*m, 16.0])
    got = [result.d_margin.m1, result.d_margin.m2, result.d_margin.m3, result.d_scale]
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


# Whatever is finite in, is finite out -----------------------------------------------------------------------------


def awkward(dtype):
    """Embeddings [B, D], prototypes [C, D], labels: the corners of the dtype, each towards and away from its class."""
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    sizes = [1.0, 0.0, largest, tiny, float(jnp.finfo(dtype).tiny), 1e30, 1e-35, 1e-30]
    sizes = [length for length in sizes if length <= largest]
    directions = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 0, 0]])
    rows = [sign * length * d for d in directions for length in sizes for sign in (1, -1)]
    prototypes = np.array([*directions, 0 * directions[0], largest * directions[1], tiny * directions[2]])
    pairs = list(itertools.product(rows, range(len(prototypes))))
    x, labels = np.array([row for row, _ in pairs]), np.array([label for _, label in pairs])
    return jnp.asarray(x, dtype), jnp.asarray(prototypes, dtype), labels


@pytest.mark.parametrize(
    ("dtype", "beyond_pi", "gradient"),
    [
        *itertools.product([jnp.float32], POLICIES, ["exact", "straight_through"]),
        (jnp.float16, "monotone", "exact"),
        (jnp.bfloat16, "monotone", "exact"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_finite_for_every_finite_input(dtype, beyond_pi, gradient):
    x, w, labels = awkward(dtype)
    for m in margins_of(beyond_pi):
        for leaf in jax.tree.leaves(compute(x, w, labels, Margin(*m, beyond_pi, gradient))):
            assert np.isfinite(np.float64(leaf)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_at_and_opposite_to_the_prototype(dtype):
    w = np.zeros((CLASSES, DIMENSION))
    w[0, 0], w[1, 1], w[4, 2], w[5, 3] = 3, 0.5, 1, 7
    x = np.array([w[0], w[1], -2 * w[1], -w[4], w[5]])
    logits = compute(jnp.asarray(x, dtype), jnp.asarray(w, dtype), LABELS, Margin.arcface(0.5), 10.0).logits
    wanted = np.zeros((BATCH, CLASSES))
    wanted[np.arange(BATCH), LABELS] = 10 * np.cos(0.5) - np.array(
        [0, 0, 20, 20, 0]
    )  # cos(pi + m) continued is -2 + cos m
    np.testing.assert_allclose(logits, wanted, atol=2e-5)


def test_a_zero_embedding_has_cosine_zero_and_takes_no_gradient():
    _, w = (np.float32(a) for a in example())
    result = compute(np.zeros((BATCH, DIMENSION), np.float32), w, LABELS, Margin.arcface(0.5))
    target = 64 * -np.sin(0.5)  # cos(pi / 2 + 0.5)
    assert result.loss == pytest.approx(np.log(np.exp(target) + CLASSES - 1) - target, rel=1e-6)
    assert not result.dx.any()
    assert not result.dw.any()


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        *itertools.product([jnp.float32], [99, 123, -90]),
        *itertools.product([jnp.float16], [10, -14]),
        *itertools.product([jnp.bfloat16], [120, -90]),
    ],
)
def test_only_the_direction_counts_at_either_end_of_a_dtype(dtype, exponent):
    x, w = (jnp.asarray(a / np.linalg.norm(a, axis=1, keepdims=True), dtype) for a in example())
    x = jnp.round(x * 8) / 8  # few digits, so that none are lost among float16's subnormal numbers
    scaled = jnp.asarray(np.float64(x) * 2.0**exponent, dtype)
    np.testing.assert_array_equal(np.float64(scaled), np.float64(x) * 2.0**exponent)
    result, far = compute(x, w, LABELS, Margin.arcface()), compute(scaled, w, LABELS, Margin.arcface())
    assert far.loss == pytest.approx(float(result.loss), rel=1e-6)
    info = jnp.finfo(dtype)
    wanted = np.clip(np.float64(result.dx) / 2.0**exponent, -float(info.max), float(info.max))  # it saturates
    rounding = 4 * float(info.eps)
    atol = max(rounding * abs(wanted).max(), 2 * float(info.tiny))
    np.testing.assert_allclose(np.float64(far.dx), wanted, rounding, atol)


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (1, 1000)])
def test_a_batch_of_one_with_one_class_and_with_many(batch, classes):
    rng = np.random.default_rng(1)
    x, w = np.float32(rng.normal(size=(batch, DIMENSION))), np.float32(rng.normal(size=(classes, DIMENSION)))
    labels = rng.integers(classes, size=batch)
    result = compute(x, w, labels, Margin.arcface())
    assert result.loss == pytest.approx(numpy_loss(x, w, labels, (1, 0.5, 0)), abs=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


# Labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**31, 2**32 + 1, -(2**32)])
@pytest.mark.parametrize("f", [margin_logits, margin_softmax_loss], ids=["logits", "loss"])
def test_a_label_out_of_range_raises(f, bad):
    x, w = (np.float32(a) for a in example())
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 6\); found {bad}"):
        f(x, w, np.array([0, 1, bad, 4, 5]), Margin.arcface())
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 6\); found {bad}"):
        softmax_loss(np.zeros((5, CLASSES)), [0, 1, bad, 4, 5])


@pytest.mark.parametrize("bad", [-1, CLASSES])
def test_a_label_out_of_range_is_nan_inside_jit(bad):
    x, w = (np.float32(a) for a in example())
    labels = np.array([0, 1, bad, 4, 5])
    result = compute(x, w, labels, Margin.arcface())
    assert np.isnan(result.logits[2]).all()
    fine = np.arange(BATCH) != 2
    wanted = numpy_logits(x[fine], w, labels[fine], (1, 0.5, 0))
    np.testing.assert_allclose(result.logits[fine], wanted, atol=2e-4)
    assert np.isnan(result.loss)
    assert np.isnan(result.dx[2]).all()
    assert np.isnan(result.dw).all()  # who asks for gradients alone is warned as well
    assert np.isnan(compute(x, w, labels, Margin.arcface(), 10.0, 0.3).loss)
    loss, gradient = jax.jit(jax.value_and_grad(softmax_loss))(np.float32(np.arange(30.0).reshape(5, 6)), labels)
    assert np.isnan(loss)
    assert np.isnan(gradient[2]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32])
@pytest.mark.usefixtures("x64")
def test_a_wide_label_does_not_wrap_around_to_a_class(dtype):
    bits = np.iinfo(dtype).bits
    for bad in (2**32 + 1, 2**63 - 1) if bits == 64 else (2**31 + 1, 2**32 - 1):
        labels = jnp.array([0, 1, bad, 4, 5], dtype)
        assert np.isnan(jit_loss(*example(), labels, Margin.arcface()))


def test_any_integers_are_labels():
    x, w = (np.float32(a) for a in example())
    wanted = numpy_loss(x, w, LABELS, (1, 0.5, 0))
    kinds = [
        LABELS.tolist(),
        *(LABELS.astype(d) for d in (np.uint8, np.int8, np.uint32, np.int64, np.uint64)),
        jnp.array(LABELS),
    ]
    for labels in kinds:
        assert margin_softmax_loss(x, w, labels, Margin.arcface()) == pytest.approx(wanted, abs=1e-4)


def test_narrow_labels_reach_all_the_classes_that_they_can_name():
    rng = np.random.default_rng(2)
    logits, labels = np.float32(rng.normal(size=(2, 300))), np.array([255, 128], np.uint8)  # 300 is no uint8
    wanted = -log_softmax(np.float64(logits), axis=1)[[0, 1], [255, 128]].mean()
    for f in (softmax_loss, jax.jit(softmax_loss)):
        assert f(logits, labels) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("labels", [np.float32(LABELS), LABELS > 2, ["cat"] * BATCH], ids=["float", "bool", "text"])
def test_labels_that_are_no_integers_are_refused(labels):
    x, w = example()
    with pytest.raises(TypeError, match=r"labels have dtype .*; they must be integers"):
        margin_softmax_loss(x, w, labels, Margin.arcface())
    with pytest.raises(TypeError, match=r"labels have dtype .*; they must be integers"):
        softmax_loss(np.zeros((BATCH, CLASSES)), labels)


@pytest.mark.parametrize(
    ("x", "w", "labels", "message"),
    [
        ((5, 4), (6, 3), (5,), r"embeddings \(5, 4\) and prototypes \(6, 3\) do not fit"),
        ((4,), (6, 4), (1,), r"embeddings \(4,\) and prototypes"),
        ((5, 4), (4,), (5,), "do not fit"),
        ((5, 4), (6, 4), (4,), r"labels have shape \(4,\); .*: \(5,\)"),
        ((5, 4), (6, 4), (5, 1), r"labels have shape \(5, 1\)"),  # would broadcast
        ((5, 4), (6, 4), (), r"labels have shape \(\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, w, labels, message):
    arguments = np.ones(x), np.ones(w), np.zeros(labels, int), Margin.arcface()
    for f in (margin_logits, margin_softmax_loss, jit_loss):
        with pytest.raises(ValueError, match=message):
            f(*arguments)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_softmax_loss_of_narrow_logits_is_computed_in_float32(dtype):
    logits = jnp.array([[6e4, -6e4, 0]], dtype)  # their difference is no float16
    wanted = numpy_cross_entropy(np.float64(logits), [1], 0.1)
    loss, gradient = jax.value_and_grad(softmax_loss)(logits, np.array([1]), 0.1)
    assert loss.dtype == jnp.float32
    assert loss == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(np.float64(gradient), [[1 - 0.1 / 3, -0.9 - 0.1 / 3, -0.1 / 3]], rtol=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_losses_and_their_gradients_match_mpmath(dtype):
    """The difference of the log-sum-exp and the target's logit would be 0 in float32, and lose digits in float64."""
    with jax.enable_x64(dtype == np.float64):
        margins = np.array([8, 16, 24, 32, 48, 64], dtype)  # the target's logit above the others, [B]
        logits = np.stack([0 * margins, margins, margins / 4, -margins], axis=1)
        loss = jax.jit(functools.partial(softmax_loss, reduction="none"))
        losses, pull = jax.vjp(lambda z: loss(z, np.ones(len(z), int)), logits)
        (gradients,) = pull(np.ones_like(margins))
        digits = 40 * np.finfo(dtype).eps  # exp(-x) has x of them less
        for row, got, gradient in zip(logits, losses, gradients, strict=True):
            with mpmath.workdps(40):
                above = [mpmath.exp(mpmath.mpf(float(z)) - mpmath.mpf(float(row[1]))) for z in np.delete(row, 1)]
                exact, share = mpmath.log1p(sum(above)), 1 + sum(above)
                slopes = [float(part / share) for part in above]
            np.testing.assert_allclose(got, float(exact), rtol=digits)
            np.testing.assert_allclose(np.delete(gradient, 1), slopes, 2 * digits, np.finfo(dtype).tiny)
            np.testing.assert_allclose(gradient[1], -sum(slopes), rtol=2 * digits)


@pytest.mark.usefixtures("x64")
def test_a_small_margin_softmax_loss_matches_mpmath():
    theta, scale = 1e-3, 64.0
    x, w = np.array([[np.cos(theta), np.sin(theta), 0]]), np.eye(3)
    got = margin_softmax_loss(x, w, np.array([0]), Margin.softmax(), scale)
    with mpmath.workdps(40):
        length = mpmath.sqrt(sum(mpmath.mpf(v) ** 2 for v in x[0]))
        z = [scale * mpmath.mpf(v) / length for v in x[0]]
        exact = mpmath.log1p(mpmath.exp(z[1] - z[0]) + mpmath.exp(z[2] - z[0]))
    assert got == pytest.approx(float(exact), rel=1e-13)


def test_softmax_loss_wants_a_matrix():
    with pytest.raises(ValueError, match=r"logits have shape \(4,\); they must be \[B, C\]"):
        softmax_loss(np.zeros(4), np.array([0]))


@pytest.mark.parametrize("scale", [0, -64.0, float("nan"), float("inf"), np.float32(-1)])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale is .*; it must be > 0 and finite"):
        margin_softmax_loss(*example(), LABELS, Margin.arcface(), scale)


# Label smoothing, sub-centres -------------------------------------------------------------------------------------


def test_label_smoothing_matches_numpy():
    x, w = (np.float32(a) for a in example())
    for m in MARGINS:
        loss = compute(x, w, LABELS, Margin(*m), 10.0, 0.3).loss
        assert loss == pytest.approx(numpy_loss(x, w, LABELS, m, scale=10.0, smoothing=0.3), abs=2e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .*; it must be at least 0 and below 1"):
        softmax_loss(np.zeros((2, 3)), np.array([0, 1]), smoothing)


def test_the_nearest_subcentre_counts():
    x, _ = (np.float32(a) for a in example())
    w = np.float32(np.random.default_rng(3).normal(size=(CLASSES, 2, DIMENSION)))

    def loss(w):
        losses = []
        for i in range(BATCH):  # to one example, its nearest sub-centres are all the prototypes there are
            nearest = [max(of_class, key=lambda v, i=i: numpy_cosines(x[[i]], v[None]).item()) for of_class in w]
            losses.append(numpy_loss(x[[i]], np.array(nearest), LABELS[[i]], (1, 0.5, 0)))
        return np.mean(losses)

    result = compute(x, w, LABELS, Margin.arcface())
    assert result.loss == pytest.approx(loss(np.float64(w)), abs=1e-4)
    wanted = numpy_gradient(loss, w)
    np.testing.assert_allclose(result.dw, wanted, 1e-4, 1e-4 * abs(wanted).max())


def test_of_equal_subcentres_the_first_takes_the_gradient():
    x, w = (np.float32(a) for a in example())
    result, alone = (compute(x, a, LABELS, Margin.arcface()) for a in (np.stack([w, w], axis=1), w))
    assert not result.dw[:, 1].any()
    np.testing.assert_allclose(result.dw[:, 0], alone.dw, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.dx, alone.dx, rtol=1e-4, atol=1e-4)
    assert result.loss == pytest.approx(float(alone.loss), rel=1e-6)


# Properties -------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)
powers = st.floats(-20, 20).map(lambda e: 10.0**e)
some_margins = st.sampled_from(MARGINS).map(lambda m: Margin(*m))
few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@given(seeds, some_margins, st.lists(powers, min_size=BATCH + CLASSES, max_size=BATCH + CLASSES))
def test_lengths_do_not_count(seed, margin, factors):
    with jax.enable_x64(True):
        x, w = example(seed)
        a, b = np.split(np.array(factors)[:, None], [BATCH])
        result, longer = compute(x, w, LABELS, margin), compute(a * x, b * w, LABELS, margin)
        assert longer.loss == pytest.approx(float(result.loss), rel=1e-9, abs=1e-9)
        for got, wanted in ((longer.dx * a, result.dx), (longer.dw * b, result.dw)):  # a longer vector turns less
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8 * abs(wanted).max())


@few
@given(seeds, some_margins, st.permutations(range(CLASSES)))
def test_the_order_of_classes_does_not_count(seed, margin, order):
    with jax.enable_x64(True):
        x, w = example(seed)
        result, moved = compute(x, w, LABELS, margin), compute(x, w[order], np.argsort(order)[LABELS], margin)
        assert moved.loss == pytest.approx(float(result.loss), rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(moved.dx, result.dx, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moved.dw, np.asarray(result.dw)[order], rtol=1e-9, atol=1e-9)


@few
@given(seeds, some_margins)
def test_gradients_are_orthogonal_to_what_they_turn(seed, margin):
    with jax.enable_x64(True):
        x, w = example(seed)
        result = compute(x, w, LABELS, margin)
        for vectors, gradient in ((x, result.dx), (w, result.dw)):
            sizes = np.linalg.norm(vectors, axis=1) * np.linalg.norm(gradient, axis=1)
            assert (abs((vectors * gradient).sum(axis=1)) <= 1e-12 * (1 + sizes)).all()


@few
@given(seeds, st.sampled_from(POLICIES), st.sampled_from(["exact", "straight_through"]), st.sampled_from([1.0, 64.0]))
def test_no_margin_is_norm_softmax(seed, beyond_pi, gradient, scale):
    x, w = (np.float32(a) for a in example(seed))
    labels = np.random.default_rng(seed).integers(CLASSES, size=BATCH)
    result = compute(x, w, labels, Margin(beyond_pi=beyond_pi, gradient=gradient), scale)

    def norm_softmax(x):
        return -log_softmax(scale * numpy_cosines(x, w), axis=1)[np.arange(BATCH), labels].mean()

    assert result.loss == pytest.approx(norm_softmax(x), abs=2e-6 * scale)
    wanted = numpy_gradient(norm_softmax, x)
    np.testing.assert_allclose(result.dx, wanted, 2e-3, 2e-4 * abs(wanted).max() + 1e-6)


# Transformations --------------------------------------------------------------------------------------------------


def test_vmap_over_margins_and_over_batches():
    x, w = (np.float32(a) for a in example())
    stack = jax.tree.map(lambda *m: np.array(m, np.float32), *(Margin(*m) for m in MARGINS))
    losses = jax.vmap(jit_loss, in_axes=(None, None, None, 0))(x, w, LABELS, stack)
    np.testing.assert_allclose(losses, [numpy_loss(x, w, LABELS, m) for m in MARGINS], atol=2e-4)
    # each example a batch of its own; labels, mapped over, cannot be looked at
    labels = np.array([*LABELS[:4], CLASSES])
    alone = jax.vmap(lambda x, y: jit_loss(x[None], w, y[None], Margin.arcface()))(x, labels)
    wanted = [numpy_loss(x[[i]], w, LABELS[[i]], (1, 0.5, 0)) for i in range(4)]
    np.testing.assert_allclose(alone, [*wanted, np.nan], atol=2e-4)


def test_a_margin_can_be_static():
    x, w = (np.float32(a) for a in example())
    f = jax.jit(margin_softmax_loss, static_argnums=3)
    assert f(x, w, LABELS, Margin.cosface()) == pytest.approx(numpy_loss(x, w, LABELS, (1, 0, 0.35)), abs=1e-4)


def numpy_cross_entropy(logits, labels, smoothing=0.0):
    logs = log_softmax(logits, axis=1)
    target = (1 - smoothing) * np.eye(logs.shape[1])[labels] + smoothing / logs.shape[1]
    return -(target * logs).sum(axis=1).mean()


def numpy_a_softmax(x, w, labels, m, lam):
    """SphereFace's equation 7, with its annealing, an entry at a time."""
    cosine, logits = numpy_cosines(x, w), np.zeros((len(x), len(w)))
    for i, j in np.ndindex(logits.shape):
        length, theta = np.sqrt(np.float64(x[i]) @ np.float64(x[i])), np.arccos(np.clip(cosine[i, j], -1, 1))
        if j == labels[i]:
            k = int(theta * m / np.pi)
            psi = (-1) ** k * np.cos(m * theta) - 2 * k
            logits[i, j] = length * (lam * np.cos(theta) + psi) / (1 + lam)
        else:
            logits[i, j] = length * np.cos(theta)
    return logits


@functools.partial(jax.jit, static_argnums=4)
def _unscaled_losses(x, w, bias, lam, m):
    """linear, modified and A-Softmax, with the sum's gradients."""

    def all_of_them(x, w, bias):
        return jnp.stack([
            linear_softmax_loss(x, w, bias, LABELS, 0.1),
            modified_softmax_loss(x, w, LABELS, 0.1),
            a_softmax_loss(x, w, LABELS, m, lam, 0.1),
        ])  # fmt: skip

    return all_of_them(x, w, bias), jax.jacrev(all_of_them, argnums=(0, 1, 2))(x, w, bias)


@pytest.mark.parametrize("m", [1, 4])
def test_losses_with_the_embeddings_own_length_match_numpy(x64, m):
    x, w = example(3)
    bias = np.random.default_rng(4).normal(size=CLASSES)

    def oracle(number, x, w, bias):
        logits = [
            lambda: x @ w.T + bias,
            lambda: np.linalg.norm(x, axis=1, keepdims=True) * numpy_cosines(x, w),
            lambda: numpy_a_softmax(x, w, LABELS, m, 2.5),
        ][number]()
        return numpy_cross_entropy(logits, LABELS, 0.1)

    losses, (dx, dw, db) = _unscaled_losses(x, w, bias, 2.5, m)
    for number in range(3):
        np.testing.assert_allclose(losses[number], oracle(number, x, w, bias), rtol=1e-12)
        expected = numpy_gradient(lambda x, n=number: oracle(n, x, w, bias), x)
        np.testing.assert_allclose(dx[number], expected, atol=1e-6 * np.abs(expected).max())
        expected = numpy_gradient(lambda w, n=number: oracle(n, x, w, bias), w)
        np.testing.assert_allclose(dw[number], expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(db[0], numpy_gradient(lambda b: oracle(0, x, w, b), bias), atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_losses_with_the_embeddings_own_length_are_finite(dtype):
    x, w = example(5)
    x[0], x[1], x[2], w[5] = 0, 3 * w[1], -w[1], 0
    losses, gradients = _unscaled_losses(jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.zeros(CLASSES), 0.0, 4)
    assert all(np.isfinite(np.float32(part)).all() for part in (losses, *gradients))
    assert losses.dtype == jnp.float32
    assert gradients[0].dtype == dtype


@pytest.mark.parametrize("size", [1e10, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_logits_inside_jit_match_numpy(size, smoothing):
    """XLA must not round a product and its difference to the largest as one: exp of that would overflow."""
    x, w = (np.float32(a) for a in example(3))
    x *= np.float32(size)

    @jax.jit
    def both(x, w):
        def losses(x, w):
            return jnp.stack([
                modified_softmax_loss(x, w, LABELS, smoothing),
                a_softmax_loss(x, w, LABELS, 4, 2.5, smoothing),
                margin_softmax_loss(x, w, LABELS, Margin(), size, smoothing),
            ])  # fmt: skip

        return losses(x, w), jax.jacrev(losses, argnums=(0, 1))(x, w)

    cosine, length = numpy_cosines(x, w), np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    logits = length * cosine, numpy_a_softmax(x, w, LABELS, 4, 2.5), size * cosine
    found, gradients = both(x, w)
    np.testing.assert_allclose(found, [numpy_cross_entropy(part, LABELS, smoothing) for part in logits], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_softmax_wants_a_whole_margin_and_a_lambda_of_at_least_zero():
    x, w = example()
    for m in (0, 2.5):
        with pytest.raises(ValueError, match=rf"m is {m}; it must be a whole number of at least 1"):
            a_softmax_loss(x, w, LABELS, m)
    for lam in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"lam is {lam}; it must be at least 0 and finite"):
            a_softmax_loss(x, w, LABELS, lam=lam)


def test_bias_must_fit():
    x, w = example()
    for weights, bias in ((w, np.zeros(3)), (w[:, None], np.zeros(CLASSES))):
        with pytest.raises(ValueError, match=r"must be \[C, D\] and \[C\]"):
            linear_logits(x, weights, bias)


def test_lambda_falls_as_in_the_published_training():
    # what its layer logs in its first iterations, and where lambda reaches its last value
    found = annealed_lambda(np.array([1, 2, 3, 4, 5, 100, 1658, 1659, 10**6]))
    logged = [892.857, 806.452, 735.294, 675.676, 625.0, 76.9231, 5.00100, 5.0, 5.0]
    np.testing.assert_allclose(found, logged, rtol=1e-6)
    assert annealed_lambda(0) == 1000
    np.testing.assert_allclose(annealed_lambda(np.array([0, 1, 4, 9, 99]), 10.0, 1.0, 1.0), [10, 5, 2, 1, 1], rtol=1e-6)


def test_a_margin_for_each_example_is_that_example_alone(x64):
    x, w = example(1)
    m2 = np.array([0.5, 0.1, 0.9, 0.0, 0.3])
    together = margin_logits(x, w, LABELS, Margin(m2=jnp.asarray(m2)))
    for i in range(BATCH):
        expected = numpy_logits(x[i : i + 1], w, LABELS[i : i + 1], (1.0, m2[i], 0.0))
        np.testing.assert_allclose(together[i : i + 1], expected, rtol=1e-12, atol=1e-12)


def test_filtered_classes_have_the_logit_zero_and_no_gradient(x64):
    x, w = example(2)
    cosine = numpy_cosines(x, w)
    threshold = np.sort(cosine.ravel())[-8]  # seven cosines are above it
    wrong = (cosine > threshold) & (np.arange(CLASSES) != LABELS[:, None])
    assert 0 < wrong.sum() < 8
    margin = (1.0, 0.5, 0.0)
    expected = np.where(wrong, 0, numpy_logits(x, w, LABELS, margin))

    def logits(x, w):
        return margin_logits(x, w, LABELS, Margin.arcface(0.5), filter_above=threshold)

    np.testing.assert_allclose(logits(x, w), expected, rtol=1e-12, atol=1e-12)
    d_logits = jax.jacrev(logits)(x, w)
    assert not np.abs(d_logits[wrong]).any()
    assert (np.abs(d_logits[~wrong]).max(axis=(1, 2)) > 0).all()
    loss = margin_softmax_loss(x, w, LABELS, Margin.arcface(0.5), filter_above=threshold)
    np.testing.assert_allclose(loss, numpy_cross_entropy(expected, LABELS), rtol=1e-12)
