"""A trained model, from the run directory of either program: `load_model(run).predict(images)`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_reference.errors import UserError
from torch_reference.files import read_dataset, read_json, read_safetensors
from torch_reference.losses.softmax import linear_logits
from torch_reference.losses.vectors import cosines
from torch_reference.models import weights
from torch_reference.models.backbones import BACKBONES, make_backbone
from torch_reference.models.layers import Backbone, normalise


class Model:
    """A trained network with its classes; `load_model` makes one.

    Args:
      backbone: from normalised images to embeddings.
      image_shape: (H, W, C) of the images that it takes.
      class_names: each class's name, [C].
      prototypes: [C, D], or [C, K, D] with sub-centres.
      bias: [C], of a linear classifier; None where the nearest prototype counts.
      mean, std: each channel's, [C], in grey levels.
      precision: float32 or bfloat16.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_shape: tuple[int, int, int],
        class_names: tuple[str, ...],
        prototypes: np.ndarray,
        bias: np.ndarray | None,
        mean: np.ndarray,
        std: np.ndarray,
        precision: str = "float32",
    ):
        self.backbone = backbone.eval()
        self.image_shape, self.class_names = image_shape, class_names
        self.prototypes, self.bias = prototypes, bias
        self.precision = precision
        self.device = next(backbone.parameters()).device
        # rounded to float32 from float64, as in the training
        self._mean, self._scale = (torch.from_numpy(np.float32(value)).to(self.device) for value in (mean, 1 / std))

    @property
    def classes(self) -> dict[str, np.ndarray]:
        """What it classifies by: `prototypes`, and `bias` if there is one."""
        return {"prototypes": self.prototypes} | ({} if self.bias is None else {"bias": self.bias})

    @torch.no_grad()
    def embed(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Embeddings, float32 [N, D].

        Args:
          images: uint8 [N, H, W, C] of `image_shape`.
          batch_size: images computed at a time.

        Raises:
          ValueError: images of another shape or type.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images are {images.dtype} {images.shape}; the model takes uint8 (N, {shape})")
        found = [np.empty((0, self.prototypes.shape[-1]), np.float32)]
        for start in range(0, len(images), batch_size):
            x = normalise(torch.tensor(images[start : start + batch_size], device=self.device), self._mean, self._scale)
            with network_precision(self.precision, self.device):
                found.append(self.backbone(x).to(torch.float32).cpu().numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """The class of each image, int64 [N]: an index into `class_names`; `images` as in `embed`."""
        w, b = torch.from_numpy(self.prototypes), None if self.bias is None else torch.from_numpy(self.bias)
        found = [np.empty(0, np.int64)]
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(self.embed(images[start : start + batch_size], batch_size))
            logits = cosines(x, w) if b is None else linear_logits(x, w, b)
            found.append(logits.argmax(dim=1).numpy())
        return np.concatenate(found)


def load_model(run: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model of a run directory, whichever program trained it.

    Args:
      run: the directory, with `config.json`, `dataset.json` and `model.safetensors`.
      device: where its network computes.

    Raises:
      UserError: no run directory, or one without a trained model.

        model = load_model("runs/digits")
        model.predict(images)  # uint8 [N, H, W, C] -> int64 [N]
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    described, config = read_description(run), read_json(run / "config.json")
    path = run / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no model.safetensors: its training is not finished")
    arrays = read_safetensors(path, kinds="f")
    names, (height, width, channels) = tuple(described["class_names"]), described["image_shape"]
    _check_network(config, run / "config.json")

    def make() -> Backbone:
        shape, dim = (height, width, channels), config["embedding_dim"]
        return make_backbone(config["backbone"], shape, dim, config["width"], config["dropout"])

    of_backbone = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    try:
        with torch.device("meta"):  # before a network is made that the file does not fill
            weights.check_arrays(make(), of_backbone)
        prototypes, bias = _classes(arrays, len(names), config["embedding_dim"])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    backbone = make()
    weights.load_arrays(backbone, of_backbone)
    mean, std = np.array(described["mean"]), np.array(described["std"])
    image_shape = (height, width, channels)
    return Model(backbone.to(device), image_shape, names, prototypes, bias, mean, std, config["precision"])


def _check_network(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where the fields that describe the network are missing or of another kind."""
    for name, kinds, is_right in (
        ("backbone", str, lambda value: value in BACKBONES),
        ("embedding_dim", int, lambda value: value >= 1),
        ("width", int | float, lambda value: 0 < value <= 64),
        ("dropout", int | float, lambda value: 0 <= value < 1),
        ("precision", str, lambda value: value in ("float32", "bfloat16")),
    ):
        value = config.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool) or not is_right(value):
            raise UserError(f"{path} describes no network: its {name} is {value!r}")


def _classes(arrays: Mapping[str, np.ndarray], classes: int, dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The prototypes and the bias; ValueError where they do not fit."""
    prototypes, bias = arrays.get("head.prototypes"), arrays.get("head.bias")
    if prototypes is None:
        raise ValueError("it has no head.prototypes, which the model needs")
    if prototypes.ndim not in (2, 3) or (prototypes.shape[0], prototypes.shape[-1]) != (classes, dim):
        raise ValueError(
            f"its head.prototypes have shape {prototypes.shape}, for {classes} classes and dimension {dim}"
        )
    if bias is not None and (bias.shape != (classes,) or prototypes.ndim != 2):
        raise ValueError(f"its head.bias has shape {bias.shape}, for prototypes {prototypes.shape}")
    return prototypes, bias


def network_precision(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where convolutions and linear layers are computed in float32 or bfloat16."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def read_description(run: Path) -> dict[str, Any]:
    """`dataset.json`: the images' shape (H, W, C), the class names, each channel's mean and standard deviation.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if not (run / "dataset.json").is_file():
        raise UserError(f"{run} is not a whole run directory: it has no dataset.json")
    return read_dataset(run / "dataset.json")
