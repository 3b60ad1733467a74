"""`python -m jax_arcface embed`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser
from jax_arcface.cli.evaluate import data_split
from jax_arcface.errors import UserError
from jax_arcface.evaluation import predict
from jax_arcface.models.trained import Model, load_model


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the embeddings of a data set or of image files as an .npz file, and prints what image files show.

    The file holds embeddings [N, D], predictions [N], prototypes [C, D] (and a bias [C] with softmax), class_names [C],
    and labels [N] of a data set, or files [N].
    """

    run: Path = dataclasses.field(metadata={"positional": True})
    """A run directory."""
    input: str = dataclasses.field(metadata={"positional": True})
    """A data set's name, an image file, or a folder of images (of class folders too)."""
    out: Path | None = None
    """The .npz file to write; the default is embeddings-INPUT.npz in the run directory."""
    split: str = "test"
    """Which split of a data set: test or train."""
    data_dir: str | None = None
    """Folder with the data set's files."""


def main(words: Sequence[str]) -> int:
    """Embeds what the words name; returns the exit status."""
    parser = Parser("embed RUN INPUT", str(Options.__doc__))
    parser.add_fields(Options)
    options = Options(**parser.parse(words))
    runs.check_trained(options.run)
    config, model = runs.read_config(options.run), load_model(options.run)
    extra: dict[str, Any] = {}
    if options.input in data.DATASETS:
        name = options.input if options.split == "test" else f"{options.input}-{options.split}"
        split = data_split(_load(options, model), options.split)
        images, extra["labels"] = split.images, np.asarray(split.labels)
    else:
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {options.input}: all its images are embedded")
        name = Path(options.input).resolve().stem
        files, images = data.read_images(Path(options.input), model.image_shape, image_fit=config.image_fit)
        extra["files"] = np.array(files)
    embeddings = model.embed(images)
    predictions = predict(embeddings, model.classes["prototypes"], model.bias)
    if "files" in extra:
        _print_predictions(model, files, embeddings, predictions)
    out = options.out or options.run / f"embeddings-{name}.npz"
    runs.write_npz(
        out,
        embeddings=embeddings,
        predictions=predictions,
        class_names=np.array(model.class_names),
        **model.classes,
        **extra,
    )
    print(f"{len(embeddings):,} embeddings of dimension {embeddings.shape[1]} written to {out}")
    return 0


def _load(options: Options, model: Model) -> data.Dataset:
    """The named data set, its images, which are square, resized to the model's."""
    height, width, channels = model.image_shape
    dataset = data.load(options.input, options.data_dir, progress=sys.stderr.isatty())
    if dataset.image_shape[2] != channels or (dataset.image_shape != model.image_shape and height != width):
        raise UserError(
            f"the images of {options.input} are {_shown(dataset.image_shape)}; those of the model are "
            f"{_shown(model.image_shape)}"
        )
    if dataset.image_shape == model.image_shape:
        return dataset
    return data.load(options.input, options.data_dir, image_size=height, progress=sys.stderr.isatty())


def _shown(shape: tuple[int, int, int]) -> str:
    height, width, channels = shape
    return f"{height}x{width} pixels, {({1: 'grey', 3: 'RGB'}).get(channels, f'{channels} channels')}"


def _print_predictions(model: Model, files: Sequence[str], embeddings: np.ndarray, predictions: np.ndarray) -> None:
    """A line a file: the predicted class, and the angle to its nearest prototype with its cosine."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    prototypes = model.classes["prototypes"]
    prototypes = prototypes.reshape(len(prototypes), -1, embeddings.shape[1])[predictions]
    prototypes = prototypes / np.maximum(np.linalg.norm(prototypes, axis=2, keepdims=True), 1e-12)
    cosines = np.clip(np.einsum("nd,nkd->nk", unit, prototypes).max(axis=1), -1, 1)
    names = [model.class_names[number] for number in predictions]
    rows = [("file", "class", "cosine", "angle")]
    rows += [
        (file, name, f"{cosine:.3f}", f"{np.degrees(np.arccos(cosine)):.1f}°")
        for file, name, cosine in zip(map(str, files), names, cosines, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for file, name, cosine, angle in rows:
        print(f"{file:<{widths[0]}}  {name:<{widths[1]}}  {cosine:>{widths[2]}}  {angle:>{widths[3]}}")
