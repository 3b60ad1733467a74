"""The backbones by name: from images to embeddings.

Each is a factory `(image_shape, embedding_dim, width, dropout, *, dtype, rngs)` of an nnx module that is called as
`backbone(images, dropout_mask=None)`: normalised images [B, H, W, C] to embeddings [B, D]. Their definitions are
written down in `docs/recipe.md`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jax_arcface.models.airnet import AirNet
from jax_arcface.models.lenet import LeNet
from jax_arcface.models.mobilefacenet import MobileFaceNetReLU6
from jax_arcface.models.resnet import ResNet

BACKBONES: dict[str, Callable[..., Any]] = {
    "lenet": LeNet,
    "resnet20": functools.partial(ResNet, stages=(16, 32, 64), blocks=3, project=False),
    "resnet18": functools.partial(ResNet, stages=(64, 128, 256, 512), blocks=2, project=True),
    "airnet": AirNet,
    "mobilefacenet_relu6": MobileFaceNetReLU6,
}
