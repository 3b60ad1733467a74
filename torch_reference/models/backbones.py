"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable

from torch_reference.errors import UserError, nearest
from torch_reference.models.airnet import AirNet
from torch_reference.models.layers import Backbone
from torch_reference.models.lenet import LeNet
from torch_reference.models.mobilefacenet import MobileFaceNetReLU6
from torch_reference.models.resnet import ResNet

# From (image_shape, embedding_dim, width, dropout) to a network.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "lenet": LeNet,
    "resnet20": ResNet.resnet20,
    "resnet18": ResNet.resnet18,
    "airnet": AirNet,
    "mobilefacenet_relu6": MobileFaceNetReLU6,
}


def make_backbone(
    name: str, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0
) -> Backbone:
    """The backbone of that name, one of `BACKBONES`.

    Args:
      image_shape: (H, W, C).
      embedding_dim: D.
      width: factor on the numbers of channels.
      dropout: the share of features dropped before the embedding's linear layer.

    Raises:
      UserError: an unknown name, or images that are too small.

    >>> make_backbone("lenet", (4, 4, 1), 2)
    Traceback (most recent call last):
    ...
    torch_reference.errors.UserError: lenet needs images of at least 8x8 pixels; these have 4x4: give a larger image
    size
    """
    if name not in BACKBONES:
        raise UserError(f"no backbone is called {name!r}: {nearest(name, tuple(BACKBONES))}")
    return BACKBONES[name](image_shape, embedding_dim, width, dropout)
