"""MTCNN (Zhang et al. 2016, arXiv:1604.02878): three small networks, each of which looks closer at what the last found.

P-Net looks at every window of 12x12 pixels in a pyramid of the photo; R-Net at 24x24 pixels of each window that is
left, O-Net at 48x48, which also gives the five points. The weights are those of the PyPI package `mtcnn`, of which
nothing is imported. The levels of the pyramid lie side by side in one image whose sides are of few sizes, and
candidates come in batches of few sizes, so few programs are compiled. What is between the networks is numpy's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import math
import pickletools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from jax_arcface.cpu import convolve
from jax_arcface.errors import UserError
from jax_arcface.faces.detection import Faces
from jax_arcface.files import brief, check_finite, read_bytes, shown

Weights = list[np.ndarray]  # of a network, in the order of its file

CELL, STRIDE = 12, 2  # P-Net's window, and the step from one to the next
FACTOR = 0.709  # from one level of the pyramid to the next: half the area
MAX_LEVEL_PIXELS = 2_000_000
_BATCH = 256
_FILTER = Image.Resampling.HAMMING  # down: close to the mean over an area


def _convolution(size: int, channels: int, filters: int) -> list[tuple[int, ...]]:
    return [(size, size, channels, filters), (filters,)]


def _with_prelu(size: int, channels: int, filters: int) -> list[tuple[int, ...]]:
    return [*_convolution(size, channels, filters), (1, 1, filters)]


def _dense(inputs: int, outputs: int) -> list[tuple[int, ...]]:
    return [(inputs, outputs), (outputs,)]


# The shapes of the arrays in each file: kernels [h, w, in, out], biases, slopes of PReLU; dense layers [in, out].
SHAPES = {
    "pnet": [
        *(shape for s, i, o in ((3, 3, 10), (3, 10, 16), (3, 16, 32)) for shape in _with_prelu(s, i, o)),
        *_convolution(1, 32, 4),
        *_convolution(1, 32, 2),
    ],
    "rnet": [
        *(shape for s, i, o in ((3, 3, 28), (3, 28, 48), (2, 48, 64)) for shape in _with_prelu(s, i, o)),
        *_dense(576, 128),
        (128,),
        *_dense(128, 4),
        *_dense(128, 2),
    ],
    "onet": [
        *(shape for s, i, o in ((3, 3, 32), (3, 32, 64), (3, 64, 64), (2, 64, 128)) for shape in _with_prelu(s, i, o)),
        *_dense(1152, 256),
        (256,),
        *_dense(256, 4),
        *_dense(256, 10),
        *_dense(256, 2),
    ],
}


def find_weights() -> Path:
    """The folder of the weights that the installed package `mtcnn` carries; the package is not imported.

    Raises:
      UserError: it is not installed.
    """
    spec = importlib.util.find_spec("mtcnn")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("lz4") is None:
        raise UserError("the detector MTCNN takes its weights from a package: pip install 'jax-arcface[faces]'")
    return Path(spec.submodule_search_locations[0]) / "assets" / "weights"


def read_weights(path: Path, shapes: Sequence[tuple[int, ...]]) -> Weights:
    """The float32 arrays of these shapes in a file that joblib wrote and lz4 compressed.

    Such a file is a pickle with the bytes of each array in its midst. The pickle is not run: its instructions are only
    read, to find where the bytes begin.

    Raises:
      UserError: another content.
    """
    import lz4.frame

    size = sum(4 * math.prod(shape) + 1024 for shape in shapes)
    content = read_bytes(path, 2 * size)
    arrays = []
    try:
        content = lz4.frame.LZ4FrameDecompressor().decompress(content, max_length=size)
        stream = io.BytesIO(content)
        for shape in shapes:
            stated = _header(stream)
            if stated != shape:
                raise ValueError(f"an array has the shape {stated}, not {shape}")
            stream.seek(stream.read(1)[0], io.SEEK_CUR)  # so many bytes, to align what follows
            array = np.frombuffer(stream.read(4 * math.prod(shape)), "<f4").reshape(shape).astype(np.float32)
            check_finite(array, shown(path))
            arrays.append(array)
        if _header(stream) is not None or stream.read(1):
            raise ValueError("it does not end where it should")
    except UserError:
        raise
    except Exception as error:  # lz4 and pickletools have no one error for all that may be wrong
        raise UserError(f"{shown(path)} does not hold the weights of MTCNN ({brief(error)})") from None
    return arrays


def _header(stream: io.BytesIO) -> tuple[int, ...] | None:
    """The shape of the array whose bytes begin next, to which the stream moves on; None at the end of the pickle.

    An array is described by an object whose state, a dictionary, is set by SETITEMS and BUILD. Its first tuple of
    whole numbers is the shape.
    """
    numbers: list[int] = []
    shape, last = None, ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return None
        if opcode.name == "BUILD" and last == "SETITEMS":
            return shape
        if opcode.name.startswith("BININT"):
            numbers.append(int(argument or 0))
        elif opcode.name.startswith("TUPLE") and shape is None and numbers:
            shape = tuple(numbers)
        elif opcode.name == "MARK":
            numbers = []
        last = opcode.name
    return None


def _layers(weights: Sequence[Any]) -> Iterator[Any]:
    return iter([jnp.asarray(w) for w in weights])


def _convolve(x: Array, parts: Iterator[Any], slopes: bool = True) -> Array:
    x = convolve(x, next(parts), (1, 1), ((0, 0), (0, 0)), next(parts))
    return _prelu(x, next(parts)) if slopes else x


def _prelu(x: Array, slopes: Array) -> Array:
    return jnp.where(x > 0, x, slopes * x)


def _pool(x: Array, size: int, padding: str) -> Array:
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _flat(x: Array, parts: Iterator[Any]) -> Array:
    """The first dense layer, which takes columns before rows."""
    x = x.swapaxes(1, 2).reshape(len(x), -1)
    return _prelu(x @ next(parts) + next(parts), next(parts))


def _normalised(pixels: Array) -> Array:
    return (pixels.astype(jnp.float32) - 127.5) / 128


def p_net(weights: Sequence[Any], pixels: Array) -> tuple[Array, Array]:
    """P-Net, of pixels uint8 [N, H, W, 3] with even sides.

    Returns:
      For the windows of 12x12 pixels at (2i, 2j): the probability of a face [N, H / 2 - 5, W / 2 - 5], and by how much
      each side of the face's box is from the window's, in sides of a window [..., 4].
    """
    parts = _layers(weights)
    x = _pool(_convolve(_normalised(pixels), parts), 2, "VALID")
    x = _convolve(_convolve(x, parts), parts)
    offsets = _convolve(x, parts, slopes=False)
    return jax.nn.softmax(_convolve(x, parts, slopes=False))[..., 1], offsets


def r_net(weights: Sequence[Any], pixels: Array) -> tuple[Array, Array]:
    """R-Net, of candidates, uint8 [N, 24, 24, 3]: the probability of a face [N], the offsets of the box [N, 4]."""
    parts = _layers(weights)
    x = _pool(_convolve(_normalised(pixels), parts), 3, "SAME")
    x = _pool(_convolve(x, parts), 3, "VALID")
    x = _flat(_convolve(x, parts), parts)
    offsets = x @ next(parts) + next(parts)
    return jax.nn.softmax(x @ next(parts) + next(parts))[:, 1], offsets


def o_net(weights: Sequence[Any], pixels: Array) -> tuple[Array, Array, Array]:
    """O-Net, of candidates, uint8 [N, 48, 48, 3]: as `r_net`, and the points [N, 5, 2], in sides of the candidate."""
    parts = _layers(weights)
    x = _pool(_convolve(_normalised(pixels), parts), 3, "SAME")
    x = _pool(_convolve(x, parts), 3, "VALID")
    x = _pool(_convolve(x, parts), 2, "SAME")
    x = _flat(_convolve(x, parts), parts)
    offsets = x @ next(parts) + next(parts)
    points = (x @ next(parts) + next(parts)).reshape(-1, 2, 5).swapaxes(1, 2)
    return jax.nn.softmax(x @ next(parts) + next(parts))[:, 1], offsets, points


_compiled = {net.__name__: jax.jit(net) for net in (p_net, r_net, o_net)}


class _Level(NamedTuple):
    """A level of the pyramid: its size, and where its first pixel lies in the image of all levels."""

    height: int
    width: int
    top: int
    left: int


def pyramid(height: int, width: int, min_face: float) -> tuple[list[_Level], tuple[int, int]]:
    """The levels at which a window of 12 pixels sees faces from `min_face` pixels on, and (H, W) of the image of all.

    That has sides of 2^k or 3 * 2^(k-1) pixels. Photos of which the first level would have more than
    MAX_LEVEL_PIXELS start with that many: the smallest face that is found is then larger.
    """
    scale = min(CELL / min_face, math.sqrt(MAX_LEVEL_PIXELS / (height * width)))
    sizes = []
    while min(height, width) * scale >= CELL:
        sizes.append((math.ceil(height * scale), math.ceil(width * scale)))
        scale *= FACTOR
    across = rounded(max((w for _, w in sizes), default=CELL))
    levels, shelves, down = [], list[list[int]](), 0  # of a shelf: its top, its height, how far it is filled
    for h, w in sizes:
        even = h + h % 2, w + w % 2
        shelf = next((s for s in shelves if s[1] >= even[0] and across - s[2] >= even[1]), None)
        if shelf is None:
            shelf = [down, even[0], 0]
            shelves.append(shelf)
            down += even[0]
        levels.append(_Level(h, w, shelf[0], shelf[2]))
        shelf[2] += even[1]
    return levels, (rounded(max(down, CELL)), across)


def rounded(pixels: int) -> int:
    """The next 2^k or 3 * 2^(k-1).

    >>> [rounded(n) for n in (12, 97, 128, 129)]
    [12, 128, 128, 192]
    """
    power = 2 ** math.ceil(math.log2(pixels))
    return power * 3 // 4 if power * 3 // 4 >= pixels else power


def suppress(boxes: np.ndarray, scores: np.ndarray, limit: float, of_smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression: the indices of the boxes that overlap no surer one by more than `limit`, surest first.

    Overlap is the area that two boxes share by the area that they cover, or by that of the smaller one.

    >>> suppress(np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.0]]), np.array([0.8, 0.9, 0.7]), 0.5)
    array([1, 2])
    """
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        shared = np.minimum(boxes[first, 2:], boxes[rest, 2:]) - np.maximum(boxes[first, :2], boxes[rest, :2])
        both = np.prod(np.maximum(shared, 0), axis=1)
        whole = np.minimum(areas[first], areas[rest]) if of_smaller else areas[first] + areas[rest] - both
        order = rest[both <= limit * whole]
    return np.array(kept, np.int64)


def _moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes whose sides are moved by offsets in their own widths and heights."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.tile(sides, 2)


def _squared(boxes: np.ndarray) -> np.ndarray:
    """Squares about the same middle, as large as the longer side."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def _cut(photo: Image.Image, boxes: np.ndarray, size: int) -> np.ndarray:
    """What is in each box, [N, size, size, 3]; black outside the photo."""
    patches = np.empty((len(boxes), size, size, 3), np.uint8)
    for patch, (left, top, right, bottom) in zip(patches, boxes.tolist(), strict=True):
        x, y = math.floor(left), math.floor(top)
        tile = photo.crop((x, y, max(math.ceil(right), x + 1), max(math.ceil(bottom), y + 1)))
        inside = left - x, top - y, right - x, bottom - y
        patch[:] = np.asarray(tile.resize((size, size), _filter(right - left, size), inside))
    return patches


def _filter(before: float, after: float) -> Image.Resampling:
    return _FILTER if before > after else Image.Resampling.BILINEAR


def _in_batches(run: Callable[..., Any], patches: np.ndarray) -> list[np.ndarray]:
    """The results of `run` for all patches, which it gets in batches of 16, 32, ... 256, filled up with zeros."""
    parts = []
    for start in range(0, len(patches), _BATCH):
        batch = patches[start : start + _BATCH]
        full = np.zeros((max(16, 2 ** math.ceil(math.log2(len(batch)))), *batch.shape[1:]), np.uint8)
        full[: len(batch)] = batch
        parts.append([np.asarray(result)[: len(batch)] for result in run(full)])
    return [np.concatenate(results) for results in zip(*parts, strict=True)]


@dataclasses.dataclass(frozen=True)
class MTCNN:
    """The detector.

    Args:
      min_face: the side of the smallest window that is looked at, in pixels, at least 12; somewhat smaller faces may
        be found in it.
      thresholds: the probability of a face from which on each network's candidates are kept.
      folder: where pnet.lz4, rnet.lz4 and onet.lz4 are; None for the installed package `mtcnn`.

    The defaults are those of that package.

    >>> MTCNN(min_face=40).thresholds
    (0.6, 0.7, 0.8)
    """

    min_face: float = 20.0
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.min_face >= CELL:
            raise ValueError(f"MTCNN finds faces of {CELL} pixels or more, not of {self.min_face}")

    @functools.cached_property
    def _nets(self) -> dict[str, Callable[..., Any]]:
        folder = find_weights() if self.folder is None else self.folder
        weights = {name: read_weights(folder / f"{name}.lz4", shapes) for name, shapes in SHAPES.items()}
        return {
            name: functools.partial(_compiled[name], jax.device_put(weights[name.replace("_", "")]))
            for name in _compiled
        }

    def detect(self, image: np.ndarray) -> Faces:
        """The faces in an upright photo, uint8 [H, W, 3] in RGB, the surest first.

        Raises:
          ValueError: another shape or type.
          UserError: the weights are not there, or damaged.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a photo must be uint8 [H, W, 3], not {image.dtype} {image.shape}")
        photo = Image.fromarray(image)
        boxes = self._proposed(photo)
        scores, points = np.zeros(len(boxes)), np.zeros((len(boxes), 5, 2))
        if len(boxes):
            boxes, scores = self._refined(photo, boxes)
        if len(boxes):
            boxes, scores, points = self._described(photo, boxes)
        # until here the first pixel's upper left corner was at (0, 0)
        return Faces(*(a.astype(np.float32) for a in (boxes - 0.5, scores, points - 0.5)))

    def _proposed(self, photo: Image.Image) -> np.ndarray:
        levels, shape = pyramid(photo.height, photo.width, self.min_face)
        if not levels:
            return np.zeros((0, 4))
        pixels = np.zeros((1, *shape, 3), np.uint8)
        for h, w, top, left in levels:
            pixels[0, top : top + h, left : left + w] = np.asarray(photo.resize((w, h), _filter(photo.width, w)))
        probabilities, offsets = (np.asarray(found)[0] for found in self._nets["p_net"](pixels))
        boxes, scores = [], []
        for h, w, top, left in levels:
            # the windows that lie within this level
            rows, columns = ((start // 2, start // 2 + (n - CELL) // 2 + 1) for start, n in ((top, h), (left, w)))
            here = probabilities[slice(*rows), slice(*columns)]
            at = np.nonzero(here > self.thresholds[0])
            corner = STRIDE * np.stack(at[::-1], 1)
            window = np.concatenate([corner, corner + CELL], 1).astype(np.float64)
            found = _moved(window, offsets[slice(*rows), slice(*columns)][at])
            found *= np.tile([photo.width / w, photo.height / h], 2)
            kept = suppress(found, here[at], 0.5)
            boxes.append(found[kept])
            scores.append(here[at][kept])
        together = np.concatenate(boxes)
        return _sound(_squared(together[suppress(together, np.concatenate(scores), 0.7)]), photo)

    def _refined(self, photo: Image.Image, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, offsets = _in_batches(self._nets["r_net"], _cut(photo, boxes, 24))
        sure = scores > self.thresholds[1]
        boxes, scores = _moved(boxes, offsets)[sure], scores[sure]
        kept = suppress(boxes, scores, 0.7)
        return _sound(_squared(boxes[kept]), photo), scores[kept]

    def _described(self, photo: Image.Image, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, offsets, places = _in_batches(self._nets["o_net"], _cut(photo, boxes, 48))
        points = boxes[:, None, :2] + places * (boxes[:, 2:] - boxes[:, :2])[:, None]
        sure = scores > self.thresholds[2]
        boxes, scores, points = _moved(boxes, offsets)[sure], scores[sure], points[sure]
        kept = suppress(boxes, scores, 0.7, of_smaller=True)
        return boxes[kept], scores[kept], points[kept]


def _sound(boxes: np.ndarray, photo: Image.Image) -> np.ndarray:
    """Without boxes that the networks blew up or shrank to nothing."""
    side = boxes[:, 2] - boxes[:, 0]
    inside = (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < [photo.width, photo.height]).all(1)
    return boxes[inside & (side >= 1) & (side <= 2 * max(photo.size))]
