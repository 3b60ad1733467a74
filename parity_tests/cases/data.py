"""The data sets as each program loads them, bit by bit."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_arcface import data as jax_data
from parity_tests.cases import Case
from parity_tests.compare import Difference, difference
from parity_tests.lockstep import both_datasets
from torch_reference import data as torch_data


def _compared(here: jax_data.Dataset, there: torch_data.Dataset) -> Iterator[Difference]:
    for split in ("train", "test"):
        for part in ("images", "labels"):
            one, other = getattr(getattr(here, split), part), getattr(getattr(there, split), part)
            if one.dtype != other.dtype:
                note = f"dtypes {one.dtype} and {other.dtype}"
                yield Difference(f"{split} {part}", str(other.dtype), np.inf, np.inf, np.inf, note=note)
            elif not np.array_equal(one, other):
                yield difference(f"{split} {part}", one, other)
            else:
                # without a float64 copy of the images
                yield difference(f"{split} {part}", one[:1], other[:1])
    yield difference("class names", _bytes(here.class_names), _bytes(there.class_names))
    for what, one, other in zip(
        ("mean", "standard deviation"),
        jax_data.channel_statistics(here.train.images),
        torch_data.channel_statistics(there.train.images),
        strict=True,
    ):
        yield difference(what, one, other)


def _bytes(names: Iterable[str]) -> np.ndarray:
    return np.array([*"\n".join(names).encode()])


def _named(name: str) -> Iterator[Difference]:
    yield from _compared(*both_datasets(name))


def _resized() -> Iterator[Difference]:
    yield from _compared(jax_data.load("digits", image_size=13), torch_data.load("digits", image_size=13))


def _held_out() -> Iterator[Difference]:
    names = ("7", "2")
    here, there = (
        jax_data.hold_out(jax_data.load("digits"), names),
        torch_data.hold_out(torch_data.load("digits"), names),
    )
    yield from _compared(here, there)
    for part in ("images", "labels"):
        yield difference(f"unseen {part}", getattr(here.unseen, part), getattr(there.unseen, part))
    yield difference("unseen names", _bytes(here.unseen_names), _bytes(there.unseen_names))


def make_folder(root: Path, split: bool) -> Path:
    """A folder of small colour and grey images of three classes."""
    rng = np.random.default_rng(0)
    for part in ("train", "test") if split else ("",):
        for name, count in (("zebra", 6), ("Ape", 4), ("cat", 7)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (9, 12, 3) if number % 2 or not split else (9, 12)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def _folder(split: bool, image_size: int | None) -> Iterator[Difference]:
    with tempfile.TemporaryDirectory() as temporary:
        root = make_folder(Path(temporary) / "animals", split)
        here = jax_data.load(str(root), image_size=image_size, cache_dir=Path(temporary) / "cache")
        yield from _compared(here, torch_data.load(str(root), image_size=image_size))


def make_photos(root: Path) -> Path:
    """A folder of images as cameras make them: of several sizes and formats, some lying on their side; val/ tests."""
    rng = np.random.default_rng(1)
    suffixes = ("png", "jpg", "webp", "bmp", "ppm")
    for number, (part, name) in enumerate((part, name) for part in ("train", "val") for name in ("beach", "hill") * 4):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        suffix = suffixes[number % len(suffixes)]
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        image = Image.fromarray(rng.integers(0, 256, (7 + 3 * number % 17, 11 + number, 3), dtype=np.uint8))
        options: dict[str, Any] = {"exif": exif} if suffix in ("png", "jpg", "webp") else {}
        image.save(root / part / name / f"{number}.{suffix}", **options)
    return root


def _photos(fit: str) -> Iterator[Difference]:
    with tempfile.TemporaryDirectory() as temporary:
        root = make_photos(Path(temporary) / "places")
        here = jax_data.load(str(root), image_size=12, image_fit=fit, cache_dir=Path(temporary) / "cache")
        yield from _compared(here, torch_data.load(str(root), image_size=12, image_fit=fit))
        (_, one), (_, other) = (d.read_images(root, (9, 14, 1), image_fit=fit) for d in (jax_data, torch_data))
        yield difference("images of another shape", one, other)


def _lists() -> Iterator[Difference]:
    with tempfile.TemporaryDirectory() as temporary:
        root = make_folder(Path(temporary) / "animals", split=False)
        files = sorted(root.glob("*/*.png"), key=lambda file: file.name)
        splits = ["val" if i % 5 == 4 else "train" for i in range(len(files))]
        rows = [(file.relative_to(root), file.parent.name, split) for file, split in zip(files, splits, strict=True)]
        (root / "label.txt").write_text("".join(f"{file}\t{label}\n" for file, label, _ in rows))
        lines = ["file,split,label", *(f"{file},{split},{label}" for file, label, split in rows)]
        (root / "list.csv").write_text("\n".join(lines))
        for name in ("label.txt", "list.csv"):
            here = jax_data.load(str(root / name), image_size=9, cache_dir=Path(temporary) / "cache")
            yield from _compared(here, torch_data.load(str(root / name), image_size=9))


def _records() -> Iterator[Difference]:
    with tempfile.TemporaryDirectory() as temporary:
        root = make_folder(Path(temporary) / "animals", split=False)
        folders = sorted(root.iterdir())
        images = [(i, file.read_bytes()) for i, folder in enumerate(folders) for file in sorted(folder.iterdir())]
        for layout in ("faces", "im2rec"):
            path = Path(temporary) / layout / "train.rec"
            jax_data.write_records(path, images, layout=layout)
            here = jax_data.load(str(path), cache_dir=Path(temporary) / "cache")
            yield from _compared(here, torch_data.load(str(path)))


def _images() -> Iterator[Difference]:
    with tempfile.TemporaryDirectory() as temporary:
        root = make_folder(Path(temporary) / "animals", split=False)
        (files, here), (names, there) = (d.read_images(root / "cat", (8, 8, 3)) for d in (jax_data, torch_data))
        yield difference("images", here, there)
        yield difference("files", _bytes(files), _bytes(names))


CASES = [
    Case(what, "data", "uint8", 0.0, measure, unit="exact", covers=covers)
    for what, measure, covers in (
        ("digits", functools.partial(_named, "digits"), ("digits", "load", "channel_statistics", "Dataset", "Split")),
        ("digits resized to 13x13", _resized, ()),
        ("digits without two classes", _held_out, ("hold_out",)),
        ("mnist", functools.partial(_named, "mnist"), ("mnist",)),
        ("cifar10", functools.partial(_named, "cifar10"), ("cifar10",)),
        ("a folder with both splits", functools.partial(_folder, True, None), ()),
        ("a folder without splits, resized", functools.partial(_folder, False, 10), ()),
        ("photos, cropped", functools.partial(_photos, "crop"), ()),
        ("photos, padded", functools.partial(_photos, "pad"), ()),
        ("photos, stretched", functools.partial(_photos, "stretch"), ()),
        ("a CSV file and a list of labels", _lists, ()),
        ("RecordIO in both layouts", _records, ("write_records",)),
        ("image files", _images, ("read_images",)),
    )
]
