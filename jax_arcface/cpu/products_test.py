"""Products are those of float64 numpy, whoever computes them, and so are their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.cpu import onednn
from jax_arcface.cpu.products import product

SHAPES = {False: ((7, 33), (33, 5)), True: ((33, 7), (33, 5))}  # by whether the first is transposed


def factors(transposed, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in SHAPES[transposed]]


def by_numpy(a, b, transposed):
    a, b = np.float64(a), np.float64(b)
    return (a.T if transposed else a) @ b


def is_onednn(of, *inputs):
    return "jax_arcface.onednn" in jax.jit(of).lower(*inputs).as_text()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_is_onednns_and_numpys(dtype, transposed):
    a, b = factors(transposed, dtype)
    got = jax.jit(lambda a, b: product(a, b, transposed=transposed))(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, by_numpy(a, b, transposed), rtol=1e-5, atol=1e-5)
    if onednn.library().handler:
        assert is_onednn(lambda a, b: product(a, b, transposed=transposed), a, b)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_in_float64_it_is_xlas(dtype):
    with jax.enable_x64(True):
        a, b = factors(True, dtype)
        got = product(a, b, jnp.float64, transposed=True)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, by_numpy(a, b, True), rtol=1e-12, atol=1e-12)
        assert not is_onednn(lambda a, b: product(a, b, jnp.float64, transposed=True), a, b)


@pytest.mark.parametrize("empty", [0, 1])
def test_empty_products_are_xlas(empty):
    shapes = [(0, 3), (3, 4)] if empty == 0 else [(2, 0), (0, 4)]
    np.testing.assert_array_equal(product(*map(jnp.zeros, shapes)), np.zeros((shapes[0][0], 4)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shapes", [((4, 4), (5, 3)), ((4,), (4, 3)), ((2, 4, 4), (4, 3))])
def test_factors_that_do_not_fit(shapes, transposed):
    if shapes[0] == (4, 4):
        with pytest.raises(TypeError, match="contracting"):
            product(*map(jnp.ones, shapes), transposed=transposed)
    elif not transposed:  # as `jnp.matmul` has it
        assert product(*map(jnp.ones, shapes)).shape == (*shapes[0][:-1], 3)


@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives_are_those_of_a_product(transposed):
    a, b = factors(transposed)
    d_a, d_b = (x[::-1] for x in (a, b))

    def of(a, b):
        return product(a, b, transposed=transposed)

    _, tangent = jax.jvp(of, (a, b), (d_a, d_b))
    expected = by_numpy(d_a, b, transposed) + by_numpy(a, d_b, transposed)
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-4)
    y, back = jax.vjp(of, a, b)
    to_a, to_b = back(y)
    # <tangent, y> = <d_a, to_a> + <d_b, to_b>
    assert np.vdot(expected, y) == pytest.approx(np.vdot(d_a, to_a) + np.vdot(d_b, to_b), rel=1e-4)


def test_mapped_products():
    a, b = factors(False)
    several = jnp.stack([a, 2 * a])
    got = jax.jit(jax.vmap(product, in_axes=(0, None)))(several, b)
    np.testing.assert_allclose(got[1], 2 * by_numpy(a, b, False), rtol=1e-5, atol=1e-5)
