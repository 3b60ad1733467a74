"""Exported files beside the programs: size, largest difference of the embeddings, images a second of one core.

    python -m experiments bench export RUN_OR_WEIGHTS mnist --batch-size 64

Each file is written by its program and computed by its own runtime: ONNX by onnxruntime, StableHLO by JAX, pt2 by
PyTorch, each with one thread. The contenders take turns on the same batch of real images, and each one's median of the
processor's time counts, so that other work on the machine does not. The difference is to the program that wrote the
file, over all `--images`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import jax_arcface.export.formats as jax_formats
import jax_arcface.models.trained as jax_models
import torch_reference.export.formats as torch_formats
import torch_reference.models.trained as torch_models
from experiments._arguments import Parser, UserError, check_at_least, check_can_be_written
from experiments._machine import machine, versions
from jax_arcface import data
from jax_arcface.data import pairs
from jax_arcface.data.images import read_files
from jax_arcface.evaluation import all_pairs, tar_at_far
from jax_arcface.export.quantise import to_int8

Embed = Callable[[np.ndarray], np.ndarray]


class Contender(NamedTuple):
    """What computes embeddings, the bytes of its file (0 of a program) and their largest difference."""

    embed: Embed
    size: int = 0
    difference: float = 0.0


def contenders(path: Path, images: np.ndarray) -> dict[str, Contender]:
    """The two programs and the files of both that compute."""
    here, there = jax_models.load_model(path), torch_models.load_model(path)
    found = {"jax_arcface": Contender(here.embed), "torch_reference": Contender(there.embed)}
    for program, model, formats in (("jax_arcface", here, jax_formats), ("torch_reference", there, torch_formats)):
        for name, known in formats.FORMATS.items():
            content = known.write(model, {})
            if known.read is None:
                continue
            embed = one_thread(content) if name == "onnx" else known.read(content)
            assert embed is not None
            wanted = model.embed(images)
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
            apart = max(
                float(np.abs(embed(images[i : i + 500]) - wanted[i : i + 500]).max())
                for i in range(0, len(images), 500)
            )
            found[f"{name} of {program}"] = Contender(embed, len(content), apart)
    return found


def in_int8(path: Path, source: str, images: np.ndarray) -> Contender:
    """The JAX program's ONNX file with 8-bit integers, scaled by a data set's first 256 training images."""
    model = jax_models.load_model(path)
    content = to_int8(jax_formats.to_onnx(model, {}), data.load(source).train.images[:256])
    embed = one_thread(content)
    return Contender(embed, len(content), jax_formats.difference(model, embed, images))


def worth(path: Path, source: str, embed: Embed) -> tuple[float, float]:
    """Of a data set's test images: the accuracy among the classes that the model knows, and TAR at FAR 1e-3."""
    model, dataset = jax_models.load_model(path), data.load(source)
    images, labels = dataset.test.images, np.asarray(dataset.test.labels)
    x = np.concatenate([embed(images[i : i + 500]) for i in range(0, len(images), 500)])
    known = [dataset.class_names.index(name) for name in model.class_names]
    w = np.asarray(model.classes["prototypes"])
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    seen = np.isin(labels, known)
    right = np.array(known)[(x[seen] @ w.T).argmax(axis=1)] == labels[seen]
    (point,) = tar_at_far(all_pairs(x, labels), (1e-3,))
    return float(right.mean()), float(point.tar or 0)


def read_images(source: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The first images of a data set's test split, of a file of face pairs or of a folder."""
    if source in data.DATASETS:
        images = data.load(source).test.images
    elif Path(source).suffix == ".bin":
        listed = pairs.read_bin(Path(source)).images[:count]
        images = read_files(listed, (shape[0], shape[1], shape[2]), "crop", source, progress=False)
    else:
        images = data.read_images(Path(source), (shape[0], shape[1], shape[2]))[1]
    if images.shape[1:] != shape:
        raise UserError(f"{source} has images {images.shape[1:]}; the model takes {shape}")
    return np.ascontiguousarray(images[:count])


def one_thread(content: bytes) -> Embed:
    """What an ONNX file computes, by onnxruntime with one thread, since its others wait at work."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def seconds(contenders: dict[str, Contender], batch: np.ndarray, turns: int) -> dict[str, float]:
    """Each one's median processor time of a batch, after one that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, contender in contenders.items():
            start = time.process_time()
            contender.embed(batch)
            if turn > 0:
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(words: list[str]) -> int:
    """Measures what the words say and prints a table."""
    parser = Parser("bench export", __doc__)
    parser.add_argument("model", type=Path, help="run directory, or file of published weights")
    parser.add_argument("images_of", metavar="IMAGES", help="a data set's name, a .bin of face pairs, or a folder")
    parser.add_argument("--images", type=int, default=1000, help="how many images are compared (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a call that is timed (default: 64)")
    parser.add_argument("--turns", type=int, default=15, help="timed calls of each (default: 15)")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument(
        "--int8", action="store_true", help="an ONNX file in 8 bits, too, and what its embeddings are worth"
    )
    options = parser.parse_args(words)
    check_at_least(1, images=options.images, batch_size=options.batch_size, turns=options.turns)
    check_can_be_written(json=options.json)
    torch.set_num_threads(1)
    shape = jax_models.load_model(options.model).image_shape
    images = read_images(options.images_of, shape, options.images)
    batch = np.resize(images, (options.batch_size, *shape))
    known = contenders(options.model, images)
    if options.int8 and options.images_of not in data.DATASETS:
        raise UserError("--int8 needs a data set, whose training images scale the integers")
    if options.int8:
        known["int8 of jax_arcface"] = in_int8(options.model, options.images_of, images)
    times = seconds(known, batch, options.turns)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "bytes": c.size,
            "difference": c.difference,
            "images_per_second": options.batch_size / times[name],
        }
        for name, c in known.items()
    }
    print(f"{options.images_of}: {len(images):,} compared, batches of {options.batch_size}, {options.turns} turns")
    print("| | size, KB | largest difference | images/s of one core |\n|---|---|---|---|")
    for name, row in rows.items():
        size, apart = (f"{row['bytes'] / 1000:,.0f}", f"{row['difference']:.1e}") if row["bytes"] else ("", "")
        print(f"| {name} | {size} | {apart} | {row['images_per_second']:,.0f} |")
    if options.int8:
        for name in ("onnx of jax_arcface", "int8 of jax_arcface"):
            accuracy, tar = worth(options.model, options.images_of, known[name].embed)
            print(f"{name}: accuracy {100 * accuracy:.2f} %, TAR at FAR 1e-3 {100 * tar:.2f} %")
    if options.json:
        result = {"rows": rows, "machine": machine(), "versions": versions()}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
