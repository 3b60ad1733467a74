"""ONNX graphs as onnxruntime computes them, beside numpy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from jax_arcface.cpu import convolve
from jax_arcface.errors import UserError
from jax_arcface.models.backbones import BACKBONES
from jax_arcface.models.layers import PReLU, max_pool

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
to_onnx = pytest.importorskip("jax_arcface.export.graph").to_onnx

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)


def computed(function, x, weights=None):
    """What onnxruntime makes of a function's graph, which onnx finds valid."""
    model = to_onnx(function, weights or {}, x.shape[1:], input_name="x", output_name="y", dtype=x.dtype)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


# Functions in JAX, and the same in numpy, of x [3, 4, 6, 2] in (-2, 2).
FUNCTIONS = {
    "sums": (lambda x: x.sum(axis=(1, 3)) - x.mean(axis=(1, 3)), lambda x: x.sum((1, 3)) - x.mean((1, 3))),
    "extremes": (lambda x: x.max(axis=1) + x.min(axis=1), lambda x: x.max(1) + x.min(1)),
    "largest": (lambda x: x.argmax(axis=2).astype(jnp.float32), lambda x: x.argmax(2).astype(np.float32)),
    "transposed": (
        lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1) @ jnp.ones((48, 2)),
        lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ np.ones((48, 2)),
    ),
    "two orders": (
        lambda x: (x.transpose(0, 2, 1, 3) * jnp.arange(2.0)).swapaxes(1, 2) + x,
        lambda x: x * np.arange(2.0) + x,
    ),
    "strides": (lambda x: x[:, ::2, 1::3], lambda x: x[:, ::2, 1::3]),
    "one place and a range": (lambda x: x[:, 1, 2:5], lambda x: x[:, 1, 2:5]),
    "places": (lambda x: x[:, jnp.array([3, 0, 1])], lambda x: x[:, [3, 0, 1]]),
    "sliced": (lambda x: jax.lax.slice_in_dim(x, 1, 5, 2, axis=2), lambda x: x[:, :, 1:5:2]),
    "padded": (
        lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=7.0),
        lambda x: np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=7.0),
    ),
    "joined": (
        lambda x: jnp.concatenate([x, x.transpose(0, 1, 3, 2).transpose(0, 1, 3, 2) + 1, jnp.zeros_like(x)], axis=3),
        lambda x: np.concatenate([x, x + 1, 0 * x], axis=3),
    ),
    "chosen": (lambda x: jnp.where((x > 1) | ~(x >= -1), x, 0.5), lambda x: np.where((x > 1) | (x < -1), x, 0.5)),
    "compared": (
        lambda x: ((x != x[:, :1]) & (x <= 1)).astype(jnp.float32),
        lambda x: ((x != x[:, :1]) & (x <= 1)) * 1.0,
    ),
    "bounded": (
        lambda x: jnp.clip(x, -0.5, 1.0) + jax.nn.relu6(3 * x) + jnp.minimum(x, x[:, :1]) + jnp.maximum(0.5, x),
        lambda x: np.clip(x, -0.5, 1.0) + np.clip(3 * x, 0, 6) + np.minimum(x, x[:, :1]) + np.maximum(0.5, x),
    ),
    "powers": (
        lambda x: x**3 + jnp.square(x) + jax.lax.rsqrt(x + 3) + jnp.abs(x) ** 1.5,
        lambda x: x**3 + x**2 + (x + 3) ** -0.5 + abs(x) ** 1.5,
    ),
    "logarithms": (
        lambda x: jnp.log(x + 3) + jnp.log1p(x + 3) + jnp.expm1(x),
        lambda x: np.log(x + 3) + np.log1p(x + 3) + np.expm1(x),
    ),
    "gelu": (
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: x * 0.5 * scipy.special.erfc(-x / np.sqrt(2)),
    ),
    "sigmoids": (lambda x: jax.nn.silu(x) + jnp.tanh(x), lambda x: x * scipy.special.expit(x) + np.tanh(x)),
    "softmax": (jax.nn.softmax, lambda x: scipy.special.softmax(x, axis=-1)),
    "products": (
        lambda x: jnp.einsum("bhwc,bkwc->bhk", x, x),
        lambda x: np.einsum("bhwc,bkwc->bhk", x, x),
    ),
    "a constant": (lambda x: jnp.ones((x.shape[0], 2)), lambda x: np.ones((len(x), 2))),
    "nothing": (lambda x: x, lambda x: x),
    "whole windows": (
        lambda x: nnx.max_pool(x, (2, 3), (2, 3)) + nnx.avg_pool(x, (2, 3), (2, 3)),
        lambda x: x.reshape(len(x), 2, 2, 2, 3, 2).max((2, 4)) + x.reshape(len(x), 2, 2, 2, 3, 2).mean((2, 4)),
    ),
    "by platform": (
        lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x + x, default=lambda x: 2 * x),
        lambda x: 2 * x,
    ),
    "PReLU": (PReLU(2), lambda x: np.where(x > 0, x, x / 4)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_computed_as_numpy_does(name):
    function, expected = FUNCTIONS[name]
    x = RNG.uniform(-2, 2, (3, 4, 6, 2)).astype(np.float32)
    np.testing.assert_allclose(computed(lambda _, x: function(x), x), expected(x.astype(float)), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))},
        {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
        {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2},
    ],
    ids=str,
)
def test_a_convolution(options):
    x = RNG.normal(size=(2, 7, 8, 2)).astype(np.float32)
    kernel = KERNEL[:, :, : 2 // options.get("feature_group_count", 1)]

    def convolve(weights, x):
        return jax.lax.conv_general_dilated(x, weights["w"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    np.testing.assert_allclose(computed(convolve, x, {"w": kernel}), convolve({"w": kernel}, x), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("resnet20", "airnet")))
        for name in BACKBONES
        if not name.startswith("iresnet") or name == "iresnet18"  # the others have the same blocks
    ],
)
def test_a_backbone(name):
    """For several images and for one."""
    network = BACKBONES[name]((16, 16, 3), 8, 0.125, rngs=nnx.Rngs(0))
    network.eval()
    graphdef, state = nnx.split(network)
    state = jax.tree.map(lambda a: jnp.asarray(np.abs(RNG.normal(size=a.shape)) + 0.1, a.dtype), state)
    images = RNG.normal(size=(5, 16, 16, 3)).astype(np.float32)
    wanted = jax.jit(lambda x: nnx.merge(graphdef, state)(x))(images)
    scale = np.abs(wanted).max()
    for count in (5, 1):
        found = computed(lambda _, x: nnx.merge(graphdef, state)(x), images[:count])
        np.testing.assert_allclose(found / scale, wanted[:count] / scale, atol=1e-5)


def test_known_functions_are_one_node_each():
    model = to_onnx(lambda _, x: jax.nn.relu(max_pool(PReLU(2)(x))), {}, (4, 6, 2), dtype=np.float32)
    kinds = [node.op_type for node in model.graph.node]
    assert [kind for kind in kinds if kind != "Transpose"] == ["PRelu", "MaxPool", "Relu"]


def test_a_function_of_a_known_name_is_not_taken_for_another():
    @jax.custom_jvp
    def relu(x):
        return jnp.where(x > 0, x, 0.1 * x)

    relu.defjvps(lambda tangent, result, x: tangent)
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_allclose(computed(lambda _, x: relu(x), x), np.where(x > 0, x, 0.1 * x), rtol=1e-6)


def test_mapped_operations():
    kernel = RNG.normal(size=(2, 3, 3, 2, 1)).astype(np.float32)
    x = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)

    def both(_, x):
        return jax.vmap(lambda k: convolve(x, k, (1, 1), ((0, 0), (0, 0))), out_axes=1)(kernel)

    np.testing.assert_allclose(computed(both, x), both(None, x), atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.astype(int) & 1,
        lambda x: jnp.sort(x, axis=1),
        lambda x: x - x.mean(axis=0),
        lambda x: x[:, x[0, 0, 0].astype(int)],
        lambda x: jax.lax.conv_transpose(x, KERNEL, (2, 2), "SAME"),
        lambda x: jnp.zeros((2 * x.shape[0], 3)) + x[0, 0, 0, 0],
    ],
)
def test_what_is_not_known_is_refused(function):
    with pytest.raises(UserError):
        to_onnx(lambda _, x: function(x), {}, (4, 6, 2), dtype=np.float32)
