"""What the commands `verify` and `identify` do, as functions of their options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from torch_reference import data
from torch_reference.cli import runs
from torch_reference.cli.commands import DEVICE_HELP, argument, find_device
from torch_reference.cli.threshold import accepts, degrees, described, read_threshold
from torch_reference.errors import UserError
from torch_reference.evaluation.search import directions
from torch_reference.models.trained import Model, load_model
from torch_reference.training.config import option

SHOWN = 5


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Says whether two images are of one class, or person, trained on or not, and the angle of their embeddings.

    It decides by the threshold that `evaluate RUN --calibrate FAR` wrote.
    """

    run: Path = argument("RUN", "run directory")  # noqa: RUF009
    first: Path = argument("FIRST", "image file")  # noqa: RUF009
    second: Path = argument("SECOND", "image file")  # noqa: RUF009
    device: str | None = option(None, "options", DEVICE_HELP)


@dataclasses.dataclass(frozen=True)
class IdentifyOptions:
    """Prints the five classes, or persons, of a gallery that are nearest to an image.

    With a threshold of `evaluate RUN --calibrate FAR` it may say nobody first.
    """

    run: Path = argument("RUN", "run directory")  # noqa: RUF009
    gallery: Path = argument("GALLERY", "folder with a folder of images for each class, or one image for each")  # noqa: RUF009
    probe: Path = argument("PROBE", "image file")  # noqa: RUF009
    device: str | None = option(None, "options", DEVICE_HELP)


def verify(options: VerifyOptions) -> int:
    """Compares two images."""
    fit, threshold = runs.read_config(options.run).image_fit, read_threshold(options.run)
    if threshold is None:
        raise UserError(f"{options.run} has no threshold.json: run evaluate {options.run} --calibrate 1e-3")
    model = load_model(options.run, find_device(options.device))
    first, second = (_embedded(model, path, fit, "file")[1][0] for path in (options.first, options.second))
    cosine = float(first @ second)
    print("same" if accepts(threshold, cosine) else "different")
    print(f"angle      {degrees(cosine)}")
    print(f"threshold  {described(threshold)}")
    return 0


def identify(options: IdentifyOptions) -> int:
    """Ranks a gallery."""
    fit, threshold = runs.read_config(options.run).image_fit, read_threshold(options.run)
    model = load_model(options.run, find_device(options.device))
    _, probe = _embedded(model, options.probe, fit, "file")
    files, gallery = _embedded(model, options.gallery, fit, "folder")
    cosines = gallery @ probe[0]
    nearest: dict[str, int] = {}  # each class's nearest image
    for i in np.argsort(-cosines, kind="stable").tolist():
        folder, slash, _ = files[i].partition("/")
        nearest.setdefault(folder if slash else Path(files[i]).stem, i)
    best = list(nearest.items())[:SHOWN]
    if threshold is not None and not accepts(threshold, float(cosines[best[0][1]])):
        print("nobody")
    width = max(len(name) for name, _ in best)
    for rank, (name, i) in enumerate(best, start=1):
        print(f"{rank}  {name:<{width}}  {degrees(cosines[i]):>13}  {files[i]}")
    if threshold is not None:
        print(f"threshold  {described(threshold)}")
    return 0


def _embedded(model: Model, path: Path, fit: str, kind: str) -> tuple[list[str], np.ndarray]:
    """File names, and embeddings of length one, float64 [N, D], of an image file or of a folder of images."""
    if path.exists() and path.is_dir() != (kind == "folder"):
        raise UserError(f"{path} is not a {kind}" + (" of images" if kind == "folder" else ": give an image"))
    files, images = data.read_images(path, model.image_shape, image_fit=fit)
    try:
        return files, directions(model.embed(images)).numpy()
    except ValueError as error:
        raise UserError(f"{path} cannot be compared: {error}") from None
