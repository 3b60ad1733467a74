"""Data sets by their name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torch_reference.data.dataset import Dataset, Split, test_mask
from torch_reference.data.folders import read_folder
from torch_reference.data.images import FITS, resized
from torch_reference.data.listed import Listed, decode, read_csv, read_label_list
from torch_reference.data.published import PUBLISHED, find_published
from torch_reference.data.recordio import read_records
from torch_reference.errors import UserError, nearest

# A published data set needs its entry in PUBLISHED and nothing else.
DATASETS = ("digits", *PUBLISHED)

# Files of the user's own images, by their suffix.
_READERS: dict[str, Callable[[Path], Listed]] = {".csv": read_csv, ".txt": read_label_list, ".rec": read_records}
_OWN = "a folder with one folder of images for each class, a .csv file, a .txt list or a .rec file"


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    image_fit: str = "crop",
) -> Dataset:
    """Loads a data set by its name, or the user's own images by their path.

    - `digits`: scikit-learn's digits, 8x8x1, with a seeded split. Needs no files.
    - `mnist`, `cifar10`: the published files in their published order, 28x28x1 and 32x32x3, as torchvision lays them
      out in `data_dir`, or where that is not given in the folder that the environment variable `ARCFACE_DATA_DIR`
      names; they are only read, and every file's checksum is verified. Where neither is given torchvision downloads
      them, into `datasets` in PyTorch's cache folder.
    - A path (with a separator, or an existing folder that is not called as above): `PATH/train/CLASS/*` and
      `PATH/test/CLASS/*` (which may be called val, valid or validation), or `PATH/CLASS/*` with a seeded split.
      PNG, JPEG, WebP, BMP, PGM and PPM files are read, turned upright by their EXIF data; GIF, TIFF, HEIF and AVIF
      files are refused; other files, hidden ones and folders inside a class's folder are ignored. Images are grey
      (C = 1) where all of them are stored so, and RGB otherwise.
    - A `.csv` file with the columns `file`, `label` and perhaps `split`, or a `.txt` file of lines "path TAB label":
      the images that it names, read as those of a folder.
    - A `.rec` file, MXNet's RecordIO, with its `.idx` file beside it: the images that it holds.

    Args:
      name: one of `DATASETS`, or a path.
      data_dir: where the files of `mnist` and `cifar10` are.
      image_size: height and width that images are resized to, in pixels (Pillow's bilinear filter). The default is the
        size they have, which must be the same for all.
      image_fit: how a folder's images become square: `crop`, `pad` or `stretch`, as `images.fitted` has it.

    Raises:
      UserError: an unknown name, missing or damaged files, or a folder that cannot be understood.

    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1438, 8, 8, 1), (359, 8, 8, 1), 10)
    """
    name = os.fspath(name)
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size}: at least 1 pixel is needed")
    if image_fit not in FITS:
        raise UserError(f"there is no image fit {image_fit!r}: {nearest(image_fit, FITS)}")
    if image_fit != "crop" and (image_size is None or name in DATASETS):
        reason = "no image size is given" if image_size is None else f"the images of {name} are square"
        raise UserError(f"the image fit {image_fit} has no effect: {reason}")
    if name in PUBLISHED:
        return _resize(PUBLISHED[name].read(find_published(name, data_dir)), image_size)
    if data_dir is not None:
        raise UserError(f"a data folder ({data_dir}) has no effect on {name!r}: leave it out")
    if name == "digits":
        return _resize(_digits(), image_size)
    path = Path(os.path.expanduser(name))
    if not os.path.isdir(path) and (reader := _READERS.get(path.suffix.lower())):
        return decode(reader(path), image_size, image_fit)
    if "/" in name or os.sep in name or os.path.isdir(path):
        return decode(read_folder(path), image_size, image_fit)
    near = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    raise UserError(
        f"no data set is called {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: give one of "
        f"{', '.join(DATASETS)} or the path of {_OWN}"
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = ((255 * raw.images.astype(np.int64) + 8) // 16).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    test = test_mask(labels)
    return Dataset(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        class_names=tuple(map(str, raw.target_names)),
    )


def _resize(dataset: Dataset, image_size: int | None) -> Dataset:
    """The data set with its images resized to image_size x image_size, as they are where that is None or theirs."""
    if image_size is None or dataset.image_shape[:2] == (image_size, image_size):
        return dataset

    def split(before: Split) -> Split:
        return Split(np.stack([resized(image, image_size, image_size) for image in before.images]), before.labels)

    return dataclasses.replace(dataset, train=split(dataset.train), test=split(dataset.test))
