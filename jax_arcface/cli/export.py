"""`python -m jax_arcface export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_arcface import data
from jax_arcface.cli.arguments import Parser
from jax_arcface.errors import UserError, nearest
from jax_arcface.export import card
from jax_arcface.export.formats import FORMATS, Embed, difference, from_onnx
from jax_arcface.export.quantise import to_int8
from jax_arcface.files import atomic_write
from jax_arcface.models.trained import Model, load_model

# How far a unit embedding's entries may be apart: a hundred times what rounding makes; in bfloat16, in which no ONNX
# file computes, several times.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

_CALIBRATION = 256  # images


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a trained model as one file for other programs, with a model card beside it.

    ONNX and StableHLO take images, uint8 [N, H, W, C] in any number, normalise them and give unit embeddings, float32
    [N, D]; they are compared with the program here. safetensors and PyTorch's format hold the weights.
    """

    run: Path = dataclasses.field(metadata={"positional": True})
    """A run directory, or a file of published weights."""
    format: str | None = None
    """What to write; the default is what the suffix of --out says, else onnx."""
    out: Path | None = None
    """The file to write; the default is exported.SUFFIX in the run directory. The card's name ends in .md."""
    check: str | None = None
    """An image file, or a folder of images, to compare on; by default images of noise."""
    int8: str | None = None
    """A data set, or a folder of images, to scale 8-bit integers by: an ONNX file of a third of the size."""


def main(words: Sequence[str]) -> int:
    """Exports what the words name; returns the exit status."""
    parser = Parser("export RUN", str(Options.__doc__))
    parser.add_fields(Options, choices={"format": tuple(FORMATS)})
    options = Options(**parser.parse(words))
    name, out = _target(options)
    chosen = FORMATS[name]
    if options.check is not None and chosen.read is None:
        raise UserError(f"--check has no effect on {name}, which holds weights and computes nothing")
    if options.int8 is not None and name != "onnx":
        raise UserError(f"--int8 has no effect on {name}: only ONNX files can have 8-bit integers")
    model = load_model(options.run)
    images = _images(options.check, model)
    facts = card.describe(model, options.run)
    content = chosen.write(model, card.metadata(facts))
    checked = ""
    if chosen.read is not None:
        tolerance = _TOLERANCE[facts.get("config", {}).get("precision", "float32")]
        checked = _checked(model, chosen.read(content), images, options.check or "noise", tolerance)
    if options.int8 is not None:
        calibration = _calibration(options.int8, model)
        content = to_int8(content, calibration)
        checked = _checked_int8(model, content, calibration)
    with atomic_write(out) as file:
        file.write_bytes(content)
    with atomic_write(out.with_suffix(".md")) as file:
        file.write_text(card.markdown(facts, out.name, name, checked), "utf-8")
    if checked:
        print(checked)
    print(f"{len(content):,} bytes written to {out}, and its card to {out.with_suffix('.md')}")
    return 0


def _target(options: Options) -> tuple[str, Path]:
    """The format's name and the file."""
    if options.format is not None and options.format not in FORMATS:
        raise UserError(f"there is no format {options.format!r}: {nearest(options.format, tuple(FORMATS))}")
    suffixes = {known.suffix: name for name, known in FORMATS.items()}
    if options.out is None:
        name = options.format or "onnx"
        folder = options.run if options.run.is_dir() else Path()
        return name, folder / f"exported{FORMATS[name].suffix}"
    if options.out.is_dir() or not options.out.suffix or options.out.suffix == ".md":
        raise UserError(f"--out {options.out} must be a file with a suffix such as {', '.join(suffixes)}")
    said = options.format or suffixes.get(options.out.suffix)
    if said is None:
        raise UserError(f"--out {options.out} does not say what to write: give --format, one of {', '.join(FORMATS)}")
    return said, options.out


def _images(path: str | None, model: Model) -> np.ndarray:
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (3, *model.image_shape), np.uint8)
    return data.read_images(Path(path), model.image_shape)[1]


def _checked(model: Model, embed: Embed | None, images: np.ndarray, what: str, tolerance: float) -> str:
    """A sentence on how far the file's embeddings are from the program's."""
    if embed is None:
        return "Not compared with the program: onnxruntime is not installed."
    apart = difference(model, embed, images)
    if not apart < tolerance:
        raise UserError(f"the file would give other embeddings than the program: they differ by up to {apart:.1e}")
    counted = "1 image" if len(images) == 1 else f"{len(images):,} images"
    return f"Embeddings differ from the program's by at most {apart:.1e}, on {counted} of {what}."


def _calibration(source: str, model: Model) -> np.ndarray:
    """Images to scale integers by: the first of a data set's training images, or of a folder."""
    if source not in data.DATASETS:
        images = data.read_images(Path(source), model.image_shape)[1]
    else:
        images = data.load(source).train.images
        if images.shape[1:] != model.image_shape:
            raise UserError(f"--int8 {source} has images {images.shape[1:]}; the model takes {model.image_shape}")
    return np.ascontiguousarray(images[:_CALIBRATION])


def _checked_int8(model: Model, content: bytes, images: np.ndarray) -> str:
    """A sentence on how near the embeddings of a file in 8 bits are to the program's."""
    embed = from_onnx(content)
    assert embed is not None  # onnxruntime made the file
    wanted = model.embed(images)
    cosines = (embed(images) * wanted).sum(axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
    return (
        f"In 8 bits: the cosine with the program's embeddings is {cosines.mean():.4f} on average and at least "
        f"{cosines.min():.4f}, on the {len(images):,} images that the integers are scaled by."
    )
