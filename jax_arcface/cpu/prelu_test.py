"""PReLU's gradients against float64 numpy, by oneDNN and by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.cpu import onednn
from jax_arcface.cpu.prelu import prelu


@pytest.fixture(params=["onednn", "xla"])
def implementation(request):
    if request.param == "onednn" and (missing := onednn.library().missing):
        pytest.skip(missing)
    return request.param


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_gradients_of_images(implementation, channels, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, weights = (np.float64(jnp.asarray(rng.normal(size=(6, 5, 7, channels)), dtype)) for _ in range(2))
    x[0, 0] = 0
    slope = np.linspace(-0.5, 1.5, channels)
    of = jax.jit(lambda x, slope, weights: jax.vjp(lambda *v: prelu(*v, implementation), x, slope)[1](weights))
    to_x, to_slope = map(np.float64, of(jnp.asarray(x, dtype), jnp.float32(slope), jnp.asarray(weights, dtype)))
    np.testing.assert_allclose(to_x, weights * np.where(x > 0, 1, slope), atol=tolerance * np.abs(weights).max())
    expected = (weights * np.minimum(x, 0)).sum((0, 1, 2))
    np.testing.assert_allclose(to_slope, expected, atol=1e-6 * np.abs(expected).max() * len(x.ravel()) ** 0.5)


def test_gradients_of_gradients(implementation):
    rng = np.random.default_rng(0)
    x, slope = np.float32(rng.normal(size=(2, 3, 4, 5))), np.linspace(0.1, 0.5, 5, dtype=np.float32)

    def penalty(of, x, slope):
        to_x, to_slope = jax.grad(lambda x, slope: jnp.sum(of(x, slope) ** 3), (0, 1))(x, slope)
        return jnp.sum(jnp.sin(to_x)) + jnp.sum(jnp.sin(to_slope))

    def plain(x, slope):
        return jnp.where(x > 0, x, slope * x)

    def ours(x, slope):
        return prelu(x, slope, implementation)

    found, expected = (jax.jit(jax.grad(lambda *v, of=of: penalty(of, *v), (0, 1)))(x, slope) for of in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_what_onednn_does_not_do_is_refused_where_it_is_asked_for():
    if missing := onednn.library().missing:
        pytest.skip(missing)
    with pytest.raises(ValueError, match="shapes and dtypes"):
        jax.grad(lambda x: prelu(x, jnp.ones(3), "onednn").sum())(jnp.ones((2, 3)))  # no images
