"""`python -m jax_arcface identify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser
from jax_arcface.cli.threshold import degrees, read_threshold
from jax_arcface.cli.verify import directions, read_image
from jax_arcface.errors import UserError
from jax_arcface.models.trained import load_model

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Ranks the classes, or persons, of a gallery by their angle to an image, and prints the best five.

    It says nobody where the best is beyond the threshold of `evaluate RUN --calibrate FAR`, if there is one.
    """

    run: Path = dataclasses.field(metadata={"positional": True})
    """A run directory."""
    gallery: Path = dataclasses.field(metadata={"positional": True})
    """A folder with a folder of images for each class, or with an image for each."""
    probe: Path = dataclasses.field(metadata={"positional": True})
    """An image file."""


def main(words: Sequence[str]) -> int:
    """Ranks the gallery that the words name; returns the exit status."""
    parser = Parser("identify RUN GALLERY PROBE", str(Options.__doc__))
    parser.add_fields(Options)
    options = Options(**parser.parse(words))
    runs.check_trained(options.run)
    if options.gallery.exists() and not options.gallery.is_dir():
        raise UserError(f"{options.gallery} is a file; the gallery is a folder of images, or of class folders")
    threshold, model = read_threshold(options.run), load_model(options.run)
    probe = read_image(options.run, model, options.probe)
    image_fit = runs.read_config(options.run).image_fit
    files, images = data.read_images(options.gallery, model.image_shape, image_fit=image_fit)
    units = directions(model, np.concatenate([probe, images]), [str(options.probe), *files])
    ranked = ranking(files, units[1:] @ units[0])
    if threshold is not None and not threshold.accepts(ranked[0][1]):
        print("nobody")
    shown = [(name, degrees(cosine), file) for name, cosine, file in ranked[:_SHOWN]]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for rank, (name, angle, file) in enumerate(shown, start=1):
        print(f"{rank}  {name:<{widths[0]}}  {angle:>{widths[1]}}  {file}")
    if threshold is not None:
        print(f"threshold  {threshold}")
    return 0


def ranking(files: Sequence[str], cosines: np.ndarray) -> list[tuple[str, float, str]]:
    """Each class of the gallery with its best cosine and the file that has it, the best class first.

    A file's class is its first folder, or its own name without the suffix. Equal cosines keep the files' order.

    >>> ranking(["ann/1.png", "ann/2.png", "bo.png"], np.array([0.2, 0.9, 0.5]))
    [('ann', 0.9, 'ann/2.png'), ('bo', 0.5, 'bo.png')]
    """
    best: dict[str, tuple[str, float, str]] = {}
    for at in np.argsort(-cosines, kind="stable"):
        file = files[at]
        name = file.partition("/")[0] if "/" in file else Path(file).stem
        best.setdefault(name, (name, float(cosines[at]), file))
    return list(best.values())
