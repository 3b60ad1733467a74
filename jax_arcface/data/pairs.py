"""Pairs of face images that people exchange: LFW's pairs.txt, and the .bin files of face recognition."""

from __future__ import annotations

import dataclasses
import io
import pickle
import pickletools
import re
from pathlib import Path

import numpy as np

from jax_arcface.data.published import _MAX_MEMO, _check_plain, _Unpickler
from jax_arcface.errors import UserError
from jax_arcface.files import brief, read_bytes, shown

_MAX_BYTES = 2**32
_OPCODES = re.compile(
    "PROTO|FRAME|MARK|STOP|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BINBYTES8|"
    "EMPTY_(LIST|TUPLE)|TUPLE[123]?|LIST|APPENDS?|(LONG_)?BIN(PUT|GET)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|BUILD"
)


@dataclasses.dataclass(frozen=True)
class ImagePairs:
    """Pairs of images.

    Args:
      images: each a file, or the bytes of an encoded image.
      first, second: int64 [P], indices of images. same: bool [P], of one person. fold: int64 [P], from 0.
    """

    images: tuple[Path | bytes, ...]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def read_lfw_pairs(path: Path, images: Path) -> ImagePairs:
    """LFW's pairs.txt (Huang et al. 2007, View 2), its images below a folder as `name/name_0001.jpg`.

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
    found: dict[Path, int] = {}
    ends: list[tuple[int, int]] = []
    same = [i // each % 2 == 0 for i in range(2 * folds * each)]
    for row, alike in zip(rows[1:], same, strict=True):
        names = [(row[0], row[1:2]), (row[0], row[2:])] if alike else [(row[0], row[1:2]), (row[-2], row[3:])]
        if len(row) != (3 if alike else 4) or not all(re.fullmatch("[0-9]{1,4}", n[0]) for _, n in names):
            raise UserError(f"{shown(path)} has a line that is no pair: {ascii(' '.join(row))[:80]}")
        if any(re.search(r"[/\\\0]", name) or name in ("", ".", "..") for name, _ in names):
            raise UserError(f"{shown(path)} names a person {ascii(row)[:80]}")
        files = [images / name / f"{name}_{int(n[0]):04}.jpg" for name, n in names]
        ends.append((found.setdefault(files[0], len(found)), found.setdefault(files[1], len(found))))
    if missing := [file for file in found if not file.is_file()]:
        raise UserError(f"{len(missing):,} of {len(found):,} images are not there, the first: {shown(missing[0])}")
    return _pairs(tuple(found), np.array(ends), same, np.repeat(np.arange(folds), 2 * each))


def read_bin(path: Path, folds: int = 10) -> ImagePairs:
    """A .bin file: a pickle of (2 P encoded images, P bools); in each of so many folds, pairs that follow each other.

    The bools may be written as the whole numbers 0 and 1.

    Raises:
      UserError: another content; a pickle that names anything but numpy's arrays of bytes is refused before it runs.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.bin"
    >>> _ = path.write_bytes(pickle.dumps(([b"a", b"b", b"c", b"d"], [True, False])))
    >>> pairs = read_bin(path, folds=2)
    >>> pairs.images, pairs.same.tolist(), pairs.fold.tolist()
    ((b'a', b'b', b'c', b'd'), [True, False], [0, 1])
    """
    content = read_bytes(path, _MAX_BYTES)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if not _OPCODES.fullmatch(opcode.name) or ("BINPUT" in opcode.name and int(argument or 0) > _MAX_MEMO):
                raise pickle.UnpicklingError(f"it has a {opcode.name} {str(argument)[:80]}")
        held = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        _check_plain(held)
        encoded, same = held
        images = tuple(image.tobytes() if isinstance(image, np.ndarray) else image for image in encoded)
        if not all(isinstance(image, bytes) and image for image in images) or not _are_bools(same):
            raise pickle.UnpicklingError("it is not a list of encoded images and a list of bools")
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{shown(path)} is not a file of pairs, or is cut short ({brief(error)})") from error
    if len(images) != 2 * len(same) or not images:
        raise UserError(f"{shown(path)} has {len(images):,} images for {len(same):,} pairs; each pair needs two")
    fold = np.arange(len(same)) * min(folds, len(same)) // len(same)
    return _pairs(images, np.arange(len(images)).reshape(-1, 2), same, fold)


def _are_bools(values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(v) in (bool, int) and v in (0, 1) for v in values)


def _pairs(images: tuple[Path | bytes, ...], ends: np.ndarray, same: list[bool], fold: np.ndarray) -> ImagePairs:
    first, second = ends.astype(np.int64).T
    return ImagePairs(images, first, second, np.array(same, bool), fold.astype(np.int64))
