"""Unit vectors, lengths and cosines at the ends of the number range; labels of every integer dtype."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.losses.pairs import contrastive_loss, supcon_loss, triplet_loss
from jax_arcface.losses.softmax import linear_softmax_loss
from jax_arcface.losses.vectors import cosines, lengths, normalize


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_normalize_near_the_largest_number():
    # one over these is subnormal, which processors flush to zero
    x = np.array([[3e38, 3e38], [-3.4e38, 0], [1e38, -1e38]], np.float32)
    wanted = [[0.5**0.5, 0.5**0.5], [-1, 0], [0.5**0.5, -(0.5**0.5)]]
    for f in (normalize, jax.jit(normalize)):
        np.testing.assert_allclose(f(x), wanted, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_normalize_the_corners_of_float64():
    x = np.array([[3e307, 4e307], [3e-30, -4e-30], [0, 0]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0.6, -0.8], [0, 0]], rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_either_float64_makes_float64():
    x, w = np.ones((2, 3)), np.ones((4, 3))
    for x_dtype, w_dtype in itertools.product([np.float32, np.float64], repeat=2):
        cosine = jax.eval_shape(cosines, x.astype(x_dtype), w.astype(w_dtype))
        assert cosine.dtype == max(np.dtype(x_dtype), np.dtype(w_dtype))


@pytest.mark.parametrize("exponent", [-25, 0, 37])
def test_lengths_match_numpy_and_their_gradient_is_the_unit_vector(exponent):
    x = (np.random.default_rng(0).normal(size=(4, 3)) * 10.0**exponent).astype(np.float32)
    x[2] = 0
    length, pull = jax.vjp(lengths, x)
    exact = np.linalg.norm(np.float64(x), axis=1)
    np.testing.assert_allclose(length, exact, rtol=3e-7)
    unit = np.divide(np.float64(x), exact[:, None], where=exact[:, None] > 0, out=np.zeros_like(x, np.float64))
    np.testing.assert_allclose(pull(jnp.ones(4))[0], unit, atol=3e-7)


@pytest.mark.parametrize("loss", [contrastive_loss, supcon_loss, triplet_loss])
def test_complex_vectors_are_refused(loss):
    with pytest.raises(TypeError):
        loss(jnp.ones((2, 3), jnp.complex64), jnp.arange(2))


def test_complex_vectors_of_a_linear_classifier_are_refused():
    with pytest.raises(TypeError):
        linear_softmax_loss(jnp.ones((2, 3), jnp.complex64), jnp.ones((2, 3)), jnp.zeros(2), jnp.arange(2))
