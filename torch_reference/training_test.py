"""Tests of training.py: schedules and optimisers in closed form, and small trainings on digits."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from torch_reference import Margin, data
from torch_reference.config import TrainConfig
from torch_reference.errors import UserError
from torch_reference.training import (
    Diverged,
    Machine,
    Reporter,
    clip_gradients,
    device_data,
    embed_all,
    epoch_batches,
    fit,
    initial_model,
    initial_state,
    learning_rate,
    make_optimizer,
    train_step,
    warmed_up_margin,
)
from torch_reference.weights import to_arrays

SMALL = TrainConfig(epochs=2, width=0.2, embedding_dim=8, learning_rate=0.01, batch_size=100)
STEPS = 14  # an epoch of the 1,438 digits in batches of 100


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


class Collector(Reporter):
    def __init__(self):
        self.losses, self.records = [], []

    def on_step(self, epoch, step, metrics):
        self.losses.append(metrics.loss)

    def on_epoch(self, record, state):
        self.records.append(record)


# ---- schedules


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("cosine", lambda x: 0.3 * (1 + math.cos(math.pi * x)) / 2),
        ("linear", lambda x: 0.3 * (1 - x)),
        ("constant", lambda x: 0.3),
    ],
)
def test_learning_rate(schedule, after):
    config = TrainConfig(epochs=4, warmup_epochs=0.5, learning_rate=0.3, schedule=schedule)
    # 5 steps an epoch: round(2.5) = 2 warm-up steps (ties to even) of 20
    expected = [0.1, 0.2, *(after((t - 2) / 18) for t in range(2, 20))]
    np.testing.assert_allclose([learning_rate(config, t, 5) for t in range(20)], expected, rtol=1e-14)


def test_margin_warms_up():
    config = TrainConfig(loss="sphereface", margin=1.6, margin_warmup_epochs=1, gradient="straight_through")
    grown = [warmed_up_margin(config, t, 2) for t in range(4)]
    np.testing.assert_allclose([margin.m1 for margin in grown], [1.2, 1.4, 1.6, 1.6], rtol=1e-15)
    assert grown[3] == Margin.sphereface(1.6, gradient="straight_through")
    assert warmed_up_margin(SMALL, 0, 2) == Margin.arcface(0.5)


# ---- optimisers


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


def test_decay_acts_on_convolutions_linear_layers_and_prototypes_only(digits):
    model = initial_model(
        dataclasses.replace(SMALL, backbone="airnet", image_size=9), data.load("digits", image_size=9)
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in make_optimizer(SMALL, model).param_groups)
    assert "backbone.whiten.weight" not in decayed | free
    assert {"head.prototypes", "backbone.embedding.fc.weight", "backbone.blocks.0.conv1.weight"} < decayed
    assert all("bn" in name for name in free)
    assert not any("bn" in name for name in decayed)


def test_clipping_scales_all_gradients_to_the_norm_exactly():
    one, other = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (1, 2))
    one.grad, other.grad = torch.tensor([3.0]).double(), torch.tensor([0.0, -4.0]).double()
    clip_gradients([one, other], 5.0)
    assert (one.grad.tolist(), other.grad.tolist()) == ([3], [0, -4])
    clip_gradients([one, other], 0.5)
    np.testing.assert_allclose([*one.grad, *other.grad], [0.3, 0, -0.4], rtol=1e-15)


# ---- whole trainings


def test_a_step_is_the_recipes_step(digits):
    """With clipping, dropout and warm-ups: the gradients are autograd's, the update is written out."""
    config = dataclasses.replace(SMALL, clip_norm=0.5, dropout=0.3, margin_warmup_epochs=1)
    state = initial_state(config, digits)
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    images, labels = next(epoch_batches(config, train, 0))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    train_step(state, images, labels, config, STEPS)
    gradients = {name: p.grad for name, p in state.model.named_parameters()}
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    assert norm == pytest.approx(0.5, rel=1e-5)
    rate = 0.01 / 15  # the first of 14 warm-up steps
    for name, p in state.model.named_parameters():
        g = gradients[name] + (5e-4 * before[name] if before[name].ndim > 1 else 0)
        torch.testing.assert_close(p.detach(), before[name] - rate * 1.9 * g, rtol=1e-5, atol=1e-8)


def test_digits_are_learnt(digits):
    collector = Collector()
    config = dataclasses.replace(SMALL, epochs=4, width=0.5, embedding_dim=64, learning_rate=0.05, batch_size=64)
    fit(config, digits, reporter=collector)
    assert [(r.epoch, r.step) for r in collector.records] == [(1, 22), (2, 44), (3, 66), (4, 88)]
    assert collector.records[-1].test_accuracy > 0.93
    last = collector.records[-1]
    assert last.train_loss == pytest.approx(np.mean(collector.losses[-22:]))
    assert last.learning_rate == learning_rate(config, 87, 22)
    assert last.images_per_second == pytest.approx(22 * 64 / last.seconds)


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_a_resumed_training_ends_with_the_same_bits(digits, optimizer):
    config = dataclasses.replace(SMALL, optimizer=optimizer, dropout=0.2, shift=1, flip=True, cutout=2)
    whole = Collector()
    expected = fit(config, digits, reporter=whole).to_arrays()
    first, second = Collector(), Collector()
    stopped = fit(config, digits, reporter=first, stop=lambda: len(first.losses) == STEPS + 3)
    assert stopped.step == STEPS + 3
    state = initial_state(config, digits)
    state.load_arrays(stopped.to_arrays())
    found = fit(config, digits, state, second).to_arrays()
    assert first.losses + second.losses == whole.losses
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    untimed = [[r[:6] for r in c.records] for c in (whole, first, second)]
    assert untimed[1] + untimed[2] == untimed[0]


def test_a_checkpoint_of_another_model_is_refused(digits):
    arrays = initial_state(SMALL, digits).to_arrays()
    state = initial_state(dataclasses.replace(SMALL, width=0.3), digits)
    with pytest.raises(ValueError, match="shape"):
        state.load_arrays(arrays)


def test_how_it_is_computed_changes_rounding_only(digits):
    config = dataclasses.replace(SMALL, epochs=1, backbone="resnet20", learning_rate=1e-3)
    plain, other = Collector(), Collector()
    fit(config, digits, reporter=plain, stop=lambda: len(plain.losses) == 3)
    machine = Machine(channels_last=True)
    state = initial_state(config, digits, machine)
    assert state.model.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    fit(config, digits, state, other, lambda: len(other.losses) == 3, machine)
    np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["lenet", "resnet20"])
def test_bfloat16_trains_with_float32_parameters(digits, backbone):
    config = dataclasses.replace(SMALL, backbone=backbone, precision="bfloat16", epochs=1)
    wide, narrow = Collector(), Collector()
    state = fit(config, digits, reporter=narrow, stop=lambda: len(narrow.losses) == 3)
    fit(dataclasses.replace(config, precision="float32"), digits, reporter=wide, stop=lambda: len(wide.losses) == 3)
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(narrow.losses, wide.losses, rtol=0.05)
    assert narrow.losses != wide.losses
    test = device_data(digits.test, *data.channel_statistics(digits.train.images))
    assert embed_all(state.model, config, test).dtype == torch.float32


def test_airnet_whitens_the_training_images():
    images = data.load("digits", image_size=9)
    config = dataclasses.replace(SMALL, backbone="airnet", image_size=9)
    model = initial_model(config, images)
    train = device_data(images.train, *data.channel_statistics(images.train.images))
    normalised, _ = next(epoch_batches(dataclasses.replace(config, batch_size=1438), train, 0))
    responses = model.backbone.whiten(normalised)[:, :4].detach().double()
    rows = responses.permute(1, 0, 2, 3).reshape(4, -1)
    np.testing.assert_allclose(rows @ rows.T / rows.shape[1], np.eye(4), atol=0.02)
    before = model.backbone.whiten.weight.clone()
    assert torch.equal(fit(config, images, stop=lambda: False).model.backbone.whiten.weight, before)


def test_replicas_start_from_their_own_seed(digits):
    one, other = (to_arrays(initial_model(dataclasses.replace(SMALL, seed=seed), digits)) for seed in (0, 1))
    assert (one["head.prototypes"] != other["head.prototypes"]).all()


def test_a_diverging_training_ends_with_advice(digits):
    with pytest.raises(Diverged, match=r"the loss of step \d+ is nan; try a smaller --learning-rate \(now 1e\+30\)"):
        fit(dataclasses.replace(SMALL, learning_rate=1e30), digits)


def test_a_batch_larger_than_the_data_is_refused(digits):
    with pytest.raises(UserError, match="--batch-size is 2000, but there are only 1438 training images"):
        fit(dataclasses.replace(SMALL, batch_size=2000), digits)
