"""Image files: which are read, how one is opened, and how it is fitted to a size (`docs/recipe.md`, section Data)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_reference.errors import UserError
from torch_reference.files import LONGEST_SIDE, one_line, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

PATTERNS = "*.png, *.jpg, *.jpeg, *.webp, *.bmp, *.pgm, *.ppm"
FITS = ("crop", "pad", "stretch")

_READ = re.compile(r"[^.].*\.(png|jpg|jpeg|webp|bmp|pgm|ppm)", re.IGNORECASE | re.DOTALL)
_NOT_READ = re.compile(r"[^.].*\.(gif|tif|tiff|heic|heif|avif)", re.IGNORECASE | re.DOTALL)

_LARGEST_FILE = 2**30  # bytes
_MOST_PIXELS = 100_000_000


def is_image(file: Path) -> bool:
    """Whether a file counts as an image, by its name.

    Raises:
      UserError: its name is that of an image of a kind that is not read.
    """
    if _NOT_READ.fullmatch(file.name) and not os.path.isdir(file):
        raise UserError(f"{one_line(file)} cannot be read: save it as PNG or JPEG, or take it away")
    return _READ.fullmatch(file.name) is not None and not os.path.isdir(file)


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded image that is part of a file; `read` gives its bytes."""

    name: str
    read: Callable[[], bytes]


def name_of(image: Path | Record) -> str:
    """An image's name, on one line."""
    return image.name if isinstance(image, Record) else str(one_line(image))


@contextlib.contextmanager
def opened(file: Path | Record) -> Iterator[Image]:
    """An image, as it is stored; nothing but its header is decoded before its pixels are used.

    The kind is recognised by content, not by name: PNG, JPEG, WebP, BMP, PGM or PPM.

    Raises:
      UserError: it is nothing of these, damaged (which may show when its pixels are used, inside the `with`), has more
        than 8 bits a pixel, or too many pixels.
    """
    from PIL import Image

    content, name = file.read() if isinstance(file, Record) else read_bytes(file, _LARGEST_FILE), name_of(file)
    kind = _kind(content)
    if kind is None:
        what = " (it is a GIF)" if content.startswith(b"GIF8") else ""
        raise UserError(f"{name} is not an image that can be read{what}: save it as PNG, JPEG, WebP, BMP, PGM or PPM")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is large, or that its EXIF data are damaged
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                if image.mode.startswith(("I", "F")):
                    raise UserError(f"{name} has more than 8 bits a pixel: save it with 8 bits")
                if max(image.size) > LONGEST_SIDE or image.width * image.height > _MOST_PIXELS:
                    raise UserError(
                        f"{name} is {image.width}x{image.height} pixels large: at most {LONGEST_SIDE:,} a "
                        f"side and {_MOST_PIXELS:,} in all can be read"
                    )
                yield image
    except UserError:
        raise
    except Exception as error:  # a damaged image can raise anything
        raise UserError(f"{name} is not an image that can be read ({one_line(error)}): replace or remove it") from None


def _kind(content: bytes) -> str | None:
    """Pillow's name of the format that the content begins like; None where it is not one that is read."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[:1] == b"P" and content[1:2] in (b"2", b"3", b"5", b"6"):
        return "PPM"
    starts = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "BMP": b"BM"}
    return next((kind for kind, start in starts.items() if content.startswith(start)), None)


def is_grey(image: Image) -> bool:
    """Whether an image is stored as grey levels, with transparency or without."""
    return image.mode in ("1", "L", "LA", "La")


def upright(image: Image) -> Image:
    """The image as its EXIF orientation says that it is to be seen: 1 to 8, by where row 0 and column 0 belong."""
    from PIL.Image import Transpose

    orientation = _orientation(image)
    if orientation in (5, 6, 7, 8):  # rows and columns change places
        image = image.transpose(Transpose.TRANSPOSE)
    if orientation in (2, 3, 6, 7):
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    if orientation in (3, 4, 7, 8):
        image = image.transpose(Transpose.FLIP_TOP_BOTTOM)
    return image


def upright_size(image: Image) -> tuple[int, int]:
    """Width and height of the image as it is to be seen."""
    return (image.height, image.width) if _orientation(image) in (5, 6, 7, 8) else image.size


def _orientation(image: Image) -> Any:
    try:
        return image.getexif().get(274)
    except Exception:  # no EXIF data that can be read: the image stays as it is
        return None


def fitted(image: Image, shape: tuple[int, int, int], fit: str = "crop") -> np.ndarray:
    """The image as uint8 of the shape (H, W, C): grey for C = 1, RGB for C = 3.

    With `crop` its largest window of the shape's proportions is cut out of the middle and resized, with `pad` the whole
    image is resized to fit and put into the middle of a black one, with `stretch` it is resized as it is.
    """
    height, width, channels = shape
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if fit == "stretch":
        return resized(np.asarray(image), height, width)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    too_wide = image.width * height > image.height * width
    if fit == "crop":
        if too_wide:
            cut = max(1, image.height * width // height)
            left = (image.width - cut) // 2
            pixels = pixels[:, left : left + cut]
        else:
            cut = max(1, image.width * height // width)
            top = (image.height - cut) // 2
            pixels = pixels[top : top + cut]
        return resized(pixels, height, width)
    if too_wide:
        inner_height, inner_width = max(1, width * image.height // image.width), width
    else:
        inner_height, inner_width = height, max(1, height * image.width // image.height)
    above, before = (height - inner_height) // 2, (width - inner_width) // 2
    black = np.zeros(shape, np.uint8)
    black[above : above + inner_height, before : before + inner_width] = resized(pixels, inner_height, inner_width)
    return black


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image uint8 [H, W, C], or [H, W], as uint8 [height, width, C], with Pillow's bilinear filter."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, -1)
