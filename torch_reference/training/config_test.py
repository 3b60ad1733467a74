"""Tests of config.py: recipes, warm-ups that fit the training, and what a loss makes of the fields."""

import dataclasses

import pytest

from torch_reference.errors import UserError
from torch_reference.training.config import TrainConfig, from_dict, recipe


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("norm_softmax", {"margin_warmup_epochs": 0.0}),
        ("softmax+center", {"margin_warmup_epochs": 0.0}),
        ("a_softmax", {"margin_warmup_epochs": 0.0}),
        ("magface", {"margin_warmup_epochs": 3}),
        ("subcenter", {"margin_warmup_epochs": 3, "subcenters": 3}),
        ("arcface:subcenters=2", {"subcenters": 2}),
        ("triplet+supcon", {"margin_warmup_epochs": 0.0, "classes_per_batch": 8, "clip_norm": 1.0}),
        ("arcface+triplet", {"margin_warmup_epochs": 3, "classes_per_batch": 0}),
    ],
)
def test_a_loss_has_its_own_defaults(loss, changes):
    assert recipe("digits", loss) == dataclasses.replace(recipe("digits"), loss=loss, **changes)


@pytest.mark.parametrize(
    ("dataset", "epochs", "warmups"),
    [
        ("mnist", None, (1.0, 2)),
        ("mnist", 1, (0.25, 0.25)),
        ("mnist", 6, (1.0, 1.5)),
        ("cifar10", 40, (1.0, 5)),
        ("digits", 0, (0.0, 0.0)),
        ("some/folder", 2, (0.5, 0.5)),
    ],
)
def test_warmups_take_a_quarter_of_the_training_at_most(dataset, epochs, warmups):
    config = recipe(dataset, epochs=epochs)
    assert (config.warmup_epochs, config.margin_warmup_epochs) == warmups
    if epochs is not None:
        assert from_dict({"dataset": dataset, "epochs": epochs}) == config
    assert from_dict({"epochs": 1, "warmup_epochs": 3.0}).warmup_epochs == 3  # as it is given


def test_the_fields_of_a_loss_are_its_options():
    def options(**fields):
        return TrainConfig(**fields).objective.classifier.options

    assert options()["scale"] == 16
    assert options(scale=30.0)["scale"] == 30
    assert options(loss="arcface:scale=30")["scale"] == 30
    assert options(loss="cosface", margin=0.2)["m"] == 0.2
    assert options(label_smoothing=0.1, beyond_pi="wrap", gradient="straight_through", subcenters=2).items() >= {
        ("label_smoothing", 0.1),
        ("beyond_pi", "wrap"),
        ("gradient", "straight_through"),
        ("subcenters", 2),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "softmax", "scale": 8.0},
        {"loss": "softmax", "subcenters": 2},
        {"loss": "triplet", "scale": 8.0},
        {"loss": "supcon", "label_smoothing": 0.1},
        {"loss": "cosface", "beyond_pi": "wrap"},
        {"loss": "cosface", "gradient": "straight_through"},
        {"loss": "sphereface", "beyond_pi": "linear"},
        {"loss": "norm_softmax", "margin": 0.1},
        {"loss": "arcface:m=0.1", "margin": 0.2},
        {"loss": "adacos", "margin_warmup_epochs": 1.0},
        {"loss": "subcenter"},
        {"loss": "arcface+inter", "subcenters": 2},
        {"loss": "triplet", "batch_size": 8, "classes_per_batch": 8},
        {"classes_per_batch": 1},
        {"classes_per_batch": 7},
        {"margin": 7.0},
        {"batch_size": 1},
        {"learning_rate": float("nan")},
        {"optimizer": "adam"},
    ],
    ids=str,
)
def test_fields_that_make_no_sense(fields):
    with pytest.raises(UserError) as caught:
        TrainConfig(**fields)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
