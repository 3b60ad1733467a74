"""The user's own images: a folder as a data set, or images without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from torch_reference.data import _torchvision
from torch_reference.data.images import PATTERNS, is_image
from torch_reference.data.listed import SPLITS, Listed, decoded, is_text_line
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
    return names, decoded([folder / name for name in names], image_shape, image_fit)


def _images_below(folder: Path) -> list[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{one_line(Path(error.filename))} cannot be read: {error.strerror}")

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if is_image(Path(place, name))]
    return [file.relative_to(folder).as_posix() for file in found]


def read_folder(root: Path) -> Listed:
    """The training and the test images of a folder, class by class.

    Raises:
      UserError: a folder that cannot be understood.
    """
    if not os.path.isdir(root):
        raise UserError(f"{one_line(root)} is not a folder: it must hold one folder of images for each class")

    def has_classes(name: str) -> bool:
        return os.path.isdir(root / name) and bool(_subfolders(root / name))

    test_name = next((name for name in SPLITS[1:] if has_classes(name)), None)
    if not has_classes("train") and test_name is not None:
        raise UserError(f"{one_line(root)} has {test_name}/CLASS but no train/CLASS: add the images to train on")
    if has_classes("train") and test_name is None:
        raise UserError(
            f"{one_line(root)} has train/CLASS but no test/CLASS: add it, or put the classes' folders one level up to "
            "have a test split drawn"
        )
    train_folder = root if test_name is None else root / "train"
    train = _list_classes(train_folder)
    _check_several(train_folder, train)
    test = {} if test_name is None else _list_classes(root / test_name)
    if strange := sorted(test.keys() - train.keys()):
        raise UserError(f"{root}/{test_name} has classes that {train_folder} has not: {', '.join(strange)}")
    files = [file for classes in (train, test) for of_class in classes.values() for file in of_class]
    names = [name for classes in (train, test) for name, of_class in classes.items() for _ in of_class]
    is_test = np.arange(len(files)) >= sum(len(of_class) for of_class in train.values())
    return Listed(root.resolve().name, root, files, names, sorted(train), is_test if test else None)


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
    if not is_text_line(name):
        raise UserError(f"{one_line(folder / name)}: the name is not text on one line, in UTF-8; give it another")
