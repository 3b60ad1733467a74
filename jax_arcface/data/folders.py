"""The user's own images: a folder as a data set, or images without labels."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np

from jax_arcface.data.cache import cached, fingerprint
from jax_arcface.data.dataset import Dataset, Split, held_out
from jax_arcface.data.images import PATTERNS, REFUSED_SUFFIXES, SUFFIXES, bar, read_files, read_image, size_and_grey
from jax_arcface.errors import UserError
from jax_arcface.files import shown

# The folder beside `train` whose images are the test split; the first counts where there are several.
_TEST_FOLDERS = ("test", "val", "valid", "validation")

# Each class's files, in sorted order.
_Classes = dict[str, list[Path]]


def read_images(
    path: str | os.PathLike[str], image_shape: tuple[int, int, int], *, image_fit: str = "crop"
) -> tuple[list[str], np.ndarray]:
    """Reads images without labels: one file, or all that are in a folder and in the folders below it.

    They are turned upright, converted to grey levels (C = 1) or RGB (C = 3) and fitted to the size, as `load` does it.

    Args:
      path: an image, or a folder with images (PNG, JPEG, WebP, BMP, PGM or PPM, known by their suffix). Other files,
        hidden ones, hidden folders and symbolic links to folders are ignored there.
      image_shape: height, width and channels to give each image, such as a model's.
      image_fit: `crop`, `pad` or `stretch`, as for `load`.

    Returns:
      The files' names, and uint8 [N, H, W, C]. The names are relative to the folder, with "/" for a separator, and
      sorted.

    Raises:
      UserError: a path where nothing is, a folder without images, or an image that cannot be read.
      ValueError: neither 1 nor 3 channels.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (60, 40), "red").save(f"{folder}/red.png")
    ...     names, images = read_images(folder, (28, 28, 3))
    >>> names, images.shape, images[0, 0, 0].tolist()
    (['red.png'], (1, 28, 28, 3), [255, 0, 0])
    """
    if image_shape[2] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, not {image_shape[2]}")
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        folder, names = path, _names_below(path)
        if not names:
            raise UserError(f"{shown(path)} holds no images ({PATTERNS}): add some, or give another folder")
    elif os.path.lexists(path):
        folder, names = path.parent, [path.name]
    else:
        raise UserError(f"{shown(path)} is not there: give an image or a folder of images ({PATTERNS})")
    for name in names:
        _check_name(name, folder)
    return names, read_files([folder / name for name in names], image_shape, image_fit, path.name, progress=False)


def load_folder(root: Path, image_size: int | None, image_fit: str, cache: Path, progress: bool) -> Dataset:
    """The folder of images as a data set; the arguments are those of `load`."""
    train, test = _list_folder(root)
    try:
        key = fingerprint(root, _files(train, test), "folder", image_size, image_fit)
    except OSError as error:  # such as a link that leads nowhere
        raise UserError(f"{shown(error.filename)} cannot be read: {error.strerror}") from None
    return cached(cache / f"folder-{key}", lambda: _decode_folder(root, train, test, image_size, image_fit, progress))


def _decode_folder(
    root: Path, train: _Classes, test: _Classes, image_size: int | None, image_fit: str, progress: bool
) -> Dataset:
    sizes: dict[tuple[int, int], Path] = {}  # width and height, and the first image that has them
    grey = True
    for file in bar(_files(train, test), f"{root.name} sizes", progress):
        size, is_grey = read_image(file, size_and_grey)
        sizes.setdefault(size, file)
        grey = grey and is_grey
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({shown(first)} is {one[0]}x{one[1]}, {shown(second)} is {other[0]}x{other[1]}): "
            "give an image size N, to which all are brought"
        )
    shape = (height, width, 1 if grey else 3)
    labels = {name: label for label, name in enumerate(sorted(train))}

    def split(classes: _Classes, which: str) -> Split:
        images = read_files(_files(classes), shape, image_fit, f"{root.name} {which}", progress)
        return Split(images, np.array([labels[name] for name, files in classes.items() for _ in files], np.int32))

    return Dataset(root.resolve().name, split(train, "train"), split(test, "test"), tuple(labels))


def _files(*splits: _Classes) -> list[Path]:
    return [file for classes in splits for files in classes.values() for file in files]


def _list_folder(root: Path) -> tuple[_Classes, _Classes]:
    """The training and the test images of a folder; a folder without a test split gets one."""
    if not os.path.isdir(root):
        raise UserError(f"{shown(root)} is not a folder: it must hold one folder of images for each class")
    splits = [name for name in ("train", *_TEST_FOLDERS) if os.path.isdir(root / name) and _subfolders(root / name)]
    if splits == ["train"]:
        raise UserError(
            f"{shown(root)} has train/CLASS but no test/CLASS: add it, or put the classes' folders in the folder "
            "itself to have a test split drawn"
        )
    if splits and splits[0] != "train":
        raise UserError(f"{shown(root)} has {splits[0]}/CLASS but no train/CLASS: add it")
    if splits:
        train, test = _list_classes(root / "train"), _list_classes(root / splits[1])
        _check_several(root / "train", train)
        if strange := sorted(test.keys() - train.keys()):
            raise UserError(
                f"{shown(root / splits[1])} has classes that {root / 'train'} has not: {', '.join(strange)}"
            )
    else:
        together = _list_classes(root)
        _check_several(root, together)
        labels = np.repeat(np.arange(len(together)), [len(files) for files in together.values()])
        mask = iter(held_out(labels).tolist())
        train, test = {}, {}
        for name, files in together.items():
            for file in files:
                (test if next(mask) else train).setdefault(name, []).append(file)
        if not test:
            raise UserError(f"{root} has one image a class: at least one class needs two, for a test split")
    return train, test


def _check_several(folder: Path, classes: _Classes) -> None:
    if len(classes) < 2:
        found = f"one class only ({', '.join(classes)})" if classes else "no folders"
        raise UserError(f"{folder} holds {found}: it must hold one folder of images for each of two classes or more")


def _list_classes(folder: Path) -> _Classes:
    classes = {}
    for subfolder in _subfolders(folder):
        names = [name for name in _list(subfolder) if _is_image(subfolder, name)]
        if not names:
            raise UserError(f"{shown(subfolder)} holds no images ({PATTERNS}): add some, or remove the folder")
        _check_name(subfolder.name, folder)
        classes[subfolder.name] = [subfolder / name for name in names]
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in _list(folder) if name[0] != "." and os.path.isdir(folder / name)]


def _list(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be read: {error.strerror}") from None


def _names_below(root: Path) -> list[str]:
    """The images in the folder and the folders below it, relative to it, sorted."""

    def fail(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)} cannot be read: {error.strerror}") from error

    names = []
    for folder, subfolders, files in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        here = Path(folder)
        names += [(here / name).relative_to(root).as_posix() for name in files if _is_image(here, name)]
    return sorted(names)


def _is_image(folder: Path, name: str) -> bool:
    """Whether a file counts as an image by its name."""
    suffix = os.path.splitext(name)[1].lower()
    if name[0] == "." or suffix not in SUFFIXES + REFUSED_SUFFIXES or os.path.isdir(folder / name):
        return False
    if suffix in REFUSED_SUFFIXES:
        raise UserError(f"{shown(folder / name)} is of a kind that is not read: save it as PNG or JPEG, or remove it")
    return True


def _check_name(name: str, folder: Path) -> None:
    """Raises UserError for a name that cannot be written as one line of UTF-8."""
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise UserError(f"the name {name!a} in {shown(folder)} is not one line of text in UTF-8: rename it")
