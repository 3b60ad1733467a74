"""The configuration: what is valid, what a file may say, and what each data set starts from."""

import dataclasses
import json
import math

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


def test_a_folder_has_a_network_for_photos():
    pets = configs.recipe("my/pets")
    assert (pets.dataset, pets.backbone, pets.image_size, pets.image_fit) == ("my/pets", "airnet", 32, "crop")
    assert dataclasses.replace(pets, dataset="more/pets") == configs.recipe("more/pets")


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
        with pytest.raises(UserError):
            TrainConfig(loss=loss, **{field: value})


@pytest.mark.parametrize(
    ("loss", "sizes"), [("supcon", (8, 8)), ("contrastive+triplet", (16, 16)), ("triplet", (100, 8))]
)
def test_pair_losses_need_two_images_of_a_class(loss, sizes):
    batch_size, classes = sizes
    with pytest.raises(UserError):
        TrainConfig(loss=loss, batch_size=batch_size, classes_per_batch=classes)
    TrainConfig(loss=f"arcface+{loss}", batch_size=16, classes_per_batch=16)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "subcenter"},
        {"loss": "arcface+inter", "subcenters": 2},
        {"loss": "cm2", "beyond_pi": "linear"},
        {"loss": "arcface:m=0.3", "margin": 0.4},
    ],
)
def test_fields_and_losses_that_do_not_fit(fields):
    with pytest.raises(UserError):
        TrainConfig(**fields)


def test_the_fields_are_the_options_of_the_classification_loss():
    config = TrainConfig(loss="cm1+intra", beyond_pi="linear", scale=8.0, subcenters=2, label_smoothing=0.1)
    options = dict(config.objective.terms[0].options)
    expected = {"beyond_pi": "linear", "scale": 8.0, "subcenters": 2, "label_smoothing": 0.1, "gradient": "exact"}
    assert {name: options[name] for name in expected} == expected
    assert dict(TrainConfig(loss="arcface", margin=0.3).objective.terms[0].options)["m"] == 0.3
    assert dict(TrainConfig(loss="arcface").objective.terms[0].options)["scale"] == 16.0
    assert dict(TrainConfig(loss="arcface:scale=32").objective.terms[0].options)["scale"] == 32.0


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_warm_ups_take_at_most_a_quarter_of_the_epochs(dataset):
    assert configs.from_dict({"dataset": dataset, "epochs": 1}).warmup_epochs == 0.25
    assert configs.recipe(dataset, epochs=1).margin_warmup_epochs == 0.25
    whole = configs.RECIPES[dataset]
    assert configs.recipe(dataset) == configs.recipe(dataset, epochs=whole.epochs) == whole
    assert configs.from_dict({"epochs": 2, "warmup_epochs": 1.5}).warmup_epochs == 1.5  # as it is asked for


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 1), ("margin", None), ("image_size", 8)])
def test_types_that_a_file_may_use(field, value):
    assert getattr(configs.from_dict({field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 2.0), ("flip", "yes"), ("width", "1"), ("seed", None), ("scale", [16])]
)
def test_types_that_a_file_may_not_use(field, value):
    with pytest.raises(UserError, match=rf"^mine has {field} = .*; it must be of type "):
        configs.from_dict({field: value}, "mine")


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
        with pytest.raises(UserError, match="must be "):
            TrainConfig(**{field: value})


def test_every_number_has_a_range():
    """A new field is missing from `test_ranges` until it is added there."""
    covered = {arguments[0] for arguments in test_ranges.pytestmark[0].args[1]}
    numbers = {f.name for f in dataclasses.fields(TrainConfig) if any(kind in str(f.type) for kind in ("int", "float"))}
    assert covered == numbers
