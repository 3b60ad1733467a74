"""From image files, and from images of another size, to uint8 arrays."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jax_arcface.data.dataset import Dataset, Split
from jax_arcface.errors import UserError
from jax_arcface.files import MAX_SIDE, brief, open_file, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".pgm", ".ppm")
PATTERNS = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
# Images, too, but not read. Left out in silence they would be missed.
REFUSED_SUFFIXES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif")
FITS = ("crop", "pad", "stretch")

MAX_FILE_BYTES = 2**30
MAX_PIXELS = 100_000_000

# What a file begins with decides, not its name: Pillow alone would try some forty formats, and run a program for one.
_FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF....WEBP": "WEBP",
    b"BM": "BMP",
    **{b"P%d" % number: "PPM" for number in (2, 3, 5, 6)},
}
_REFUSED = {b"GIF8": "a GIF", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"%!PS": "PostScript"}

# How to turn an image upright, by the value of EXIF's tag 0x0112.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Encoded(NamedTuple):
    """An encoded image inside another file."""

    name: str  # in messages, printable
    read: Callable[[], bytes]


def called(image: Path | Encoded) -> str:
    """What an image is called in a message."""
    return image.name if isinstance(image, Encoded) else shown(image)


def read_files(
    files: Sequence[Path | Encoded], shape: tuple[int, int, int], fit: str, described: str, progress: bool
) -> np.ndarray:
    """The images in these files, each given this shape: uint8 [N, H, W, C]."""
    images = np.empty((len(files), *shape), np.uint8)
    for i, file in enumerate(bar(files, described, progress)):
        images[i] = read_image(file, lambda image: _pixels(upright(image), shape, fit))
    return images


def read_image(file: Path | Encoded, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` sees in the image, of which only the header has been read, as it is stored.

    Raises:
      UserError: no PNG, JPEG, WebP, BMP, PGM or PPM file, a damaged one, more than 8 bits a pixel, or too many pixels.
    """
    name = called(file)
    with io.BytesIO(file.read()) if isinstance(file, Encoded) else open_file(file, MAX_FILE_BYTES) as content:
        kind = _format(content.read(16), name)
        content.seek(0)
        try:
            with warnings.catch_warnings():  # Pillow warns of large images and of damaged EXIF data
                warnings.simplefilter("ignore")
                with Image.open(content, formats=[kind]) as image:
                    if image.mode[0] not in "IF" and max(image.size) <= MAX_SIDE and _area(image) <= MAX_PIXELS:
                        return look(image)
                    deep, (width, height) = image.mode[0] in "IF", image.size
        except Image.DecompressionBombError:
            raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels: make it smaller") from None
        except Exception as error:  # a damaged image can raise anything
            raise UserError(f"{name} is not an image that can be read ({brief(error)}): replace or remove it") from None
    if deep:
        raise UserError(f"{name} has more than 8 bits a pixel: save it with 8 bits")
    raise UserError(
        f"{name} is {width}x{height}; at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side are read: make it smaller"
    )


def _format(start: bytes, name: str) -> str:
    start = start[:4] + b"...." + start[8:] if start[:4] == b"RIFF" else start
    for magic, kind in _FORMATS.items():
        if start.startswith(magic):
            return kind
    found = next((f"is {kind}" for magic, kind in _REFUSED.items() if start.startswith(magic)), "is not such a file")
    raise UserError(f"{name} is not an image that can be read: it {found}; save it as PNG, JPEG, WebP, BMP, PGM or PPM")


def _area(image: Image.Image) -> int:
    return image.size[0] * image.size[1]


def size_and_grey(image: Image.Image) -> tuple[tuple[int, int], bool]:
    """Width and height of the image when it is upright, and whether it is stored as grey levels."""
    width, height = image.size
    sideways = _turn(image) in [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
    return ((height, width) if sideways else (width, height)), image.mode in ("1", "L", "LA", "La")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data say."""
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data do not make an image unreadable
        return None


def resize(dataset: Dataset, image_size: int | None, progress: bool) -> Dataset:
    """The data set with its images resized to image_size x image_size, as they are where that is None or theirs."""
    if image_size is None or dataset.image_shape[:2] == (image_size, image_size):
        return dataset
    shape = (image_size, image_size, dataset.image_shape[2])

    def split(before: Split, which: str) -> Split:
        images = np.empty((len(before.images), *shape), np.uint8)
        for i, pixels in enumerate(bar(before.images, f"{dataset.name} {which}", progress)):
            images[i] = _pixels(Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels), shape)
        return Split(images, before.labels)

    return dataclasses.replace(dataset, train=split(dataset.train, "train"), test=split(dataset.test, "test"))


def _pixels(image: Image.Image, shape: tuple[int, int, int], fit: str = "crop") -> np.ndarray:
    """The image as uint8 [H, W, C], in grey levels (C = 1) or RGB (C = 3), fitted to the shape."""
    height, width, channels = shape
    image = image.convert("L" if channels == 1 else "RGB")
    if fit == "crop":
        image = _crop(image, width, height)
    inner = (width, height) if fit != "pad" else _inner(image.size, width, height)
    if image.size != inner:
        image = image.resize(inner, Image.Resampling.BILINEAR)
    pixels = np.zeros(shape, np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    pixels[top : top + inner[1], left : left + inner[0]] = np.asarray(image).reshape(inner[1], inner[0], channels)
    return pixels


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest window of the shape width:height about the centre, in whole pixels."""
    w, h = image.size
    cut_w, cut_h = min(w, max(h * width // height, 1)), min(h, max(w * height // width, 1))
    left, top = (w - cut_w) // 2, (h - cut_h) // 2
    return image.crop((left, top, left + cut_w, top + cut_h))


def _inner(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size of the image's own shape that fits into width x height, rounded down to whole pixels."""
    w, h = size
    return min(width, max(w * height // h, 1)), min(height, max(h * width // w, 1))


def bar(items: Any, described: str, progress: bool, total: int | None = None) -> Iterable[Any]:
    """The items, with a bar on standard error if asked for."""
    from tqdm import tqdm

    return tqdm(items, desc=described, unit=" images", total=total, disable=not progress)
