"""oneDNN's convolutions and their derivatives against XLA's in float64, and XLA's where oneDNN has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.cpu import onednn
from jax_arcface.cpu.convolution import NHWC, convolve

# height, width, inputs, outputs, kernel's height and width, strides, padding
SHAPES = [
    (9, 8, 3, 16, 3, 3, (1, 1), ((1, 1), (1, 1))),
    (9, 9, 16, 32, 3, 3, (2, 2), ((1, 1), (1, 1))),
    (8, 8, 5, 7, 1, 1, (2, 2), ((0, 0), (0, 0))),
    (6, 7, 1, 4, 5, 3, (1, 2), ((2, 0), (1, 2))),
    (7, 7, 3, 24, 2, 2, (1, 1), ((0, 0), (0, 0))),
    (7, 6, 2, 4, 3, 3, (2, 2), ((1, 1), (0, 1))),
]


@pytest.fixture
def library():
    """Skips where this machine has none."""
    if missing := onednn.library().missing:
        pytest.skip(missing)


def arrays(shape, dtype="float64", batch=4):
    height, width, inputs, outputs, down, across, strides, padding = shape
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, height, width, inputs)).astype(dtype)
    kernel = rng.normal(size=(down, across, inputs, outputs)).astype(dtype)
    return images, kernel, functools.partial(convolve, strides=strides, padding=padding)


def products(of, images, kernel):
    """The result, and the gradients of a sum in which each of its numbers counts differently."""
    result, back = jax.vjp(of, images, kernel)
    weights = jnp.cos(jnp.arange(result.size, dtype=float)).reshape(result.shape)
    return [np.float64(array) for array in (result, *back(weights.astype(result.dtype)))]


def is_onednn(of, *inputs):
    return "jax_arcface.onednn" in jax.jit(of).lower(*inputs).as_text()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_result_and_gradients_are_those_of_float64(shape, dtype, tolerance):
    images, kernel, of = arrays(shape)
    images, kernel = (np.float64(jnp.asarray(array, dtype)) for array in (images, kernel))  # what is rounded already
    found = products(jax.jit(of), jnp.asarray(images, dtype), jnp.asarray(kernel, dtype))
    assert is_onednn(of, jnp.asarray(images, dtype), jnp.asarray(kernel, dtype))
    with jax.enable_x64(True):
        assert not is_onednn(of, images, kernel)
        expected = products(of, images, kernel)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_bias_is_added_and_has_its_gradient(shape, dtype, tolerance):
    images, kernel, of = arrays(shape)
    images, kernel = (np.float64(jnp.asarray(array, dtype)) for array in (images, kernel))
    bias = np.linspace(-1, 2, kernel.shape[-1])
    biased = jax.jit(lambda x, k, b: of(x, k, bias=b))

    def all_of(dtype):
        result, back = jax.vjp(biased, jnp.asarray(images, dtype), jnp.asarray(kernel, dtype), jnp.float32(bias))
        weights = jnp.cos(jnp.arange(result.size, dtype=float)).reshape(result.shape)
        return [np.float64(array) for array in (result, *back(weights.astype(result.dtype)))]

    found = all_of(dtype)
    assert is_onednn(biased, jnp.asarray(images, dtype), jnp.asarray(kernel, dtype), bias)
    with jax.enable_x64(True):
        expected = products(of, images, kernel)
    weights = np.cos(np.arange(expected[0].size)).reshape(expected[0].shape)
    weights = np.float64(jnp.asarray(weights, dtype))
    expected = [expected[0] + np.float32(bias), *expected[1:], weights.sum(axis=(0, 1, 2))]
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("size", [7, 14])  # XLA's own for few numbers, the sum over the kernel's places for many
@pytest.mark.parametrize(("inputs", "outputs", "groups", "stride"), [(6, 6, 6, 2), (8, 12, 4, 1)])
def test_groups_are_convolutions_side_by_side(implementation, size, inputs, outputs, groups, stride):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, size, size + 1, inputs)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, inputs // groups, outputs)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    of = functools.partial(convolve, strides=(stride, stride), padding=((1, 1), (0, 2)))

    def total(conv):
        return jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(jnp.sin(conv(*inputs))), (0, 1, 2)))

    def grouped(images, kernel, bias):
        return of(images, kernel, bias=bias, groups=groups, implementation=implementation)

    def side_by_side(images, kernel, bias):
        parts = zip(jnp.split(images, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
        return jnp.concatenate([of(*part, implementation="xla") for part in parts], axis=3) + bias

    found, expected = (total(conv)(images, kernel, bias) for conv in (grouped, side_by_side))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert is_onednn(grouped, images, kernel, bias) == (implementation == "auto" and not onednn.library().missing)


@pytest.mark.usefixtures("library")
def test_gradients_of_gradients_with_a_bias():
    images, kernel, of = arrays(SHAPES[1], "float32", batch=2)
    bias = np.linspace(-1, 2, 32, dtype=np.float32)

    def penalty(conv, *inputs):
        gradients = jax.grad(lambda *inputs: jnp.sum(jnp.sin(conv(*inputs))), (0, 1, 2))(*inputs)
        return sum(jnp.sum(jnp.sin(gradient)) for gradient in gradients)

    def plain(x, k, b):
        return jax.lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=NHWC) + b

    def onednn_conv(x, k, b):
        return of(x, k, bias=b)

    found, expected = (jax.jit(jax.grad(functools.partial(penalty, f), (0, 1, 2))) for f in (onednn_conv, plain))
    for one, other in zip(found(images, kernel, bias), expected(images, kernel, bias), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


@pytest.mark.usefixtures("library")
def test_gradients_of_gradients():
    images, kernel, of = arrays(SHAPES[1], "float32", batch=2)
    xla = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(2, 2), padding=((1, 1), (1, 1)), dimension_numbers=NHWC
    )

    def penalty(conv, images, kernel):
        by_images, by_kernel = jax.grad(lambda x, k: jnp.sum(conv(x, k) ** 3), (0, 1))(images, kernel)
        return jnp.sum(by_images**2) + jnp.sum(jnp.sin(by_kernel))

    found, expected = (jax.jit(jax.grad(functools.partial(penalty, conv), (0, 1))) for conv in (of, xla))
    for one, other in zip(found(images, kernel), expected(images, kernel), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


@pytest.mark.usefixtures("library")
def test_vmap_over_images_and_kernels():
    images, kernel, of = arrays(SHAPES[0], "float32", batch=6)
    images, kernels = images.reshape(3, 2, *images.shape[1:]), np.stack([kernel, 2 * kernel, -kernel])
    both = jax.vmap(of)(images, kernels)
    np.testing.assert_allclose(both, np.stack([of(*pair) for pair in zip(images, kernels, strict=True)]), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(of, (0, None))(images, kernel)[1], of(images[1], kernel), rtol=1e-6)


@pytest.mark.usefixtures("library")
def test_many_at_once_do_not_disturb_each_other():
    """Layers of one shape share oneDNN's program, and XLA may call it from several threads."""
    images, kernel, of = arrays((16, 16, 8, 8, 3, 3, (1, 1), ((1, 1), (1, 1))), "float32", batch=16)

    @jax.jit
    def all_of(images):
        return [of(images * 2.0**n, kernel) for n in range(8)]

    once = np.asarray(of(images, kernel))
    for _ in range(5):
        for n, result in enumerate(all_of(images)):
            np.testing.assert_array_equal(result, once * 2.0**n)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_what_onednn_does_not_do_is_left_to_xla(dtype):
    with jax.enable_x64(dtype == "float64"):
        images, kernel, of = arrays(SHAPES[0], dtype)
        assert not is_onednn(of, images, kernel)
        expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC)
        np.testing.assert_array_equal(np.float64(of(images, kernel)), np.float64(expected))


def test_images_and_kernel_of_two_dtypes_are_refused():
    images, kernel, of = arrays(SHAPES[0], "float32")
    with pytest.raises(TypeError, match="dtype"):
        of(images, jnp.asarray(kernel, jnp.bfloat16))


def test_an_image_that_is_no_batch_is_refused():
    images, kernel, of = arrays(SHAPES[0], "float32")
    with pytest.raises(TypeError, match="ndim to be equal"):
        of(images[0], kernel)


def test_an_empty_batch():
    images, kernel, of = arrays(SHAPES[0], "float32", batch=0)
    assert of(images, kernel).shape == (0, 9, 8, 16)
