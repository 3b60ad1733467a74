"""Neutral names and layouts, and initial values by the recipe."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_arcface.models import weights
from jax_arcface.models.backbones import BACKBONES
from jax_arcface.models.layers import PReLU
from jax_arcface.philox import generator


@pytest.fixture(scope="module")
def state() -> nnx.State:
    empty = nnx.state(nnx.eval_shape(lambda: BACKBONES["resnet20"]((8, 8, 3), 4, 0.25, rngs=nnx.Rngs(0))))
    return weights.from_pytorch(empty, weights.initial(empty, seed=0))


def test_names_are_those_of_the_recipe(state):
    shapes = weights.pytorch_shapes(state)
    assert shapes["stages.1.0.conv1.weight"] == (8, 4, 3, 3)
    assert shapes["embedding.fc.weight"] == (4, 16)
    assert shapes["stages.0.2.bn2.running_var"] == (4,)
    assert {name.rsplit(".", 1)[1] for name in shapes} == {"weight", "bias", "running_mean", "running_var"}


def test_layouts_are_pytorchs():
    conv = nnx.Conv(2, 3, (4, 5), rngs=nnx.Rngs(0))
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    neutral = weights.to_pytorch(nnx.state(conv))
    assert neutral["weight"].shape == (3, 2, 4, 5)
    assert neutral["weight"][2, 1, 3, 0] == conv.kernel[...][3, 0, 1, 2]
    assert weights.to_pytorch(nnx.state(linear))["weight"][2, 1] == linear.kernel[...][1, 2]


def test_there_and_back_is_the_same(state):
    neutral = weights.to_pytorch(state)
    assert {name: array.shape for name, array in neutral.items()} == weights.pytorch_shapes(state)
    back = weights.to_pytorch(weights.from_pytorch(state, neutral))
    for name, array in neutral.items():
        np.testing.assert_array_equal(array, back[name])


def test_weights_that_do_not_fit_are_named(state):
    neutral = weights.to_pytorch(state)
    left_out = {name: array for name, array in neutral.items() if name != "conv.weight"}
    with pytest.raises(ValueError, match=r"^it has no conv\.weight, which the model needs$"):
        weights.from_pytorch(state, left_out)
    with pytest.raises(ValueError, match=r"^it has stray, which the model does not know$"):
        weights.from_pytorch(state, {**neutral, "stray": np.zeros(1)})
    with pytest.raises(ValueError, match=r"^its bn\.bias has shape \(5,\); the model needs \(4,\)$"):
        weights.from_pytorch(state, {**neutral, "bn.bias": np.zeros(5)})


@pytest.mark.parametrize(
    ("name", "shape", "bound"),
    [
        ("backbone.conv.weight", (7, 5, 3, 3), np.sqrt(6 / 45)),
        ("backbone.embedding.fc.weight", (6, 48), 0.25),
        ("head.prototypes", (9, 12), 0.5),
        ("head.prototypes", (9, 4, 12), 0.5),
    ],
)
def test_initial_weights_are_uniform_within_their_bound(name, shape, bound):
    values = weights.draw({name: shape}, seed=3)[name]
    assert values.dtype == np.float32
    uniform = generator(3, "weights", name).random(shape)
    np.testing.assert_array_equal(values, ((2 * uniform - 1) * bound).astype(np.float32))
    assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.2


def test_initial_values_of_everything_else():
    shapes = {"a.bias": (2,), "a.running_mean": (2,), "a.running_var": (2,), "bn.weight": (2,)}
    values = weights.draw(shapes, seed=0)
    assert {name: float(value[0]) for name, value in values.items()} == {
        "a.bias": 0,
        "a.running_mean": 0,
        "a.running_var": 1,
        "bn.weight": 1,
    }
    slopes = nnx.state(nnx.eval_shape(lambda: nnx.List([PReLU(2)])))
    np.testing.assert_array_equal(weights.initial(slopes, seed=0)["0.weight"], np.full(2, 0.25))
    assert jnp.all(values["bn.weight"] == values["bn.weight"][0])
