"""Lists of the user's own images: a CSV file, or the lines "path TAB label" of face recognition."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_arcface.data.listing import TEST_NAMES, Listing, is_one_line
from jax_arcface.errors import UserError
from jax_arcface.files import read_bytes, shown

_MAX_BYTES = 2**32


class _Row(NamedTuple):
    line: int
    file: str
    label: str
    split: str | None


def list_csv(path: Path) -> Listing:
    """The images that a CSV file names, in its order.

    Its first line names the columns: `file` (relative to the CSV file's folder, or absolute), `label`, which is any
    text, and `split` if there is one: `train`, or `test` (or val, valid or validation, as in folders). Others are
    ignored. Where there is no `split` a fifth of each class is the test split.

    Raises:
      UserError: a file that is no such CSV file, or names images that are not there, or one twice.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("1.png", "2.png", "3.png"):
    ...     (folder / name).touch()
    >>> _ = (folder / "pets.csv").write_text("file,label\\n1.png,dog\\n2.png,cat\\n3.png,dog\\n")
    >>> pets = list_csv(folder / "pets.csv")
    >>> pets.class_names, pets.labels.tolist()
    (('cat', 'dog'), [1, 0, 1])
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        for name in ("file", "label", "split"):
            if header.count(name) != 1 and (name != "split" or header.count(name) > 1):
                found = f" (found: {', '.join(header)})" if is_one_line("".join(header)) and header else ""
                raise UserError(
                    f"{shown(path)} must name the columns file and label in its first line, and may name split, each "
                    f"once{found}"
                )
        file, label = header.index("file"), header.index("label")
        split = header.index("split") if "split" in header else None
        rows = []
        for row in reader:
            if len(row) not in (0, len(header)):
                raise UserError(
                    f"line {reader.line_num:,} of {shown(path)} has {len(row)} fields; the first line names "
                    f"{len(header)} columns"
                )
            if row:
                rows.append(_Row(reader.line_num, row[file], row[label], None if split is None else row[split]))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num:,} of {shown(path)} is not CSV: {error}") from None
    return _listing(path, rows)


def list_lines(path: Path) -> Listing:
    """The images in a file of the lines "path TAB label", in its order: the `label.txt` of insightface.

    Paths are relative to the file's folder. A fifth of each class is the test split.

    Raises:
      UserError: as for `list_csv`.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        file, *labels = line.removesuffix("\r").split("\t")
        if len(labels) == 1:
            rows.append(_Row(number, file, labels[0], None))
        elif file or labels:
            raise UserError(f"line {number:,} of {shown(path)} must be a path, a tab and a label")
    return _listing(path, rows)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} is not text in UTF-8: save it so") from None


def _listing(path: Path, rows: list[_Row]) -> Listing:
    """The rows as a listing, checked."""
    lines: dict[str, int] = {}  # the line of each image
    twice, missing = [], []
    for row in rows:
        if not row.label or not is_one_line(row.label):
            raise UserError(
                f"line {row.line:,} of {shown(path)} has the label {row.label!a}: it must be one line of text"
            )
        if row.split is not None and row.split not in ("train", *TEST_NAMES):
            raise UserError(
                f"line {row.line:,} of {shown(path)} has the split {row.split!a}; it must be train or test (or "
                f"{', '.join(TEST_NAMES[1:])})"
            )
        file = os.path.normpath(os.path.join(path.parent, row.file))
        if first := lines.get(file):
            twice.append((first, row.line))
        elif not os.path.isfile(file):
            missing.append(file)
        lines.setdefault(file, row.line)
    if twice:
        first, second = twice[0]
        raise UserError(f"{shown(path)} names {len(twice):,} images twice, the first in lines {first:,} and {second:,}")
    if missing:
        raise UserError(f"{len(missing):,} of {len(rows):,} images are not there, the first: {shown(missing[0])}")
    images = [Path(file) for file in lines]
    test = _test_mask(path, rows)
    if test is not None:
        used = np.array([row.split == "train" for row in rows]) | test
        rows, images, test = _where(rows, used), _where(images, used), test[used]
    train = [row.label for i, row in enumerate(rows) if test is None or not test[i]]
    class_names = sorted(set(train))
    if len(class_names) < 2:
        raise UserError(f"{shown(path)} has {len(class_names)} classes to train on: at least two are needed")
    if strange := sorted({row.label for row in rows} - set(class_names)):
        raise UserError(
            f"{shown(path)} has test images of {len(strange):,} classes without training images: {strange[0]}"
        )
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number[row.label] for row in rows], np.int32)
    return Listing(path.stem, path.parent, images, labels, tuple(class_names), test, [path, *images])


def _test_mask(path: Path, rows: list[_Row]) -> np.ndarray | None:
    """Which rows the file puts into the test split; None where it has no such column."""
    splits = {row.split for row in rows}
    if splits <= {None}:
        return None
    name = next((name for name in TEST_NAMES if name in splits), None)
    if name is None or "train" not in splits:
        raise UserError(
            f"{shown(path)} has no {'images to train on' if 'train' not in splits else 'test split'}: add it, or leave "
            "out the column split to have one drawn"
        )
    return np.array([row.split == name for row in rows])


def _where(items: list, mask: Iterable[bool]) -> list:
    return [item for item, kept in zip(items, mask, strict=True) if kept]
