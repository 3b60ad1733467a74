"""Pairs of images that people exchange: LFW's pairs.txt, CSV files, and the .bin files of face recognition."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jax_arcface.data.images import Encoded
from jax_arcface.data.pickles import read_pickle
from jax_arcface.errors import UserError
from jax_arcface.files import brief, read_bytes, shown

_MAX_BYTES = 2**32
_FOLDS = 10  # where a file does not name its own, as in LFW


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePairs:
    """Pairs of images.

    Args:
      images: [N], each named once, and equal bytes held once.
      first, second: int64 [P], indices of images. same: bool [P], of one person. fold: int64 [P], from 0.
    """

    images: tuple[Path | Encoded, ...]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def read_pairs(path: Path, images: Path | None = None) -> ImagePairs:
    """A file of pairs: `read_lfw_pairs`, `read_csv_pairs` or `read_bin`, whichever its content is.

    Args:
      path: the file.
      images: the folder with the images that it names. LFW's pairs.txt needs one; that of a CSV file is by default the
        folder that it lies in; a .bin file holds its images itself.

    Raises:
      UserError: another content, or as its reader.
    """
    content = read_bytes(path, _MAX_BYTES)
    if content[:1] == b"\x80":  # a pickle's first opcode
        if images is not None:
            raise UserError(f"{shown(path)} holds its images itself: a folder of images has no effect")
        return read_bin(path)
    line = content[:1000].split(b"\n")[0]
    if re.fullmatch(rb"\d+(\t\d+)?\s*", line):
        if images is None:
            raise UserError(f"{shown(path)} names images by person and number: give the folder that holds them")
        return read_lfw_pairs(path, images)
    if b"," in line:
        return read_csv_pairs(path, images)
    raise UserError(
        f"{shown(path)} is no file of pairs: it must be LFW's pairs.txt, a CSV file with the columns file1, file2 and "
        "same, or a .bin file"
    )


def read_lfw_pairs(path: Path, images: Path) -> ImagePairs:
    """LFW's pairs.txt (Huang et al. 2007, View 2), its images below a folder as `name/name_0001.jpg` (or `.png`).

    Raises:
      UserError: a file that is not as described, is cut short, or names images that are not there.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bo/Bo_0001.jpg"):
    ...     (folder / name).parent.mkdir(exist_ok=True)
    ...     (folder / name).touch()
    >>> _ = (folder / "pairs.txt").write_text("1\\t1\\nAnn\\t1\\t2\\nAnn\\t2\\tBo\\t1\\n")
    >>> pairs = read_lfw_pairs(folder / "pairs.txt", folder)
    >>> pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()
    ([0, 1], [1, 2], [True, False])
    """
    lines = read_bytes(path, _MAX_BYTES).decode("utf-8", "replace").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows or not 1 <= len(rows[0]) <= 2 or not all(re.fullmatch("[0-9]{1,6}", word) for word in rows[0]):
        raise UserError(f"{shown(path)} does not begin with the numbers of folds and of pairs, as LFW's pairs.txt does")
    folds, each = (int(word) for word in ["1", *rows[0]][-2:])
    if len(rows) - 1 != 2 * folds * each or len(rows) == 1:
        raise UserError(f"{shown(path)} has {len(rows) - 1:,} pairs; its first line says {2 * folds * each:,}")
    ends: list[tuple[Path, Path]] = []
    same = [i // each % 2 == 0 for i in range(2 * folds * each)]
    for row, alike in zip(rows[1:], same, strict=True):
        names = [(row[0], row[1:2]), (row[0], row[2:])] if alike else [(row[0], row[1:2]), (row[-2], row[3:])]
        if len(row) != (3 if alike else 4) or not all(re.fullmatch("[0-9]{1,4}", n[0]) for _, n in names):
            raise UserError(f"{shown(path)} has a line that is no pair: {ascii(' '.join(row))[:80]}")
        if any(re.search(r"[/\\\0]", name) or name in ("", ".", "..") for name, _ in names):
            raise UserError(f"{shown(path)} names a person {ascii(row)[:80]}")
        first, second = (images / name / f"{name}_{int(n[0]):04}.jpg" for name, n in names)
        ends.append((first, second))
    return _of_files(ends, lambda file: [file, file.with_suffix(".png")], same, np.repeat(np.arange(folds), 2 * each))


def read_csv_pairs(path: Path, images: Path | None = None) -> ImagePairs:
    """A CSV file whose first line names the columns `file1`, `file2`, `same` (0 or 1) and, if there is one, `fold`.

    Other columns are ignored. Without `fold`, pairs of one person and of two are dealt out in turn to ten folds, or to
    as many as there are pairs of the rarer kind.

    Args:
      path: the file.
      images: the folder that names are relative to; by default the file's own.

    Raises:
      UserError: a file that is not as described, or names images that are not there.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in "abc":
    ...     (folder / name).touch()
    >>> _ = (folder / "pairs.csv").write_text("file1,file2,same\\na,b,1\\na,c,0\\n")
    >>> pairs = read_csv_pairs(folder / "pairs.csv")
    >>> pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), pairs.fold.tolist()
    ([0, 0], [1, 2], [True, False], [0, 0])
    """
    folder = path.parent if images is None else images
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} is not text in UTF-8") from None
    reader, ends, same, folds = csv.reader(io.StringIO(text, newline=""), strict=True), [], [], []
    try:
        header = next(reader, [])
        for name in ("file1", "file2", "same", "fold"):
            if header.count(name) > 1 or (name not in header and name != "fold"):
                raise UserError(f"the first line of {shown(path)} must name the columns file1, file2 and same once")
        for fields in reader:
            row = dict(zip(header, fields, strict=False))
            if not fields:
                continue
            if len(fields) != len(header) or row["same"] not in ("0", "1") or not row["file1"] or not row["file2"]:
                raise UserError(f"line {reader.line_num:,} of {shown(path)} is no pair: same must be 0 or 1")
            if not re.fullmatch("[0-9]{1,6}", row.get("fold", "0")):
                raise UserError(f"line {reader.line_num:,} of {shown(path)} has a fold that is no whole number")
            ends.append((folder / row["file1"], folder / row["file2"]))
            same.append(row["same"] == "1")
            folds.append(int(row.get("fold", "0")))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num:,} of {shown(path)} is not CSV: {error}") from None
    if not ends:
        raise UserError(f"{shown(path)} holds no pairs")
    fold = np.unique(folds, return_inverse=True)[1] if "fold" in header else _dealt(np.array(same))
    return _of_files(ends, lambda file: [file], same, fold)


def read_bin(path: Path, folds: int = _FOLDS) -> ImagePairs:
    """A .bin file: a pickle of (2 P encoded images, P bools); in each of so many folds, pairs that follow each other.

    The bools may be written as the whole numbers 0 and 1.

    Raises:
      UserError: another content; a pickle that names anything but numpy's arrays of bytes is refused before it runs.

    >>> import pickle, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.bin"
    >>> _ = path.write_bytes(pickle.dumps(([b"a", b"b", b"a", b"d"], [True, False])))
    >>> pairs = read_bin(path, folds=2)
    >>> [image.read() for image in pairs.images], pairs.first.tolist(), pairs.second.tolist()
    ([b'a', b'b', b'd'], [0, 0], [1, 2])
    """
    try:
        encoded, same = read_pickle(read_bytes(path, _MAX_BYTES))
        found = [image.tobytes() if isinstance(image, np.ndarray) else image for image in encoded]
        if not all(isinstance(image, bytes) and image for image in found) or not _are_bools(same):
            raise TypeError("it is not a list of encoded images and a list of bools")
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{shown(path)} is not a file of pairs, or is cut short ({brief(error)})") from error
    if len(found) != 2 * len(same) or not found:
        raise UserError(f"{shown(path)} has {len(found):,} images for {len(same):,} pairs; each pair needs two")
    place: dict[bytes, int] = {}
    where = np.array([place.setdefault(image, len(place)) for image in found])
    first_of = np.unique(where, return_index=True)[1].tolist()
    images = tuple(
        Encoded(f"image {i + 1:,} of {shown(path)}", functools.partial(found.__getitem__, i)) for i in first_of
    )
    fold = np.arange(len(same)) * min(folds, len(same)) // len(same)
    return _pairs(images, where.reshape(-1, 2), same, fold)


def _are_bools(values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(v) in (bool, int) and v in (0, 1) for v in values)


def _dealt(same: np.ndarray) -> np.ndarray:
    """A fold for each pair: those of either kind are dealt out in turn."""
    folds = max(1, min(_FOLDS, int(same.sum()), int((~same).sum())))
    return (np.where(same, np.cumsum(same), np.cumsum(~same)) - 1) % folds


def _of_files(
    ends: Sequence[tuple[Path, Path]], where: Callable[[Path], list[Path]], same: Sequence[bool], fold: np.ndarray
) -> ImagePairs:
    """Pairs of files, each of which is at the first of its places where a file is."""
    names = list(dict.fromkeys(file for pair in ends for file in pair))
    found = {name: next((file for file in where(name) if file.is_file()), None) for name in names}
    if missing := [name for name in names if found[name] is None]:
        raise UserError(f"{len(missing):,} of {len(names):,} images are not there, the first: {shown(missing[0])}")
    at = {name: i for i, name in enumerate(names)}
    images = tuple(file for file in found.values() if file is not None)
    return _pairs(images, np.array([(at[first], at[second]) for first, second in ends]), same, fold)


def _pairs(images: tuple[Path | Encoded, ...], ends: np.ndarray, same: Sequence[bool], fold: np.ndarray) -> ImagePairs:
    first, second = ends.astype(np.int64).T
    return ImagePairs(images, first, second, np.array(same, bool), fold.astype(np.int64))
