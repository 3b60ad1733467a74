"""From a data set's name to arrays in memory.

Images are uint8 [N, H, W, C] and labels int32 [N], the same in every run (`docs/recipe.md`, section Data).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gzip
import hashlib
import math
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from torch_reference.data import _torchvision
from torch_reference.errors import UserError
from torch_reference.philox import generator

DATASETS = ("digits", "mnist", "cifar10")

_DIRECTORY_VARIABLE = "ARCFACE_DATA_DIR"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_PATTERNS = "*.png, *.jpg, *.jpeg"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Args:
      images: uint8 [N, H, W, C], grey levels from 0 to 255.
      labels: int32 [N], each example's class, counted from 0.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
      name: what it is called; for a folder of images, the folder's own name.
      train: the examples to train on.
      test: the examples to test on.
      class_names: each class's name, at its label.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load(name: str, data_dir: str | os.PathLike[str] | None = None, *, image_size: int | None = None) -> Dataset:
    """Loads a data set by its name, or the user's own images by their folder.

    - `digits`: scikit-learn's digits, 8x8x1, with a seeded split. Needs no files.
    - `mnist`, `cifar10`: the published files in their published order, 28x28x1 and 32x32x3, as torchvision lays them
      out in `data_dir`, or where that is not given in the folder that the environment variable `ARCFACE_DATA_DIR`
      names; they are only read, and every file's checksum is verified. Where neither is given torchvision downloads
      them, into `datasets` in PyTorch's cache folder.
    - A path (with a separator, or an existing folder that is not called as above): `PATH/train/CLASS/*` and
      `PATH/test/CLASS/*`, or `PATH/CLASS/*` with a seeded split, as *.png, *.jpg or *.jpeg. Images are grey (C = 1)
      where all of them are, and RGB otherwise. Other files, hidden ones and folders inside a class's folder are
      ignored.

    Args:
      name: one of `DATASETS`, or the path of a folder.
      data_dir: where the files of `mnist` and `cifar10` are.
      image_size: height and width that images are resized to, in pixels (Pillow's bilinear filter). The default is the
        size they have, which must be the same for all.

    Raises:
      UserError: an unknown name, missing or damaged files, or a folder that cannot be understood.

    >>> digits = load("digits")
    >>> digits.train.images.shape, digits.test.images.shape, digits.num_classes
    ((1438, 8, 8, 1), (359, 8, 8, 1), 10)
    """
    name = os.fspath(name)
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size}: at least 1 pixel is needed")
    if name in _PUBLISHED:
        return _resize(_PUBLISHED[name].read(_find_published(name, data_dir)), image_size)
    if data_dir is not None:
        raise UserError(f"a data folder ({data_dir}) has no effect on {name!r}: leave it out")
    if name == "digits":
        return _resize(_digits(), image_size)
    if "/" in name or os.sep in name or os.path.isdir(name):
        return _load_folder(Path(name).expanduser(), image_size)
    near = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    raise UserError(
        f"no data set is called {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: give one of "
        f"{', '.join(DATASETS)} or the path of a folder with one folder of images for each class"
    )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and standard deviation over all images and pixels, from exact integer sums.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      Two float64 [C], in grey levels from 0 to 255: mean = S1 / n and std = sqrt(S2 / n - mean**2), with 1 where that
      is 0.

    Raises:
      ValueError: images of another type or number of axes, or none at all.

    >>> channel_statistics(np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1))
    (array([127.5]), array([127.5]))
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(f"images must be uint8 [N, H, W, C] and not empty, not {images.dtype} {list(images.shape)}")
    means, deviations = [], []
    for channel in np.moveaxis(images, -1, 0):
        histogram = [0] * 256  # exact, and 256 numbers are all that the sums need
        for start in range(0, len(channel), 4096):
            counts = np.bincount(channel[start : start + 4096].ravel(), minlength=256)
            histogram = [total + int(count) for total, count in zip(histogram, counts, strict=True)]
        n = sum(histogram)
        mean = sum(level * count for level, count in enumerate(histogram)) / n
        variance = sum(level**2 * count for level, count in enumerate(histogram)) / n - mean**2
        means.append(mean)
        deviations.append(math.sqrt(variance) if variance > 0 else 1.0)
    return np.array(means), np.array(deviations)


def read_images(path: Path, image_shape: tuple[int, int, int]) -> tuple[list[str], np.ndarray]:
    """An image file, or the images of a folder and of the folders in it, in sorted order.

    Args:
      path: the file or the folder.
      image_shape: (H, W, C) that the images are resized and converted to, grey for C = 1, RGB for C = 3.

    Returns:
      The files' names, relative to the folder, and the images, uint8 [N, H, W, C].

    Raises:
      UserError: a path where nothing is, a folder without images, or an image that cannot be read.
    """
    path = path.expanduser()
    if path.is_dir():
        folder = path
        below = (file.relative_to(path) for file in path.rglob("*") if _is_image(file))
        names = sorted(name.as_posix() for name in below if not any(part[0] == "." for part in name.parts))
        if not names:
            raise UserError(f"{path} holds no images ({_PATTERNS}): add some, or give another folder")
    elif path.exists():
        folder, names = path.parent, [path.name]
    else:
        raise UserError(f"{path} is not there: give an image or a folder of images ({_PATTERNS})")
    return names, _decode([folder / name for name in names], *image_shape)


# ---- digits


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = ((255 * raw.images.astype(np.int64) + 8) // 16).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    test = _test_mask(labels)
    return Dataset(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        class_names=tuple(map(str, raw.target_names)),
    )


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Which examples of an unsplit data set are its test split: bool [N], a fifth of each class, drawn with seed 0."""
    draws = generator(0, "split")
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)
        n = len(examples)
        by_draw = examples[np.argsort(draws.random(n), kind="stable")]
        test[by_draw[: min(max(round(n / 5), 1), n - 1)]] = True
    return test


# ---- mnist and cifar10: the published files


def _read_mnist(root: Path) -> Dataset:
    # torchvision.datasets.MNIST reads unpacked files only, which it would write beside the packed ones
    def read(file: str, header: int) -> np.ndarray:
        content = gzip.decompress((root / "MNIST/raw" / file).read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    def split(prefix: str) -> Split:
        images = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)
        return Split(images, read(f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int32))

    return Dataset("mnist", split("train"), split("t10k"), tuple("0123456789"))


def _download_mnist(root: Path) -> None:
    _torchvision.datasets().MNIST(root, download=True)


def _download_cifar10(root: Path) -> None:
    # torchvision's CIFAR10 would not only download and unpack but unpickle, too, before the files are verified
    datasets = _torchvision.datasets()
    source = datasets.CIFAR10
    datasets.utils.download_and_extract_archive(source.url, root, filename=source.filename, md5=source.tgz_md5)


def _read_cifar10(root: Path) -> Dataset:
    # torchvision unpickles these files, and a pickle can run anything: they were verified before this is called
    train, test = (_torchvision.datasets().CIFAR10(root, train=train) for train in (True, False))

    def split(part: Any) -> Split:
        return Split(np.ascontiguousarray(part.data), np.array(part.targets, np.int32))

    return Dataset("cifar10", split(train), split(test), tuple(train.classes))


@dataclasses.dataclass(frozen=True)
class _Published:
    """A published data set: where its files are below the data folder, and their SHA-256 checksums.

    `download` puts the files below a folder, without looking into them; `read` reads them once they are verified.
    """

    folder: str
    sha256: Mapping[str, str]
    download: Callable[[Path], None]
    read: Callable[[Path], Dataset]


_PUBLISHED: Mapping[str, _Published] = MappingProxyType(
    {
        "mnist": _Published(
            folder="MNIST/raw",
            sha256={
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            download=_download_mnist,
            read=_read_mnist,
        ),
        "cifar10": _Published(
            folder="cifar-10-batches-py",
            sha256={
                "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
                "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
                "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
                "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
                "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
                "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
                "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
            },
            download=_download_cifar10,
            read=_read_cifar10,
        ),
    }
)


def _find_published(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds the published files, each file's checksum verified.

    They are downloaded into PyTorch's cache folder alone, never into one that the user gave.
    """
    published = _PUBLISHED[name]
    given = data_dir or os.environ.get(_DIRECTORY_VARIABLE)
    kept = Path(torch.hub.get_dir()).parent / "datasets"
    root = Path(given).expanduser() if given else kept
    missing = [file for file in published.sha256 if not (root / published.folder / file).is_file()]
    if 0 < len(missing) < len(published.sha256):
        raise UserError(
            f"{root / published.folder} holds only some of the files of {name}: {', '.join(missing)} not found there"
        )
    remedy = (
        f"put {published.folder}/{{{', '.join(published.sha256)}}} in a folder and name that folder with --data-dir or "
        f"the environment variable {_DIRECTORY_VARIABLE}"
    )
    if missing and given:
        wrong = f"{root} does not hold it" if root.is_dir() else f"there is no folder {root}"
        raise UserError(f"{name} is not at hand: {wrong}: {remedy}")
    if missing:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                published.download(root)
        except Exception as error:  # whatever torchvision, the network or the disk came up with
            raise UserError(
                f"{name} is not at hand: no data folder is given, and torchvision cannot download it "
                f"({_brief(error)}): {remedy}"
            ) from error
    for file, expected in published.sha256.items():
        _verify(root / published.folder / file, expected)
    return root


def _verify(path: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_brief(error)})") from error
    if found != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is {found}, expected {expected}: get it again")


# ---- a folder of images

# Each class's files, in sorted order.
_Classes = dict[str, list[Path]]


def _load_folder(root: Path, image_size: int | None) -> Dataset:
    train, test = _list_folder(root)
    labels = {name: label for label, name in enumerate(sorted(train))}
    height, width, channels = _common_shape([*_files(train), *_files(test)], image_size)

    def split(classes: _Classes) -> Split:
        images = _decode(_files(classes), height, width, channels)
        return Split(images, np.array([labels[name] for name in classes for _ in classes[name]], np.int32))

    return Dataset(root.resolve().name, split(train), split(test), tuple(labels))


def _list_folder(root: Path) -> tuple[_Classes, _Classes]:
    """The training and the test images of a folder; a folder without a test split gets one."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: it must hold one folder of images for each class")
    splits = [split for split in ("train", "test") if (root / split).is_dir() and _subfolders(root / split)]
    if len(splits) == 1:
        other = {"train": "test", "test": "train"}[splits[0]]
        raise UserError(
            f"{root} has {splits[0]}/CLASS but no {other}/CLASS: add it, or put the classes' folders in {root} itself "
            "to have a test split drawn"
        )
    if splits:
        train, test = _list_classes(root / "train"), _list_classes(root / "test")
        _check_several(root / "train", train)
        if strange := sorted(test.keys() - train.keys()):
            raise UserError(f"{root / 'test'} has classes that {root / 'train'} has not: {', '.join(strange)}")
        return train, test
    together = _list_classes(root)
    _check_several(root, together)
    labels = np.repeat(np.arange(len(together)), [len(files) for files in together.values()])
    drawn = iter(_test_mask(labels).tolist())
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
        return Path(path).parent.parent == folder and _is_image(Path(path))

    classes: _Classes = {name: [] for name in names}
    for path, label in Folder(folder, is_valid_file=is_valid, allow_empty=True).samples:
        classes[names[label]].append(Path(path))
    for name, files in classes.items():
        if not files:
            raise UserError(f"{folder / name} holds no images ({_PATTERNS}): add some, or remove the folder")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _is_image(file: Path) -> bool:
    return file.name.lower().endswith(_SUFFIXES) and file.name[0] != "." and not file.is_dir()


def _files(classes: _Classes) -> list[Path]:
    return [file for files in classes.values() for file in files]


def _common_shape(files: Sequence[Path], image_size: int | None) -> tuple[int, int, int]:
    """Height, width and channels that all these images are brought to."""
    sizes: dict[tuple[int, int], Path] = {}  # width and height, and the first image that has them
    grey = True
    for file in files:
        mode, size = _read_image(file, lambda image: (image.mode, image.size))
        sizes.setdefault(size, file)
        grey = grey and mode in ("1", "L", "LA", "La")
    if image_size is not None:
        width = height = image_size
    elif len(sizes) == 1:
        ((width, height),) = sizes
    else:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size ({first} is {one[0]}x{one[1]}, {second} is {other[0]}x{other[1]}): "
            "give --image-size N to resize all to NxN"
        )
    return height, width, 1 if grey else 3


def _decode(files: Sequence[Path], height: int, width: int, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB"}[channels]
    images = np.empty((len(files), height, width, channels), np.uint8)
    for i, file in enumerate(files):
        images[i] = _read_image(file, lambda image: _resized(image.convert(mode), height, width))
    return images


def _read_image(file: Path, look: Callable[[Any], Any]) -> Any:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                raise UserError(f"{file} has more than 8 bits a pixel: save it with 8 bits")
            return look(image)
    except UserError:
        raise
    except Exception as error:  # a damaged image can raise anything
        raise UserError(f"{file} is not an image that can be read ({_brief(error)}): replace or remove it") from error


def _resized(image: Any, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, -1)


def _resize(dataset: Dataset, image_size: int | None) -> Dataset:
    """The data set with its images resized to image_size x image_size, as they are where that is None or theirs."""
    if image_size is None or dataset.image_shape[:2] == (image_size, image_size):
        return dataset
    from PIL import Image

    def split(before: Split) -> Split:
        images = [Image.fromarray(image.squeeze(axis=-1) if image.shape[-1] == 1 else image) for image in before.images]
        return Split(np.stack([_resized(image, image_size, image_size) for image in images]), before.labels)

    return dataclasses.replace(dataset, train=split(dataset.train), test=split(dataset.test))


def _brief(error: Exception) -> str:
    """An error on one line, not too long."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
