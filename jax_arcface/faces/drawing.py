"""Boxes and names in a photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_COLOUR, _INK = (255, 210, 0), (0, 0, 0)


def draw(photo: np.ndarray, boxes: np.ndarray, labels: Sequence[str]) -> Image.Image:
    """The photo, uint8 [H, W, 3], with boxes [F, 4] and a label above each, below it where there is no room above.

    >>> draw(np.zeros((60, 80, 3), np.uint8), np.array([[20, 20, 50, 50.0]]), ["Ann"]).size
    (80, 60)
    """
    image = Image.fromarray(photo)
    pen = ImageDraw.Draw(image)
    height, width = photo.shape[:2]
    font = ImageFont.load_default(max(12, min(height, width) // 30))
    line = max(2, min(height, width) // 300)
    for (left, top, right, bottom), label in zip(boxes.tolist(), labels, strict=True):
        pen.rectangle((left, top, right, bottom), outline=_COLOUR, width=line)
        _, _, long, high = pen.textbbox((0, 0), label, font=font)
        x = min(max(left, 0), max(width - long - 4, 0))
        y = top - high - 4 if top - high - 4 >= 0 else min(bottom, height - high - 4)
        pen.rectangle((x, y, x + long + 4, y + high + 4), fill=_COLOUR)
        pen.text((x + 2, y + 2), label, fill=_INK, font=font)
    return image
