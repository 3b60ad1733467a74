"""From a data set's name to arrays in memory."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jax_arcface.data.cache import cached, fingerprint
from jax_arcface.data.dataset import Dataset, Split, held_out
from jax_arcface.data.folders import list_folder
from jax_arcface.data.images import FITS, resize
from jax_arcface.data.listing import Listing, load_listing
from jax_arcface.data.lists import list_csv, list_lines
from jax_arcface.data.prepared import download_prepared, find_prepared, read_prepared
from jax_arcface.data.published import PUBLISHED
from jax_arcface.data.records import list_records
from jax_arcface.errors import UserError, nearest

# The data sets that have a name. A published one needs an entry in `published.PUBLISHED` and no more.
DATASETS = ("digits", *PUBLISHED)

# The user's own images: what reads them, by the file's suffix; a folder has none.
_LISTS: dict[str, Callable[[Path], Listing]] = {".csv": list_csv, ".txt": list_lines, ".rec": list_records}
OWN_DATA = "a folder with one folder of images for each class, a .csv file, a .txt list or a .rec file"

_DIRECTORY_VARIABLE = "ARCFACE_DATA_DIR"


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    image_fit: str = "crop",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Dataset:
    """Loads a data set by its name, or the user's own images by their path.

    - `digits`: the UCI handwritten digits that scikit-learn carries, 8x8x1, with a seeded split. Needs no files.
    - `mnist`, `cifar10`: the published files in their published order, 28x28x1 and 32x32x3. They are read from
      `MNIST/raw/*.gz` or `cifar-10-batches-py/*` (torchvision's layout) in `data_dir`, or where that is not given in
      the folder that the environment variable `ARCFACE_DATA_DIR` names; every file's checksum is verified. That there
      is no such folder is a mistake; where it does not hold the files, or none is given, a TFDS data set prepared in
      that folder or in TFDS's own is read, and where there is none TFDS downloads it, into `data_dir` if given. The
      arrays are the same, bit for bit.
    - A path (with a separator, or an existing folder that is not called as above): `PATH/train/CLASS/*` and
      `PATH/test/CLASS/*` (or val, valid, validation in the place of test), or `PATH/CLASS/*` with a seeded split.
      Images are PNG, JPEG, WebP, BMP, PGM or PPM files; a GIF, TIFF, HEIF or AVIF is refused. They are turned upright
      as their EXIF data say, and grey (C = 1) where all of them are stored so, RGB otherwise. Other files, hidden ones
      and folders inside a class's folder are ignored.
    - A `.csv` file with the columns `file`, `label` and, if wanted, `split`, or a `.txt` file of the lines "path TAB
      label" (`lists.list_csv`, `lists.list_lines`); the images they name are read as those of a folder.
    - A `.rec` file, MXNet's RecordIO, with its `.idx` file beside it (`records.list_records`).

    Args:
      name: one of `DATASETS`, or a path.
      data_dir: where the files of `mnist` and `cifar10` are.
      image_size: height and width that images are resized to, in pixels (Pillow's bilinear filter). The default is the
        size they have, which must be the same for all.
      image_fit: what becomes of an image in a folder that is not square: `crop` cuts out the largest square about the
        centre, `pad` adds black borders, `stretch` distorts it.
      cache_dir: where decoded arrays are kept; the default is `jax-arcface` in the user's cache folder. It may be
        deleted at any time. Where it cannot be written, arrays are kept in memory alone.
      progress: whether to show a bar on standard error while images are decoded.

    Raises:
      UserError: an unknown name, missing or damaged files, or a folder that cannot be understood.

    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1438, 8, 8, 1), (359, 8, 8, 1), 10)
    >>> load("minst")
    Traceback (most recent call last):
    ...
    jax_arcface.errors.UserError: no data set is called 'minst' (did you mean 'mnist'?): give one of digits, mnist,
    cifar10 or the path of your own images: a folder with one folder of images for each class, a .csv file, a .txt
    list or a .rec file
    """
    name = os.fspath(name)
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size}: at least 1 pixel is needed")
    if image_fit not in FITS:
        raise UserError(f"there is no image fit {image_fit!r}: {nearest(image_fit, FITS)}")
    if image_fit != "crop" and (name in DATASETS or image_size is None):
        raise UserError(f"the image fit {image_fit!r} has no effect " + _why_no_effect(name))
    cache = _users_cache() if cache_dir is None else Path(cache_dir)
    if name in PUBLISHED:
        return _load_published(name, data_dir, image_size, cache, progress)
    if data_dir is not None:
        raise UserError(f"a data folder ({data_dir}) has no effect on {name!r}: leave it out")
    if name == "digits":
        return resize(_digits(), image_size, progress)
    if is_path(name):
        return load_listing(list_images(name), image_size, image_fit, cache, progress)
    near = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    raise UserError(
        f"no data set is called {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: give one of "
        f"{', '.join(DATASETS)} or the path of your own images: {OWN_DATA}"
    )


def is_path(name: str) -> bool:
    """Whether a data set's name stands for the user's own images; no file is read."""
    return "/" in name or os.sep in name or Path(name).suffix.lower() in _LISTS or os.path.isdir(name)


def list_images(path: str | os.PathLike[str]) -> Listing:
    """The user's own images, not decoded: a folder, or a file that lists or holds them.

    Raises:
      UserError: a path where no such thing is.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.isdir(path) and (reader := _LISTS.get(path.suffix.lower())):
        return reader(path)
    return list_folder(path)


def _why_no_effect(name: str) -> str:
    return f"on {name}, whose images are square" if name in DATASETS else "without an image size"


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = ((255 * raw.images.astype(np.int64) + 8) // 16).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    test = held_out(labels)
    return Dataset(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        class_names=tuple(map(str, raw.target_names)),
    )


def _users_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("jax-arcface", appauthor=False))


def _load_published(
    name: str, data_dir: str | os.PathLike[str] | None, image_size: int | None, cache: Path, progress: bool
) -> Dataset:
    published = PUBLISHED[name]
    folder, is_raw = _find_published(name, data_dir)
    if is_raw:
        files = [folder / file for file in published.sha256]
    else:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    key = fingerprint(folder, files, name)

    def decode() -> Dataset:
        if is_raw:
            return published.decode(functools.partial(published.read, folder))
        return read_prepared(name, folder, progress)

    dataset = cached(cache / f"{name}-{key}", decode)
    if image_size is None or dataset.image_shape[:2] == (image_size, image_size):
        return dataset
    return cached(cache / f"{name}-{key}-{image_size}", lambda: resize(dataset, image_size, progress))


def _find_published(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Path, bool]:
    """The published files' folder (and True), or a prepared TFDS data set's (and False), downloaded if need be."""
    published = PUBLISHED[name]
    given = data_dir or os.environ.get(_DIRECTORY_VARIABLE)
    root = Path(os.path.expanduser(given)) if given else None
    remedy = (
        f"put {published.folder}/{{{', '.join(published.sha256)}}} in a folder and give that as the data folder or in "
        f"the environment variable {_DIRECTORY_VARIABLE}"
    )
    if root is not None:
        if not root.is_dir():
            raise UserError(f"{name} is not at hand: there is no folder {root}: {remedy}")
        folder = root / published.folder
        missing = published.missing(folder)
        if not missing:
            return folder, True
        if len(missing) < len(published.sha256):
            raise UserError(f"{folder} holds only some of the files of {name}: {', '.join(missing)} not found there")

    # the default of TFDS, which reads it when it is imported
    tfds_dir = Path(os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")))
    for place in (tfds_dir,) if root is None else (root, tfds_dir):
        if prepared := find_prepared(name, place):
            return prepared, False

    try:
        return download_prepared(name, root if root and data_dir else tfds_dir), False
    except UserError as error:
        raise UserError(
            f"{name} is not at hand: {'no data folder is given' if root is None else f'{root} does not hold it'}, and "
            f"{error}: {remedy}"
        ) from error
