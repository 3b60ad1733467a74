"""How well a face can be seen: its size, how sharp it is, and which way it looks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jax_arcface.faces.alignment import TEMPLATE

# What is less is said to be too low. Networks see 112 pixels, of which smaller faces fill fewer and fewer.
MIN_SIZE, MIN_SHARPNESS, MAX_YAW, MAX_PITCH = 40.0, 20.0, 45.0, 40.0

# The template in three dimensions: the nose and the mouth stand out of the plane of the eyes, by parts of the 35 pixels
# between the eyes that stand for 63 mm in an adult: 35 and 9 mm.
_MODEL = np.concatenate([TEMPLATE, 35.2 / 63 * np.array([[0.0, 0.0, 35.0, 9.0, 9.0]]).T], axis=1)
_MODEL -= _MODEL.mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well one face can be seen.

    Args:
      size: the longer side of its box, in pixels of the photo.
      sharpness: the variance of the Laplacian of the aligned crop, in squared grey levels.
      yaw, pitch, roll: where the face looks, in degrees: to the right of the picture, down, and how far it is turned
        clockwise. Estimates from five points and the proportions of an average face.
    """

    size: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is too low, in words; nothing where all is well."""
        return tuple(
            said
            for said, bad in (
                (f"small ({self.size:.0f} of {MIN_SIZE:.0f} pixels)", self.size < MIN_SIZE),
                (f"blurred (sharpness {self.sharpness:.0f} of {MIN_SHARPNESS:.0f})", self.sharpness < MIN_SHARPNESS),
                (f"turned to the side (about {abs(self.yaw):.0f} degrees)", abs(self.yaw) > MAX_YAW),
                (f"turned up or down (about {abs(self.pitch):.0f} degrees)", abs(self.pitch) > MAX_PITCH),
            )
            if bad
        )


def measure(crop: np.ndarray, box: np.ndarray, points: np.ndarray) -> Quality:
    """The quality of a face.

    Args:
      crop: uint8 [S, S, 3], aligned. box: [4]. points: [5, 2], in the photo.
    """
    yaw, pitch, roll = pose(points)
    return Quality(float((box[2:] - box[:2]).max()), sharpness(crop), yaw, pitch, roll)


def sharpness(crop: np.ndarray) -> float:
    """The variance of the Laplacian (4 neighbours) of an image's grey levels (Pech-Pacheco et al. 2000).

    >>> sharpness(np.zeros((112, 112, 3), np.uint8))
    0.0
    """
    grey = crop.astype(np.float64) @ [0.299, 0.587, 0.114]
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var())


def pose(points: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll of five points [5, 2], in degrees; see `Quality`.

    The points are taken for a view from far away of an average face: two rows of a rotation, times a scale, that least
    squares find.

    >>> [round(abs(angle), 6) for angle in pose(TEMPLATE)]
    [0.0, 0.0, 0.0]
    """
    rows = np.linalg.lstsq(_MODEL, points - points.mean(0), rcond=None)[0].T
    right, down = (row / max(float(np.linalg.norm(row)), 1e-9) for row in rows)
    roll = math.atan2(-right[1], down[1])  # of the line from the eyes to the mouth
    # where the nose points to, with the head upright
    x = math.cos(roll) * right[2] + math.sin(roll) * down[2]
    y = math.cos(roll) * down[2] - math.sin(roll) * right[2]
    pitch = math.atan2(y, math.sqrt(max(1 - x * x - y * y, 0.0)))
    return math.degrees(math.asin(min(max(x, -1.0), 1.0))), math.degrees(pitch), math.degrees(roll)
