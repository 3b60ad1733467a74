"""Networks whose weights others have published: recognised by their tensors' names and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jax_arcface.errors import UserError
from jax_arcface.files import Arrays, read_safetensors, shown
from jax_arcface.models.iresnet import DEPTHS
from jax_arcface.models.torch_files import read_torch

Normalise = Literal["half", "imagenet"]

# Mean and standard deviation of each channel, in grey levels: to [-1, 1], and those of ImageNet's photos.
NORMALISATIONS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "half": (np.full(3, 127.5), np.full(3, 127.5)),
    "imagenet": (255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])),
}

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file's tensors say about a network.

    Args:
      backbone: its name, one of `BACKBONES`.
      image_shape: (H, W, C) that it was trained with.
      embedding_dim: D. width: factor on its channels.
      normalise: how its images are, one of `NORMALISATIONS`.
    """

    backbone: str
    image_shape: tuple[int, int, int]
    embedding_dim: int
    width: float
    normalise: str


def _mobilefacenet_relu6(shapes: Shapes) -> Description:
    colours, (_, _, height, width) = shapes["conv1.0.weight"][1], shapes["gdconv.depthwise.weight"]
    return Description(
        "mobilefacenet_relu6",
        (16 * height, 16 * width, colours),
        shapes["conv3.weight"][0],
        shapes["conv2.0.weight"][0] / 512,
        "imagenet",
    )


def _mobilefacenet(shapes: Shapes) -> Description:
    colours, (_, _, height, width) = shapes["layers.0.layers.0.weight"][1], shapes["features.layers.0.layers.0.weight"]
    return Description(
        "mobilefacenet",
        (16 * height, 16 * width, colours),
        shapes["features.layers.2.weight"][0],
        shapes["conv_sep.layers.0.weight"][0] / 512,
        "half",
    )


def _iresnet(shapes: Shapes) -> Description:
    blocks = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"layer{layer}.")}) for layer in range(1, 5)
    )
    depth = next((depth for depth, known in DEPTHS.items() if known == blocks), None)
    if depth is None:
        raise ValueError(f"it has {blocks} blocks; known are {', '.join(map(str, DEPTHS.values()))}")
    (dim, features), channels = shapes["fc.weight"], shapes["bn2.weight"][0]
    side = math.isqrt(features // channels)  # the feature map is taken to be square
    width, colours, *_ = shapes["conv1.weight"]
    return Description(f"iresnet{depth}", (16 * side, 16 * side, colours), dim, width / 64, "half")


# Each is known by a name that no other has; then its function reads the rest from the shapes.
_KNOWN: dict[str, Callable[[Shapes], Description]] = {
    "layer1.0.prelu.weight": _iresnet,
    "conv_sep.layers.0.weight": _mobilefacenet,
    "gdconv.depthwise.weight": _mobilefacenet_relu6,
}

_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".pt": read_torch,
    ".pth": read_torch,
    ".safetensors": lambda path: read_safetensors(path),
}

# What a state dict's names may begin with: of DistributedDataParallel, and of a run of ours.
_PREFIXES = ("module.", "backbone.")


def is_weights(path: Path) -> bool:
    """Whether a path has the suffix of a file of weights."""
    return path.suffix.lower() in _READERS


def read_weights(path: Path) -> Arrays:
    """The tensors of a file of weights by their PyTorch names, but for the counters of batch norms.

    Of a file that also holds a head, the backbone's. The names' prefixes `module.` and `backbone.` are taken off.

    Raises:
      UserError: a suffix that is not known, or a file that cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{shown(path)} is not a file of weights: those end in {', '.join(_READERS)}")
    arrays = {name: array for name, array in reader(path).items() if not name.endswith("num_batches_tracked")}
    for prefix in _PREFIXES:
        if inside := {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}:
            arrays = inside
    return arrays


def recognise(arrays: Mapping[str, Any], path: Path) -> Description:
    """Which network's weights these are.

    Args:
      arrays: by name. path: of the file that they are from, for messages.

    Raises:
      UserError: none that is known here.
    """
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for name, describe in _KNOWN.items():
        if name in shapes:
            try:
                found = describe(shapes)
            except (KeyError, ValueError, IndexError) as error:
                raise UserError(f"{shown(path)} looks like a network that is known here, but has no {error}") from None
            if min(found.image_shape) < 1 or found.embedding_dim < 1 or not 0 < found.width <= 64:
                break
            return found
    names = ", ".join(list(shapes)[:3]) or "none"
    raise UserError(f"{shown(path)} holds the weights of no network that is known here; its first tensors are {names}")
