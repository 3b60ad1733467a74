"""What a training run is: one flat, validated configuration, and the defaults for each data set."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from pathlib import Path
from typing import Any

from torch_reference.data.images import FITS
from torch_reference.data.sampling import Augmentation
from torch_reference.errors import UserError, nearest
from torch_reference.files import read_json
from torch_reference.losses.margins import BEYOND_PI, GRADIENTS
from torch_reference.losses.registry import SHARED, Objective, parse
from torch_reference.models.backbones import BACKBONES, is_own
from torch_reference.ranges import Range

OPTIMIZERS = ("sgd", "nesterov", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16")

PAIR_CLASSES = 8  # classes in a batch where there are pair losses alone and classes_per_batch is not given
SCALE = 16.0  # of the logits where none is given
# The fields whose meaning, default or effect depends on the loss.
OF_THE_LOSS = {"margin", "margin_warmup_epochs", *SHARED, "classes_per_batch", "clip_norm"}

POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
PIXELS = Range(0, 4096, "pixels", closed=True)


def option(
    default: Any, group: str, help: str, *, range: Range | None = None, choices: tuple[str, ...] | None = None
) -> Any:
    """A field with its default; its metadata are the group and text of `--help`, and the values that it may have."""
    metadata = {"group": group, "help": help, "range": range, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


_data, _model, _loss, _optimiser, _augmentation, _run = (
    functools.partial(option, group=group) for group in ("data", "model", "loss", "optimiser", "augmentation", "run")
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on. `docs/recipe.md` says exactly what each field does.

    Raises:
      UserError: a value out of range, an unknown word, or fields that make no sense together.

    >>> TrainConfig(loss="cosface", margin=0.2).objective.classifier.options["m"]
    0.2
    """

    dataset: str = _data(
        "digits",
        help="digits, mnist, cifar10, or a path: a folder of class folders, a .csv, .txt or .rec file",
    )
    data_dir: str | None = _data(
        None,
        help="folder with the data set's files; the default is the environment variable ARCFACE_DATA_DIR, then a "
        "download by torchvision into your cache folder",
    )
    image_size: int | None = _data(
        None,
        help="height and width that images are resized to, in pixels; by default they keep their size",
        range=Range(1, 4096, "pixels", closed=True),
    )
    image_fit: str = _data(
        "crop", help="how photos in a folder become square: the middle, black margins, or stretched", choices=FITS
    )
    holdout_classes: str = _data(
        "", help="classes to keep out of the training, such as 7,8,9; evaluate measures the embeddings of these"
    )

    backbone: str = _model(
        "lenet", help="network from images to embeddings, or your own, module:factory", choices=tuple(BACKBONES)
    )
    width: float = _model(
        1.0, help="factor on the backbone's numbers of channels", range=Range(0, 64, open_low=True, closed=True)
    )
    embedding_dim: int = _model(
        128,
        help="dimension of the embeddings; 2 and 3 can be drawn as they are, and have training defaults of their own",
        range=Range(2, 2**16, closed=True),
    )
    dropout: float = _model(0.0, help="share of features dropped before the last linear layer", range=Range(0, 1))

    loss: str = _loss(
        "arcface",
        help="sum of losses with weights and options, such as arcface+intra, softmax+center:0.003 or "
        "triplet:m=0.3,mining=hard",
    )
    margin: float | None = _loss(
        None,
        help="the classification loss's margin m: of arcface in radians (0.5 where not given), of cosface in units of "
        "cosine (0.35), of sphereface a factor (1.35)",
    )
    margin_warmup_epochs: float = _loss(0.0, help="epochs in which the margin grows to its value", range=NOT_NEGATIVE)
    scale: float | None = _loss(None, help="scale s of the logits; 16 where not given", range=POSITIVE)
    beyond_pi: str = _loss(
        "monotone", help="what follows where the angle with its margin exceeds pi", choices=BEYOND_PI
    )
    gradient: str = _loss("exact", help="gradient of the margin", choices=GRADIENTS)
    subcenters: int = _loss(1, help="prototypes a class; the nearest counts", range=Range(1, 1000, closed=True))
    label_smoothing: float = _loss(
        0.0, help="share of the target distribution that is spread over all classes", range=Range(0, 1)
    )

    epochs: int = _optimiser(30, help="passes over the training images", range=Range(0, 10**6, closed=True))
    batch_size: int = _optimiser(64, help="images in a step (batch norm needs two)", range=Range(2))
    classes_per_batch: int = _optimiser(
        0,
        help="composes batches of this many classes with equally many images of each; 0 takes images in random order",
        range=NOT_NEGATIVE,
    )
    optimizer: str = _optimiser("nesterov", help="nesterov is SGD with Nesterov momentum", choices=OPTIMIZERS)
    learning_rate: float = _optimiser(0.05, help="largest learning rate", range=POSITIVE)
    momentum: float = _optimiser(0.9, help="momentum; beta1 of adamw", range=Range(0, 1))
    weight_decay: float = _optimiser(
        0.0005, help="on weights, not on biases, norms and slopes; decoupled for adamw", range=NOT_NEGATIVE
    )
    schedule: str = _optimiser(
        "cosine", help="learning rate after the warm-up: cosine and linear end at 0", choices=SCHEDULES
    )
    warmup_epochs: float = _optimiser(
        1.0, help="epochs in which the learning rate rises to its largest", range=NOT_NEGATIVE
    )
    clip_norm: float = _optimiser(
        0.0, help="largest norm of the gradient of all parameters together; 0 is no limit", range=NOT_NEGATIVE
    )

    rotate: float = _augmentation(
        0.0, help="largest rotation to either side, in radians", range=Range(0, math.pi, "in radians", closed=True)
    )
    zoom: float = _augmentation(
        0.0, help="largest magnification minus 1 (0.1: from 1/1.1 to 1.1)", range=Range(0, 100, closed=True)
    )
    shift: int = _augmentation(0, help="largest shift along each axis, in pixels", range=PIXELS)
    flip: bool = _augmentation(False, help="left-right flips, alternating from epoch to epoch")
    cutout: int = _augmentation(0, help="side of the square set to the mean colour, in pixels", range=PIXELS)

    seed: int = _run(0, help="seed of initial weights, order and augmentation", range=NOT_NEGATIVE)
    precision: str = _run(
        "float32",
        help="arithmetic of the network (parameters, batch norm and angles stay float32)",
        choices=PRECISIONS,
    )

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation's fields as one value."""
        return Augmentation(self.rotate, self.zoom, self.shift, self.flip, self.cutout)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The classes that `holdout_classes` names."""
        return tuple(name.strip() for name in self.holdout_classes.split(",") if name.strip())

    @functools.cached_property
    def objective(self) -> Objective:
        """The losses that `loss`, `margin` and the other fields of the loss describe.

        A field that has its default value gives way to an option in `loss`; another one must not contradict it.
        """
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in SHARED if getattr(self, name) != fields[name]}
        if self.margin is not None:
            given["m"] = self.margin
        return parse(self.loss, given, {name: fields[name] for name in SHARED} | {"scale": SCALE})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name.replace("_", " ")
            choices, range = field.metadata["choices"], field.metadata["range"]
            if choices is not None and value not in choices and not (field.name == "backbone" and is_own(value)):
                raise UserError(f"no {name} is called {value!r}: {nearest(value, choices)}")
            if range is not None and value is not None:
                range.check(value, name)
        self._check_together()

    def _check_together(self) -> None:
        classifier = self.objective.classifier
        if self.margin_warmup_epochs and not (classifier and classifier.loss.has_margin):
            raise UserError(f"margin warmup epochs have no effect on the loss {self.loss!r}")
        classes, batch = self.classes_per_batch, self.batch_size
        if classes and (classes == 1 or batch % classes):
            raise UserError(
                f"classes per batch is {classes}; it must be 0, or at least 2 and divide the batch size, {batch}"
            )
        if classifier is None and classes == batch:
            raise UserError(
                f"the loss {self.loss!r} learns nothing from one image of each class: the classes per batch, "
                f"{classes}, must be below the batch size, {batch}"
            )


def changed_field(config: TrainConfig, other: TrainConfig) -> str | None:
    """What makes one training another than the other: the first such field, of which `data_dir` is none; None if none.

    >>> changed_field(TrainConfig(seed=1), TrainConfig(seed=2, data_dir="elsewhere"))
    'seed'
    """
    before, after = dataclasses.asdict(config), dataclasses.asdict(other)
    return next((name for name in before if before[name] != after[name] and name != "data_dir"), None)


# What each data set's defaults cost and reach is measured in the README.
RECIPES = {
    "digits": TrainConfig(width=0.5, margin_warmup_epochs=3, rotate=0.15, zoom=0.1, shift=1),
    "mnist": TrainConfig(
        dataset="mnist",
        width=0.5,
        margin_warmup_epochs=2,
        epochs=14,
        batch_size=128,
        schedule="linear",
        rotate=0.2,
        zoom=0.1,
        shift=2,
    ),
    "cifar10": TrainConfig(
        dataset="cifar10",
        backbone="airnet",
        width=0.5,
        margin_warmup_epochs=5,
        epochs=30,
        batch_size=256,
        learning_rate=0.2,
        schedule="linear",
        shift=3,
        flip=True,
        cutout=8,
    ),
}
# A folder of the user's photos: sides of 32 pixels are what `airnet` was made for.
PHOTOS = TrainConfig(
    image_size=32,
    backbone="airnet",
    width=0.5,
    margin_warmup_epochs=5,
    schedule="linear",
    shift=2,
    flip=True,
)


# Two or three dimensions leave classes little room to pass each other: this is what learns ten of them.
FEW_DIMENSIONS: dict[str, Any] = {
    **{"optimizer": "adamw", "learning_rate": 0.003},
    **{"rotate": 0.0, "zoom": 0.0, "shift": 0, "flip": False, "cutout": 0},
}


def recipe(
    dataset: str, loss: str = "arcface", epochs: int | None = None, embedding_dim: int | None = None
) -> TrainConfig:
    """The defaults for a data set and a loss; for a folder of the user's own, `PHOTOS`.

    Args:
      epochs: how many, instead of the data set's; neither warm-up is then longer than a quarter of them.
      embedding_dim: up to 3, the defaults are `FEW_DIMENSIONS`, the margin grows over a quarter of the epochs, and
        digits is trained for twice as many.

    >>> recipe("mnist").warmup_epochs, recipe("mnist", epochs=1).warmup_epochs
    (1.0, 0.25)
    """
    start = RECIPES.get(dataset) or dataclasses.replace(PHOTOS, dataset=dataset)
    objective = parse(loss)
    classifier = objective.classifier
    changes: dict[str, Any] = {"loss": loss}
    if embedding_dim is not None:
        changes["embedding_dim"] = embedding_dim
    if embedding_dim is not None and embedding_dim <= 3:
        if epochs is None:
            epochs = start.epochs * (2 if dataset == "digits" else 1)
        start = dataclasses.replace(start, **FEW_DIMENSIONS, margin_warmup_epochs=max(epochs, 0) / 4)
    if epochs is not None:
        changes["epochs"] = epochs
        for name in ("warmup_epochs", "margin_warmup_epochs"):
            changes[name] = min(getattr(start, name), max(epochs, 0) / 4)
    if classifier is None or not classifier.loss.has_margin:
        changes["margin_warmup_epochs"] = 0.0
    if classifier is not None:
        changes["subcenters"] = classifier.options.get("subcenters", 1)
    else:
        changes |= {"classes_per_batch": PAIR_CLASSES, "clip_norm": 1.0}
    return dataclasses.replace(start, **changes)


def from_dict(
    values: dict[str, Any], source: str = "the configuration", dataset: str | None = None, loss: str | None = None
) -> TrainConfig:
    """A configuration from the fields in `values`; the rest are the recipe's for its data set, loss and epochs.

    `dataset` stands in where `values` has none. `loss` takes the place of another in `values`, whose fields that depend
    on the loss are then left out.

    Raises:
      UserError: an unknown field, or a value of the wrong type or out of range; `source` is named.

    >>> from_dict({"dataset": "mnist", "seed": 3}).seed
    3
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)}
    for name, value in values.items():
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{source} has the unknown field {name!r}{guess}")
        if not _fits(value, types[name]):
            raise UserError(f"{source} has {name} = {json.dumps(value)}; it must be of type {types[name]}")
    if loss not in (None, values.get("loss")):
        values = {name: value for name, value in values.items() if name not in OF_THE_LOSS} | {"loss": loss}
    try:
        defaults = recipe(
            values.get("dataset", dataset or "digits"),
            values.get("loss", "arcface"),
            values.get("epochs"),
            values.get("embedding_dim"),
        )
        return dataclasses.replace(defaults, **values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "None": (type(None),),
}


def _fits(value: Any, annotation: str) -> bool:
    accepted = tuple(kind for name in annotation.split(" | ") for kind in _KINDS[name])
    # True is an int to Python, but not to the user
    return isinstance(value, accepted) and (not isinstance(value, bool) or bool in accepted)


def read(path: Path, dataset: str | None = None, loss: str | None = None) -> TrainConfig:
    """A configuration from a JSON file, such as an old run's `config.json`; `dataset` and `loss` as in `from_dict`.

    Raises:
      UserError: no such file, no JSON object, or what `from_dict` raises.
    """
    return from_dict(read_values(path), str(path), dataset, loss)


def read_values(path: Path) -> dict[str, Any]:
    """The fields in a JSON file, or in the `config.json` of a directory; UserError where there are none."""
    return read_json(path / "config.json" if path.is_dir() else path)
