"""ArcFace and its family of angular-margin losses in JAX and Flax.

    from jax_arcface import ArcFaceHead, fit, load_model, margin_softmax_loss

Losses are pure functions (`margin_softmax_loss`), values that are summed and trained with (`arcface() + 0.01 *
center()`), and a Flax module that owns the prototypes (`ArcFaceHead`, `Head`). `api.py` lists all names. JAX is
imported when the first of them is asked for, so that the command line can answer a mistake or Ctrl-C at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_arcface.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # `from jax_arcface import files` asks here first: a module needs nothing of the rest, which may be being imported
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__all__" or not name.startswith("_"):
        api = importlib.import_module("jax_arcface.api")
        if name == "__all__" or name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(importlib.import_module("jax_arcface.api").__all__)
