"""The backbones by name: from images to embeddings.

Each is a factory `(image_shape, embedding_dim, width, dropout, *, dtype, rngs)` of an nnx module that is called as
`backbone(images, dropout_mask=None)`: normalised images [B, H, W, C] to embeddings [B, D]. Their definitions are
written down in `docs/recipe.md`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_arcface.errors import UserError, nearest
from jax_arcface.models.airnet import AirNet
from jax_arcface.models.images import ImageShape
from jax_arcface.models.iresnet import DEPTHS, IResNet
from jax_arcface.models.lenet import LeNet
from jax_arcface.models.mobilefacenet import MobileFaceNet, MobileFaceNetReLU6
from jax_arcface.models.resnet import ResNet

BACKBONES: dict[str, Callable[..., Any]] = {
    "lenet": LeNet,
    "resnet20": functools.partial(ResNet, stages=(16, 32, 64), blocks=3, project=False),
    "resnet18": functools.partial(ResNet, stages=(64, 128, 256, 512), blocks=2, project=True),
    "airnet": AirNet,
    **{f"iresnet{depth}": functools.partial(IResNet, depth=depth) for depth in DEPTHS},
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_relu6": MobileFaceNetReLU6,
}

# Modules with networks of the user's own, separated by commas: a run that names one of these may import it.
TRUSTED = "ARCFACE_MODULES"


def is_own(name: str) -> bool:
    """Whether a backbone's name is `module:factory`, of a network that is not of this package.

    >>> is_own("my_networks:tiny"), is_own("lenet")
    (True, False)
    """
    module, _, factory = name.partition(":")
    return factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_own(name: str) -> None:
    """Imports the module of a backbone `module:factory`, if the name is one, at its user's word.

    Raises:
      UserError: no such module, or one that cannot be imported.
    """
    if is_own(name):
        module = name.partition(":")[0]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"the backbone {name} cannot be imported: {error}") from None


def backbone_factory(name: str) -> Callable[..., nnx.Module]:
    """The factory of a backbone: one of `BACKBONES`, or of the user's own, `module:factory`.

    An own factory takes (image_shape, embedding_dim, *, rngs), and `width`, `dropout` and `dtype` if it likes. It
    returns an nnx module from normalised images [B, H, W, C] to embeddings [B, D]. Its module must be imported already
    or be named in the environment variable ARCFACE_MODULES: no file that names one can have it run.

    Raises:
      UserError: an unknown name, a module that is neither, or no such factory.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if not is_own(name):
        raise UserError(f"backbone is {name!r}: {nearest(name, tuple(BACKBONES))}, or your own as module:factory")
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
    return functools.partial(_make_own, name, factory)


def _make_own(
    name: str,
    factory: Callable[..., Any],
    image_shape: ImageShape,
    embedding_dim: int,
    width: float = 1.0,
    dropout: float = 0.0,
    *,
    dtype: Any = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """What an own factory makes, after its results' shape has been checked without computing anything."""
    # the metaclass of nnx modules hides what their constructors take
    constructor: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    takes = inspect.signature(constructor).parameters
    given = {"width": width, "dropout": dropout, "dtype": dtype}
    if refused := [n for n, off in (("dropout", 0.0), ("dtype", None)) if n not in takes and given[n] != off]:
        field = {"dropout": "dropout", "dtype": "precision"}[refused[0]]
        raise UserError(f"{field} has no effect on the backbone {name}, whose factory takes no {refused[0]}")

    def make(rngs: nnx.Rngs) -> Any:
        return factory(image_shape, embedding_dim, rngs=rngs, **{n: v for n, v in given.items() if n in takes})

    found = nnx.eval_shape(lambda: make(nnx.Rngs(0))(jnp.zeros((2, *image_shape))))
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape != (2, embedding_dim):
        shape = getattr(found, "shape", type(found).__name__)
        raise UserError(f"the backbone {name} makes {shape} of two images; it must make (2, {embedding_dim})")
    return make(rngs)
