"""Tests of training.py: schedules and optimisers in closed form, and small trainings on digits."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from torch_reference import Margin, data
from torch_reference.data.sampling import class_batches, elastic_normal
from torch_reference.errors import UserError
from torch_reference.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from torch_reference.losses.registry import LOSSES
from torch_reference.losses.softmax import a_softmax_loss, margin_softmax_loss
from torch_reference.models.weights import to_arrays
from torch_reference.training.config import TrainConfig, recipe
from torch_reference.training.fit import (
    Diverged,
    Machine,
    Reporter,
    clip_gradients,
    device_data,
    embed_all,
    epoch_batches,
    first_of_each_class,
    fit,
    initial_model,
    initial_state,
    learning_rate,
    make_optimizer,
    train_step,
    warmed_up_margin,
)

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


def test_neither_bias_nor_centres_decay(digits):
    config = dataclasses.replace(SMALL, loss="softmax+center_learnt")
    model = initial_model(config, digits)
    decayed, free = (group["params"] for group in make_optimizer(config, model).param_groups)
    for name, parameter in model.head.named_parameters():
        assert any(parameter is p for p in decayed) == (name == "prototypes")
        assert any(parameter is p for p in free) == (name != "prototypes")


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
    takes_warmup = "margin_warmup_epochs" in LOSSES[loss.partition(":")[0]].takes
    config = dataclasses.replace(SMALL, loss=loss, margin_warmup_epochs=1.0 if takes_warmup else 0.0)
    state = initial_state(config, digits)
    state.step = 1
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    images, labels = next(epoch_batches(config, train, 0))
    model = copy.deepcopy(state.model)
    embeddings = model.train().backbone(images)
    expected = BY_HAND[loss](embeddings, model.head.prototypes, labels, 2 / 15)  # W = 14
    metrics = train_step(state, images, labels, config, STEPS)
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.accuracy == (model.head(embeddings).argmax(dim=1) == labels).float().mean().item()


def test_a_step_moves_what_its_loss_remembers(digits):
    config = dataclasses.replace(SMALL, loss="adaface:rate=0.2+center:rate=0.25")
    state = initial_state(config, digits)
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    images, labels = next(epoch_batches(config, train, 0))
    x = copy.deepcopy(state.model).train().backbone(images).detach().double().numpy()
    train_step(state, images, labels, config, STEPS)
    lengths = np.sqrt((x**2).sum(axis=1))
    assert state.losses["adaface"]["mean"].item() == pytest.approx(0.2 * lengths.mean() + 0.8 * 20, rel=1e-6)
    assert state.losses["adaface"]["std"].item() == pytest.approx(0.2 * lengths.std(ddof=1) + 0.8 * 100, rel=1e-6)
    for j in range(10):  # from 0, a quarter of the way to sum x / (1 + n)
        members = x[labels.numpy() == j]
        expected = 0.25 * members.sum(axis=0) / (1 + len(members))
        np.testing.assert_allclose(state.losses["center"]["centers"][j], expected, rtol=1e-4, atol=1e-6)


def test_under_pair_losses_the_accuracy_is_that_of_the_nearest_other_example(digits):
    config = dataclasses.replace(SMALL, loss="supcon", classes_per_batch=10)
    state = initial_state(config, digits)
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    images, labels = next(epoch_batches(config, train, 0))
    x = copy.deepcopy(state.model).train().backbone(images).detach().double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    right = sum(
        labels[max((j for j in range(100) if j != i), key=lambda j, i=i: x[i] @ x[j])] == labels[i] for i in range(100)
    )
    assert 0 < right < 100
    before = state.model.head.prototypes.clone()
    assert train_step(state, images, labels, config, STEPS).accuracy == pytest.approx(right.item() / 100)
    assert torch.equal(state.model.head.prototypes, before)


def test_batches_hold_as_many_classes_as_asked_for(digits):
    config = dataclasses.replace(SMALL, classes_per_batch=5)
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    drawn = class_batches(0, 1, digits.train.labels, 100, 5)
    found = list(epoch_batches(config, train, 1, start=3))
    assert len(found) == STEPS - 3
    for (_, labels), chosen in zip(found, drawn[3:], strict=True):
        assert labels.tolist() == digits.train.labels[chosen].tolist()
        assert labels.unique(return_counts=True)[1].tolist() == [20] * 5


def test_the_first_images_of_each_class(digits):
    labels = digits.train.labels.tolist()
    found = first_of_each_class(digits.train, 10, images=95)
    for j in range(10):
        expected = [i for i, label in enumerate(labels) if label == j][:10]  # 95 / 10, rounded up
        np.testing.assert_array_equal(found.images[found.labels == j], digits.train.images[expected])
    assert len(first_of_each_class(digits.train, 10).labels) == len(labels)


@pytest.mark.parametrize("steps", [STEPS, 5], ids=["a whole epoch", "stopped within one"])
def test_pair_losses_leave_the_class_means_as_prototypes(digits, steps):
    config = dataclasses.replace(SMALL, loss="triplet", classes_per_batch=5, epochs=1)
    collector = Collector()
    state = fit(config, digits, reporter=collector, stop=lambda: len(collector.losses) == steps)
    train = device_data(digits.train, *data.channel_statistics(digits.train.images))
    x = embed_all(state.model, config, train).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = [x[digits.train.labels == j].mean(axis=0) for j in range(10)]
    np.testing.assert_allclose(to_arrays(state.model)["head.prototypes"], expected, rtol=1e-4, atol=1e-6)


def learning_rows():
    """Each loss alone or beside one it regularises, the rest of ArcFace's Table 2, and options that are other ways."""
    beside = {"intra": "norm_softmax", "inter": "norm_softmax", "mhe": "norm_softmax"}
    rows = [
        f"{beside.get(name, 'softmax')}+{name}" if loss.kind == "regulariser" else name for name, loss in LOSSES.items()
    ]
    rows += ["arcface:m=0.4", "arcface:m=0.45", "arcface:m=0.55", "norm_softmax+intra+inter", "arcface+intra"]
    rows += ["cm1", "cm2", "a_softmax+mhe", "arcface+inter", "arcface+intra+inter", "arcface+triplet"]
    rows += ["arcface:filter=0.5", "cosface:filter=0.5", "contrastive:distance=angular"]
    rows += ["triplet:mining=hard", "triplet:mining=semi_hard", "triplet:distance=l2,m=0.2"]
    # with base = 1 embeddings spread slowly; 0.5 is the base of the authors' code
    rows = ["multi_similarity:base=0.5" if row == "multi_similarity" else row for row in rows]
    # with its own decay lambda leaves hardly a margin in so few steps
    return [row.replace("a_softmax", "a_softmax:decay=3") if row.startswith("a_softmax") else row for row in rows]


@pytest.mark.parametrize("loss", learning_rows())
def test_every_loss_learns_digits(digits, loss):
    """The recipe's network, without augmentation; pair losses have their limit for the gradient from the recipe."""
    defaults = recipe("digits", loss)
    config = dataclasses.replace(
        defaults,
        epochs=12 if loss.startswith("contrastive") else 5,
        learning_rate=0.2,
        clip_norm=1.0 if defaults.objective.classifier else defaults.clip_norm,
        margin_warmup_epochs=min(2.0, defaults.margin_warmup_epochs),
        rotate=0.0,
        zoom=0.0,
        shift=0,
    )
    collector = Collector()
    fit(config, digits, reporter=collector)
    assert collector.records[-1].test_accuracy >= 0.97


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


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "nesterov"},
        {"optimizer": "adamw"},
        {"loss": "softmax+center+center_learnt"},
        {"loss": "adacos"},
        {"loss": "curricularface", "margin_warmup_epochs": 1.0},
        {"loss": "adaface"},
        {"loss": "elasticface"},
        {"loss": "triplet", "classes_per_batch": 5},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_resumed_training_ends_with_the_same_bits(digits, changes):
    config = dataclasses.replace(SMALL, dropout=0.2, shift=1, flip=True, cutout=2, **changes)
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


def test_what_a_loss_remembers_is_in_the_checkpoint(digits):
    arrays = initial_state(dataclasses.replace(SMALL, loss="adaface+center"), digits).to_arrays()
    found = {name: array.shape for name, array in arrays.items() if name.startswith("losses.")}
    assert found == {"losses.adaface.mean": (), "losses.adaface.std": (), "losses.center.centers": (10, 8)}
    state = initial_state(dataclasses.replace(SMALL, loss="adaface+center"), digits)
    with pytest.raises(ValueError, match="centers of center has shape"):
        state.load_arrays(arrays | {"losses.center.centers": np.zeros((2, 8), np.float32)})
    with pytest.raises(ValueError, match=r"it has no losses\.adaface\.std"):
        state.load_arrays({name: array for name, array in arrays.items() if name != "losses.adaface.std"})


def test_a_checkpoint_of_another_model_is_refused(digits):
    arrays = initial_state(SMALL, digits).to_arrays()
    state = initial_state(dataclasses.replace(SMALL, width=0.3), digits)
    with pytest.raises(ValueError, match="shape"):
        state.load_arrays(arrays)


MEMORIES = {"sgd": {"optimizer": "sgd"}, "none": {"optimizer": "sgd", "momentum": 0.0}, "adamw": {"optimizer": "adamw"}}


@pytest.mark.parametrize("trained", MEMORIES)
@pytest.mark.parametrize("resumed", MEMORIES)
def test_a_checkpoint_of_another_optimizer_is_refused(trained, resumed, digits):
    configs = [dataclasses.replace(SMALL, **MEMORIES[name]) for name in (trained, resumed)]
    steps = Collector()
    arrays = fit(configs[0], digits, reporter=steps, stop=lambda: len(steps.losses) == 1).to_arrays()
    state = initial_state(configs[1], digits)
    if trained == resumed:
        state.load_arrays(arrays)
        assert state.step == 1
    else:
        with pytest.raises(ValueError, match="that of another optimiser"):
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


@pytest.mark.parametrize(
    ("changes", "classes", "message"),
    [
        ({"batch_size": 2000}, 10, "--batch-size is 2000, but there are only 1438 training images"),
        ({"classes_per_batch": 20}, 10, "--classes-per-batch is 20, but there are only 10 classes"),
        ({"loss": "adacos"}, 2, "--loss adacos needs at least 3 classes, but there are only 2"),
    ],
)
def test_too_little_data_is_refused(digits, changes, classes, message):
    dataset = dataclasses.replace(digits, class_names=digits.class_names[:classes])
    with pytest.raises(UserError, match=message):
        fit(dataclasses.replace(SMALL, **changes), dataset)
