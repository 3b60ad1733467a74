"""Losses with an adaptive scale or margin against float64 numpy, an example at a time; finite throughout."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jax_arcface.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import margin_softmax_loss

BATCH, CLASSES, DIMENSION = 6, 5, 4
LABELS = np.array([0, 1, 1, 4, 3, 0])
POLICIES = ["monotone", "linear", "wrap"]
NAMES = ("adacos", "curricularface", "magface", "adaface")
SMOOTHING = 0.1


def example(seed=0):
    """Embeddings of lengths 0.1 to 150, some beyond each bound, and prototypes.

    The second lies almost opposite to its own prototype; with an odd seed the others lie near theirs.
    """
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(BATCH, DIMENSION)), rng.normal(size=(CLASSES, DIMENSION))
    if seed % 2:
        x = 0.3 * x + w[LABELS]
    x[1] = 0.3 * rng.normal(size=DIMENSION) - 2 * w[LABELS[1]]
    x *= np.array([[0.1], [30], [150], [60], [12], [95]]) / np.linalg.norm(x, axis=1, keepdims=True)
    return x, w * rng.uniform(0.1, 10, (CLASSES, 1))


# The oracles: loops over examples and classes, written from the equations ------------------------------------------


def cos(v, w):
    return sum(v * w) / np.sqrt(sum(v**2) * sum(w**2))


def length(v):
    return np.sqrt(sum(v**2))


def cross_entropy(logits, labels):
    losses = []
    for row, label in zip(logits, labels, strict=True):
        logs = log_softmax(row)
        losses.append(-(1 - SMOOTHING) * logs[label] - SMOOTHING * np.mean(logs))
    return np.mean(losses)


def psi(theta, m, beyond_pi):
    """cos(theta + m); past pi the same curve, 2 lower (SphereFace), or a straight line, or what the cosine does."""
    if theta + m <= np.pi or beyond_pi == "wrap":
        return np.cos(theta + m)
    return np.cos(theta) - m * np.sin(m) if beyond_pi == "linear" else -np.cos(theta + m) - 2


def all_cosines(x, w):
    return np.array([[cos(v, of_class) for of_class in w] for v in x])


def numpy_adacos_scale(x, w, labels, scale):
    cosine = all_cosines(x, w)
    theta = statistics.median(np.arccos(cosine[i, y]) for i, y in enumerate(labels))
    sums = [sum(np.exp(scale * cosine[i, j]) for j in range(len(w)) if j != y) for i, y in enumerate(labels)]
    return max(np.log(len(w) - 1) / 2, np.log(np.mean(sums)) / np.cos(min(np.pi / 4, theta)))


def numpy_adacos(x, w, labels, new_scale):
    return cross_entropy(new_scale * all_cosines(x, w), labels)


def numpy_curricular_t(x, w, labels, t, rate):
    return rate * np.mean([cos(x[i], w[y]) for i, y in enumerate(labels)]) + (1 - rate) * t


def numpy_curricularface(x, w, labels, new_t, m, scale, beyond_pi):
    logits = all_cosines(x, w)
    for row, label in zip(logits, labels, strict=True):
        own = psi(np.arccos(row[label]), m, beyond_pi)
        for j in range(len(w)):
            if j == label:
                row[j] = own
            elif row[j] > own:
                row[j] *= new_t + row[j]
    return cross_entropy(scale * logits, labels)


def numpy_magface(x, w, labels, low, high, shortest, longest, weight, scale, beyond_pi):
    logits, g = all_cosines(x, w), []
    for v, row, label in zip(x, logits, labels, strict=True):
        a = min(max(length(v), shortest), longest)
        m = low + (high - low) * (a - shortest) / (longest - shortest)
        row[label] = psi(np.arccos(row[label]), m, beyond_pi)
        g.append(a / longest**2 + 1 / a)
    return cross_entropy(scale * logits, labels) + weight * np.mean(g)


def numpy_adaface_state(x, mean, std, rate):
    n = [min(max(length(v), 0.001), 100) for v in x]
    return rate * np.mean(n) + (1 - rate) * mean, rate * statistics.stdev(n) + (1 - rate) * std


def numpy_adaface(x, w, labels, new_mean, new_std, m, h, scale, constant):
    """`constant`: the embeddings whose lengths count."""
    logits = all_cosines(x, w)
    for v, row, label in zip(constant, logits, labels, strict=True):
        n = min(max(length(v), 0.001), 100)
        z = min(max((n - new_mean) / (new_std + 0.001) * h, -1), 1)
        row[label] = np.cos(min(max(np.arccos(row[label]) - m * z, 0), np.pi)) - m * z - m
    return cross_entropy(scale * logits, labels)


def numpy_gradient(f, x):
    """By central differences, an entry at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-5 * max(abs(x[i]), 0.1)
        gradient[i] = (f(x + step) - f(x - step)) / (2 * step[i])
    return gradient


STATE = {"scale": 2.5, "t": 0.3, "mean": 40.0, "std": 60.0}
# What each loss is given here and, in the second set, by default.
GIVEN = {
    "curricularface": {"m": 0.4, "scale": 8.0, "rate": 0.2},
    "magface": {
        "low": 0.3, "high": 0.9, "shortest": 20.0, "longest": 100.0, "weight": 20.0, "scale": 8.0
    },
    "adaface": {"m": 0.5, "h": 1.5, "rate": 0.1, "scale": 8.0},
}  # fmt: skip
DEFAULTS = {
    "curricularface": {"m": 0.5, "scale": 64.0, "rate": 0.01},
    "magface": {
        "low": 0.45, "high": 0.8, "shortest": 10.0, "longest": 110.0, "weight": 35.0, "scale": 64.0
    },
    "adaface": {"m": 0.4, "h": 0.333, "rate": 0.01, "scale": 64.0},
}  # fmt: skip


def losses_of(labels, beyond_pi="monotone", given=GIVEN):
    """By name each loss as a function from x and w to (the loss, its new state)."""

    def adacos(x, w):
        return adacos_loss(x, w, labels, STATE["scale"], SMOOTHING)

    def curricularface(x, w):
        options = {**given.get("curricularface", {})}
        if "m" in options:
            options["margin"] = Margin(m2=options.pop("m"), beyond_pi=beyond_pi)
        return curricularface_loss(x, w, labels, STATE["t"], label_smoothing=SMOOTHING, **options)

    def magface(x, w):
        options = {"beyond_pi": beyond_pi, **given.get("magface", {})}
        return magface_loss(x, w, labels, label_smoothing=SMOOTHING, **options), ()

    def adaface(x, w):
        options = given.get("adaface", {})
        loss, *new = adaface_loss(x, w, labels, STATE["mean"], STATE["std"], label_smoothing=SMOOTHING, **options)
        return loss, new

    return {"adacos": adacos, "curricularface": curricularface, "magface": magface, "adaface": adaface}


def values_and_gradients(x, w, labels, beyond_pi="monotone", names=NAMES):
    losses = losses_of(labels, beyond_pi)
    return {name: jax.value_and_grad(losses[name], argnums=(0, 1), has_aux=True)(x, w) for name in names}


def values_alone(x, w, labels, given=GIVEN):
    return {name: loss(x, w) for name, loss in losses_of(labels, given=given).items()}


# compiled once for each dtype, shape and policy
everything = jax.jit(values_and_gradients, static_argnums=(3, 4))
values = jax.jit(values_alone)


def oracles(x, w, labels, beyond_pi="monotone", given=GIVEN):
    """By name the new state, and the loss as a function of x and w, with what is constant kept."""
    curricularface, magface, adaface = given["curricularface"], given["magface"], given["adaface"]
    scale = numpy_adacos_scale(x, w, labels, STATE["scale"])
    t = numpy_curricular_t(x, w, labels, STATE["t"], curricularface["rate"])
    mean, std = numpy_adaface_state(x, STATE["mean"], STATE["std"], adaface["rate"])
    m, h, s = adaface["m"], adaface["h"], adaface["scale"]
    return {
        "adacos": (scale, lambda v, u: numpy_adacos(v, u, labels, scale)),
        "curricularface": (
            t,
            lambda v, u: numpy_curricularface(v, u, labels, t, curricularface["m"], curricularface["scale"], beyond_pi),
        ),
        "magface": ((), lambda v, u: numpy_magface(v, u, labels, **magface, beyond_pi=beyond_pi)),
        "adaface": ((mean, std), lambda v, u: numpy_adaface(v, u, labels, mean, std, m, h, s, constant=x)),
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beyond_pi", POLICIES)
def test_values_states_and_gradients_match_numpy(beyond_pi, seed):
    x, w = example(seed)
    names = NAMES if beyond_pi == "monotone" else ("curricularface", "magface")
    with jax.enable_x64(True):
        results = everything(x, w, LABELS, beyond_pi, names)
    for name in names:
        expected_state, oracle = oracles(x, w, LABELS, beyond_pi)[name]
        (value, state), (dx, dw) = results[name]
        np.testing.assert_allclose(state, expected_state, rtol=1e-12, err_msg=name)
        assert value == pytest.approx(oracle(x, w), rel=1e-12), name
        for got, expected in (
            (dx, numpy_gradient(lambda x, f=oracle: f(x, w), x)),
            (dw, numpy_gradient(lambda w, f=oracle: f(x, w), w)),
        ):
            np.testing.assert_allclose(got, expected, 1e-6, 1e-7 * abs(expected).max(), err_msg=name)


def test_the_defaults():
    x, w = example()
    with jax.enable_x64(True):
        results = jax.jit(functools.partial(values_alone, given={}))(x, w, LABELS)
    for name, (expected_state, oracle) in oracles(x, w, LABELS, given=DEFAULTS).items():
        value, state = results[name]
        np.testing.assert_allclose(state, expected_state, rtol=1e-12, err_msg=name)
        assert value == pytest.approx(oracle(x, w), rel=1e-12), name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_narrow_inputs_are_widened(dtype):
    x, w = (jnp.asarray(a, dtype) for a in example())
    x64, w64 = np.float64(x), np.float64(w)
    results = everything(x, w, LABELS)
    for name, (expected_state, oracle) in oracles(x64, w64, LABELS).items():
        (value, state), (dx, dw) = results[name]
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((value, state)))
        assert dx.dtype == dw.dtype == dtype
        assert value == pytest.approx(oracle(x64, w64), rel=1e-5), name
        np.testing.assert_allclose(state, expected_state, rtol=1e-5, err_msg=name)


def assert_alike(results, expected, i=()):
    for name, result in expected.items():
        for got, wanted in zip(jax.tree.leaves(results[name]), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(got[i], wanted, rtol=1e-5, err_msg=name)


def test_vmap_over_batches():
    x, w = (np.stack(arrays).astype(np.float32) for arrays in zip(example(), example(1), strict=True))
    labels = np.stack([LABELS, LABELS[::-1]])
    mapped = jax.jit(jax.vmap(values_alone))(x, w, labels)
    for i in range(2):
        assert_alike(mapped, values(x[i], w[i], labels[i]), i)


def test_equal_subcentres_are_one():
    x, w = (np.float32(a) for a in example())
    assert_alike(values(x, np.stack([w, w], axis=1), LABELS), values(x, w, LABELS))


def test_a_batch_of_one():
    x, w = (np.float32(a) for a in example(1))
    results = everything(x[:1], w, LABELS[:1])
    x, w = np.float64(x[:1]), np.float64(w)
    assert results["adacos"][0][1] == pytest.approx(numpy_adacos_scale(x, w, LABELS[:1], STATE["scale"]), rel=1e-5)
    # a sample of one varies by nothing
    np.testing.assert_allclose(results["adaface"][0][1], [0.1 * length(x[0]) + 0.9 * 40, 0.9 * 60], rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_states_are_constants_for_the_gradient():
    x, w = (np.float32(a) for a in example())

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def of_states(x, w):
        _, scale = adacos_loss(x, w, LABELS, 2.5)
        _, t = curricularface_loss(x, w, LABELS, 0.3)
        _, mean, std = adaface_loss(x, w, LABELS, 40.0, 60.0)
        return scale + t + mean + std

    assert not any(gradient.any() for gradient in of_states(x, w))


def test_magface_with_one_margin_is_arcface_and_g_is_least_at_the_longest():
    x, w = (np.float32(a) for a in example())
    magface = jax.jit(functools.partial(magface_loss, low=0.5, high=0.5))
    expected = jax.jit(margin_softmax_loss)(x, w, LABELS, Margin.arcface(0.5))
    assert magface(x, w, LABELS, weight=0.0) == pytest.approx(float(expected), rel=1e-6)
    g = [magface(x / np.linalg.norm(x, axis=1, keepdims=True) * a, w, LABELS) - expected for a in (11, 60, 110, 500)]
    assert g[0] > g[1] > g[2] > 0
    assert g[3] == pytest.approx(float(g[2]), abs=1e-4)


@pytest.mark.parametrize("classes", [3, 10, 1_000_000])
def test_the_first_scale_of_adacos(classes):
    assert initial_adacos_scale(classes) == pytest.approx(2**0.5 * np.log(classes - 1), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1000.0])
def test_the_scale_of_adacos_stays_above_zero(scale):
    w = jnp.array([[2.0, 0], [-1, 0], [-3, 0]])  # all others are opposite: log B = log 2 - scale
    loss, new = adacos_loss(jnp.array([[1.0, 0]]), w, np.array([0]), scale)
    assert new == pytest.approx(np.log(2) / 2)
    assert loss == pytest.approx(np.log(1 + 2 / 2))  # 2 e^-2s = 2 / 2


@pytest.mark.parametrize("other", [(-1.0, 0.0), (-1.0, 1.0), (0.0, 1.0)])
def test_the_fixed_points_of_adacos_are_not_moved(other):
    fixed = np.log(2) / (1 - other[0] / np.hypot(*other))  # s = log(2 e^(s cos)), log(2) / 2 where cos = -1
    _, new = adacos_loss(jnp.array([[1.0, 0]]), jnp.array([(1.0, 0.0), other, other]), np.array([0]), float(fixed))
    assert new == pytest.approx(fixed, rel=1e-6)


# Whatever is finite in, is finite out ------------------------------------------------------------------------------


def awkward(dtype):
    """Pairs of embeddings and prototypes."""
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    one = np.ones(DIMENSION)
    x, w = example()
    ends = np.outer([1, -1, 0, 1, -1, 1], one), np.outer([1, -1, 0, -1, 1], one)
    yield from ((0 * x, 0 * w), (x, 0 * w), (0 * x, w), ends, (np.tile(one, (BATCH, 1)), np.tile(one, (CLASSES, 1))))
    yield from ((largest * ends[0], largest * ends[1]), (tiny * ends[0], tiny * ends[1]), (w[LABELS], w))
    yield from ((tiny * ends[0], largest * ends[1]), (-w[LABELS], w), (x, np.tile(-x[0], (CLASSES, 1))))
    if dtype != jnp.float16:
        yield 2.0**-99 * np.sign(x), 2.0**-99 * np.sign(w)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_finite_for_every_finite_input(dtype):
    for number, (x, w) in enumerate(awkward(dtype)):
        for labels in (LABELS, np.full(BATCH, 3)):
            results = everything(jnp.asarray(x, dtype), jnp.asarray(w, dtype), labels)
            for name, result in results.items():
                for leaf in jax.tree.leaves(result):
                    assert np.isfinite(np.float64(leaf)).all(), (name, number)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, CLASSES])
def test_a_label_out_of_range_is_nan_inside_jit_and_raises_outside(bad):
    x, w = (np.float32(a) for a in example())
    labels = np.array([0, 1, bad, 4, 3, 0])
    for name, ((value, _), (dx, dw)) in everything(x, w, labels).items():
        assert np.isnan(value), name
        assert np.isnan(dx).any(), name
        assert np.isnan(dw).any(), name
    for loss, state in (
        (adacos_loss, [2.5]),
        (curricularface_loss, [0.3]),
        (magface_loss, []),
        (adaface_loss, [40, 60]),
    ):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 5\); found {bad}"):
            loss(x, w, labels, *state)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (adacos_loss, {"scale": 0.0}, "scale is 0.0; it must be > 0 and finite"),
        (adacos_loss, {"scale": 2.0, "label_smoothing": 1.0}, "label_smoothing is 1.0"),
        (curricularface_loss, {"t": 0.0, "rate": 1.5}, "rate is 1.5; it must be between 0 and 1"),
        (curricularface_loss, {"t": 0.0, "scale": -1.0}, "scale is -1.0; it must be > 0 and finite"),
        (magface_loss, {"low": -4.0}, "low is -4.0; it must be in radians, between -pi and pi"),
        (magface_loss, {"high": 45}, "high is 45; it must be in radians"),
        (magface_loss, {"shortest": 0.0}, "shortest is 0.0; it must be > 0 and finite"),
        (magface_loss, {"shortest": 120.0}, "shortest is 120.0; it must be below longest, 110.0"),
        (magface_loss, {"longest": np.inf}, "longest is inf"),
        (magface_loss, {"weight": -1.0}, "weight is -1.0; it must be at least 0 and finite"),
        (magface_loss, {"scale": 0}, "scale is 0; it must be > 0"),
        (magface_loss, {"beyond_pi": "clip"}, "beyond_pi is 'clip'"),
        (adaface_loss, {"mean": 20, "std": 100, "m": -0.1}, "m is -0.1; it must be at least 0"),
        (adaface_loss, {"mean": 20, "std": 100, "h": -1}, "h is -1; it must be at least 0"),
        (adaface_loss, {"mean": 20, "std": 100, "rate": np.nan}, "rate is nan"),
        (adaface_loss, {"mean": 20, "std": 100, "scale": 0.0}, "scale is 0.0; it must be > 0 and finite"),
    ],
)
def test_parameters_out_of_range_are_refused(loss, options, message):
    x, w = (np.float32(a) for a in example())
    with pytest.raises(ValueError, match=message):
        loss(x, w, LABELS, **options)


def test_adacos_needs_three_classes():
    with pytest.raises(ValueError, match="there are 2 classes; AdaCos needs at least 3"):
        initial_adacos_scale(2)
    with pytest.raises(ValueError, match="there are 2 classes; AdaCos needs at least 3"):
        adacos_loss(np.ones((1, 2)), np.ones((2, 2)), np.array([0]), 1.0)
