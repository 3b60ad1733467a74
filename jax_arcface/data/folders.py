"""Folders of the user's own images: one with a folder for each class, or images without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jax_arcface.data.images import PATTERNS, REFUSED_SUFFIXES, SUFFIXES, read_files
from jax_arcface.data.listing import TEST_NAMES, Listing, is_one_line
from jax_arcface.errors import UserError
from jax_arcface.files import shown

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
    folder, names = list_images(path)
    return names, read_files([folder / name for name in names], image_shape, image_fit, folder.name, progress=False)


def list_images(path: str | os.PathLike[str]) -> tuple[Path, list[str]]:
    """The image files that a path stands for, as `read_images` reads them: their folder, and their names in it.

    Raises:
      UserError: a path where nothing is, or a folder without images.
    """
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
    return folder, names


def list_folder(root: Path) -> Listing:
    """The training and the test images of a folder, in the order of class and file name.

    Raises:
      UserError: a folder that cannot be understood, or holds what cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{shown(root)} is not a folder: it must hold one folder of images for each class")
    splits = [name for name in ("train", *TEST_NAMES) if os.path.isdir(root / name) and _subfolders(root / name)]
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
        train, test = _list_classes(root), {}
        _check_several(root, train)
    files = [file for classes in (train, test) for of_class in classes.values() for file in of_class]
    number = {name: label for label, name in enumerate(sorted(train))}
    labels = [number[name] for classes in (train, test) for name, of_class in classes.items() for _ in of_class]
    is_test = np.arange(len(files)) >= sum(map(len, train.values()))
    return Listing(
        root.resolve().name, root, files, np.array(labels, np.int32), tuple(number), is_test if test else None, files
    )


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
    if not is_one_line(name):
        raise UserError(f"the name {name!a} in {shown(folder)} is not one line of text in UTF-8: rename it")
