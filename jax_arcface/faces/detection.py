"""Faces in a photo: what every detector gives, and which of them are meant."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

CHOICES = ("largest", "central", "all")


@dataclasses.dataclass(frozen=True)
class Faces:
    """The faces in a photo; positions are in pixels, x before y, and the centre of the first pixel is at (0, 0).

    Args:
      boxes: float32 [F, 4]: left, top, right, bottom; they may reach beyond the photo.
      scores: float32 [F], from 0 to 1, how sure the detector is.
      points: float32 [F, 5, 2]: the eye that is left in the picture, the right one, the nose, the left and the right
        corner of the mouth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: np.ndarray | slice) -> Faces:
        return Faces(self.boxes[index], self.scores[index], self.points[index])

    @property
    def sizes(self) -> np.ndarray:
        """[F], the longer side of each box."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0)


class Detector(Protocol):
    """What finds faces."""

    def detect(self, image: np.ndarray) -> Faces:
        """The faces in an upright photo, uint8 [H, W, 3] in RGB, the surest first."""


def choose(faces: Faces, which: str, photo_shape: tuple[int, ...], min_size: float = 0.0) -> Faces:
    """The faces that are meant, of those of at least a size.

    Args:
      faces: all that a detector found.
      which: "all", the "largest" box, or the "central" one, whose middle is nearest to the photo's.
      photo_shape: (H, W) or more.
      min_size: the shortest admitted longer side of a box, in pixels.

    >>> boxes = np.array([[0, 0, 50, 60], [80, 90, 120, 130.0]], np.float32)
    >>> two = Faces(boxes, np.ones(2, np.float32), np.zeros((2, 5, 2), np.float32))
    >>> [choose(two, which, (200, 200)).boxes[:, 0].tolist() for which in CHOICES]
    [[0.0], [80.0], [0.0, 80.0]]
    """
    if which not in CHOICES:
        raise ValueError(f"faces can be chosen as {', '.join(CHOICES)}, not as {which!r}")
    faces = faces[faces.sizes >= min_size]
    if which == "all" or len(faces) == 0:
        return faces
    if which == "largest":
        number = int(np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1).argmax())
    else:
        middle = (faces.boxes[:, 2:] + faces.boxes[:, :2]) / 2 - (np.array(photo_shape[1::-1]) - 1) / 2
        number = int((middle**2).sum(axis=1).argmin())
    return faces[slice(number, number + 1)]
