"""The backbones by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable

import torch
from torch import nn

from torch_reference.errors import UserError, nearest
from torch_reference.models.airnet import AirNet
from torch_reference.models.iresnet import DEPTHS, IResNet
from torch_reference.models.layers import Backbone
from torch_reference.models.lenet import LeNet
from torch_reference.models.mobilefacenet import MobileFaceNet, MobileFaceNetReLU6
from torch_reference.models.resnet import ResNet

# From (image_shape, embedding_dim, width, dropout) to a network.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "lenet": LeNet,
    "resnet20": ResNet.resnet20,
    "resnet18": ResNet.resnet18,
    "airnet": AirNet,
    **{f"iresnet{depth}": functools.partial(IResNet, depth=depth) for depth in DEPTHS},
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_relu6": MobileFaceNetReLU6,
}


# Names modules with networks of the user's own, separated by commas, which a run that names one of them may import.
TRUSTED = "ARCFACE_MODULES"


def make_backbone(
    name: str, image_shape: tuple[int, int, int], embedding_dim: int, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """The backbone of that name: one of `BACKBONES`, or the user's own, `module:factory`.

    An own factory takes (image_shape, embedding_dim), and `width` and `dropout` if it likes. It returns a module from
    normalised images [B, C, H, W] to embeddings [B, D], which starts with the weights that it has then. Its module must
    be imported already or be named in the environment variable ARCFACE_MODULES: no file that names one can have it run.

    Args:
      image_shape: (H, W, C).
      embedding_dim: D.
      width: factor on the numbers of channels.
      dropout: the share of features dropped before the embedding's linear layer.

    Raises:
      UserError: an unknown name, an own module that may not be imported, a factory that makes something else, or images
        that are too small.

    >>> make_backbone("lenet", (4, 4, 1), 2)
    Traceback (most recent call last):
    ...
    torch_reference.errors.UserError: lenet needs images of at least 8x8 pixels; these have 4x4: give a larger image
    size
    """
    if name in BACKBONES:
        return BACKBONES[name](image_shape, embedding_dim, width, dropout)
    if not is_own(name):
        raise UserError(
            f"no backbone is called {name!r}: {nearest(name, tuple(BACKBONES))}; or your own, module:factory"
        )
    return _make_own(name, image_shape, embedding_dim, width, dropout)


def is_own(name: str) -> bool:
    """Whether a backbone's name is `module:factory`.

    >>> is_own("my_networks:tiny"), is_own("lenet")
    (True, False)
    """
    module, _, factory = name.partition(":")
    return factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_own(name: str) -> None:
    """Imports the module of an own backbone, at its user's word; of another name it does nothing.

    Raises:
      UserError: it cannot be imported.
    """
    if not is_own(name):
        return
    try:
        importlib.import_module(name.partition(":")[0])
    except ImportError as error:
        raise UserError(f"the backbone {name} cannot be imported: {error}") from None


def _make_own(
    name: str, image_shape: tuple[int, int, int], embedding_dim: int, width: float, dropout: float
) -> nn.Module:
    module, _, attribute = name.partition(":")
    if module not in sys.modules:
        if module not in os.environ.get(TRUSTED, "").split(","):
            raise UserError(
                f"the backbone {name} is code of its own: import {module} first, or name it in the environment "
                f"variable {TRUSTED}"
            )
        import_own(name)
    factory = getattr(sys.modules[module], attribute, None)
    if not callable(factory):
        raise UserError(f"the module {module} has no factory {attribute}")
    takes = inspect.signature(factory).parameters
    if dropout and "dropout" not in takes:
        raise UserError(f"dropout has no effect on the backbone {name}, whose factory takes no dropout")
    given = {n: value for n, value in (("width", width), ("dropout", dropout)) if n in takes}
    made = factory(image_shape, embedding_dim, **given)
    if not isinstance(made, nn.Module):
        raise UserError(f"the backbone {name} makes {type(made).__name__}, which is no torch.nn.Module")
    _check_results(name, made, image_shape, embedding_dim)
    return made


@torch.no_grad()
def _check_results(name: str, made: nn.Module, image_shape: tuple[int, int, int], embedding_dim: int) -> None:
    """Raises UserError where it does not make embeddings of images; its statistics stay as they are."""
    height, width, channels = image_shape
    was_training, device = made.training, next((p.device for p in made.parameters()), torch.device("cpu"))
    found = made.eval()(torch.zeros((2, channels, height, width), device=device))
    made.train(was_training)
    if not isinstance(found, torch.Tensor) or found.shape != (2, embedding_dim):
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(f"the backbone {name} makes {shape} of two images; it must make (2, {embedding_dim})")
