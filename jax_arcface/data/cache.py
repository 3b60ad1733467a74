"""Decoded data sets as memory-mapped arrays in a cache folder, whose content may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jax_arcface.data.dataset import Dataset, Split
from jax_arcface.files import read_json

_FORMAT = 1  # part of every entry's key: count up when what is decoded changes

_log = logging.getLogger(__name__)


def cached(entry: Path, make: Callable[[], Dataset]) -> Dataset:
    """The data set in the cache entry, made and written first where there is none or a damaged one."""
    dataset = read_entry(entry)
    if dataset is not None:
        return dataset
    made = make()
    try:
        write_entry(entry, made)
    except OSError as error:
        _log.warning("%s cannot be written (%s): the data set will be decoded again next time", entry.parent, error)
        return made
    return read_entry(entry) or made


def fingerprint(root: Path, files: Iterable[Path], *what: object) -> str:
    """A key for what is decoded from these files.

    Each file counts with its size and the times of its last change, not with its content: reading that would take as
    long as decoding it. The inode's change time is among them, for it cannot be set back as the file's can.
    """
    digest = hashlib.sha256(ascii((_FORMAT, str(root.resolve()), *what)).encode())
    for file in files:
        stat = file.stat()
        digest.update(ascii((os.path.relpath(file, root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
    return digest.hexdigest()[:32]


def read_entry(entry: Path) -> Dataset | None:
    """The data set in the cache entry, memory-mapped, or None where it is missing or damaged."""
    try:
        arrays = {}
        for name, checksum in read_json(entry / "crc32.json").items():
            # the whole file, shape and all; reading it costs little, since training reads it next
            if zlib.crc32(np.memmap(entry / name, mode="r").data) != checksum:
                return None
            arrays[name] = np.load(entry / name, mmap_mode="r")
        name, *class_names = arrays["names.npy"].tolist()
        return Dataset(
            name=name,
            train=Split(arrays["train_images.npy"], arrays["train_labels.npy"]),
            test=Split(arrays["test_images.npy"], arrays["test_labels.npy"]),
            class_names=tuple(class_names),
        )
    except Exception:  # whatever is wrong with it, it can be made again
        return None


def write_entry(entry: Path, dataset: Dataset) -> None:
    """Writes the cache entry whole or not at all; of several writers at the same time one wins."""
    arrays = {
        "train_images.npy": dataset.train.images,
        "train_labels.npy": dataset.train.labels,
        "test_images.npy": dataset.test.images,
        "test_labels.npy": dataset.test.labels,
        "names.npy": np.array([dataset.name, *dataset.class_names]),
    }
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=entry.parent, ignore_cleanup_errors=True) as scratch:
        whole = Path(scratch) / entry.name
        whole.mkdir()
        checksums = {}
        for name, array in arrays.items():
            np.save(whole / name, array)
            checksums[name] = zlib.crc32(np.memmap(whole / name, mode="r").data)
        (whole / "crc32.json").write_text(json.dumps(checksums))
        try:
            whole.rename(entry)
        except OSError:
            if read_entry(entry) is None:  # a damaged entry is in the way, not another writer's
                shutil.rmtree(entry, ignore_errors=True)
                whole.rename(entry)
