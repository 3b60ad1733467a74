"""`python -m jax_arcface verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser
from jax_arcface.cli.threshold import degrees, read_threshold
from jax_arcface.errors import UserError
from jax_arcface.evaluation.pairs import unit64
from jax_arcface.models.trained import Model, load_model


@dataclasses.dataclass(frozen=True)
class Options:
    """Says whether two images are of the same class, or person, with the angle between their embeddings.

    The threshold is that of `evaluate RUN --calibrate FAR`. The classes may be others than those trained on.
    """

    run: Path = dataclasses.field(metadata={"positional": True})
    """A run directory."""
    first: Path = dataclasses.field(metadata={"positional": True})
    """An image file."""
    second: Path = dataclasses.field(metadata={"positional": True})
    """An image file."""


def main(words: Sequence[str]) -> int:
    """Compares the two images that the words name; returns the exit status."""
    parser = Parser("verify RUN FIRST SECOND", str(Options.__doc__))
    parser.add_fields(Options)
    options = Options(**parser.parse(words))
    runs.check_trained(options.run)
    threshold = read_threshold(options.run)
    if threshold is None:
        raise UserError(f"{options.run} has no threshold yet: run evaluate {options.run} --calibrate 1e-3")
    model, files = load_model(options.run), (options.first, options.second)
    images = np.concatenate([read_image(options.run, model, file) for file in files])
    first, second = directions(model, images, [str(file) for file in files])
    cosine = float(first @ second)
    print("same" if threshold.accepts(cosine) else "different")
    print(f"angle      {degrees(cosine)}")
    print(f"threshold  {threshold}")
    return 0


def read_image(run: Path, model: Model, file: Path) -> np.ndarray:
    """The image in a file, as the run's model takes it: uint8 [1, H, W, C].

    Raises:
      UserError: a folder, or no image that can be read.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; give an image file")
    return data.read_images(file, model.image_shape, image_fit=runs.read_config(run).image_fit)[1]


def directions(model: Model, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The images' embeddings, of length one: float64 [N, D].

    Raises:
      UserError: an embedding that has no direction, by its image's name.
    """
    embeddings = model.embed(images)
    useless = ~np.isfinite(embeddings).all(axis=1) | ~embeddings.any(axis=1)
    if useless.any():
        raise UserError(f"the embedding of {names[useless.argmax()]} is zero or not finite: it cannot be compared")
    return unit64(embeddings)
