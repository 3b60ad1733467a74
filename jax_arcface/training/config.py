"""What a training run is: one flat, validated configuration, and the defaults for each data set."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from pathlib import Path
from typing import Any, get_args

from jax_arcface.data.images import FITS
from jax_arcface.data.sampling import Augmentation
from jax_arcface.errors import UserError, nearest
from jax_arcface.files import read_json
from jax_arcface.losses.margins import BeyondPi, Gradient
from jax_arcface.losses.registry import SHARED, Objective, parse
from jax_arcface.models.backbones import BACKBONES, is_own

# The words that a field can be; `--help` lists them.
CHOICES: dict[str, tuple[str, ...]] = {
    "backbone": tuple(BACKBONES),
    "image_fit": FITS,
    "beyond_pi": get_args(BeyondPi),
    "gradient": get_args(Gradient),
    "optimizer": ("sgd", "nesterov", "adamw"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("float32", "bfloat16"),
}

# Classes in a batch of pair losses alone, by default.
PAIR_CLASSES = 8
# s where the configuration has none: ten classes need less than the paper's 64.
DEFAULT_SCALE = 16.0
# The values of fields that stand for options of the loss, at which the loss's own default holds.
_NEUTRAL = {"scale": None, "subcenters": 1, "label_smoothing": 0.0, "beyond_pi": "monotone", "gradient": "exact"}
# The fields whose meaning, default or effect depends on the loss.
OF_THE_LOSS = {
    *("margin", "margin_warmup_epochs", "scale", "beyond_pi", "gradient", "subcenters", "label_smoothing"),
    *("classes_per_batch", "clip_norm"),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on. `docs/recipe.md` says exactly what each field does."""

    dataset: str = "digits"
    """Data set, or the path of your own images: a folder of class folders, a .csv file, a .txt list or a .rec file."""
    data_dir: str | None = None
    """Folder with the data set's files; the default is the environment variable ARCFACE_DATA_DIR, then TFDS."""
    image_size: int | None = None
    """Height and width that images are resized to, in pixels; the default keeps their size."""
    image_fit: str = "crop"
    """How photos in a folder become square: crop to the middle, pad with black, or stretch."""
    holdout_classes: str = ""
    """Classes to leave out of the training, such as 7,8,9; `evaluate` measures the embeddings of these."""

    backbone: str = "lenet"
    """Network from images to embeddings, or your own as module:factory."""
    width: float = 1.0
    """Factor on the backbone's numbers of channels."""
    embedding_dim: int = 128
    """Dimension D of the embeddings; 2 and 3 can be drawn as they are, and have training defaults of their own."""
    dropout: float = 0.0
    """Share of features dropped before the embedding's fully connected layer, 0 to 1."""

    loss: str = "arcface"
    """Sum of losses, each with weight and options if wanted: arcface+intra, softmax+center:0.01, triplet:mining=hard.
    `--help-losses` lists all."""
    margin: float | None = None
    """The margin m of the classification loss, such as arcface in radians (0.5 where not given), cosface in units of
    cosine (0.35), sphereface, a factor (1.35)."""
    margin_warmup_epochs: float = 0.0
    """Epochs in which the margin grows linearly from none to its value."""
    scale: float | None = None
    """Scale s of the logits (16 where not given); softmax, modified_softmax, a_softmax and adacos take none."""
    beyond_pi: str = "monotone"
    """What follows where the angle with its margin exceeds pi."""
    gradient: str = "exact"
    """Gradient of the margin."""
    subcenters: int = 1
    """Prototypes for each class; the nearest counts."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread over all classes, 0 to 1."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a step."""
    classes_per_batch: int = 0
    """Composes batches of this many classes, with equally many images of each; 0 takes images in random order."""
    optimizer: str = "nesterov"
    """Optimiser; nesterov is SGD with Nesterov momentum."""
    learning_rate: float = 0.05
    """Largest learning rate."""
    momentum: float = 0.9
    """Momentum; for adamw its beta1."""
    weight_decay: float = 5e-4
    """Weight decay on weights (not on biases, norms and slopes); decoupled for adamw."""
    schedule: str = "cosine"
    """Learning rate after the warm-up; cosine and linear go to 0."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly to its largest."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all parameters together; 0 is no limit."""

    rotate: float = 0.0
    """Largest rotation to either side, in radians."""
    zoom: float = 0.0
    """Largest magnification minus 1 (0.1: from 1/1.1 to 1.1)."""
    shift: int = 0
    """Largest shift along each axis, in pixels."""
    flip: bool = False
    """Left-right flips, alternating from epoch to epoch."""
    cutout: int = 0
    """Side of the square set to the mean colour, in pixels."""

    seed: int = 0
    """Seed of initial weights, order and augmentation."""
    precision: str = "float32"
    """Arithmetic of the network; parameters, batch norm and angles stay float32."""

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation's fields as one value."""
        return Augmentation(self.rotate, self.zoom, self.shift, self.flip, self.cutout)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names in `holdout_classes`."""
        return tuple(filter(None, map(str.strip, self.holdout_classes.split(","))))

    @functools.cached_property
    def objective(self) -> Objective:
        """The sum of losses that `loss` and the fields beside it describe."""
        given = {name: getattr(self, name) for name in SHARED if getattr(self, name) != _NEUTRAL[name]}
        classifier = parse(self.loss).classifier
        if classifier and "scale" in classifier.entry.options:
            given.setdefault("scale", DEFAULT_SCALE)
        return parse(self.loss, m=self.margin, **given)

    @property
    def about_classes(self) -> str:
        """The end of a message about `classes_per_batch`, which may not be the user's."""
        if self.objective.classifier is not None or self.classes_per_batch != PAIR_CLASSES:
            return ""
        return f" ({PAIR_CLASSES} is the default of pair losses alone)"

    def __post_init__(self) -> None:
        for field, known in CHOICES.items():
            if (value := getattr(self, field)) not in known and not (field == "backbone" and is_own(value)):
                raise UserError(f"{field} is {value!r}: {nearest(value, known)}")
        for field, ok, rule in (
            ("image_size", self.image_size is None or 1 <= self.image_size <= 4096, "from 1 to 4,096 pixels"),
            ("width", 0 < self.width <= 64, "above 0 and at most 64"),
            (
                "embedding_dim",
                2 <= self.embedding_dim <= 2**16,
                "from 2 (in one dimension there are two directions) to 65,536",
            ),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("scale", self.scale is None or self.scale > 0, "> 0"),
            ("subcenters", 1 <= self.subcenters <= 1000, "from 1 to 1,000"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("epochs", 0 <= self.epochs <= 10**6, "from 0 to a million"),
            ("batch_size", self.batch_size >= 2, "at least 2 (batch norm needs two examples)"),
            (
                "classes_per_batch",
                self.classes_per_batch == 0
                or (self.classes_per_batch >= 2 and self.batch_size % self.classes_per_batch == 0),
                f"0, or at least 2 and divide the batch size, {self.batch_size}{self.about_classes}",
            ),
            ("learning_rate", self.learning_rate > 0, "> 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("warmup_epochs", self.warmup_epochs >= 0, "at least 0"),
            ("margin_warmup_epochs", self.margin_warmup_epochs >= 0, "at least 0"),
            ("clip_norm", self.clip_norm >= 0, "at least 0"),
            ("rotate", 0 <= self.rotate <= math.pi, "from 0 to pi, in radians"),
            ("zoom", 0 <= self.zoom <= 100, "from 0 to 100"),
            ("shift", 0 <= self.shift <= 4096, "from 0 to 4,096 pixels"),
            ("cutout", 0 <= self.cutout <= 4096, "from 0 to 4,096 pixels"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            value = getattr(self, field)
            if not ok or (isinstance(value, float) and not math.isfinite(value)):
                finite = " and finite" if ok else ""
                raise UserError(f"{field} is {value}; it must be {rule}{finite}")
        self._check_effects()

    def _check_effects(self) -> None:
        objective = self.objective  # refuses what has no effect on the loss
        if self.margin_warmup_epochs and not objective.margins:
            raise UserError(f"margin warm-up has no effect on the loss {self.loss}, which has no margin that grows")
        if "subcenter" in objective.names and self.subcenters == 1:
            raise UserError("the loss subcenter needs at least 2 sub-centres")
        if objective.classifier is None and self.classes_per_batch == self.batch_size:
            raise UserError(
                f"the loss {self.loss} learns nothing from one image of each class: there are {self.classes_per_batch} "
                f"classes per batch, which must be fewer than the batch size, {self.batch_size}{self.about_classes}"
            )


def changed_field(config: TrainConfig, other: TrainConfig) -> str | None:
    """The first field in which two configurations differ as trainings, wherever the data lies; None where in none.

    >>> changed_field(TrainConfig(data_dir="here", epochs=3), TrainConfig(data_dir="there"))
    'epochs'
    """
    names = (field.name for field in dataclasses.fields(TrainConfig) if field.name != "data_dir")
    return next((name for name in names if getattr(config, name) != getattr(other, name)), None)


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

# What learns ten classes in two or three dimensions, whatever the loss: measured in docs/losses.md.
FEW_DIMENSIONS: dict[str, Any] = {
    **{"optimizer": "adamw", "learning_rate": 0.003},
    **{"rotate": 0.0, "zoom": 0.0, "shift": 0, "flip": False, "cutout": 0},
}


def recipe(
    dataset: str, loss: str = "arcface", epochs: int | None = None, embedding_dim: int | None = None
) -> TrainConfig:
    """The defaults for a data set, a loss and a number of epochs; for a folder of the user's own, `PHOTOS`.

    Both warm-ups take at most a quarter of the epochs, so that rate and margin arrive in a short training, too. In two
    or three dimensions (`embedding_dim`) classes have little room to pass each other: see `FEW_DIMENSIONS`.

    >>> recipe("mnist", epochs=1).margin_warmup_epochs
    0.25
    """
    defaults = RECIPES.get(dataset) or dataclasses.replace(PHOTOS, dataset=dataset)
    objective = parse(loss)
    few = embedding_dim is not None and embedding_dim <= 3
    changes: dict[str, Any] = dict(FEW_DIMENSIONS) if few else {}
    if embedding_dim is not None:
        changes["embedding_dim"] = embedding_dim
    usual = 2 * defaults.epochs if few and dataset == "digits" else defaults.epochs  # digits has few steps an epoch
    changes["epochs"] = usual if epochs is None else epochs
    longest = changes["epochs"] / 4
    changes["warmup_epochs"] = min(defaults.warmup_epochs, longest)
    margin_warmup = longest if few else min(defaults.margin_warmup_epochs, longest)
    changes["margin_warmup_epochs"] = margin_warmup if objective.margins else 0.0
    if "subcenter" in objective.names:
        changes["subcenters"] = 3
    if objective.classifier is None:
        changes |= {"classes_per_batch": PAIR_CLASSES, "clip_norm": 1.0}
    return dataclasses.replace(defaults, loss=loss, **changes)


def from_dict(
    values: dict[str, Any],
    source: str = "the configuration",
    dataset: str | None = None,
    loss: str | None = None,
    epochs: int | None = None,
    embedding_dim: int | None = None,
) -> TrainConfig:
    """A configuration from the fields in `values`; the rest are the defaults for these (`recipe`).

    `dataset` is used where `values` has none. `epochs` and `embedding_dim` replace those of `values`, and `loss` does
    too, without the fields of `values` that depend on the loss.

    Raises:
      UserError: an unknown field, or a value of the wrong type or out of range; `source` is named.

    >>> from_dict({"dataset": "mnist", "seed": 3}).seed
    3
    """
    types = {f.name: str(f.type) for f in dataclasses.fields(TrainConfig)}
    for name, value in values.items():
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{source} has the unknown field {name!r}{guess}")
        if not _fits(value, types[name]):
            raise UserError(f"{source} has {name} = {json.dumps(value)}; it must be of type {types[name]}")
    if loss not in (None, values.get("loss")):
        values = {name: value for name, value in values.items() if name not in OF_THE_LOSS} | {"loss": loss}
    if epochs is not None:
        values = values | {"epochs": epochs}
    if embedding_dim is not None:
        values = values | {"embedding_dim": embedding_dim}
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


def _fits(value: Any, annotation: str) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "None": (type(None),),
    }
    accepted = tuple(kind for name in annotation.split(" | ") for kind in kinds[name])
    return isinstance(value, accepted) and (not isinstance(value, bool) or bool in accepted)


def read(
    path: Path,
    dataset: str | None = None,
    loss: str | None = None,
    epochs: int | None = None,
    embedding_dim: int | None = None,
) -> TrainConfig:
    """A configuration from a JSON file, such as an old run's `config.json`; the other arguments as in `from_dict`.

    Raises:
      UserError: no such file, no JSON object, or what `from_dict` raises.
    """
    if path.is_dir():
        path = path / "config.json"
    return from_dict(read_json(path), str(path), dataset, loss, epochs, embedding_dim)
