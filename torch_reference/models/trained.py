"""A trained model, from the run directory of either program: `load_model(run).predict(images)`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_reference.errors import UserError
from torch_reference.files import read_dataset, read_json, read_safetensors
from torch_reference.losses.softmax import linear_logits
from torch_reference.losses.vectors import cosines
from torch_reference.models import weights
from torch_reference.models.backbones import make_backbone
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
    described = read_description(run)
    config = read_json(run / "config.json")
    path = run / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no model.safetensors: its training is not finished")
    arrays = read_safetensors(path, kinds="f")
    height, width, channels = described["image_shape"]
    shape = (height, width, channels)
    try:
        backbone = make_backbone(config["backbone"], shape, config["embedding_dim"], config["width"], config["dropout"])
        precision = config["precision"]
    except KeyError as error:
        raise UserError(f"{run / 'config.json'} has no {error}") from None
    try:
        weights.load_arrays(
            backbone, {n.removeprefix("backbone."): a for n, a in arrays.items() if n.startswith("backbone.")}
        )
        prototypes, bias, names = arrays["head.prototypes"], arrays.get("head.bias"), tuple(described["class_names"])
        if len(prototypes) != len(names) or prototypes.shape[-1] != config["embedding_dim"]:
            raise ValueError(f"its head.prototypes have shape {prototypes.shape} for {len(names)} classes")
    except KeyError as error:
        raise UserError(f"{path}: it has no {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    mean, std = np.array(described["mean"]), np.array(described["std"])
    return Model(backbone.to(device), shape, names, prototypes, bias, mean, std, precision)


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
