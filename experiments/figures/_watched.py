"""A training that is looked into while it runs; what was seen is kept beside the runs and found again like them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import runs
from experiments.figures import _framework

# Moments as shares of a training: what several figures look at is watched once.
SHARES = tuple(number / 24 for number in range(25))
IMAGES = 2000  # of the test split, that are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """What was seen at M moments of a training.

    Args:
      step, epoch: steps done, [M], and the same in epochs.
      angles: theta_y of N test images, in degrees: [M, N].
      gradient: the norm of the last step's gradient, [M]; NaN before the first.
      labels: of the test images, [N].
      class_names: of the classes trained.
      embeddings, prototypes: [M, N, D] and [M, C, D], kept where D is at most 3.
      accuracy: on all test images after each epoch, [epochs].
    """

    step: np.ndarray
    epoch: np.ndarray
    angles: np.ndarray
    gradient: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    embeddings: np.ndarray
    prototypes: np.ndarray
    accuracy: np.ndarray


def watch(fields: dict[str, Any], shares: Sequence[float], folder: Path = runs.FOLDER) -> Watched:
    """Trains as `runs.trained` does with PyTorch, and looks at it after these shares of its steps (0: before them).

    What was seen by an earlier call is read again.
    """
    key = {**fields, "shares": [round(float(share), 6) for share in shares]}
    kept = folder / f"watched-{runs.name('torch_reference', key)}"
    if (kept / "watched.json").exists():
        held = json.loads((kept / "watched.json").read_text())
        if held["code"] != runs.code("torch_reference"):
            trainer = held["commit"] or "an unknown commit"
            print(f"{kept.name} was trained by {trainer}, which is not today's code", file=sys.stderr)
        with np.load(kept / "seen.npz") as seen:
            return Watched(**{field.name: seen[field.name] for field in dataclasses.fields(Watched)})
    described = {"fields": key, "code": runs.code("torch_reference"), "commit": runs.commit()}
    found = _train(fields, shares)
    kept.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(kept / "seen.npz", **vars(found))
    (kept / "watched.json").write_text(json.dumps(described, indent=2) + "\n")
    return found


class Trained(NamedTuple):
    """What a training on a data set at hand gives: a function that embeds images [N, H, W, C], prototypes, bias."""

    embed: Callable[[np.ndarray], np.ndarray]
    prototypes: np.ndarray
    bias: np.ndarray | None

    def predictions(self, images: np.ndarray) -> np.ndarray:
        """The classes of images, [N]."""
        from torch_reference import predict

        return predict(self.embed(images), self.prototypes, self.bias).numpy()

    def cosines(self, images: np.ndarray) -> np.ndarray:
        """The cosines of images to each class's nearest prototype, [N, C]."""
        import torch

        from torch_reference import cosines

        x = torch.from_numpy(self.embed(images)).double()
        return cosines(x, torch.from_numpy(self.prototypes).double()).numpy()


def train_on(dataset: Any, fields: dict[str, Any]) -> Trained:
    """Trains with PyTorch on a data set that no command line can name; nothing of it is kept."""
    import torch

    from torch_reference import fit_config
    from torch_reference.training.config import from_dict

    config = from_dict(fields)
    # its test after each epoch is not looked at
    few = dataclasses.replace(dataset.test, images=dataset.test.images[:64], labels=dataset.test.labels[:64])
    model = fit_config(config, dataclasses.replace(dataset, test=few)).model
    embed = _embedding(model, dataset)

    def embed_all(images: np.ndarray) -> np.ndarray:
        return embed(torch.from_numpy(images.copy())).numpy()

    head = model.head
    bias = None if head.bias is None else head.bias.detach().numpy().copy()
    return Trained(embed_all, head.prototypes.detach().numpy().copy(), bias)


def _embedding(model: Any, dataset: Any) -> Callable[[Any], Any]:
    """Embeds uint8 images [N, H, W, C], in evaluation mode."""
    import torch

    from torch_reference.data.dataset import channel_statistics
    from torch_reference.models.layers import normalise

    mean, std = (torch.from_numpy(np.float32(x)) for x in channel_statistics(dataset.train.images))

    @torch.no_grad()
    def embed(images: Any) -> Any:
        trains = model.training
        model.eval()
        x = torch.cat([model.backbone(normalise(part, mean, 1 / std)) for part in images.split(500)])
        model.train(trains)
        return x

    return embed


def _train(fields: dict[str, Any], shares: Sequence[float]) -> Watched:
    import torch

    from torch_reference import Reporter, cosines, fit_config
    from torch_reference.training.config import from_dict
    from torch_reference.training.fit import initial_state

    config = from_dict(fields)
    dataset = _framework.dataset(config.dataset, config.holdout_classes)
    state = initial_state(config, dataset)
    embed = _embedding(state.model, dataset)
    images = torch.from_numpy(dataset.test.images[:IMAGES].copy())
    labels = torch.from_numpy(dataset.test.labels[:IMAGES].astype(np.int64))
    per_epoch = len(dataset.train.labels) // config.batch_size
    moments = [round(share * config.epochs * per_epoch) for share in shares]
    seen: list[dict[str, Any]] = []
    accuracy: list[float] = []

    @torch.no_grad()
    def look(step: int) -> None:
        model = state.model
        x = embed(images)
        prototypes = model.head.prototypes
        cosine = cosines(x, prototypes).gather(1, labels[:, None])[:, 0]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        seen.append(
            {
                "step": step,
                "epoch": step / per_epoch,
                "angles": np.degrees(np.arccos(cosine.double().clamp(-1, 1).numpy())),
                "gradient": float(torch.stack([g.norm() for g in gradients]).norm()) if step else np.nan,
                "embeddings": x.numpy() if x.shape[1] <= 3 else np.empty(0),
                "prototypes": prototypes.numpy().copy() if x.shape[1] <= 3 else np.empty(0),
            }
        )

    class Watch(Reporter):
        def on_step(self, epoch: int, step: int, metrics: Any) -> None:
            if (done := epoch * per_epoch + step) in moments:
                look(done)

        def on_epoch(self, record: Any, state: Any) -> None:
            accuracy.append(record.test_accuracy)

    if 0 in moments:
        look(0)
    fit_config(config, dataset, state=state, reporter=Watch())
    stacked = {name: np.array([one[name] for one in seen], np.float32) for name in seen[0]}
    names = np.array(dataset.class_names)
    return Watched(**stacked, labels=labels.numpy(), class_names=names, accuracy=np.array(accuracy))
