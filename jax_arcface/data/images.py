"""From image files, and from images of another size, to uint8 arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jax_arcface.data.datasets import Dataset, Split
from jax_arcface.data.errors import DataError, brief


def read_files(files: Sequence[Path], shape: tuple[int, int, int], described: str, progress: bool) -> np.ndarray:
    """The images in these files, each given this shape: uint8 [N, H, W, C]."""
    images = np.empty((len(files), *shape), np.uint8)
    for i, file in enumerate(bar(files, described, progress)):
        images[i] = read_image(file, lambda image: _pixels(image, shape))
    return images


def read_image(file: Path, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` sees in the image, which is open for it alone."""
    try:
        with Image.open(file) as image:
            deep = image.mode[0] in "IF"
            if not deep:
                return look(image)
    except Exception as error:  # a damaged image can raise anything
        raise DataError(f"{file} is not an image that can be read ({brief(error)}): replace or remove it") from error
    raise DataError(f"{file} has more than 8 bits a pixel: save it with 8 bits")


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


def _pixels(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """The image as uint8 [H, W, C], in grey levels (C = 1) or RGB (C = 3), then resized."""
    height, width, channels = shape
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def bar(items: Any, described: str, progress: bool, total: int | None = None) -> Iterable[Any]:
    """The items, with a bar on standard error if asked for."""
    return tqdm(items, desc=described, unit=" images", total=total, disable=not progress)
