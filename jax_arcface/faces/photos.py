"""From files of photos to the aligned crops of the faces that are meant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jax_arcface.data.images import read_image, upright
from jax_arcface.errors import UserError
from jax_arcface.faces.alignment import TEMPLATE, align
from jax_arcface.faces.detection import CHOICES, Detector, Faces, choose
from jax_arcface.faces.mtcnn import rounded
from jax_arcface.faces.quality import Quality, measure
from jax_arcface.files import read_bytes, shown

ONLY = "only"  # the choice of the one face of a photo that has no other
_MAX_LANDMARK_BYTES = 2**30
_SPREAD = math.sqrt(((TEMPLATE - TEMPLATE.mean(0)) ** 2).sum())

Landmarks = Mapping[str, np.ndarray]


class SeveralFaces(UserError):
    """A photo shows several faces where one is needed."""


@dataclasses.dataclass(frozen=True)
class Portraits:
    """The faces of one photo.

    Args:
      photo: uint8 [H, W, 3], upright.
      faces: those that are meant; none where the whole photo is taken for a crop.
      crops: uint8 [F, S, S, 3]. quality: F of them.
    """

    photo: np.ndarray
    faces: Faces
    crops: np.ndarray
    quality: tuple[Quality, ...]


def read_photo(file: Path) -> np.ndarray:
    """The photo in a PNG, JPEG, WebP, BMP, PGM or PPM file, upright (EXIF) and in RGB: uint8 [H, W, 3].

    Raises:
      UserError: another or a damaged file, or more than 100 million pixels, of which none is then decoded.
    """
    return read_image(file, lambda image: np.asarray(upright(image).convert("RGB")))


@dataclasses.dataclass(frozen=True)
class Finder:
    """How faces are found in photos.

    Args:
      detector: None takes each photo for a crop that is aligned already.
      landmarks: the five points of faces, from `read_landmarks`, which are then not looked for.
      which: the faces that are meant: "only", "largest", "central" or "all".
      min_size: the shortest longer side of a face's box, in pixels; smaller faces count as not there.
      size: of the crops.
    """

    detector: Detector | None = None
    landmarks: Landmarks | None = None
    which: str = ONLY
    min_size: float = 0.0
    size: int = 112

    def __post_init__(self) -> None:
        if self.which not in (ONLY, *CHOICES):
            raise ValueError(f"faces can be chosen as {ONLY}, {', '.join(CHOICES)}, not as {self.which!r}")

    def read(self, file: Path) -> Portraits:
        """The faces of a photo, at least one, from left to right.

        Raises:
          UserError: no face; a photo that cannot be read.
          SeveralFaces: several faces where one is needed.
        """
        photo = read_photo(file)
        if self.detector is None and self.landmarks is None:
            whole = np.asarray(Image.fromarray(photo).resize((self.size, self.size), Image.Resampling.BILINEAR))
            return Portraits(photo, _faces_of(np.zeros((0, 5, 2))), whole[None], ())
        faces = self._faces(photo, file)
        found = choose(faces, "all" if self.which == ONLY else self.which, photo.shape, self.min_size)
        if len(found) == 0:
            smaller = f" of {self.min_size:g} pixels or more ({len(faces)} smaller)" if len(faces) else ""
            raise UserError(f"{shown(file)} shows no face{smaller}")
        if self.which == ONLY and len(found) > 1:
            raise SeveralFaces(f"{shown(file)} shows {len(found)} faces, where one is needed")
        found = found[np.argsort(found.boxes[:, 0], kind="stable")]
        crops = crop(photo, found.points, self.size)
        return Portraits(photo, found, crops, tuple(map(measure, crops, found.boxes, found.points)))

    def _faces(self, photo: np.ndarray, file: Path) -> Faces:
        if self.landmarks is None:
            assert self.detector is not None
            return self.detector.detect(photo)
        parts = file.as_posix().split("/")
        keys = ("/".join(parts[start:]) for start in range(len(parts)))
        points = next((self.landmarks[key] for key in keys if key in self.landmarks), None)
        if points is None:
            raise UserError(f"{shown(file)} is not among the {len(self.landmarks):,} photos with landmarks")
        return _faces_of(points)


def _faces_of(points: np.ndarray) -> Faces:
    """Faces whose points are known; their boxes are about as large as a detector's."""
    middle = points.mean(axis=1)
    half = 1.1 * np.ptp(points, axis=1).max(axis=1, keepdims=True, initial=0)
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    return Faces(*(a.astype(np.float32) for a in (boxes, np.ones(len(points)), points)))


def crop(photo: np.ndarray, points: np.ndarray, size: int = 112) -> np.ndarray:
    """The aligned crops, uint8 [F, size, size, 3], of faces of a photo of any size, given their points [F, 5, 2].

    Of a face that is more than twice as large in the photo as in the crop, means over squares of pixels are taken
    first: interpolation between four pixels would pass over the others.
    """
    crops = np.zeros((len(points), size, size, 3), np.uint8)
    spread = np.sqrt(((points - points.mean(axis=1, keepdims=True)) ** 2).sum((1, 2)))
    factors = np.maximum(1, spread / _SPREAD * 112 / size).astype(int)
    for factor in np.unique(factors):
        image, index = photo, np.flatnonzero(factors == factor)
        if factor > 1:
            image = np.asarray(Image.fromarray(photo).reduce(int(factor)))
        # sides of few sizes, and few numbers of faces, so that few programs are compiled
        full = np.zeros((1, *(rounded(n) for n in image.shape[:2]), 3), np.uint8)
        full[0, : image.shape[0], : image.shape[1]] = image
        padded = np.resize(index, 2 ** math.ceil(math.log2(len(index))))
        places = (points[padded] + 0.5) / factor - 0.5
        crops[index] = np.asarray(align(full, places, np.zeros(len(padded), int), size))[: len(index)]
    return crops


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """The five points of faces by photo, float64 [F, 5, 2], from lines `PATH x y x y x y x y x y`.

    A path may have spaces; one that stands on several lines has as many faces.

    Raises:
      UserError: no such file, or another content.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "points.txt"
    >>> _ = path.write_text("a b.jpg 1 2 3 4 5 6 7 8 9 10\\n")
    >>> {name: points.shape for name, points in read_landmarks(path).items()}
    {'a b.jpg': (1, 5, 2)}
    """
    found: dict[str, list[np.ndarray]] = {}
    lines = read_bytes(path, _MAX_LANDMARK_BYTES).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *words = line.strip().rsplit(maxsplit=10)
        try:
            points = np.array([float(word) for word in words]).reshape(5, 2)
        except ValueError:
            points = np.full((5, 2), np.nan)
        if not (np.abs(points) < 1e6).all() or np.ptp(points, axis=0).max() < 1:
            raise UserError(f"line {number} of {shown(path)} is not a path and the x and y of five points of a face")
        found.setdefault(name, []).append(points)
    if not found:
        raise UserError(f"{shown(path)} has no landmarks")
    return {name: np.stack(points) for name, points in found.items()}


def read_all(files: Sequence[Path], finder: Finder) -> Iterator[Portraits | UserError]:
    """The faces of each photo in turn, or why it has none that can be taken."""
    for file in files:
        try:
            yield finder.read(file)
        except UserError as error:
            yield error
