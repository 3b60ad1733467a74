"""Tests of step.py: schedules in closed form, and single steps on digits."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from torch_reference import Margin, data
from torch_reference.data.sampling import elastic_normal
from torch_reference.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from torch_reference.losses.registry import LOSSES
from torch_reference.losses.softmax import a_softmax_loss, margin_softmax_loss
from torch_reference.training.batches import Batches, Images
from torch_reference.training.config import TrainConfig
from torch_reference.training.fit import initial_state
from torch_reference.training.step import Diverged, clip_gradients, learning_rate, margin_growth, train_step

SMALL = TrainConfig(epochs=2, width=0.2, embedding_dim=8, learning_rate=0.01, batch_size=100)
STEPS = 14  # an epoch of the 1,438 digits in batches of 100


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def first_batch(config, digits):
    train = Images.of(digits.train, *data.channel_statistics(digits.train.images))
    batches = Batches(train, config.batch_size, config.seed, config.augmentation, config.classes_per_batch)
    return next(batches.epoch(0))


def stepped(state, config, images, labels):
    """A step as `fit_config` makes it."""
    return train_step(
        state,
        images,
        labels,
        learning_rate=learning_rate(config, state.step, STEPS),
        margin_growth=margin_growth(config, state.step, STEPS),
        clip_norm=config.clip_norm,
        seed=config.seed,
    )


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


def test_the_margin_grows_to_its_value():
    config = TrainConfig(margin_warmup_epochs=1.25)
    # round(2.5) = 2 steps (ties to even)
    assert [margin_growth(config, t, 2) for t in range(4)] == [1 / 3, 2 / 3, 1, 1]
    assert margin_growth(SMALL, 0, 2) == 1


def test_clipping_scales_all_gradients_to_the_norm_exactly():
    one, other = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (1, 2))
    one.grad, other.grad = torch.tensor([3.0]).double(), torch.tensor([0.0, -4.0]).double()
    clip_gradients([one, other], 5.0)
    assert (one.grad.tolist(), other.grad.tolist()) == ([3], [0, -4])
    clip_gradients([one, other], 0.5)
    np.testing.assert_allclose([*one.grad, *other.grad], [0.3, 0, -0.4], rtol=1e-15)


# ---- steps


def test_a_step_is_the_recipes_step(digits):
    """With clipping, dropout and warm-ups: the gradients are autograd's, the update is written out."""
    config = dataclasses.replace(SMALL, clip_norm=0.5, dropout=0.3, margin_warmup_epochs=1)
    state = initial_state(config, digits)
    images, labels = first_batch(config, digits)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    stepped(state, config, images, labels)
    gradients = {name: p.grad for name, p in state.model.named_parameters()}
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    assert norm == pytest.approx(0.5, rel=1e-5)
    rate = 0.01 / 15  # the first of 14 warm-up steps
    for name, p in state.model.named_parameters():
        g = gradients[name] + (5e-4 * before[name] if before[name].ndim > 1 else 0)
        torch.testing.assert_close(p.detach(), before[name] - rate * 1.9 * g, rtol=1e-5, atol=1e-8)


BY_HAND = {
    "arcface:m=0.4": lambda x, w, y, r: margin_softmax_loss(x, w, y, Margin.arcface(0.4 * r), 16.0),
    "a_softmax": lambda x, w, y, r: a_softmax_loss(x, w, y, 4, 1000 / 1.12),
    "adacos": lambda x, w, y, r: adacos_loss(x, w, y, initial_adacos_scale(10))[0],
    "curricularface": lambda x, w, y, r: curricularface_loss(x, w, y, 0.0, Margin.arcface(0.5 * r), 16.0)[0],
    "magface": lambda x, w, y, r: magface_loss(x, w, y, 0.45 * r, 0.8 * r, scale=16.0),
    "adaface": lambda x, w, y, r: adaface_loss(x, w, y, 20.0, 100.0, 0.4 * r, scale=16.0)[0],
    "elasticface": lambda x, w, y, r: margin_softmax_loss(
        x, w, y, Margin(m2=r * (0.5 + 0.0125 * torch.from_numpy(elastic_normal(0, 1, 100)))), 16.0
    ),
    "elastic_cosface": lambda x, w, y, r: margin_softmax_loss(
        x, w, y, Margin(m3=r * (0.35 + 0.0125 * torch.from_numpy(elastic_normal(0, 1, 100)))), 16.0
    ),
}


@pytest.mark.parametrize("loss", list(BY_HAND))
def test_the_second_step_has_its_share_of_the_margin_and_its_own_draws(digits, loss):
    takes_warmup = LOSSES[loss.partition(":")[0]].has_margin
    config = dataclasses.replace(SMALL, loss=loss, margin_warmup_epochs=1.0 if takes_warmup else 0.0)
    state = initial_state(config, digits)
    state.step = 1
    images, labels = first_batch(config, digits)
    model = copy.deepcopy(state.model)
    embeddings = model.train().backbone(images)
    expected = BY_HAND[loss](embeddings, model.head.prototypes, labels, 2 / 15)  # W = 14
    metrics = stepped(state, config, images, labels)
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.accuracy == (model.head(embeddings).argmax(dim=1) == labels).float().mean().item()


def test_a_step_moves_what_its_loss_remembers(digits):
    config = dataclasses.replace(SMALL, loss="adaface:rate=0.2+center:rate=0.25")
    state = initial_state(config, digits)
    images, labels = first_batch(config, digits)
    x = copy.deepcopy(state.model).train().backbone(images).detach().double().numpy()
    stepped(state, config, images, labels)
    lengths = np.sqrt((x**2).sum(axis=1))
    adaface, center = (term for _, term in state.model.head.objective)
    assert adaface.mean.item() == pytest.approx(0.2 * lengths.mean() + 0.8 * 20, rel=1e-6)
    assert adaface.std.item() == pytest.approx(0.2 * lengths.std(ddof=1) + 0.8 * 100, rel=1e-6)
    for j in range(10):  # from 0, a quarter of the way to sum x / (1 + n)
        members = x[labels.numpy() == j]
        expected = 0.25 * members.sum(axis=0) / (1 + len(members))
        np.testing.assert_allclose(center.centers[j], expected, rtol=1e-4, atol=1e-6)


def test_under_pair_losses_the_accuracy_is_that_of_the_nearest_other_example(digits):
    config = dataclasses.replace(SMALL, loss="supcon", classes_per_batch=10)
    state = initial_state(config, digits)
    images, labels = first_batch(config, digits)
    x = copy.deepcopy(state.model).train().backbone(images).detach().double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    right = sum(
        labels[max((j for j in range(100) if j != i), key=lambda j, i=i: x[i] @ x[j])] == labels[i] for i in range(100)
    )
    assert 0 < right < 100
    before = state.model.head.prototypes.clone()
    assert stepped(state, config, images, labels).accuracy == pytest.approx(right.item() / 100)
    assert torch.equal(state.model.head.prototypes, before)


def test_a_diverging_step_leaves_weights_and_optimiser_alone(digits):
    state = initial_state(SMALL, digits)
    before = copy.deepcopy(dict(state.model.named_parameters()))
    images, labels = first_batch(SMALL, digits)
    with pytest.raises(Diverged, match="the loss of step 1 is nan"):
        stepped(state, SMALL, images * math.nan, labels)
    assert state.step == 0
    assert not state.optimizer.state
    for name, p in state.model.named_parameters():
        assert torch.equal(p, before[name])
