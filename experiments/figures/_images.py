"""Images among a figure's numbers, as PNG in base64, and in its axes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np


def encoded(image: np.ndarray) -> str:
    """An image, uint8 [H, W, C], as the text of a PNG file.

    >>> decoded(encoded(np.full((2, 2, 1), 7, np.uint8))).tolist()
    [[[7], [7]], [[7], [7]]]
    """
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(held, "PNG", optimize=True)
    return base64.b64encode(held.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    """The image, uint8 [H, W, C], of such a text."""
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return image[..., None] if image.ndim == 2 else image


def show(axes: Any, image: np.ndarray, colour: str = "#8A8A8A", width: float = 0.8) -> None:
    """Draws an image, grey ones dark on white, with a frame."""
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray_r" if grey else None, vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)
