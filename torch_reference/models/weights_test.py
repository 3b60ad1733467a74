"""Tests of weights.py, from docs/recipe.md."""

import hashlib

import numpy as np
import pytest
import torch

from torch_reference.losses.registry import parse
from torch_reference.models.backbones import make_backbone
from torch_reference.models.heads import Classifier, Head
from torch_reference.models.weights import initialise, load_arrays, to_arrays


def classifier(backbone="lenet", loss="arcface", subcenters=1):
    objective = parse(loss, {"subcenters": subcenters} if subcenters > 1 else {})
    return Classifier(make_backbone(backbone, (9, 9, 2), 6, 0.1), Head(objective, 6, num_classes=5))


def drawn(name, seed, shape, bound):
    digest = hashlib.sha256(f"arcface/weights/{name}/{seed}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return ((2 * rng.random(shape) - 1) * bound).astype(np.float32)


@pytest.mark.parametrize("backbone", ["lenet", "resnet20", "resnet18", "airnet"])
@pytest.mark.parametrize("subcenters", [1, 3])
def test_every_weight_is_the_recipes(backbone, subcenters):
    model = classifier(backbone=backbone, subcenters=subcenters)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    initialise(model, seed=3)
    for name, array in to_arrays(model).items():
        kind = name.rpartition(".")[2]
        if name == "backbone.whiten.weight":
            expected = np.full_like(array, 7.0)
        elif kind == "prototypes" or name == "backbone.embedding.fc.weight":
            expected = drawn(name, 3, array.shape, (3 / array.shape[-1]) ** 0.5)
        elif array.ndim == 4:
            expected = drawn(name, 3, array.shape, (6 / array[0].size) ** 0.5)
        elif "prelu" in name:
            expected = np.full_like(array, 0.25)
        else:
            expected = np.full_like(array, 1.0 if kind in ("weight", "running_var") else 0.0)
        np.testing.assert_array_equal(array, expected, err_msg=name)
        assert array.dtype == np.float32


@pytest.mark.parametrize("loss", ["softmax+center_learnt", "triplet"])
def test_bias_and_centres_start_at_0_and_untrained_prototypes_are_drawn(loss):
    model = classifier(loss=loss)
    for value in model.head.state_dict().values():
        value.fill_(7.0)
    initialise(model, seed=3)
    found = {name: value for name, value in to_arrays(model).items() if name.startswith("head.")}
    expected = {"head.prototypes": drawn("head.prototypes", 3, (5, 6), 0.5**0.5)}
    if loss != "triplet":
        expected |= {"head.bias": np.zeros(5), "head.centers": np.zeros((5, 6))}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_travel_and_counters_do_not():
    one, other = classifier(), classifier()
    initialise(one, 0)
    load_arrays(other, to_arrays(one))
    x = torch.randn(4, 2, 9, 9)
    assert torch.equal(one.eval()(x), other.eval()(x))
    assert not any("num_batches_tracked" in name for name in to_arrays(one))


def test_channels_last_weights_are_exported_in_order():
    model = classifier()
    expected = to_arrays(model)
    for name, array in to_arrays(model.to(memory_format=torch.channels_last)).items():
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("head.prototypes"), "it has no head.prototypes, which the model needs"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "it has more, which the model does not know"),
        (
            lambda arrays: arrays.update({"head.prototypes": np.zeros((5, 7))}),
            r"its head.prototypes has shape \(5, 7\); the model needs \(5, 6\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    arrays = to_arrays(classifier())
    change(arrays)
    with pytest.raises(ValueError, match=message):
        load_arrays(classifier(), arrays)
