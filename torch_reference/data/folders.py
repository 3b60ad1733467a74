"""The user's own images: a folder as a data set, or images without labels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torch_reference.data import _torchvision
from torch_reference.data.dataset import Dataset, Split, test_mask
from torch_reference.data.images import PATTERNS, fitted, is_grey, is_image, opened, upright, upright_size
from torch_reference.errors import UserError
from torch_reference.files import one_line

# Each class's files, in sorted order.
_Classes = dict[str, list[Path]]


def read_images(
    path: Path, image_shape: tuple[int, int, int], *, image_fit: str = "crop"
) -> tuple[list[str], np.ndarray]:
    """An image file, or the images of a folder and of the folders in it, in sorted order.

    Args:
      path: the file or the folder.
      image_shape: (H, W, C) that the images are fitted and converted to, grey for C = 1, RGB for C = 3.
      image_fit: `crop`, `pad` or `stretch`, as for `load`.

    Returns:
      The files' names, relative to the folder, and the images, uint8 [N, H, W, C].

    Raises:
      UserError: a path where nothing is, a folder without images, or an image that cannot be read.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        folder, names = path, sorted(_images_below(path))
        if not names:
            raise UserError(f"{one_line(path)} holds no images ({PATTERNS}): add some, or give another folder")
    elif os.path.lexists(path):
        folder, names = path.parent, [path.name]
    else:
        raise UserError(f"{one_line(path)} is not there: give an image or a folder of images ({PATTERNS})")
    for name in names:
        _check_name(folder, name)
    return names, _decode([folder / name for name in names], image_shape, image_fit)


def _images_below(folder: Path) -> list[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{one_line(Path(error.filename))} cannot be read: {error.strerror}")

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if is_image(Path(place, name))]
    return [file.relative_to(folder).as_posix() for file in found]


def load_folder(root: Path, image_size: int | None, image_fit: str) -> Dataset:
    """A folder of images as a data set; the arguments are those of `load`."""
    train, test = _list_folder(root)
    labels = {name: label for label, name in enumerate(sorted(train))}
    shape = _common_shape([*_files(train), *_files(test)], image_size)

    def split(classes: _Classes) -> Split:
        images = _decode(_files(classes), shape, image_fit)
        return Split(images, np.array([labels[name] for name in classes for _ in classes[name]], np.int32))

    return Dataset(root.resolve().name, split(train), split(test), tuple(labels))


def _list_folder(root: Path) -> tuple[_Classes, _Classes]:
    """The training and the test images of a folder; a folder without a test split gets one."""
    if not os.path.isdir(root):
        raise UserError(f"{one_line(root)} is not a folder: it must hold one folder of images for each class")

    def has_classes(name: str) -> bool:
        return os.path.isdir(root / name) and bool(_subfolders(root / name))

    test_name = next((name for name in ("test", "val", "valid", "validation") if has_classes(name)), None)
    if has_classes("train") and test_name is not None:
        train, test = _list_classes(root / "train"), _list_classes(root / test_name)
        _check_several(root / "train", train)
        if strange := sorted(test.keys() - train.keys()):
            raise UserError(f"{root / test_name} has classes that {root / 'train'} has not: {', '.join(strange)}")
        return train, test
    if test_name is not None:
        raise UserError(f"{one_line(root)} has {test_name}/CLASS but no train/CLASS: add the images to train on")
    if has_classes("train"):
        raise UserError(
            f"{one_line(root)} has train/CLASS but no test/CLASS: add it, or put the classes' folders one level up to "
            "have a test split drawn"
        )
    together = _list_classes(root)
    _check_several(root, together)
    labels = np.repeat(np.arange(len(together)), [len(files) for files in together.values()])
    drawn = iter(test_mask(labels).tolist())
    train, test = {}, {}
    for name, files in together.items():
        for file in files:
            (test if next(drawn) else train).setdefault(name, []).append(file)
    if not test:
        raise UserError(f"{root} has one image a class: at least one class needs two, for a test split")
    return train, test


def _check_several(folder: Path, classes: _Classes) -> None:
    if len(classes) < 2:
        found = f"one class only ({', '.join(classes)})" if classes else "no folders"
        raise UserError(f"{folder} holds {found}: it must hold one folder of images for each of two classes or more")


def _list_classes(folder: Path) -> _Classes:
    names = _subfolders(folder)
    if not names:
        return {}

    class Folder(_torchvision.datasets().ImageFolder):  # type: ignore[misc]
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            return names, {name: label for label, name in enumerate(names)}

    def is_valid(path: str) -> bool:
        return Path(path).parent.parent == folder and is_image(Path(path))

    classes: _Classes = {name: [] for name in names}
    for name in names:
        _entries(folder / name)  # torchvision takes a folder that it may not read for an empty one
    for path, label in Folder(folder, is_valid_file=is_valid, allow_empty=True).samples:
        classes[names[label]].append(Path(path))
    for name, files in classes.items():
        if not files:
            raise UserError(f"{one_line(folder / name)} holds no images ({PATTERNS}): add some, or remove the folder")
        _check_name(folder, name)
    return classes


def _subfolders(folder: Path) -> list[str]:
    return [name for name in _entries(folder) if name[0] != "." and os.path.isdir(folder / name)]


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{one_line(folder)} cannot be read: {error.strerror}") from None


def _check_name(folder: Path, name: str) -> None:
    """Raises UserError for a name that is not one line of Unicode text."""
    if {unicodedata.category(letter) for letter in name} & {"Cc", "Cs", "Zl", "Zp"}:
        raise UserError(f"{one_line(folder / name)}: the name is not text on one line, in UTF-8; give it another")


def _files(classes: _Classes) -> list[Path]:
    return [file for files in classes.values() for file in files]


def _common_shape(files: Sequence[Path], image_size: int | None) -> tuple[int, int, int]:
    """Height, width and channels that all these images are brought to."""
    sizes: dict[tuple[int, int], Path] = {}  # width and height, and the first image that has them
    all_grey = True
    for file in files:
        with opened(file) as image:
            sizes.setdefault(upright_size(image), file)
            all_grey = all_grey and is_grey(image)
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({one_line(first)} is {one[0]}x{one[1]}, {one_line(second)} is "
            f"{other[0]}x{other[1]}): give an image size N to have all brought to NxN"
        )
    return height, width, 1 if all_grey else 3


def _decode(files: Sequence[Path], shape: tuple[int, int, int], fit: str) -> np.ndarray:
    images = np.empty((len(files), *shape), np.uint8)
    for i, file in enumerate(files):
        with opened(file) as image:
            images[i] = fitted(upright(image), shape, fit)
    return images
