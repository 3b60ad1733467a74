"""MNIST and CIFAR-10, from the files as they were published."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from torch_reference.data import _torchvision
from torch_reference.data.dataset import Dataset, Split
from torch_reference.errors import UserError
from torch_reference.files import one_line, read_bytes

_DIRECTORY_VARIABLE = "ARCFACE_DATA_DIR"
_LARGEST_FILE = 2**28  # bytes; the largest that was published has 31 million


def _read_mnist(root: Path) -> Dataset:
    # torchvision.datasets.MNIST reads unpacked files only, which it would write beside the packed ones
    def read(file: str) -> np.ndarray:
        return read_idx(gzip.decompress((root / "MNIST/raw" / file).read_bytes()), file)

    def split(prefix: str) -> Split:
        images = read(f"{prefix}-images-idx3-ubyte.gz")[..., None]
        return Split(images, read(f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32))

    return Dataset("mnist", split("train"), split("t10k"), tuple("0123456789"))


def read_idx(content: bytes, file: str) -> np.ndarray:
    """The bytes of an IDX file, MNIST's format, as uint8 of as many axes as it has.

    Raises:
      UserError: the header is not one of bytes, or the content has another size than it says.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels")
    array([7, 9], dtype=uint8)
    """
    wrong = f"{file} is not an IDX file of bytes"
    if content[:3] != b"\0\0\x08" or len(content) < 4 or not 1 <= content[3] <= 4:
        raise UserError(wrong)
    end = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, end, 4)]
    if len(content) < end or 0 in shape or math.prod(shape) != len(content) - end:
        raise UserError(f"{wrong}: its header does not agree with its size")
    return np.frombuffer(content, np.uint8, offset=end).reshape(shape)


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
class Published:
    """A published data set: where its files are below the data folder, and their SHA-256 checksums.

    `download` puts the files below a folder, without looking into them; `read` reads them once they are verified.
    """

    folder: str
    sha256: Mapping[str, str]
    download: Callable[[Path], None]
    read: Callable[[Path], Dataset]


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "mnist": Published(
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
        "cifar10": Published(
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


def find_published(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder that holds the published files, each file's checksum verified.

    They are downloaded into PyTorch's cache folder alone, never into the user's own.
    """
    published = PUBLISHED[name]
    given = data_dir or os.environ.get(_DIRECTORY_VARIABLE)
    kept = Path(torch.hub.get_dir()).parent / "datasets"
    root = Path(given).expanduser() if given else kept
    missing = [file for file in published.sha256 if not (root / published.folder / file).is_file()]
    if 0 < len(missing) < len(published.sha256):
        raise UserError(
            f"{root / published.folder} holds only some of the files of {name}: {', '.join(missing)} not found there"
        )
    remedy = (
        f"put {published.folder}/{{{', '.join(published.sha256)}}} in a folder and give that as the data folder or in "
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
                f"({one_line(error)}): {remedy}"
            ) from error
    for file, expected in published.sha256.items():
        _verify(root / published.folder / file, expected)
    return root


def _verify(path: Path, expected: str) -> None:
    found = hashlib.sha256(read_bytes(path, _LARGEST_FILE)).hexdigest()
    if found != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is {found}, expected {expected}: get it again")
