"""The heads: logits with and without labels and the loss, with one prototype or several sub-centres a class."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from flax import nnx

import jax_arcface
import torch_reference
from parity_tests.cases import Case, bound_of, renamed
from parity_tests.cases.losses import CLASSES, DIM, SCALE, batch
from parity_tests.compare import Difference, compare


def _heads(subcenters: int, dtype: str) -> Iterator[Difference]:
    x, w, labels = batch(dtype, subcenters)
    options: dict[str, Any] = {"scale": SCALE, "subcenters": subcenters}
    head = jax_arcface.ArcFaceHead(DIM, CLASSES, margin=jax_arcface.Margin.cosface(), **options, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(head)
    twin = torch_reference.ArcFaceHead(DIM, CLASSES, margin=torch_reference.Margin.cosface(), **options)

    def here(x, w, labels):
        model = nnx.merge(graphdef, state, copy=True)
        model.prototypes = nnx.Param(w)
        return {
            "logits": model(x, labels),
            "logits without labels": model(x),
            "loss": model.loss(x, labels),
        }

    def there(x, w, labels):
        # a function of the prototypes, so that `compare` can take their gradient
        def call(*arguments):
            return torch.func.functional_call(twin, {"prototypes": w}, arguments)

        return {
            "logits": call(x, labels),
            "logits without labels": call(x),
            "loss": torch.func.functional_call(_Loss(twin), {"head.prototypes": w}, (x, labels)),
        }

    yield from renamed(f"{subcenters} sub-centres:", compare(here, there, x, w, labels).differences)


class _Loss(torch.nn.Module):
    """A head's loss as a module's call, which `functional_call` needs."""

    def __init__(self, head: torch_reference.ArcFaceHead):
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head.loss(x, labels)


CASES = [
    Case(
        f"head with {subcenters} prototype{'s' if subcenters > 1 else ''} a class: logits, loss",
        "heads",
        dtype,
        **bound_of(dtype),
        measure=functools.partial(_heads, subcenters, dtype),
        covers=("ArcFaceHead",),
    )
    for dtype in ("float64", "float32")
    for subcenters in (1, 3)
]
