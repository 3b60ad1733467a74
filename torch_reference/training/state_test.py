"""Tests of state.py: optimisers in closed form, and what a checkpoint holds."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from torch_reference.models.weights import to_arrays
from torch_reference.training.config import TrainConfig
from torch_reference.training.state import TrainState, make_model, make_optimizer
from torch_reference.training.step import train_step

SMALL = TrainConfig(width=0.2, embedding_dim=8)


def fresh(**changes):
    config = dataclasses.replace(SMALL, **changes)
    model = make_model(config, (8, 8, 1), 10)
    return TrainState(model, make_optimizer(config, model))


def stepped(**changes):
    state = fresh(**changes)
    train_step(state, torch.randn(10, 1, 8, 8), torch.arange(10))
    return state


def written_out(name, w, gradients, rates, decay, momentum):
    """The recipe's rules, on one weight in float64."""
    v = m = 0.0
    second = 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        if name == "adamw":
            m = momentum * m + (1 - momentum) * g
            second = 0.999 * second + 0.001 * g * g
            step = (m / (1 - momentum**t)) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
            w -= lr * (step + decay * w)
        else:
            g = g + decay * w
            v = momentum * v + g
            w -= lr * (v if name == "sgd" else g + momentum * v)
    return w


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_optimisers_follow_the_recipe(name, momentum):
    rng = np.random.default_rng(0)
    gradients, rates = rng.normal(size=50), rng.uniform(0.01, 0.1, 50)
    model = torch.nn.Linear(1, 1).double()
    torch.nn.init.constant_(model.weight, 0.7)
    torch.nn.init.constant_(model.bias, 0.7)
    config = TrainConfig(optimizer=name, momentum=momentum, weight_decay=0.2)
    optimizer = make_optimizer(config, model)
    for g, lr in zip(gradients, rates, strict=True):
        model.weight.grad, model.bias.grad = torch.tensor([[g]]), torch.tensor([g])
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    assert model.weight.item() == pytest.approx(written_out(name, 0.7, gradients, rates, 0.2, momentum), rel=1e-12)
    assert model.bias.item() == pytest.approx(written_out(name, 0.7, gradients, rates, 0.0, momentum), rel=1e-12)


def test_decay_acts_on_convolutions_linear_layers_and_prototypes_only():
    model = make_model(dataclasses.replace(SMALL, backbone="airnet"), (9, 9, 1), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in make_optimizer(SMALL, model).param_groups)
    assert "backbone.whiten.weight" not in decayed | free
    assert {"head.prototypes", "backbone.embedding.fc.weight", "backbone.blocks.0.conv1.weight"} < decayed
    assert all("bn" in name for name in free)
    assert not any("bn" in name for name in decayed)


def test_neither_bias_nor_centres_decay():
    config = dataclasses.replace(SMALL, loss="softmax+center_learnt")
    model = make_model(config, (8, 8, 1), 10)
    decayed, free = (group["params"] for group in make_optimizer(config, model).param_groups)
    for name, parameter in model.head.named_parameters():
        assert any(parameter is p for p in decayed) == (name == "prototypes")
        assert any(parameter is p for p in free) == (name != "prototypes")


# ---- checkpoints


def test_a_state_travels():
    one, other = stepped(loss="adaface+center"), fresh(loss="adaface+center")
    other.load_arrays(one.to_arrays())
    assert other.step == 1
    again = other.to_arrays()
    for name, array in one.to_arrays().items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_what_a_loss_remembers_is_in_the_checkpoint():
    state = fresh(loss="adaface+center")
    arrays = state.to_arrays()
    found = {name: array.shape for name, array in arrays.items() if name.startswith("losses.")}
    assert found == {"losses.adaface.mean": (), "losses.adaface.std": (), "losses.center.centers": (10, 8)}
    with pytest.raises(ValueError, match=r"losses\.center\.centers has shape"):
        state.load_arrays(arrays | {"losses.center.centers": np.zeros((2, 8), np.float32)})
    with pytest.raises(ValueError, match=r"it has no losses\.adaface\.std"):
        state.load_arrays({name: array for name, array in arrays.items() if name != "losses.adaface.std"})


PROTOTYPES = "model.head.prototypes"
MOMENTUM = "optimizer.momentum_buffer.head.prototypes"


@pytest.mark.parametrize(
    "harm",
    [
        lambda a: a | {"extra": np.zeros(3, np.float32)},
        lambda a: a | {"losses.center.centers": np.zeros((10, 8), np.float32)},
        lambda a: a | {PROTOTYPES: a[PROTOTYPES].astype(np.float64)},
        lambda a: a | {PROTOTYPES: a[PROTOTYPES].astype(np.int32)},
        lambda a: a | {MOMENTUM: a[MOMENTUM].astype(np.float16)},
        lambda a: a | {MOMENTUM: a[MOMENTUM][:1]},
        lambda a: {name: array for name, array in a.items() if name != MOMENTUM},
        lambda a: a | {"step": np.array(1.0)},
        lambda a: a | {"loss_sum": np.array([1.0])},
    ],
)
def test_a_checkpoint_with_other_arrays_is_refused(harm):
    config = {"optimizer": "sgd", "momentum": 0.9}
    arrays = stepped(**config).to_arrays()
    fresh(**config).load_arrays(arrays)
    with pytest.raises(ValueError):  # noqa: PT011
        fresh(**config).load_arrays(harm(arrays))


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(ValueError, match="shape"):
        fresh(width=0.3).load_arrays(fresh().to_arrays())


MEMORIES = {"sgd": {"optimizer": "sgd"}, "none": {"optimizer": "sgd", "momentum": 0.0}, "adamw": {"optimizer": "adamw"}}


@pytest.mark.parametrize("trained", MEMORIES)
@pytest.mark.parametrize("resumed", MEMORIES)
def test_a_checkpoint_of_another_optimizer_is_refused(trained, resumed):
    arrays, state = stepped(**MEMORIES[trained]).to_arrays(), fresh(**MEMORIES[resumed])
    if trained == resumed:
        state.load_arrays(arrays)
        assert state.step == 1
    else:
        with pytest.raises(ValueError, match="that of another optimiser"):
            state.load_arrays(arrays)


def test_each_seed_has_its_own_weights():
    one, other = (to_arrays(fresh(seed=seed).model) for seed in (0, 1))
    assert (one["head.prototypes"] != other["head.prototypes"]).all()
