"""Own images before they are decoded, and files that list them (`docs/recipe.md`, section Data)."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from torch_reference.data.dataset import Dataset, Split, test_mask
from torch_reference.data.images import Record, fitted, is_grey, name_of, opened, upright, upright_size
from torch_reference.errors import UserError
from torch_reference.files import one_line, read_bytes

SPLITS = ("train", "test", "val", "valid", "validation")

_LARGEST_LIST = 2**32  # bytes


@dataclasses.dataclass(frozen=True)
class Listed:
    """Images that are not decoded yet.

    Args:
      name: of the data set.
      source: the folder or the file that they come from.
      images: [N]. classes: [N], the name of each image's class.
      class_names: of all classes, by label.
      test: bool [N], which are test images; None where that is to be drawn.
    """

    name: str
    source: Path
    images: Sequence[Path | Record]
    classes: Sequence[str]
    class_names: Sequence[str]
    test: np.ndarray | None = None


def decode(listed: Listed, image_size: int | None, image_fit: str) -> Dataset:
    """The images as a data set; the other arguments are those of `load`."""
    label_of = {name: label for label, name in enumerate(listed.class_names)}
    labels = np.array([label_of[name] for name in listed.classes], np.int32)
    test = test_mask(labels) if listed.test is None else listed.test
    if not test.any():
        raise UserError(
            f"{one_line(listed.source)} has one image a class: at least one class needs two, for a test split"
        )
    shape = _common_shape(listed.images, image_size)

    def split(part: np.ndarray) -> Split:
        numbers = np.flatnonzero(part)
        return Split(decoded([listed.images[i] for i in numbers.tolist()], shape, image_fit), labels[numbers])

    return Dataset(listed.name, split(~test), split(test), tuple(listed.class_names))


def decoded(images: Sequence[Path | Record], shape: tuple[int, int, int], fit: str) -> np.ndarray:
    """The images, turned upright and fitted to this shape: uint8 [N, H, W, C]."""
    pixels = np.empty((len(images), *shape), np.uint8)
    for i, encoded in enumerate(images):
        with opened(encoded) as image:
            pixels[i] = fitted(upright(image), shape, fit)
    return pixels


def _common_shape(images: Sequence[Path | Record], image_size: int | None) -> tuple[int, int, int]:
    """Height, width and channels that all these images are brought to."""
    sizes: dict[tuple[int, int], str] = {}  # width and height, and the first image that has them
    all_grey = True
    for encoded in images:
        with opened(encoded) as image:
            sizes.setdefault(upright_size(image), name_of(encoded))
            all_grey = all_grey and is_grey(image)
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({first} is {one[0]}x{one[1]}, {second} is {other[0]}x{other[1]}): give an image "
            "size N to have all brought to NxN"
        )
    return height, width, 1 if all_grey else 3


def is_text_line(name: str) -> bool:
    """Whether a name is one line of Unicode text."""
    return not {unicodedata.category(letter) for letter in name} & {"Cc", "Cs", "Zl", "Zp"}


# ---- files that list images

# Of a row: where it stands, its image, its class, its split.
_Row = tuple[str, Path, str, str | None]


def read_csv(path: Path) -> Listed:
    """A CSV file with the columns `file`, `label` and, if it likes, `split`; others are ignored.

    Raises:
      UserError: it is nothing of the kind, or what `_listed` raises.
    """
    return _listed(path, _csv_rows)


def read_label_list(path: Path) -> Listed:
    """A file with a path, a tab and a label on each line, such as insightface's `label.txt`.

    Raises:
      UserError: it is nothing of the kind, or what `_listed` raises.
    """
    return _listed(path, _label_rows)


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for fields in table:
            where = f"{one_line(path)}, line {table.line_num}"
            if columns is None:
                columns = fields
                if [columns.count(name) for name in ("file", "label")] != [1, 1] or columns.count("split") > 1:
                    raise UserError(f"{where}, names no columns file and label: it must name each once")
            elif fields:
                if len(fields) != len(columns):
                    raise UserError(f"{where}, does not have {len(columns)} fields, as its first line: {len(fields)}")
                row = dict(zip(columns, fields, strict=True))
                yield where, path.parent / row["file"], row["label"], row.get("split")
    except csv.Error as error:
        raise UserError(f"{one_line(path)}, line {table.line_num}, is not CSV: {one_line(str(error))}") from None
    if columns is None:
        raise UserError(f"{one_line(path)} is empty: its first line must name the columns file and label")


def _label_rows(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        where = f"{one_line(path)}, line {number}"
        if line:
            if line.count("\t") != 1:
                raise UserError(f"{where}, is not a path, a tab and a label")
            file, label = line.split("\t")
            yield where, path.parent / file, label, None


def _listed(path: Path, parse: Callable[[Path, str], Iterator[_Row]]) -> Listed:
    """The images in the rows of a file.

    Raises:
      UserError: a file that is not UTF-8, images that are not there or are named twice, labels or splits that cannot
        be right, or fewer than two classes.
    """
    try:
        text = read_bytes(path, _LARGEST_LIST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{one_line(path)} is not text in UTF-8") from None
    rows = list(parse(path, text))
    first_place: dict[str, str] = {}
    for where, file, label, split in rows:
        if label == "" or not is_text_line(label):
            raise UserError(f"{where}, has no label that is one line of text")
        if split not in (None, *SPLITS):
            raise UserError(f"{where}, has the split {one_line(repr(split))}: known are {', '.join(SPLITS)}")
        name = os.path.normpath(file)
        if name in first_place:
            raise UserError(f"{where}, names an image that is named before, in {first_place[name]}: {one_line(file)}")
        first_place[name] = where
    if missing := [file for _, file, _, _ in rows if not os.path.isfile(file)]:
        raise UserError(f"{one_line(path)} names {len(missing):,} images that are not there: {one_line(missing[0])}")

    splits = {split for *_, split in rows}
    test = None
    if splits - {None}:
        of_test = next((name for name in SPLITS[1:] if name in splits), None)
        if of_test is None or "train" not in splits:
            raise UserError(f"{one_line(path)} has a column split, but no train or no test images")
        rows = [row for row in rows if row[3] in ("train", of_test)]
        test = np.array([split == of_test for *_, split in rows])
    classes = [label for _, _, label, _ in rows]
    names = sorted(set(classes) if test is None else {classes[i] for i in np.flatnonzero(~test)})
    if len(names) < 2:
        raise UserError(f"{one_line(path)} names images of {len(names)} classes to train on: it must be two or more")
    if strange := sorted(set(classes).difference(names)):
        raise UserError(f"{one_line(path)} has test images of classes that are not trained: {one_line(strange[0])}")
    return Listed(path.stem, path, [file for _, file, _, _ in rows], classes, names, test)
