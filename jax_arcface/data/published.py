"""MNIST and CIFAR-10 as they were published: the files, their checksums and what they hold."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface.data.dataset import Dataset, Split
from jax_arcface.data.pickles import read_pickle
from jax_arcface.errors import UserError
from jax_arcface.files import brief, read_bytes

_MAX_BYTES = 2**28  # the largest published file has 31 million

# Gives the content of the raw file of that name, its checksum verified.
_ReadFile = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a published data set.

    Args:
      folder: where its files are, below the data folder.
      sha256: each file's checksum.
      tfds: the TFDS data set, name:version.
      content: each split's checksum, of its images' bytes and then its labels', one byte each.
      decode: from the files to the data set.
      unpack: writes to a path what TFDS would have unpacked from its download of this name.
    """

    folder: str
    sha256: Mapping[str, str]
    tfds: str
    content: Mapping[str, str]
    decode: Callable[[_ReadFile], Dataset]
    unpack: Callable[[_ReadFile, str, Path], None]

    def missing(self, folder: Path) -> list[str]:
        """Those of its files that are not in the folder."""
        return [file for file in self.sha256 if not (folder / file).is_file()]

    def read(self, folder: Path, file: str) -> bytes:
        """The content of one of its files, the checksum verified."""
        content = read_bytes(folder / file, _MAX_BYTES)
        found, expected = hashlib.sha256(content).hexdigest(), self.sha256[file]
        if found != expected:
            raise UserError(f"{folder / file} is damaged: its SHA-256 is {found}, expected {expected}: get it again")
        return content


def _decode_mnist(read: _ReadFile) -> Dataset:
    def split(prefix: str) -> Split:
        images, labels = (
            decode_idx(gzip.decompress(read(file)), file)
            for file in (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        )
        return Split(images[..., None], labels.astype(np.int32))

    return Dataset("mnist", split("train"), split("t10k"), tuple("0123456789"))


def decode_idx(content: bytes, file: str) -> np.ndarray:
    """The array in an IDX file of bytes (LeCun, "The MNIST database", file formats), uint8 of up to four axes.

    Raises:
      UserError: another type, or a size that is not the header's.

    >>> decode_idx(b"\\0\\0\\x08\\1" + b"\\0\\0\\0\\2" + b"\\7\\3", "labels")
    array([7, 3], dtype=uint8)
    """
    axes = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    if not 1 <= axes <= 4 or len(content) < 4 + 4 * axes:
        raise UserError(f"{file} is not an IDX file of bytes: get it again")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    if 0 in shape or math.prod(shape) != len(content) - 4 - 4 * axes:
        raise UserError(f"{file} is damaged: it has {len(content):,} bytes for the shape {shape}: get it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _unpack_mnist(read: _ReadFile, download: str, path: Path) -> None:
    path.write_bytes(gzip.decompress(read(download)))


_CIFAR10_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def _decode_cifar10(read: _ReadFile) -> Dataset:
    def split(files: Sequence[str]) -> Split:
        batches = [unpickle(read(file), file) for file in files]
        images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([batch[b"labels"] for batch in batches])
        return Split(np.ascontiguousarray(images), labels.astype(np.int32))

    names = unpickle(read("batches.meta"), "batches.meta")[b"label_names"]
    return Dataset(
        name="cifar10",
        train=split(_CIFAR10_BATCHES["train"]),
        test=split(_CIFAR10_BATCHES["test"]),
        class_names=tuple(name.decode("ascii") for name in names),
    )


def _unpack_cifar10(read: _ReadFile, download: str, path: Path) -> None:
    del download  # there is only one
    folder = path / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = unpickle(read("batches.meta"), "batches.meta")[b"label_names"]
    (folder / "batches.meta.txt").write_bytes(b"\n".join(names) + b"\n")
    for file in (file for files in _CIFAR10_BATCHES.values() for file in files):
        batch = unpickle(read(file), file)
        labels = np.array(batch[b"labels"], np.uint8)
        np.concatenate([labels[:, None], batch[b"data"]], axis=1).tofile(folder / f"{file}.bin")


def unpickle(content: bytes, file: str) -> dict[bytes, Any]:
    """What a file of CIFAR-10 holds; it was pickled by Python 2, so its strings are bytes.

    Raises:
      UserError: anything else than a dict of text, numbers, lists and arrays of bytes.
    """
    try:
        batch = read_pickle(content)
        if not isinstance(batch, dict):
            raise TypeError(f"it is a {type(batch).__name__}")
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{file} is not a batch of CIFAR-10 ({brief(error)}): get it again") from error
    return batch


PUBLISHED: Mapping[str, Published] = types.MappingProxyType(
    {
        "mnist": Published(
            folder="MNIST/raw",
            sha256={  # as TFDS lists them for mnist:3.0.1
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            tfds="mnist:3.0.1",
            content={
                "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
                "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
            },
            decode=_decode_mnist,
            unpack=_unpack_mnist,
        ),
        "cifar10": Published(
            folder="cifar-10-batches-py",
            sha256={  # of the files whose MD5 sums torchvision lists in torchvision.datasets.CIFAR10
                "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
                "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
                "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
                "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
                "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
                "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
                "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
            },
            tfds="cifar10:3.0.2",
            content={
                "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
                "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
            },
            decode=_decode_cifar10,
            unpack=_unpack_cifar10,
        ),
    }
)
