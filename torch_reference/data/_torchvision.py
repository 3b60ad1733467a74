"""Imports torchvision where its compiled operators do not load, too.

A torchvision built for CUDA beside a CPU-only torch cannot load its operators, and then fails on import, for it
describes two that are not there. Nothing here needs them, so they are declared first, only where they are missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def datasets() -> ModuleType:
    """The module `torchvision.datasets`.

    Raises:
      ImportError: torchvision is not installed.

    >>> datasets().MNIST.__name__
    'MNIST'
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        for library in Path(spec.origin).parent.glob("_C.*"):
            with contextlib.suppress(OSError):
                torch.ops.load_library(library)  # as torchvision itself does first
    for name, signature in _OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", signature)
    import torchvision.datasets

    return torchvision.datasets
