"""Published weights: files of others whose network is known by the names and shapes of its tensors."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from torch_reference.errors import UserError
from torch_reference.files import LARGEST_ARRAYS, Arrays, check_file, one_line, read_safetensors
from torch_reference.models.iresnet import DEPTHS

Normalise = Literal["half", "imagenet"]

# Each channel's mean and standard deviation in grey levels: what makes -1 to 1 of them, and ImageNet's.
NORMALISATIONS = {
    "half": (np.full(3, 127.5), np.full(3, 127.5)),
    "imagenet": (np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255),
}

# Where a checkpoint of a training keeps the network's weights; the first of these names counts.
_PLACES = ("state_dict_backbone", "backbone", "state_dict", "model_state_dict", "model")


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file's tensors say about their network.

    Args:
      backbone: one of `BACKBONES`.
      image_shape: (H, W, C) of the images.
      embedding_dim: D. width: factor on the channels.
      normalise: how it takes its images, one of `NORMALISATIONS`.
    """

    backbone: str
    image_shape: tuple[int, int, int]
    embedding_dim: int
    width: float
    normalise: str


def _mobilefacenet_relu6(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    _, _, height, width = shapes["gdconv.depthwise.weight"]
    image_shape = (16 * height, 16 * width, shapes["conv1.0.weight"][1])
    channels, dim = shapes["conv2.0.weight"][0], shapes["conv3.weight"][0]
    return Network("mobilefacenet_relu6", image_shape, dim, channels / 512, "imagenet")


def _mobilefacenet(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    _, _, height, width = shapes["features.layers.0.layers.0.weight"]
    image_shape = (16 * height, 16 * width, shapes["layers.0.layers.0.weight"][1])
    channels, dim = shapes["conv_sep.layers.0.weight"][0], shapes["features.layers.2.weight"][0]
    return Network("mobilefacenet", image_shape, dim, channels / 512, "half")


def _iresnet(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    blocks = tuple(sum(f"layer{layer}.{block}.bn1.weight" in shapes for block in range(100)) for layer in (1, 2, 3, 4))
    depths = [depth for depth, known in DEPTHS.items() if known == blocks]
    if not depths:
        raise ValueError(f"its layers have {blocks} blocks; those known have {', '.join(map(str, DEPTHS.values()))}")
    dim, features = shapes["fc.weight"]
    side = 16 * math.isqrt(features // shapes["bn2.weight"][0])  # of square images
    width, colours, _, _ = shapes["conv1.weight"]
    return Network(f"iresnet{depths[0]}", (side, side, colours), dim, width / 64, "half")


# By a tensor that no other network has.
_NETWORKS: dict[str, Callable[[Mapping[str, tuple[int, ...]]], Network]] = {
    "layer1.0.prelu.weight": _iresnet,
    "conv_sep.layers.0.weight": _mobilefacenet,
    "gdconv.depthwise.weight": _mobilefacenet_relu6,
}


def read_torch(path: Path) -> Arrays:
    """The tensors of a state dict that `torch.save` wrote, or of the network's in a checkpoint, on the CPU.

    bfloat16 is given as float32.

    Raises:
      UserError: no such file, a damaged one, one that holds more than tensors, numbers and text, or NaN or infinite
        values.
    """
    check_file(path, LARGEST_ARRAYS)
    wrong = f"{one_line(path)} is not a PyTorch file whose tensors can be read"
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {name: _as_array(tensor) for name, tensor in _state_dict(held).items()}
    except pickle.UnpicklingError as error:  # its message goes on with how to switch the check off
        raise UserError(f"{wrong}: {one_line(str(error).partition('WeightsUnpickler error: ')[2] or error)}") from None
    except Exception as error:  # whatever torch comes up with
        raise UserError(f"{wrong}: {one_line(error)}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{wrong}: NaN or infinite values in {name!r}")
    return arrays


def _state_dict(held: Any) -> dict[str, torch.Tensor]:
    if not isinstance(held, dict):
        raise ValueError(f"it holds no state dict but a {type(held).__name__}")
    if found := {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}:
        return found
    place = next((name for name in _PLACES if isinstance(held.get(name), dict)), None)
    if place is None:
        raise ValueError(f"it holds no state dict but {', '.join(map(str, list(held)[:5])) or 'nothing'}")
    return _state_dict(held[place])


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".pt": read_torch,
    ".pth": read_torch,
    ".safetensors": read_safetensors,
}


def is_weights(path: Path) -> bool:
    """Whether a file of that name is one of weights.

    >>> is_weights(Path("mobilefacenet.pt")), is_weights(Path("runs/digits"))
    (True, False)
    """
    return path.suffix.lower() in _READERS


def read_weights(path: Path) -> Arrays:
    """The tensors of a file of weights by name, without the counters of batch norms.

    `module.` (of parallel trainings) and `backbone.` (of runs) are taken off the names; where some have them, the
    others are left out.

    Raises:
      UserError: a file that is of no known kind, or cannot be read.
    """
    if not is_weights(path):
        raise UserError(f"{one_line(path)} is no file of weights: their names end in {', '.join(_READERS)}")
    arrays = _READERS[path.suffix.lower()](path)
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    for prefix in ("module.", "backbone."):
        inside = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        arrays = inside or arrays
    return arrays


def recognise(arrays: Arrays, path: Path) -> Network:
    """The network of which these are the weights.

    Raises:
      UserError: it is not known; `path`, where they are from, is named.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    for name, described in _NETWORKS.items():
        if name not in shapes:
            continue
        try:
            network = described(shapes)
        except (KeyError, ValueError, IndexError):
            break
        if min(*network.image_shape, network.embedding_dim) >= 1 and 0 < network.width <= 64:
            return network
    first = ", ".join(list(shapes)[:3]) or "none"
    raise UserError(f"{one_line(path)} holds the weights of no known network; its first tensors are {first}")
