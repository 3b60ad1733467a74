"""The configuration: what is valid, what a file may say, and what each data set starts from."""

import dataclasses
import json
import math
import re

import pytest

from jax_arcface.errors import UserError
from jax_arcface.losses.registry import LOSSES
from jax_arcface.training import config as configs
from jax_arcface.training.config import TrainConfig

LOSSES_ALONE = [name for name, loss in LOSSES.items() if loss.kind != "regulariser"]
OTHER = {
    "dataset": "mnist",
    "backbone": "resnet20",
    "margin": 0.3,
    "image_size": 32,
    "flip": True,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(**OTHER), *configs.RECIPES.values()])
def test_json_and_back_is_the_same(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert configs.read(path) == config
    assert configs.read(tmp_path) == config  # a run directory stands for its config.json


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize(
    "loss", [*LOSSES_ALONE, "arcface+intra+inter", "softmax+center:0.01", "cm1", "sphereface_plus"]
)
def test_every_data_set_has_valid_defaults_for_every_loss(dataset, loss):
    config = configs.recipe(dataset, loss)
    assert (config.dataset, config.loss) == (dataset, loss)


def test_folder_has_the_general_defaults():
    assert configs.recipe("my/pets") == TrainConfig(dataset="my/pets")


def test_file_starts_from_the_defaults_of_its_data_set(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"dataset": "cifar10", "seed": 5}')
    assert configs.read(path) == dataclasses.replace(configs.recipe("cifar10"), seed=5)
    path.write_text('{"seed": 5}')
    assert configs.read(path, "mnist") == dataclasses.replace(configs.recipe("mnist"), seed=5)
    assert configs.read(path) == dataclasses.replace(configs.recipe("digits"), seed=5)


def test_defaults_that_follow_from_the_loss():
    assert configs.from_dict({"loss": "arcface+intra"}) == dataclasses.replace(
        configs.recipe("digits"), loss="arcface+intra"
    )
    assert configs.from_dict({"loss": "norm_softmax"}).margin_warmup_epochs == 0
    assert configs.from_dict({"loss": "magface"}).margin_warmup_epochs == 3
    assert configs.recipe("mnist", "subcenter").subcenters == 3
    assert configs.recipe("mnist", "triplet").classes_per_batch == 8
    assert configs.recipe("mnist", "triplet").clip_norm == 1
    assert configs.recipe("mnist", "arcface+triplet").classes_per_batch == 0


# For each flag, losses on which it has an effect, and on which it has none.
@pytest.mark.parametrize(
    ("field", "value", "works", "fails"),
    [
        (
            "scale",
            16.0,
            ["arcface", "magface+intra", "norm_softmax"],
            ["softmax", "a_softmax+mhe", "adacos", "triplet"],
        ),
        (
            "margin_warmup_epochs",
            1.0,
            ["arcface", "adaface", "elastic_cosface"],
            ["norm_softmax", "a_softmax", "triplet"],
        ),
        ("beyond_pi", "wrap", ["arcface", "cm2", "curricularface"], ["cosface", "adaface", "softmax", "supcon"]),
        ("gradient", "straight_through", ["subcenter", "combined"], ["cosface", "magface", "circle"]),
        ("label_smoothing", 0.1, ["softmax", "adacos", "arcface+triplet"], ["triplet", "contrastive+supcon"]),
        ("subcenters", 2, ["arcface", "adacos", "arcface+intra"], ["softmax", "modified_softmax", "triplet"]),
    ],
)
def test_a_flag_without_effect_is_an_error(field, value, works, fails):
    for loss in works:
        subcenters = {"subcenters": 2} if loss == "subcenter" else {}
        TrainConfig(loss=loss, **(subcenters | {field: value}))
    for loss in fails:
        with pytest.raises(
            UserError, match=rf"^--{field.replace('_', '-')} has no effect on --loss {re.escape(loss)}$"
        ):
            TrainConfig(loss=loss, **{field: value})


@pytest.mark.parametrize(
    ("loss", "sizes", "said"),
    [
        (
            "supcon",
            (8, 8),
            "--classes-per-batch is 8; it must be below --batch-size, 8 (8 is the default of pair losses",
        ),
        ("contrastive+triplet", (16, 16), "--classes-per-batch is 16; it must be below --batch-size, 16"),
        ("triplet", (100, 8), "divide --batch-size, 100 (8 is the default of pair losses alone: give"),
    ],
)
def test_pair_losses_need_two_images_of_a_class(loss, sizes, said):
    batch_size, classes = sizes
    with pytest.raises(UserError, match=re.escape(said)):
        TrainConfig(loss=loss, batch_size=batch_size, classes_per_batch=classes)
    TrainConfig(loss=f"arcface+{loss}", batch_size=16, classes_per_batch=16)


def test_subcenters_and_losses():
    with pytest.raises(UserError, match="subcenter needs --subcenters of at least 2"):
        TrainConfig(loss="subcenter")
    with pytest.raises(UserError, match=r"--subcenters 2: inter in --loss arcface.inter is defined for 1 only"):
        TrainConfig(loss="arcface+inter", subcenters=2)
    with pytest.raises(UserError, match="--beyond-pi linear is not defined for --loss cm2"):
        TrainConfig(loss="cm2", beyond_pi="linear")
    assert TrainConfig(loss="cm1", beyond_pi="linear").margin_value.beyond_pi == "linear"


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 1), ("margin", None), ("image_size", 8)])
def test_types_that_a_file_may_use(field, value):
    assert getattr(configs.from_dict({field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 2.0), ("flip", "yes"), ("width", "1"), ("seed", None), ("scale", [16])]
)
def test_types_that_a_file_may_not_use(field, value):
    with pytest.raises(UserError, match=rf"^mine has {field} = .*; it must be of type "):
        configs.from_dict({field: value}, "mine")


@pytest.mark.parametrize(
    ("loss", "margin", "formula"),
    [
        ("arcface", None, (1, 0.5, 0)),
        ("arcface", 0.3, (1, 0.3, 0)),
        ("arcface", 0.0, (1, 0, 0)),
        ("cosface", None, (1, 0, 0.35)),
        ("cosface", 0.2, (1, 0, 0.2)),
        ("sphereface", None, (1.35, 0, 0)),
        ("sphereface", 4.0, (4, 0, 0)),
        ("norm_softmax", None, (1, 0, 0)),
    ],
)
def test_margin_value(loss, margin, formula):
    value = TrainConfig(loss=loss, margin=margin).margin_value
    assert (value.m1, value.m2, value.m3) == formula


# The largest and smallest values that are allowed, and what lies just outside.
@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("image_size", [None, 1, 4096], [0, -8, 10**18]),
        ("width", [1e-3, 64.0], [0.0, -1.0, 1e308, math.inf, math.nan]),
        ("embedding_dim", [2, 65536], [1, 10**30]),
        ("dropout", [0.0, 0.999], [-0.001, 1.0, math.nan]),
        ("margin", [0.0, 3.141], [-0.001, math.pi, math.inf, math.nan]),
        ("margin_warmup_epochs", [0.0, 0.5], [-0.001, math.nan]),
        ("scale", [1e-3, 1e3], [0.0, -1.0, math.inf, math.nan]),
        ("subcenters", [1, 1000], [0, 10**18]),
        ("label_smoothing", [0.0, 0.999], [-0.001, 1.0, math.nan]),
        ("epochs", [0], [-1, 10**18]),
        ("batch_size", [2], [1, 0]),
        ("classes_per_batch", [0, 2, 64], [-2, 1, 3, 128]),
        ("learning_rate", [1e-9], [0.0, -1.0, math.inf, math.nan]),
        ("momentum", [0.0, 0.999], [-0.001, 1.0, math.nan]),
        ("weight_decay", [0.0], [-0.001, math.inf, math.nan]),
        ("warmup_epochs", [0.0, 0.5], [-0.001, math.nan]),
        ("clip_norm", [0.0], [-0.001, math.inf, math.nan]),
        ("rotate", [0.0, 3.14], [-0.001, 3.15, math.nan]),
        ("zoom", [0.0], [-0.001, math.inf, math.nan]),
        ("shift", [0], [-1, 10**18]),
        ("cutout", [0], [-1, 10**18]),
        ("seed", [0], [-1]),
    ],
)
def test_ranges(field, inside, outside):
    for value in inside:
        assert getattr(TrainConfig(**{field: value}), field) == value
    for value in outside:
        with pytest.raises(UserError, match=rf"^--{field.replace('_', '-')} is .*must be "):
            TrainConfig(**{field: value})


def test_every_number_has_a_range():
    """A new field is missing from `test_ranges` until it is added there."""
    covered = {arguments[0] for arguments in test_ranges.pytestmark[0].args[1]}
    numbers = {f.name for f in dataclasses.fields(TrainConfig) if any(kind in str(f.type) for kind in ("int", "float"))}
    assert covered == numbers
