"""ArcFace and its family of angular-margin losses in PyTorch: the twin of `jax_arcface`, written apart from it.

    from torch_reference import Head, arcface, center

    head = Head(arcface(m=0.5) + 0.01 * center(), embedding_dim=128, num_classes=10)
    head.loss(embeddings, labels).backward()

`api.py` lists the names. PyTorch is imported when the first of them is asked for, so that the command line can answer
`--help`, a missing PyTorch or Ctrl-C at once.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; the module `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from torch_reference.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # a submodule, such as `data`, is no name of the api; and looking for one imports nothing
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        api = importlib.import_module("torch_reference.api")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("torch_reference needs PyTorch: pip install torch") from None
    if name == "__all__" or name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
