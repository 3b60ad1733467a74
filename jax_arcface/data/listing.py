"""The user's own images before they are decoded: which there are, of which class, in which split."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_arcface.data.cache import cached, fingerprint
from jax_arcface.data.dataset import Dataset, Split, held_out
from jax_arcface.data.images import Encoded, bar, called, read_files, read_image, size_and_grey
from jax_arcface.errors import UserError
from jax_arcface.files import shown

# What the test split may be called; the first counts where there are several.
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """Images that are not decoded yet.

    Args:
      name: of the data set.
      root: the folder they lie in.
      images: [N].
      labels: int32 [N], each image's class, counted from 0.
      class_names: each class's name, at its label.
      test: bool [N], the images of the test split; None where none is given, and a fifth of each class is drawn.
      files: what the data set is read from; its decoded images are kept until one of these changes.
    """

    name: str
    root: Path
    images: Sequence[Path | Encoded]
    labels: np.ndarray
    class_names: tuple[str, ...]
    test: np.ndarray | None
    files: Sequence[Path]

    def test_mask(self) -> np.ndarray:
        """The images of the test split, given or drawn, bool [N]; raises UserError where none can be drawn."""
        test = held_out(self.labels) if self.test is None else self.test
        if not test.any():
            raise UserError(f"{shown(self.root)} has one image a class: at least one class needs two, for a test split")
        return test


def load_listing(
    listing: Listing, image_size: int | None, image_fit: str, cache: Path, progress: bool = False
) -> Dataset:
    """The listed images as a data set; the arguments are those of `load`."""
    try:
        key = fingerprint(listing.root, listing.files, "listing", image_size, image_fit)
    except OSError as error:  # such as a link that leads nowhere
        raise UserError(f"{shown(error.filename)} cannot be read: {error.strerror}") from None
    return cached(cache / f"images-{key}", lambda: _decode(listing, image_size, image_fit, progress))


def _decode(listing: Listing, image_size: int | None, image_fit: str, progress: bool) -> Dataset:
    test = listing.test_mask()
    sizes: dict[tuple[int, int], Path | Encoded] = {}  # width and height, and the first image that has them
    grey = True
    for image in bar(listing.images, f"{listing.name} sizes", progress):
        size, is_grey = read_image(image, size_and_grey)
        sizes.setdefault(size, image)
        grey = grey and is_grey
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({called(first)} is {one[0]}x{one[1]}, {called(second)} is {other[0]}x{other[1]}): "
            "give an image size N, to which all are brought"
        )
    shape = (height, width, 1 if grey else 3)

    def split(mask: np.ndarray, which: str) -> Split:
        chosen = np.flatnonzero(mask).tolist()
        images = read_files(
            [listing.images[i] for i in chosen], shape, image_fit, f"{listing.name} {which}", progress=progress
        )
        return Split(images, listing.labels[chosen])

    return Dataset(listing.name, split(~test, "train"), split(test, "test"), listing.class_names)


def is_one_line(text: str) -> bool:
    """Whether a name can be written as one line of UTF-8."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)
