"""A training that is looked into while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from experiments.figures._framework import Study

IMAGES = 2000  # of the test split, that angles are measured on


class Watched(NamedTuple):
    """A moment of a training.

    Args:
      step: steps done. epoch: the same in epochs.
      angles: theta_y of test images, in degrees.
      gradient: the norm of the last step's gradient; None before the first.
    """

    step: int
    epoch: float
    angles: np.ndarray
    gradient: float | None


def watch(study: Study, loss: str, shares: Sequence[float]) -> list[Watched]:
    """Trains as `study.run(loss)` does, and looks at it after these shares of its steps (0 is before the first)."""
    import torch

    from torch_reference import Reporter, cosines, data, fit_config, recipe
    from torch_reference.data.dataset import channel_statistics
    from torch_reference.models.layers import normalise
    from torch_reference.training.fit import initial_state

    fields = study.settings(loss)
    config = dataclasses.replace(recipe(study.dataset, loss, fields["epochs"]), **fields)
    dataset = data.load(study.dataset)
    state = initial_state(config, dataset)
    mean, std = (torch.from_numpy(np.float32(x)) for x in channel_statistics(dataset.train.images))
    images = torch.from_numpy(dataset.test.images[:IMAGES])
    labels = torch.from_numpy(dataset.test.labels[:IMAGES].astype(np.int64))
    per_epoch = len(dataset.train.labels) // config.batch_size
    moments = [round(share * config.epochs * per_epoch) for share in shares]

    @torch.no_grad()
    def now(step: int) -> Watched:
        model = state.model
        trains = model.training
        model.eval()
        x = torch.cat([model.backbone(normalise(part, mean, 1 / std)) for part in images.split(500)])
        cosine = cosines(x, model.head.prototypes).gather(1, labels[:, None])[:, 0]
        model.train(trains)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = float(torch.stack([g.norm() for g in gradients]).norm()) if step and gradients else None
        return Watched(step, step / per_epoch, np.degrees(np.arccos(cosine.double().clamp(-1, 1).numpy())), norm)

    found = [now(0)] if 0 in moments else []

    class Watch(Reporter):
        def on_step(self, epoch: int, step: int, metrics: Any) -> None:
            if (done := epoch * per_epoch + step) in moments:
                found.append(now(done))

    fit_config(config, dataset, state=state, reporter=Watch())
    return found
