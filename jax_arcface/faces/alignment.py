"""From five points of a face to an upright crop: the similarity transform that face networks are trained with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_arcface.errors import UserError

# Where the eyes, the nose and the corners of the mouth lie in a crop of 112x112 pixels, x and y: the template that
# insightface publishes and its networks expect.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def template(size: int) -> np.ndarray:
    """The five points, [5, 2] as x and y in pixels, in a square crop of a size.

    Multiples of 112 enlarge the template; multiples of 128 enlarge it by size / 128 and move it by 8 size / 128 to the
    right, which leaves more room around the face.

    Raises:
      UserError: another size.

    >>> template(112)[0].tolist(), template(128)[0].tolist()
    ([38.2946, 51.6963], [46.2946, 51.6963])
    """
    if size > 0 and size % 112 == 0:
        return TEMPLATE * (size / 112)
    if size > 0 and size % 128 == 0:
        return (TEMPLATE + np.array([8.0, 0.0])) * (size / 128)
    raise UserError(f"a crop of {size} pixels has no template: the size must be a multiple of 112 or of 128")


@jax.jit
def similarity(source: Array | np.ndarray, target: Array | np.ndarray) -> Array:
    """The similarity transforms that bring points nearest to others in the sense of least squares: [..., 2, 3].

    Args:
      source, target: [..., K, 2], x and y; leading axes broadcast.

    Returns:
      Matrices M with target = M [x, y, 1]: a rotation, one scale for both axes, a shift; never a reflection.

    With points as complex numbers about their means, y = a x has the solution a = sum(conj(x) y) / sum(|x|^2); in the
    plane it is that of Umeyama (1991), equations 40 to 42, which needs a singular value decomposition.

    >>> similarity(jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.array([[5.0, 5.0], [5.0, 7.0]])).round(3).tolist()
    [[0.0, -2.0, 5.0], [2.0, 0.0, 5.0]]
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    middle, aim = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    x, y = source - middle, target - aim
    spread = (x**2).sum((-2, -1))
    real = (x * y).sum((-2, -1)) / spread
    imaginary = (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).sum(-1) / spread
    turn = jnp.stack([jnp.stack([real, -imaginary], -1), jnp.stack([imaginary, real], -1)], -2)
    shift = aim[..., 0, :] - jnp.einsum("...ij,...j->...i", turn, middle[..., 0, :])
    return jnp.concatenate([turn, shift[..., None]], -1)


def align(
    images: Array | np.ndarray, points: Array | np.ndarray, image_of: Array | np.ndarray | None = None, size: int = 112
) -> Array:
    """The aligned crop of each face, [F, size, size, C]; what lies outside a photo is 0.

    Args:
      images: [N, H, W, C], photos of one size; smaller ones may be filled up with zeros below and to the right.
      points: [F, 5, 2], x and y in pixels (the centre of the first pixel is at 0, 0): the eye that is left in the
        picture, the right one, the nose, the left and the right corner of the mouth.
      image_of: [F], the photo of each face; face i is in photo i where None.
      size: see `template`.

    The value of a pixel is interpolated between the four pixels around its place in the photo. uint8 is rounded to
    uint8; other images give float32.

    Raises:
      UserError: a size without template.
      ValueError: shapes that do not fit, or five points that are no face: not finite, or all in one place.

    >>> photo = np.full((1, 200, 200, 3), 7, np.uint8)
    >>> align(photo, template(112)[None] + 40).shape
    (1, 112, 112, 3)
    """
    places = np.asarray(points, np.float32)
    number = len(images)
    owner = np.arange(len(places)) if image_of is None else np.asarray(image_of)
    if places.ndim != 3 or places.shape[1:] != (5, 2) or owner.shape != places.shape[:1] or np.ndim(images) != 4:
        raise ValueError(f"images {np.shape(images)}, points {places.shape} and image_of {owner.shape} do not fit")
    if len(owner) and not 0 <= owner.min() <= owner.max() < number:
        raise ValueError(f"a face belongs to photo {owner.max()}; there are {number}")
    if not np.isfinite(places).all() or (np.ptp(places, axis=1).max(-1, initial=0) < 1e-3).any():
        raise ValueError("five points of a face must be finite, and not all in one place")
    return _align(images, places, owner, template(size).astype(np.float32), size)


@functools.partial(jax.jit, static_argnames="size")
def _align(images: Array, points: Array, image_of: Array, target: Array, size: int) -> Array:
    # Errors count in pixels of the crop, as in other programs, so the transform leads there; its inverse finds where in
    # the photo each pixel of the crop lies.
    forth = similarity(points, target)
    (a, b), shift = (forth[:, 0, 0], forth[:, 1, 0]), forth[..., 2]
    turn = jnp.stack([jnp.stack([a, b], -1), jnp.stack([-b, a], -1)], -2) / (a**2 + b**2)[:, None, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="xy"), -1).astype(jnp.float32)
    places = jnp.einsum("fij,fhwj->fhwi", turn, grid - shift[:, None, None], precision="highest")
    crops = bilinear(images, places, image_of[:, None, None])
    return jnp.round(crops).astype(jnp.uint8) if images.dtype == jnp.uint8 else crops


def bilinear(images: Array, places: Array, image_of: Array) -> Array:
    """The values, float32 [..., C], of images [N, H, W, C] at places [..., 2] (x, y) of the images `image_of` [...].

    Interpolated between four pixels; those outside an image count as 0.
    """
    height, width = images.shape[1:3]
    corner = jnp.floor(places)
    total: Array | float = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[..., 0] + dx, corner[..., 1] + dy
            weight = (1 - jnp.abs(places[..., 0] - x)) * (1 - jnp.abs(places[..., 1] - y))
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            at = (image_of, *(jnp.clip(v, 0, n - 1).astype(jnp.int32) for v, n in ((y, height), (x, width))))
            total += jnp.where(inside, weight, 0)[..., None] * images[at].astype(jnp.float32)
    return jnp.asarray(total)
