"""Images as the networks take them: their sizes, and how pixels are normalised."""

from __future__ import annotations

from jax import Array

from jax_arcface.errors import UserError

ImageShape = tuple[int, int, int]  # height, width, channels


def check_size(name: str, image_shape: ImageShape, smallest: int) -> None:
    """Raises UserError for images smaller than a network takes."""
    if min(image_shape[:2]) < smallest:
        raise UserError(
            f"{name} needs images of at least {smallest}x{smallest} pixels; these have "
            f"{image_shape[0]}x{image_shape[1]}: give a larger image size"
        )


def normalise(images: Array, mean: Array, scale: Array) -> Array:
    """(images - mean) * scale, by channel: [..., C] to [..., C] in the dtype of `scale`."""
    return (images.astype(scale.dtype) - mean) * scale
