"""MNIST and CIFAR-10 as TensorFlow Datasets (TFDS) prepares and stores them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from jax_arcface.data.dataset import Dataset, Split
from jax_arcface.data.images import bar
from jax_arcface.data.published import PUBLISHED
from jax_arcface.errors import UserError
from jax_arcface.files import brief


def prepare_tfds(
    name: str,
    raw_dir: str | os.PathLike[str],
    tfds_dir: str | os.PathLike[str],
    *,
    file_format: str = "array_record",
) -> Path:
    """Builds the TFDS data set from the published files, with no network.

    TFDS looks for a download before it fetches one, and for its unpacked content before it unpacks it: this puts what
    TFDS would have unpacked in that place, and lets it build.

    Args:
      name: `mnist` or `cifar10`.
      raw_dir: the folder that holds `MNIST/raw` or `cifar-10-batches-py`, as for `load`.
      tfds_dir: TFDS's `data_dir`, where the data set is built.
      file_format: how TFDS stores the examples, `array_record` (random access) or `tfrecord`.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: another name, missing or damaged files, or TFDS is not installed.

    >>> prepare_tfds("digits", "data", "tfds")
    Traceback (most recent call last):
    ...
    jax_arcface.errors.UserError: TFDS data sets can be prepared for mnist, cifar10, not for 'digits'
    """
    if name not in PUBLISHED:
        raise UserError(f"TFDS data sets can be prepared for {', '.join(PUBLISHED)}, not for {name!r}")
    published = PUBLISHED[name]
    folder = Path(raw_dir) / published.folder
    if missing := published.missing(folder):
        raise UserError(f"{folder} lacks {', '.join(missing)}")
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import resource

        builder = tfds.builder(published.tfds, data_dir=str(tfds_dir), file_format=file_format)
        with tempfile.TemporaryDirectory() as downloads:
            for url, info in builder.url_infos.items():
                download = Path(downloads) / name / resource.get_dl_fname(url, info.checksum)
                download.parent.mkdir(exist_ok=True)
                download.touch()  # it only has to exist: its content is not read again
                resource.write_info_file(
                    url=url,
                    path=tfds.core.Path(download),
                    dataset_name=name,
                    original_fname=info.filename,
                    url_info=info,
                )
                method = resource.guess_extract_method(info.filename).name
                unpacked = Path(downloads) / "extracted" / f"{method}.{download.name}"
                unpacked.parent.mkdir(exist_ok=True)
                published.unpack(functools.partial(published.read, folder), info.filename, unpacked)
            _build(builder, downloads)
    except ImportError as error:
        raise UserError(f"{name} cannot be prepared: {_not_installed(error)}") from error
    return Path(builder.data_path)


def find_prepared(name: str, tfds_dir: Path) -> Path | None:
    """The folder of the prepared TFDS data set, None where there is none."""
    folder = tfds_dir / PUBLISHED[name].tfds.replace(":", "/")
    return folder if (folder / "dataset_info.json").is_file() else None


def download_prepared(name: str, tfds_dir: Path) -> Path:
    """Has TFDS download and prepare the data set; gives its folder, or a UserError with the mere reason."""
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(PUBLISHED[name].tfds, data_dir=str(tfds_dir), file_format="array_record")
        _check_reachable(next(iter(builder.url_infos)))
        _build(builder)
    except ImportError as error:
        raise UserError(_not_installed(error)) from error
    except UserError:
        raise
    except Exception as error:  # whatever TFDS, TensorFlow or the network came up with
        raise UserError(f"TFDS cannot download it ({brief(error)})") from error
    return Path(builder.data_path)


def read_prepared(name: str, folder: Path, progress: bool) -> Dataset:
    """Reads a prepared TFDS data set in the published order."""
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(folder))
        splits = {split: _read_split(builder, split, progress) for split in ("train", "test")}
        class_names = tuple(builder.info.features["label"].names)
    except ImportError as error:
        raise UserError(f"{folder} cannot be read: {_not_installed(error)}") from error
    except Exception as error:  # a damaged data set can raise anything
        raise UserError(f"{folder} is not a TFDS data set that can be read ({brief(error)}): delete it") from error
    for split, expected in PUBLISHED[name].content.items():
        found = _content(splits[split])
        if found != expected:
            raise UserError(
                f"{folder} is not {name} as published: the SHA-256 of its {split} split is {found}, expected {expected}"
                ": delete it"
            )
    return Dataset(name, splits["train"], splits["test"], class_names)


def _read_split(builder: Any, split: str, progress: bool) -> Split:
    import tensorflow_datasets as tfds

    n = builder.info.splits[split].num_examples
    try:
        examples = builder.as_data_source(split)
    except NotImplementedError:  # prepared in a format without random access, such as tfrecord
        config = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
        examples = tfds.as_numpy(builder.as_dataset(split, read_config=config, shuffle_files=False))

    # TFDS sorts a split's examples by the MD5 of the split's name and the example's key, here its published number
    order = sorted(range(n), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
    images = np.empty((n, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(n, np.int32)
    described = f"{builder.info.name} {split}"
    for i, example in zip(order, bar(examples, described, progress, total=n), strict=True):
        images[i], labels[i] = example["image"], example["label"]
    return Split(images, labels)


def _content(split: Split) -> str:
    """SHA-256 of a split's images and labels."""
    digest = hashlib.sha256(split.images.data)
    digest.update(split.labels.astype(np.uint8).data)
    return digest.hexdigest()


def _build(builder: Any, download_dir: str | None = None) -> None:
    """Downloads and prepares a TFDS data set, with TFDS's own bars."""
    import tensorflow_datasets as tfds

    # the copies in TFDS's cloud bucket are not in every format
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_dir=download_dir, download_config=config)


def _check_reachable(url: str) -> None:
    import requests

    try:
        requests.head(url, timeout=10).close()
    except requests.RequestException as error:  # said at once: TFDS would try again for minutes
        raise UserError(f"{urlsplit(url).hostname}, from where TFDS downloads it, cannot be reached") from error


def _not_installed(error: ImportError) -> str:
    return f'TFDS is not installed in full ({brief(error)}; pip install "jax-arcface[tfds]")'
