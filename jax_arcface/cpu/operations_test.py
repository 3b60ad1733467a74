"""Who computes an operation, and that derivatives and `vmap` are the same whoever does."""

import functools
import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import PartitionSpec

from jax_arcface.cpu import convolve, describe, onednn, prelu, product
from jax_arcface.models.backbones import BACKBONES

X = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 3, 4)).astype(np.float32)
BIAS, SLOPE = np.linspace(-1, 1, 4, dtype=np.float32), np.linspace(0.1, 0.5, 4, dtype=np.float32)


def network(x, kernel, bias, slope, implementation="auto"):
    """All three operations and their gradients."""
    y = convolve(x, kernel, (2, 1), ((1, 1), (0, 1)), bias, implementation=implementation)
    y = prelu(y, slope, implementation)
    rows = y.reshape(-1, y.shape[-1])
    return jnp.sin(product(rows, rows, transposed=True, implementation=implementation)).sum()


def lowered(function, *inputs, **kwargs):
    return jax.jit(function).trace(*inputs).lower(**kwargs).as_text()


def is_onednn(function, *inputs, **kwargs):
    return "jax_arcface.onednn" in lowered(function, *inputs, **kwargs)


@pytest.fixture
def library():
    """Skips where this machine has none."""
    if missing := onednn.library().missing:
        pytest.skip(missing)


INPUTS = X, KERNEL, BIAS, SLOPE
gradients = jax.grad(network, (0, 1, 2, 3))


@pytest.mark.usefixtures("library")
def test_all_are_onednns():
    text = lowered(gradients, *INPUTS)
    kinds = {int(line.split("dense<[")[1].split(",")[0]) for line in text.splitlines() if "@jax_arcface.onednn" in line}
    assert kinds == {0, 1, 2, 3, 4}
    assert not is_onednn(functools.partial(gradients, implementation="xla"), *INPUTS)
    assert describe() == f"oneDNN {onednn.library().version}"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")])
def test_for_another_platform_it_is_xlas(platforms):
    assert not is_onednn(gradients, *INPUTS, lowering_platforms=platforms)
    asked = functools.partial(gradients, implementation="onednn")
    with pytest.raises(ValueError, match="CPU"):
        lowered(asked, *INPUTS, lowering_platforms=platforms)


@pytest.mark.usefixtures("library")
def test_an_export_is_xlas():
    images = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6, 5, 3"), np.float32)
    exported = export.export(jax.jit(gradients))(images, *INPUTS[1:])
    for one, other in zip(exported.call(*INPUTS), gradients(*INPUTS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="exported"):
        export.export(jax.jit(functools.partial(gradients, implementation="onednn")))(*INPUTS)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("mobilefacenet", "iresnet")))
        for name in BACKBONES
        if not name.startswith("iresnet") or name == "iresnet18"  # the others have the same blocks
    ],
)
def test_every_backbone_is_exported_with_a_symbolic_batch(name):
    model = BACKBONES[name]((16, 16, 3), 8, 0.1, rngs=nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("b, 16, 16, 3"), np.float32)
    exported = export.export(jax.jit(lambda state, images: nnx.merge(graphdef, state)(images)))(state, images)
    batch = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(exported.call(state, batch), jax.jit(model)(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("library")
def test_for_several_devices_it_is_xlas():
    mesh = jax.sharding.AbstractMesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.ShapeDtypeStruct(X.shape, X.dtype, sharding=jax.NamedSharding(mesh, PartitionSpec("d")))
    assert not is_onednn(gradients, sharded, *INPUTS[1:], lowering_platforms=("cpu",))
    with pytest.raises(ValueError, match="2 devices"):
        lowered(
            functools.partial(gradients, implementation="onednn"), sharded, *INPUTS[1:], lowering_platforms=("cpu",)
        )


def nothing(*_):
    return None


def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


def refuse(*_, **__):
    raise RuntimeError("incompatible with the framework's API version")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("owner", "name", "replacement", "reason"),
    [
        (importlib.metadata, "files", not_installed, "not installed"),
        (importlib.util, "find_spec", nothing, "compiler"),
        (onednn, "_INTERFACE", -1, "another version"),
        (onednn, "_library_path", lambda: __file__, "could not be loaded"),
        (jax.ffi, "register_ffi_target", refuse, "API version"),
    ],
)
def test_without_the_library_or_its_handler_it_is_xlas(owner, name, replacement, reason, monkeypatch):
    monkeypatch.setattr(owner, name, replacement)
    monkeypatch.setattr(onednn, "_load", onednn._load.__wrapped__)
    assert describe() == "XLA"
    assert not is_onednn(lambda *inputs: gradients(*inputs), *INPUTS)
    with pytest.raises(ValueError, match=reason):
        lowered(functools.partial(network, implementation="onednn"), *INPUTS)


@pytest.mark.usefixtures("library")
def test_what_onednn_refuses_is_xlas(monkeypatch):
    assert not onednn.supports((4, 99, 5, 6, 7, 0))  # a dtype that it has not
    monkeypatch.setattr(onednn, "supports", lambda operation: False)
    assert not is_onednn(lambda *inputs: gradients(*inputs), *INPUTS)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'auto', 'xla' or 'onednn'"):
        network(*INPUTS, implementation="mkl")


@pytest.mark.usefixtures("library")
def test_the_number_of_buffers_is_checked():
    call = jax.ffi.ffi_call(onednn.TARGET, jax.ShapeDtypeStruct((5, 7), np.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="buffers"):
        jax.block_until_ready(call(np.ones((5, 6), np.float32), operation=np.array([4, 3, 5, 6, 7, 0])))


def assert_all_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def plain(x, kernel, bias, slope):
    """`network` in JAX's own operations."""
    layouts = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (2, 1), ((1, 1), (0, 1)), dimension_numbers=layouts) + bias
    y = jnp.where(y > 0, y, slope * y)
    rows = y.reshape(-1, y.shape[-1])
    return jnp.sin(jnp.matmul(rows.T, rows, precision="highest")).sum()


DIRECTIONS = tuple(np.cos(3 * x) for x in INPUTS)


def derivatives(network):
    """Forwards, backwards, forwards over backwards, backwards over forwards."""
    yield jax.jvp(network, INPUTS, DIRECTIONS)
    gradient = jax.grad(network, (0, 1, 2, 3))
    yield gradient(*INPUTS)
    yield jax.jvp(gradient, INPUTS, DIRECTIONS)
    yield jax.grad(lambda *inputs: jax.jvp(network, inputs, DIRECTIONS)[1], (0, 1, 2, 3))(*INPUTS)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_derivatives_are_those_of_jaxs_own_operations(implementation):
    found = jax.jit(lambda: list(derivatives(functools.partial(network, implementation=implementation))))()
    assert_all_close(found, jax.jit(lambda: list(derivatives(plain)))())


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("mapped", [(0, None, None, None), (0, 0, 0, 0), (None, 0, None, None), (None, None, 0, 1)])
def test_vmap_and_its_gradient(mapped, implementation):
    """Of what is not mapped, too, to which each example adds."""
    inputs = [
        x if axis is None else jnp.moveaxis(jnp.stack([x, 0.5 * x, -x]), 0, axis)
        for x, axis in zip(INPUTS, mapped, strict=True)
    ]

    def all_of(network):
        each = jax.vmap(jax.grad(network, (0, 1, 2, 3)), mapped)(*inputs)
        total = jax.grad(lambda *inputs: jax.vmap(network, mapped)(*inputs).sum(), (0, 1, 2, 3))(*inputs)
        return each, total

    found = jax.jit(lambda: all_of(functools.partial(network, implementation=implementation)))()
    assert_all_close(found, jax.jit(lambda: all_of(plain))())


@pytest.mark.parametrize("implementation", ["auto", "onednn"])
def test_inside_shard_map(implementation):
    if implementation == "onednn" and (missing := onednn.library().missing):
        pytest.skip(missing)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("d"), PartitionSpec(), PartitionSpec(), PartitionSpec()

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    def total(*inputs):
        return jax.lax.psum(network(*inputs, implementation=implementation), "d")

    assert_all_close(jax.jit(jax.grad(total, (0, 1, 2, 3)))(*INPUTS), gradients(*INPUTS))
