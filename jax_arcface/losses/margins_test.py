"""psi and its derivatives against mpmath at 50 digits, and what the margins promise besides."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from jax_arcface.losses.margins import Margin, angles, target_cosine

# (m1, m2, m3): the presets, the combinations of ArcFace's table 2, and rougher ones. m1 = 1 suits every policy.
M1_IS_1 = [(1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.0, 0.3, 0.2), (1.0, -0.4, 0.1), (1.0, 3.0, -0.2)]
MARGINS = [*M1_IS_1, (1.35, 0.0, 0.0), (0.9, 0.4, 0.15), (4.0, 0.0, 0.0), (2.5, 1.2, 0.3), (0.3, -2.0, 0.0)]
POLICIES = ["monotone", "linear", "wrap"]


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == jnp.float64):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def oracle(cosine, m1, m2, m3, beyond_pi):
    """psi as the papers draw it: cos on [0, pi], and each further half turn the same curve, 2 lower."""
    phi = m1 * mpmath.acos(cosine) + m2
    if beyond_pi == "wrap":
        return mpmath.cos(phi) - m3
    if beyond_pi == "linear" and phi > mpmath.pi:
        return cosine - m2 * mpmath.sin(m2) - m3
    lower = 0
    while phi > mpmath.pi:
        phi, lower = phi - mpmath.pi, lower + 2
    while phi < 0 and beyond_pi == "monotone":
        phi, lower = phi + mpmath.pi, lower - 2
    return mpmath.cos(phi) - lower - m3


def oracle_slopes(point, beyond_pi):
    """The derivatives of `oracle` with respect to (cosine, m1, m2, m3), by central differences."""
    step = mpmath.mpf(10) ** -28
    for i in range(4):
        ends = [[x + sign * step * (i == j) for j, x in enumerate(point)] for sign in (1, -1)]
        yield (oracle(*ends[0], beyond_pi) - oracle(*ends[1], beyond_pi)) / (2 * step)


def cosine_grid(dtype):
    """cos(theta): both ends, the numbers next to them, and both sides of every angle where some margin reaches k pi."""
    turns = [(k * math.pi - m2) / m1 for m1, m2, _ in MARGINS for k in range(1, 5)]
    theta = [t + d for t in turns for d in (-1e-3, -1e-5, 0, 1e-5, 1e-3) if 0 <= t + d <= math.pi]
    theta = np.array([*theta, *np.linspace(0, math.pi, 31), 1e-4, math.pi - 1e-4])
    ends = np.array([1, -1], dtype)
    grid = np.concatenate([np.cos(theta).astype(dtype), ends, np.nextafter(ends, dtype.type(0)), np.zeros(1, dtype)])
    return np.unique(grid)


@jax.jit
def psi_and_slopes(cosine, margin):
    return jax.vmap(jax.value_and_grad(target_cosine, argnums=(0, 1)), in_axes=(0, None))(cosine, margin)


@pytest.mark.parametrize("beyond_pi", POLICIES)
def test_value_and_every_derivative_match_mpmath(dtype, beyond_pi):
    eps = float(jnp.finfo(dtype).eps)
    cosines = cosine_grid(dtype)
    # where the arc cosine has no derivative, the one at the number next to it is promised
    inner = np.clip(cosines, np.nextafter(dtype.type(-1), 0), np.nextafter(dtype.type(1), 0))
    sin = np.sqrt((1 - np.float64(inner)) * (1 + np.float64(inner)))
    for margin in M1_IS_1 if beyond_pi == "linear" else MARGINS:
        m = [float(dtype.type(x)) for x in margin]
        psi, (d_cosine, d_margin) = psi_and_slopes(cosines, Margin(*margin, beyond_pi))
        assert psi.dtype == d_cosine.dtype == dtype
        with mpmath.workdps(50):
            expected = np.array([float(oracle(mpmath.mpf(float(c)), *m, beyond_pi)) for c in cosines])
            points = [[mpmath.mpf(x) for x in (float(c), *m)] for c in inner]
            slopes = np.array([[float(d) for d in oracle_slopes(point, beyond_pi)] for point in points]).T
            phi = np.array([float(m[0] * mpmath.acos(float(c)) + m[1]) for c in cosines])
        keep = np.ones(len(cosines), bool)
        if beyond_pi == "linear":  # it jumps at pi: rounding may put the angle on either side
            keep = abs(phi - math.pi) > 16 * eps
            assert keep.mean() > 0.9
        reach = 1 + abs(phi)  # an angle is known to eps of its size, and psi no better
        np.testing.assert_array_less(abs(psi - expected)[keep], 4 * eps * reach[keep])
        bound = 8 * eps * (m[0] * reach / sin + abs(slopes[0]))
        np.testing.assert_array_less(abs(d_cosine - slopes[0])[keep], bound[keep])
        for got, wanted in zip((d_margin.m1, d_margin.m2, d_margin.m3), slopes[1:], strict=True):
            np.testing.assert_array_less(abs(got - wanted)[keep], (8 * eps * reach * math.pi)[keep])


@pytest.mark.parametrize("beyond_pi", POLICIES)
def test_straight_through_has_the_exact_value_and_slope_one(beyond_pi):
    cosines = np.linspace(-1, 1, 41, dtype=np.float32)
    margin = Margin(1.0, 0.5, 0.1, beyond_pi, "straight_through")
    psi, (d_cosine, d_margin) = psi_and_slopes(cosines, margin)
    with mpmath.workdps(50):
        expected = [float(oracle(mpmath.mpf(float(c)), 1.0, 0.5, float(np.float32(0.1)), beyond_pi)) for c in cosines]
    np.testing.assert_allclose(psi, expected, atol=2e-6)
    np.testing.assert_array_equal(d_cosine, 1)
    np.testing.assert_array_equal(d_margin.m3, -1)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_rounding_beyond_one_counts_as_the_end(gradient):
    ends = np.array([1, -1], np.float32)
    beyond = np.nextafter(ends, 2 * ends)
    assert (abs(beyond) > 1).all()
    margin = Margin(1.2, 0.5, 0.1, gradient=gradient)
    (psi, (slope, _)), (expected, (expected_slope, _)) = psi_and_slopes(beyond, margin), psi_and_slopes(ends, margin)
    np.testing.assert_array_equal(psi, expected)
    np.testing.assert_array_equal(slope, expected_slope)


@pytest.mark.parametrize("beyond_pi", POLICIES)
@pytest.mark.usefixtures("x64")
def test_check_grads_in_both_modes(beyond_pi):
    cosines = jnp.linspace(-0.95, 0.95, 16)

    def psi(cosine, m1, m2, m3):
        return target_cosine(cosine, Margin(m1, m2, m3, beyond_pi))

    for m1, m2, m3 in [(1.0, 0.5, 0.35)] if beyond_pi == "linear" else [(1.0, 0.5, 0.35), (2.5, 1.2, 0.1)]:
        f = psi if beyond_pi != "linear" else lambda c, _, m2, m3: psi(c, 1.0, m2, m3)
        check_grads(jax.jit(f), (cosines, m1, m2, m3), order=1, modes=("fwd", "rev"), rtol=1e-6)


def test_monotone_is_continuous_and_falls(dtype):
    rng = np.random.default_rng(0)
    m1, m2 = rng.uniform(0.2, 6, 100).astype(dtype), rng.uniform(-3, 3, 100).astype(dtype)
    cosines = np.cos(np.linspace(0, np.pi, 1500)).astype(dtype)
    psi = jax.jit(jax.vmap(target_cosine, in_axes=(None, 0)))(cosines, Margin(m1, m2, 0 * m1))
    falls = np.diff(np.float64(psi), axis=1)
    rounding = 0 if dtype == np.float64 else 1e-5
    assert (falls < rounding).all()
    widths = np.diff(np.arccos(np.float64(cosines)))
    assert (-falls <= m1[:, None] * widths + 1e-5).all()  # |d psi / d theta| <= m1: no jump


@pytest.mark.parametrize(
    ("margin", "theta", "expected"),
    [
        (Margin.softmax(), math.pi, -1.0),
        (Margin.arcface(0.5), 0.0, 0.877582562),  # cos 0.5
        (Margin.arcface(0.5), math.pi / 2, -0.479425539),  # -sin 0.5
        (Margin.cosface(0.35), 0.0, 0.65),
        (Margin.cosface(0.35), math.pi, -1.35),
        (Margin.sphereface(1.35), math.pi / 1.35, -1.0),
        # SphereFace's m = 4 falls by 2 each quarter of the way
        *((Margin.sphereface(4), q * math.pi / 4, 1.0 - 2 * q) for q in range(5)),
        (Margin(m2=0.5), math.pi, -1.122417438),  # cos 0.5 - 2
        (Margin(m2=0.5, beyond_pi="wrap"), math.pi, -0.877582562),  # rises again
        (Margin(m2=0.5, beyond_pi="linear"), math.pi, -1.239712769),  # -1 - 0.5 sin 0.5
        (Margin(m2=0.5, m3=0.1, beyond_pi="linear"), math.pi, -1.339712769),
        (Margin(1.35, 0.3, 0.2), 0.0, 0.755336489),  # cos 0.3 - 0.2: all three act together
    ],
)
def test_known_values(margin, theta, expected):
    assert target_cosine(jnp.float32(math.cos(theta)), margin) == pytest.approx(expected, abs=2e-6)


def test_presets():
    assert Margin.softmax() == Margin(1.0, 0.0, 0.0, "monotone", "exact")
    assert Margin.sphereface() == Margin(m1=1.35)
    assert Margin.cosface() == Margin(m3=0.35)
    assert Margin.arcface() == Margin(m2=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m1": 0.0}, "m1 is 0.0; "),
        ({"m1": -1}, "m1 is -1; "),
        ({"m1": np.float32(-2)}, "m1 is -2.0; "),
        ({"m1": math.inf}, "m1 is inf; "),
        ({"m1": 10**400}, "m1 is inf; "),
        ({"m2": math.nan}, "m2 is nan; "),
        ({"m2": np.float32("nan")}, "m2 is nan; "),
        ({"m2": -(10**400)}, "m2 is -inf; "),
        ({"m2": np.array([0.5, math.nan])}, "m2 is nan; "),
        ({"m2": jnp.array([0.5, 4.0])}, "m2 is 4.0; "),
        ({"m1": np.array([1, 0])}, "m1 is 0.0; "),
        ({"m3": -math.inf}, "m3 is -inf; "),
        ({"m3": jnp.array([math.inf], jnp.bfloat16)}, "m3 is inf; "),
        ({"m2": 28.6}, "m2 is 28.6; .* radians"),  # degrees
        ({"m2": math.pi}, "radians"),
        ({"m2": -4}, "m2 is -4; .* between -pi and pi"),
        ({"beyond_pi": "clip"}, "beyond_pi is 'clip'; it must be one of 'monotone', 'linear', 'wrap'"),
        ({"gradient": "none"}, "gradient is 'none'; it must be one of 'exact', 'straight_through'"),
        ({"m1": 1.35, "beyond_pi": "linear"}, "m1 is 1.35; beyond_pi='linear' is defined for m1 = 1 only"),
        ({"m1": np.array([1.0, 1.1]), "beyond_pi": "linear"}, "m1 = 1 only"),
    ],
)
def test_bad_margins_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Margin(**arguments)


@pytest.mark.parametrize(
    "value", ["0.5", None, 0.5j, [0.5], np.array([0.5j]), np.array("a"), np.array([None])], ids=repr
)
@pytest.mark.parametrize("name", ["m1", "m2", "m3"])
def test_what_is_no_number_is_no_margin(name, value):
    with pytest.raises(TypeError, match=rf"{name} .*; it must be a real number"):
        Margin(**{name: value})


def test_the_leaves_of_a_margin_may_be_anything():
    names = jax.tree.map(str, Margin.arcface(0.5))
    assert (names.m1, names.m2, names.m3) == ("1.0", "0.5", "0.0")
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Margin.arcface())]
    assert paths == [".m1", ".m2", ".m3"]
    assert jax.tree.map(lambda m: None, Margin(beyond_pi="wrap")).beyond_pi == "wrap"


def test_a_stack_of_margins_is_mapped_over():
    cosines = np.linspace(-1, 1, 9, dtype=np.float32)
    margins = [Margin(*m) for m in MARGINS]
    stack = jax.tree.map(lambda *m: np.array(m, np.float32), *margins)
    psi, (slope, _) = jax.vmap(psi_and_slopes, in_axes=(None, 0))(cosines, stack)
    for i, margin in enumerate(margins):
        alone, (slope_alone, _) = psi_and_slopes(cosines, margin)
        np.testing.assert_allclose(psi[i], alone, atol=1e-6)
        np.testing.assert_allclose(slope[i], slope_alone, rtol=1e-4, atol=1e-5)


def test_as_a_static_value_equal_margins_compile_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=1)
    def psi(cosine, margin):
        traces.append(margin)
        return target_cosine(cosine, margin)

    assert hash(Margin.arcface()) == hash(Margin(m2=0.5))
    for margin in (Margin.arcface(), Margin(m2=0.5), Margin(m2=0.5, beyond_pi="wrap")):
        psi(0.3, margin)
    assert traces == [Margin(m2=0.5), Margin(m2=0.5, beyond_pi="wrap")]


def test_whole_numbers_are_margins_too():
    cosine = jnp.float32(0.3)  # cos(4 t) = 8 c^4 - 8 c^2 + 1 (Chebyshev); here k = 1 turns its sign
    for slope in (jax.grad(target_cosine), jax.jit(jax.grad(target_cosine))):
        assert slope(cosine, Margin(m1=4, m2=0, m3=0)) == pytest.approx(16 * 0.3 - 32 * 0.3**3, rel=1e-5)


@pytest.mark.usefixtures("x64")
def test_float64_margins_leave_float32_cosines_float32():
    margin = jax.tree.map(jnp.float64, Margin(1.1, 0.5, 0.1))
    psi, (slope, d_margin) = psi_and_slopes(np.array([0.2], np.float32), margin)
    assert psi.dtype == slope.dtype == np.float32
    assert d_margin.m1.dtype == np.float64


def test_angles_and_their_slopes_match_mpmath(dtype):
    cosine = cosine_grid(dtype)
    theta, slope = jax.jit(jax.vmap(jax.value_and_grad(angles)))(cosine)
    assert theta.dtype == dtype
    with mpmath.workdps(50):
        limit = 1 - mpmath.mpf(float(np.finfo(dtype).epsneg))
        exact = [float(mpmath.acos(mpmath.mpf(float(c)))) for c in cosine]
        inner = [max(-limit, min(limit, mpmath.mpf(float(c)))) for c in cosine]
        slopes = [float(-1 / mpmath.sqrt(1 - c * c)) for c in inner]
    # an angle is never better known than the cosine it comes from: relative to pi
    np.testing.assert_allclose(theta, exact, rtol=0, atol=4 * np.pi * np.finfo(dtype).eps)
    np.testing.assert_allclose(slope, slopes, rtol=8 * np.finfo(dtype).eps)
    assert np.isfinite(slope).all()


def test_angles_beyond_the_ends_count_as_the_ends(dtype):
    np.testing.assert_array_equal(angles(jnp.array([1.5, -2.0], dtype)), np.array([0, np.pi], dtype))
