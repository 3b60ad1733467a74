"""The layers against float64 numpy, scipy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jax_arcface.cpu.convolution import NHWC
from jax_arcface.models.layers import BatchNorm, Conv, Embedding, PReLU, global_max_pool, max_pool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_batch_norm_in_training(rng):
    x = rng.normal(3, 2, (6, 4, 5, 3))
    norm = BatchNorm(3)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, -1.0, 4.0])
    y = norm(jnp.asarray(x, jnp.float32))
    flat = x.reshape(-1, 3)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * [1, 2, 0.5] + [0, -1, 4]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics_and_leaves_them(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 9.0, 0.0])
    norm.eval()
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 9, 0]) + 1e-5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])


def test_batch_norm_gradients_in_float64(rng):
    weights = rng.normal(size=(7, 3))

    def loss(x, scale, bias):
        norm = BatchNorm(3)
        norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
        return jnp.sum(weights * jnp.tanh(norm(x)))

    with jax.enable_x64(True):
        arguments = [jnp.asarray(rng.normal(size=shape)) for shape in ((7, 3), (3,), (3,))]
        check_grads(jax.jit(loss), arguments, order=2, atol=1e-7, rtol=1e-7)


def test_batch_norm_keeps_bfloat16_and_takes_its_statistics_in_float32(rng):
    # 1024 values around 100: their bfloat16 sum would be off by whole percents
    x = jnp.asarray(rng.normal(100, 1, (1024, 2)), jnp.bfloat16)
    norm = BatchNorm(2)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(10 * norm.mean[...], np.asarray(x, np.float64).mean(0), rtol=1e-5)


def test_prelu():
    layer = PReLU(2)
    layer.slope[...] = jnp.array([0.1, 0.5])
    np.testing.assert_allclose(layer(jnp.array([[-2.0, -2.0], [3.0, 0.0]])), [[-0.2, -1.0], [3.0, 0.0]], rtol=1e-6)


def test_prelu_gradients_in_float64(rng):
    x, weights = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2))
    x[0, 0] = 0

    def loss(x, slope):
        layer = PReLU(2)
        layer.slope = nnx.Param(slope)
        return jnp.sum(weights * layer(x))

    slope = np.array([0.1, -0.5])
    with jax.enable_x64(True):
        to_x, to_slope = jax.grad(loss, (0, 1))(x, slope)
    np.testing.assert_allclose(to_x, weights * np.where(x > 0, 1, slope), rtol=1e-12)
    np.testing.assert_allclose(to_slope, (weights * np.minimum(x, 0)).sum((0, 1)), rtol=1e-12)


def test_a_bias_gradient_is_the_sum_over_the_pixels_in_float32(rng):
    conv = Conv(2, 3, 3, stride=2, padding=0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.array([1.0, -2.0, 3.0])
    graphdef, params = nnx.split(conv)
    x = jnp.asarray(rng.normal(size=(8, 33, 33, 2)), jnp.float32)
    y, back = jax.vjp(lambda params: nnx.merge(graphdef, params)(x), params)
    assert y.shape == (8, 16, 16, 3)
    conv.bias[...] = jnp.zeros(3)
    # oneDNN adds it before it rounds, XLA after
    np.testing.assert_allclose(np.float32(y), np.float32(conv(x)) + np.array([1, -2, 3]), rtol=2**-7, atol=2**-6)
    (gradients,) = back(jnp.ones_like(y))
    np.testing.assert_array_equal(gradients["bias"][...], [8 * 16 * 16] * 3)  # 2048, which bfloat16 cannot count to


def test_a_convolution_without_bias(rng):
    conv = Conv(2, 3, 3, use_bias=False, rngs=nnx.Rngs(0))
    assert list(nnx.state(conv)) == ["kernel"]
    x = rng.normal(size=(1, 4, 5, 2)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(x, conv.kernel[...], (1, 1), "SAME", dimension_numbers=NHWC)
    np.testing.assert_allclose(conv(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (4, 3)])
def test_max_pool_is_the_maximum_of_each_window_and_its_gradient_goes_there(rng, size):
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    y, back = jax.vjp(max_pool, x)
    gradient = rng.normal(size=y.shape).astype(np.float32)
    expected, to_x = np.zeros_like(gradient), np.zeros_like(x)
    for b, i, j, c in np.ndindex(y.shape):
        window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = np.unravel_index(window.argmax(), (2, 2))
        expected[b, i, j, c] = window[row, column]
        to_x[b, 2 * i + row, 2 * j + column, c] = gradient[b, i, j, c]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(back(gradient)[0], to_x)


def test_max_pool_forwards_is_the_transpose_of_backwards(rng):
    x, tangent = (jnp.asarray(rng.normal(size=(2, 5, 7, 3)), jnp.float32) for _ in range(2))
    y, back = jax.vjp(max_pool, x)
    forwards = jax.jvp(max_pool, (x,), (tangent,))[1]
    assert np.vdot(forwards, y) == pytest.approx(np.vdot(tangent, back(y)[0]), rel=1e-5)
    np.testing.assert_allclose(forwards, (max_pool(x + 1e-3 * tangent) - y) / 1e-3, atol=1e-3)


def test_a_pooling_ties_gradient_goes_to_the_first():
    x = jnp.array([[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 2.0, 2.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 0, 1], [0, 0, 0, 0]])
    gradient = jax.grad(lambda x: global_max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 0, 0, 1], [0, 0, 0, 0]])


def test_pooling_does_not_lose_nan():
    for place in range(4):
        x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x)).all()
        assert jnp.isnan(global_max_pool(x)).all()


def test_embedding_flattens_channel_row_column():
    layer = Embedding((2, 3, 2), 12, rngs=nnx.Rngs(0))
    layer.fc.kernel[...] = jnp.eye(12)
    layer.eval()
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    expected = [x[0, row, column, channel] for channel in (0, 1) for row in (0, 1) for column in (0, 1, 2)]
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-4)


def test_dropout_zeroes_what_is_masked_and_scales_the_rest(rng):
    layer = Embedding((1, 1, 4), 4, dropout=0.5, rngs=nnx.Rngs(0))
    layer.fc.kernel[...] = jnp.eye(4)
    seen = {}

    class Spy(nnx.Module):
        def __call__(self, x):
            seen["x"] = x
            return x

    layer.bn1, layer.bn2 = (lambda x: x), Spy()
    mask = jnp.array([[True, False, True, True]])
    layer(jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4), dropout_mask=mask)
    np.testing.assert_allclose(seen["x"], [[2.0, 0.0, 6.0, 8.0]])
    layer(jnp.ones((1, 1, 1, 4)))  # drawn by nnx.Dropout
    assert set(np.ravel(seen["x"]).tolist()) <= {0.0, 2.0}
    layer.eval()
    layer(jnp.ones((1, 1, 1, 4)), dropout_mask=mask)
    np.testing.assert_array_equal(seen["x"], np.ones((1, 4)))
