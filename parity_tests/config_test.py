"""A configuration means the same to both: its fields, each data set's defaults, what is refused, and its file."""

import dataclasses

import pytest

from jax_arcface.training import config as jax_config
from parity_tests.cases.objective import words
from torch_reference.training import config as torch_config

BOTH = (jax_config, torch_config)


def test_the_same_fields_types_and_defaults():
    here, there = ([(f.name, f.type, f.default) for f in dataclasses.fields(c.TrainConfig)] for c in BOTH)
    assert here == there


def test_the_same_recipes():
    assert set(jax_config.RECIPES) == set(torch_config.RECIPES)


@pytest.mark.parametrize("dataset", [*jax_config.RECIPES, "some/folder"])
def test_the_same_recipe(dataset):
    for loss in words():
        here, there = (dataclasses.asdict(c.recipe(dataset, loss)) for c in BOTH)
        assert here == there, loss


@pytest.mark.parametrize("dimension", [2, 3, 4])
@pytest.mark.parametrize("epochs", [None, 5])
@pytest.mark.parametrize("dataset", [*jax_config.RECIPES, "some/folder"])
def test_the_same_recipe_in_few_dimensions(dataset, epochs, dimension):
    for loss in ("arcface", "softmax", "triplet"):
        here, there = (dataclasses.asdict(c.recipe(dataset, loss, epochs, dimension)) for c in BOTH)
        assert here == there, loss
        assert here == dataclasses.asdict(
            torch_config.from_dict(
                {"dataset": dataset, "loss": loss}
                | {"embedding_dim": dimension}
                | ({} if epochs is None else {"epochs": epochs})
            )
        )


# One mistake for each field, and the combinations that have no effect.
MISTAKES = [
    {"backbone": "resnet2"},
    {"loss": "arc"},
    {"optimizer": "adam"},
    {"schedule": "step"},
    {"precision": "float16"},
    {"beyond_pi": "easy"},
    {"gradient": "straight"},
    {"image_size": 0},
    {"image_size": 2.5},
    {"image_size": 10**18},
    {"image_fit": "squeeze"},
    {"holdout_classes": 7},
    {"width": float("inf")},
    {"width": 1e308},
    {"embedding_dim": 0},
    {"embedding_dim": 10**30},
    {"dropout": 1.0},
    {"margin": -0.1},
    {"margin": 3.2},
    {"margin_warmup_epochs": -1.0},
    {"scale": float("nan")},
    {"subcenters": 0},
    {"subcenters": 10**18},
    {"classes_per_batch": 1},
    {"classes_per_batch": 5},
    {"label_smoothing": 1.0},
    {"epochs": -1},
    {"epochs": "3"},
    {"batch_size": 1},
    {"batch_size": True},
    {"learning_rate": 0.0},
    {"momentum": 1.0},
    {"weight_decay": -1e-4},
    {"warmup_epochs": -1.0},
    {"clip_norm": -1.0},
    {"rotate": 4.0},
    {"zoom": -0.1},
    {"shift": -1},
    {"cutout": -1},
    {"seed": 0.5},
    {"flip": 1},
    {"loss": "sphereface", "margin": 0.5},
    {"loss": "sphereface", "margin": 9.0},
    {"loss": "sphereface", "beyond_pi": "linear"},
    {"loss": "cosface", "margin": 2.5},
    {"loss": "cosface", "beyond_pi": "wrap"},
    {"loss": "norm_softmax", "margin": 0.1},
    {"loss": "norm_softmax", "beyond_pi": "wrap"},
    {"loss": "norm_softmax", "gradient": "straight_through"},
    {"loss": "norm_softmax", "margin_warmup_epochs": 1.0},
    {"loss": "softmax", "scale": 8.0},
    {"loss": "subcenter", "subcenters": 1},
    {"loss": "arcface+inter", "subcenters": 2},
    {"loss": "arcface+"},
    {"loss": "arcface+cosface"},
    {"loss": "triplet:mining=some"},
    {"loss": "triplet", "batch_size": 100},
    {"loss": "supcon", "batch_size": 8},
    {"loss": "contrastive", "batch_size": 4, "classes_per_batch": 4},
    {"batchsize": 3},
]


@pytest.mark.parametrize("fields", MISTAKES, ids=str)
def test_the_same_mistake_is_refused_by_both(fields):
    for module in BOTH:
        with pytest.raises(ValueError, match=r"\w"):
            module.from_dict(fields)


def test_every_field_has_a_mistake():
    free = {"dataset", "data_dir"}
    assert {f.name for f in dataclasses.fields(jax_config.TrainConfig)} - free <= {n for m in MISTAKES for n in m}


def test_another_loss_than_the_files_brings_its_own_defaults():
    for c in BOTH:
        file = {"loss": "arcface", "margin": 0.3, "margin_warmup_epochs": 3.0, "scale": 32.0, "seed": 5}
        assert c.from_dict(file, loss="triplet") == dataclasses.replace(c.recipe("digits", "triplet"), seed=5)
        run = dataclasses.asdict(dataclasses.replace(c.recipe("mnist", "triplet"), width=0.25))
        assert c.from_dict(run, loss="arcface") == dataclasses.replace(c.recipe("mnist", "arcface"), width=0.25)
        # the file's own loss is no other
        assert c.from_dict(file, loss="arcface") == c.from_dict(file)


@pytest.mark.parametrize("text", ["[]", "{", '{"epochs": 1.5}', '{"epohcs": 1}'])
def test_the_same_broken_file_is_refused_by_both(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    for module in BOTH:
        with pytest.raises(ValueError, match=r"\w"):
            module.read(path)
