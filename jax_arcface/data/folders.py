"""The user's own images: a folder as a data set, or images without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jax_arcface.data.cache import cached, fingerprint
from jax_arcface.data.datasets import Dataset, Split, held_out
from jax_arcface.data.errors import DataError, brief
from jax_arcface.data.images import bar, read_files, read_image

_SUFFIXES = (".png", ".jpg", ".jpeg")
_PATTERNS = "*.png, *.jpg, *.jpeg"

# Each class's files, in sorted order.
_Classes = dict[str, list[Path]]


def read_images(path: str | os.PathLike[str], image_shape: tuple[int, int, int]) -> tuple[list[str], np.ndarray]:
    """Reads images without labels: one file, or all that are in a folder and in the folders below it.

    They are converted to grey levels (C = 1) or RGB (C = 3) and then resized with Pillow's bilinear filter, as `load`
    does it.

    Args:
      path: an image, or a folder with *.png, *.jpg or *.jpeg. Other files, hidden ones, hidden folders and symbolic
        links to folders are ignored there.
      image_shape: height, width and channels to give each image, such as a model's.

    Returns:
      The files' names, and uint8 [N, H, W, C]. The names are relative to the folder, with "/" for a separator, and
      sorted.

    Raises:
      DataError: a path where nothing is, a folder without images, or an image that cannot be read.
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
    if path.is_dir():
        folder, names = path, _names_below(path)
        if not names:
            raise DataError(f"{path} holds no images ({_PATTERNS}): add some, or give another folder")
    elif path.exists():
        folder, names = path.parent, [path.name]
    else:
        raise DataError(f"{path} is not there: give an image or a folder of images ({_PATTERNS})")
    return names, read_files([folder / name for name in names], image_shape, path.name, progress=False)


def load_folder(root: Path, image_size: int | None, cache: Path, progress: bool) -> Dataset:
    """The folder of images as a data set; the arguments are those of `load`."""
    train, test = _list_folder(root)
    key = fingerprint(root, _files(train, test), "folder", image_size)
    return cached(cache / f"folder-{key}", lambda: _decode_folder(root, train, test, image_size, progress))


def _decode_folder(root: Path, train: _Classes, test: _Classes, image_size: int | None, progress: bool) -> Dataset:
    sizes: dict[tuple[int, int], Path] = {}  # width and height, and the first image that has them
    grey = True
    for file in bar(_files(train, test), f"{root.name} sizes", progress):
        mode, size = read_image(file, lambda image: (image.mode, image.size))
        sizes.setdefault(size, file)
        grey = grey and mode in ("1", "L", "LA", "La")
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise DataError(
            f"images differ in size ({first} is {one[0]}x{one[1]}, {second} is {other[0]}x{other[1]}): "
            "give --image-size N to resize all to NxN"
        )
    shape = (height, width, 1 if grey else 3)
    labels = {name: label for label, name in enumerate(sorted(train))}

    def split(classes: _Classes, which: str) -> Split:
        images = read_files(_files(classes), shape, f"{root.name} {which}", progress)
        return Split(images, np.array([labels[name] for name, files in classes.items() for _ in files], np.int32))

    return Dataset(root.resolve().name, split(train, "train"), split(test, "test"), tuple(labels))


def _files(*splits: _Classes) -> list[Path]:
    return [file for classes in splits for files in classes.values() for file in files]


def _list_folder(root: Path) -> tuple[_Classes, _Classes]:
    """The training and the test images of a folder; a folder without a test split gets one."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: it must hold one folder of images for each class")
    splits = [split for split in ("train", "test") if (root / split).is_dir() and _subfolders(root / split)]
    if len(splits) == 1:
        other = {"train": "test", "test": "train"}[splits[0]]
        raise DataError(
            f"{root} has {splits[0]}/CLASS but no {other}/CLASS: add it, or put the classes' folders in {root} itself "
            "to have a test split drawn"
        )
    if splits:
        train, test = _list_classes(root / "train"), _list_classes(root / "test")
        _check_several(root / "train", train)
        if strange := sorted(test.keys() - train.keys()):
            raise DataError(f"{root / 'test'} has classes that {root / 'train'} has not: {', '.join(strange)}")
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
            raise DataError(f"{root} has one image a class: at least one class needs two, for a test split")
    return train, test


def _check_several(folder: Path, classes: _Classes) -> None:
    if len(classes) < 2:
        found = f"one class only ({', '.join(classes)})" if classes else "no folders"
        raise DataError(f"{folder} holds {found}: it must hold one folder of images for each of two classes or more")


def _list_classes(folder: Path) -> _Classes:
    classes = {}
    for subfolder in _subfolders(folder):
        names = sorted(filter(_is_image, os.listdir(subfolder)))
        if not names:
            raise DataError(f"{subfolder} holds no images ({_PATTERNS}): add some, or remove the folder")
        classes[subfolder.name] = [subfolder / name for name in names]
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if (folder / name).is_dir() and name[0] != "."]


def _names_below(root: Path) -> list[str]:
    """The images in the folder and the folders below it, relative to it, sorted."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({brief(error)})") from error

    names = []
    for folder, subfolders, files in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files if _is_image(name)]
    return sorted(names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and name[0] != "."
