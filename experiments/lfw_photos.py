"""From raw photos of LFW to accuracy: faces found, landmarks beside published ones, images per second by step.

    python -m experiments lfw_photos ../shared/data/faces

The folder holds lfw/images (the photos of fold 1 of pairs.txt), lfw/pairs.txt, lfw/landmarks5_mtcnn.txt,
lfw/lfw_112_mtcnn.bin (all pairs as crops) and mobilefacenet/mobilefacenet.pt. Each photo is read, MTCNN finds its
faces, the face nearest the middle is aligned, the network embeds the crop and its mirror image. The threshold for fold
1 is the one that is best on the other nine folds, whose crops are in the .bin file: no pair of fold 1 has a part in it.
Prints the result and, with `--json FILE`, writes it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments._arguments import Parser, check_at_least, check_can_be_written
from experiments._machine import machine
from jax_arcface.cli import runs
from jax_arcface.data.images import read_files
from jax_arcface.data.pairs import ImagePairs, read_bin
from jax_arcface.errors import UserError
from jax_arcface.evaluation import cross_validated
from jax_arcface.faces.detection import choose
from jax_arcface.faces.gallery import embed_crops
from jax_arcface.faces.mtcnn import MTCNN
from jax_arcface.faces.photos import crop, read_landmarks, read_photo
from jax_arcface.models.trained import load_model

_FOLD = 600  # pairs


def main(words: list[str]) -> None:
    """Measures and prints."""
    options = _parser().parse_args(words)
    check_at_least(1, pairs=options.pairs)
    check_can_be_written(json=options.json)
    result = measure(options.faces, options.pairs, options.detection_only)
    for name, value in result.items():
        print(f"{name:<28} {value:.4g}" if isinstance(value, float) else f"{name:<28} {value}")
    if options.json:
        runs.write_json(options.json, result | {"machine": machine()})


def measure(faces: Path, pairs: int = _FOLD, detection_only: bool = False) -> dict[str, Any]:
    """What is found in the photos of the first pairs of LFW.

    Args:
      faces: the folder. pairs: how many of fold 1 to take. detection_only: leave embeddings and accuracy out.
    """
    lfw = faces / "lfw"
    rows = [line.split("\t") for line in (lfw / "pairs.txt").read_text().splitlines()[1 : _FOLD + 1]]
    step = max(_FOLD // pairs, 1)  # of both kinds as many
    rows = rows[::step]
    ends = [_files(lfw / "images", row) for row in rows]
    files = sorted({file for both in ends for file in both})
    detector = MTCNN()
    photos, read = _timed(lambda: [read_photo(file) for file in files])
    detector.detect(photos[0])  # compiles
    found, detect = _timed(lambda: [choose(detector.detect(photo), "central", photo.shape) for photo in photos])
    if missed := [file.name for file, face in zip(files, found, strict=True) if not len(face)]:
        raise UserError(f"no face was found in {len(missed):,} of {len(files):,} photos, such as {missed[0]}")
    crop(photos[0], found[0].points)
    crops, align = _timed(lambda: np.concatenate([crop(p, f.points) for p, f in zip(photos, found, strict=True)]))
    published = read_landmarks(lfw / "landmarks5_mtcnn.txt")
    differences = np.stack(
        [
            face.points[0] - published[f"{file.parent.name}/{file.name}"][0]
            for file, face in zip(files, found, strict=True)
        ]
    )
    distances = np.linalg.norm(differences, axis=2)
    centred = np.linalg.norm(differences - differences.mean((0, 1)), axis=2)
    result: dict[str, Any] = {
        "photos": len(files),
        "faces found": len(found),
        "landmarks, median px": float(np.median(distances)),
        "landmarks, 99th percentile": float(np.percentile(distances, 99)),
        "mean shift in x, px": float(differences[..., 0].mean()),
        "mean shift in y, px": float(differences[..., 1].mean()),
        "without it, median px": float(np.median(centred)),
        "without it, 99th percentile": float(np.percentile(centred, 99)),
        "read, photos/s": len(files) / read,
        "detect, photos/s": len(files) / detect,
        "align, photos/s": len(files) / align,
    }
    if detection_only:
        return result
    model = load_model(faces / "mobilefacenet" / "mobilefacenet.pt")
    embed_crops(model, crops[:64], flip=True)
    embeddings, embed = _timed(lambda: embed_crops(model, crops, flip=True))
    at = {file: number for number, file in enumerate(files)}
    first, second = (np.array([at[both[end]] for both in ends]) for end in (0, 1))
    same = np.array([len(row) == 3 for row in rows])
    listed = read_bin(lfw / "lfw_112_mtcnn.bin")
    others, known = _scores(model, listed)
    rest = listed.fold > 0
    raw = _accuracy((embeddings[first] * embeddings[second]).sum(1), same, others[rest], known[rest])
    held = ~rest & np.isin(np.arange(len(rest)), np.arange(0, _FOLD, step))
    from_crops = _accuracy(others[held], known[held], others[rest], known[rest])
    return result | {
        "embed with mirror, photos/s": len(files) / embed,
        "pairs": len(rows),
        "accuracy, from photos": raw,
        "accuracy, from the .bin": from_crops,
    }


def _accuracy(scores: np.ndarray, same: np.ndarray, others: np.ndarray, others_same: np.ndarray) -> float:
    """The accuracy of pairs at the threshold that is best on others."""
    fold = np.repeat([0, 1], [len(scores), len(others)])
    found = cross_validated(np.concatenate([scores, others]), np.concatenate([same, others_same]), fold)
    return float(found.accuracies[0])


def _files(folder: Path, row: Sequence[str]) -> tuple[Path, Path]:
    names = [(row[0], row[1]), (row[0], row[2])] if len(row) == 3 else [(row[0], row[1]), (row[2], row[3])]
    first, second = (folder / name / f"{name}_{int(number):04}.jpg" for name, number in names)
    return first, second


def _scores(model: Any, listed: ImagePairs) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the pairs of a .bin file, and which are of one person."""
    crops = read_files(listed.images, model.image_shape, "crop", "crops", progress=False)
    embeddings = embed_crops(model, crops, flip=True)
    return (embeddings[listed.first] * embeddings[listed.second]).sum(1), listed.same


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def _parser() -> argparse.ArgumentParser:
    parser = Parser("lfw_photos", __doc__)
    parser.add_argument("faces", type=Path, help="the folder with lfw and mobilefacenet")
    parser.add_argument("--pairs", type=int, default=_FOLD, help="pairs of fold 1 (default: all 600)")
    parser.add_argument("--detection-only", action="store_true", help="measure no accuracy")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser
