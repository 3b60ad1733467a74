"""Tests of fit.py: small trainings on digits, by the recipe and with objects of one's own."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_reference import Head, arcface, center, data, elasticface, fit, fit_config, triplet
from torch_reference.errors import UserError
from torch_reference.losses.margins import Margin
from torch_reference.losses.registry import LOSSES
from torch_reference.losses.softmax import margin_softmax_loss
from torch_reference.models.weights import to_arrays
from torch_reference.training.batches import Images
from torch_reference.training.config import TrainConfig, recipe
from torch_reference.training.fit import Machine, Reporter, embed_all, initial_state
from torch_reference.training.step import Diverged, learning_rate

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


# ---- objects of one's own


def loader(split, **options):
    images = torch.from_numpy(split.images).flatten(1).float() / 255
    return DataLoader(TensorDataset(images, torch.from_numpy(split.labels).long()), batch_size=100, **options)


@pytest.mark.parametrize("objective", [arcface(scale=16.0) + 0.01 * center(), elasticface(scale=16.0), triplet()])
def test_a_network_an_optimiser_and_a_loader_of_ones_own(objective, digits):
    torch.manual_seed(0)
    network, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)), Head(objective, 16, 10)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.005)
    collector = Collector()
    state = fit(
        network,
        head,
        optimizer,
        loader(digits.train, shuffle=True, drop_last=True),
        epochs=4,
        test=loader(digits.test),
        class_examples=loader(digits.train),
        reporter=collector,
    )
    assert state.step == 4 * STEPS
    assert state.model.backbone is network
    last = collector.records[-1]
    assert last.test_accuracy > 0.9
    assert last.learning_rate == 0.005
    with torch.no_grad():
        scores = torch.cat([head(network(images)) for images, _ in loader(digits.test)])
    assert last.test_accuracy == pytest.approx((scores.argmax(dim=1).numpy() == digits.test.labels).mean())


def test_without_a_test_split():
    collector = Collector()
    network, head = nn.Linear(4, 2), Head(arcface(), 2, 3)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1)
    fit(network, head, optimizer, [(torch.eye(4)[:3], torch.arange(3))], epochs=2, reporter=collector)
    assert (collector.records[1].test_loss, collector.records[1].test_accuracy) == (None, None)
    assert collector.records[1].step == 2


# ---- by the recipe


def test_the_test_loss_has_the_whole_margin_and_no_smoothing(digits):
    config = dataclasses.replace(SMALL, epochs=1, margin_warmup_epochs=9.0, label_smoothing=0.1)
    collector = Collector()
    state = fit_config(config, digits, reporter=collector)
    test = Images.of(digits.test, *data.channel_statistics(digits.train.images))
    embeddings, labels = embed_all(state.model.backbone, test)
    prototypes = state.model.head.prototypes.detach()
    expected = margin_softmax_loss(embeddings, prototypes, labels, Margin.arcface(), 16.0).item()
    assert collector.records[0].test_loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [STEPS, 5], ids=["a whole epoch", "stopped within one"])
def test_pair_losses_leave_the_class_means_as_prototypes(digits, steps):
    config = dataclasses.replace(SMALL, loss="triplet", classes_per_batch=5, epochs=1)
    collector = Collector()
    state = fit_config(config, digits, reporter=collector, stop=lambda: len(collector.losses) == steps)
    train = Images.of(digits.train, *data.channel_statistics(digits.train.images))
    x = embed_all(state.model.backbone, train)[0].double().numpy()
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


LEARNT = learning_rows()
FAST = ("arcface", "adaface", "softmax+center", "triplet:mining=hard")


@pytest.mark.parametrize(
    "loss", [loss if loss in FAST else pytest.param(loss, marks=pytest.mark.slow) for loss in LEARNT]
)
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
    fit_config(config, digits, reporter=collector)
    assert collector.records[-1].test_accuracy >= 0.97


@pytest.mark.slow
def test_one_epoch_of_mnist_by_default(published):
    collector = Collector()
    fit_config(recipe("mnist", epochs=1), data.load("mnist", published), reporter=collector)
    assert collector.records[-1].test_accuracy >= 0.99


def test_digits_are_learnt(digits):
    collector = Collector()
    config = dataclasses.replace(SMALL, epochs=4, width=0.5, embedding_dim=64, learning_rate=0.05, batch_size=64)
    fit_config(config, digits, reporter=collector)
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
    expected = fit_config(config, digits, reporter=whole).to_arrays()
    first, second = Collector(), Collector()
    stopped = fit_config(config, digits, reporter=first, stop=lambda: len(first.losses) == STEPS + 3)
    assert stopped.step == STEPS + 3
    state = initial_state(config, digits)
    state.load_arrays(stopped.to_arrays())
    found = fit_config(config, digits, state=state, reporter=second).to_arrays()
    assert first.losses + second.losses == whole.losses
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    untimed = [[r[:7] for r in c.records] for c in (whole, first, second)]
    assert untimed[1] + untimed[2] == untimed[0]


def test_how_it_is_computed_changes_rounding_only(digits):
    config = dataclasses.replace(SMALL, epochs=1, backbone="resnet20", learning_rate=1e-3)
    plain, other = Collector(), Collector()
    fit_config(config, digits, reporter=plain, stop=lambda: len(plain.losses) == 3)
    machine = Machine(channels_last=True)
    state = initial_state(config, digits, machine)
    assert state.model.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    fit_config(config, digits, state=state, reporter=other, stop=lambda: len(other.losses) == 3, machine=machine)
    np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["lenet", "resnet20"])
def test_bfloat16_trains_with_float32_parameters(digits, backbone):
    config = dataclasses.replace(SMALL, backbone=backbone, precision="bfloat16", epochs=1)
    wide, narrow = Collector(), Collector()
    state = fit_config(config, digits, reporter=narrow, stop=lambda: len(narrow.losses) == 3)
    fit_config(
        dataclasses.replace(config, precision="float32"), digits, reporter=wide, stop=lambda: len(wide.losses) == 3
    )
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(narrow.losses, wide.losses, rtol=0.05)
    assert narrow.losses != wide.losses
    test = Images.of(digits.test, *data.channel_statistics(digits.train.images))
    assert embed_all(state.model.backbone, test, config.precision)[0].dtype == torch.float32


def test_airnet_whitens_the_training_images():
    images = data.load("digits", image_size=9)
    config = dataclasses.replace(SMALL, backbone="airnet", image_size=9)
    model = initial_state(config, images).model
    train = Images.of(images.train, *data.channel_statistics(images.train.images))
    normalised = torch.cat([images for images, _ in train])
    responses = model.backbone.whiten(normalised)[:, :4].detach().double()
    rows = responses.permute(1, 0, 2, 3).reshape(4, -1)
    np.testing.assert_allclose(rows @ rows.T / rows.shape[1], np.eye(4), atol=0.02)
    before = model.backbone.whiten.weight.clone()
    assert torch.equal(fit_config(config, images, stop=lambda: False).model.backbone.whiten.weight, before)


@pytest.mark.parametrize(
    ("changes", "classes", "message"),
    [
        ({"batch_size": 2000}, 10, "batch size is 2000, but there are only 1438 training images"),
        ({"classes_per_batch": 20}, 10, "classes per batch are 20, but there are only 10 classes"),
        ({"loss": "adacos"}, 2, "there are 2 classes; AdaCos needs at least 3"),
        ({"backbone": "airnet"}, 10, "at least 9x9 pixels"),
    ],
)
def test_too_little_data_is_refused(digits, changes, classes, message):
    dataset = dataclasses.replace(digits, class_names=digits.class_names[:classes])
    with pytest.raises(UserError, match=message):
        fit_config(dataclasses.replace(SMALL, **changes), dataset)


def test_a_diverging_training_ends(digits):
    with pytest.raises(Diverged, match=r"the loss of step \d+ is nan"):
        fit_config(dataclasses.replace(SMALL, learning_rate=1e30), digits)
