"""A trained model, from a run directory of either program or published weights: `load_model(run).predict(images)`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_reference.errors import UserError
from torch_reference.files import read_dataset, read_json, read_safetensors
from torch_reference.losses.softmax import linear_logits
from torch_reference.losses.vectors import cosines
from torch_reference.models import published, weights
from torch_reference.models.backbones import BACKBONES, is_own, make_backbone
from torch_reference.models.layers import normalise


class Model:
    """A trained network with its classes; `load_model` makes one.

    Args:
      backbone: from normalised images to embeddings.
      image_shape: (H, W, C) of the images that it takes.
      embedding_dim: D.
      class_names: each class's name, [C]; published weights have none.
      prototypes: [C, D], or [C, K, D] with sub-centres; None without classes.
      bias: [C], of a linear classifier; None where the nearest prototype counts.
      mean, std: each channel's, [C], in grey levels.
      precision: float32 or bfloat16.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: tuple[int, int, int],
        embedding_dim: int,
        class_names: tuple[str, ...],
        prototypes: np.ndarray | None,
        bias: np.ndarray | None,
        mean: np.ndarray,
        std: np.ndarray,
        precision: str = "float32",
    ):
        self.backbone = backbone.eval()
        self.image_shape, self.embedding_dim = image_shape, embedding_dim
        self.class_names, self.prototypes, self.bias = class_names, prototypes, bias
        self.mean, self.std, self.precision = mean, std, precision
        self.device = next(backbone.parameters()).device
        # rounded to float32 from float64, as in the training
        self._mean, self._scale = (torch.from_numpy(np.float32(value)).to(self.device) for value in (mean, 1 / std))

    @property
    def classes(self) -> dict[str, np.ndarray]:
        """What it classifies by: `prototypes`, and `bias` if there is one.

        Raises:
          ValueError: it has no classes.
        """
        if self.prototypes is None:
            raise ValueError("the model has no classes, as it comes from published weights: it can only embed")
        return {"prototypes": self.prototypes} | ({} if self.bias is None else {"bias": self.bias})

    @torch.no_grad()
    def embed(self, images: np.ndarray, batch_size: int = 500, *, flip: bool = False) -> np.ndarray:
        """Embeddings, float32 [N, D].

        Args:
          images: uint8 [N, H, W, C] of `image_shape`.
          batch_size: images computed at a time.
          flip: sum those of the image and of its mirror image, as published results on faces do.

        Raises:
          ValueError: images of another shape or type.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images are {images.dtype} {images.shape}; the model takes uint8 (N, {shape})")
        found = [np.empty((0, self.embedding_dim), np.float32)]
        for start in range(0, len(images), batch_size):
            x = normalise(torch.tensor(images[start : start + batch_size], device=self.device), self._mean, self._scale)
            with network_precision(self.precision, self.device):
                y = self.backbone(x).to(torch.float32)
                if flip:
                    y += self.backbone(x.flip(-1)).to(torch.float32)
                found.append(y.cpu().numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """The class of each image, int64 [N]: an index into `class_names`; `images` as in `embed`.

        Raises:
          ValueError: it has no classes, or as `embed`.
        """
        owned = {name: torch.from_numpy(array) for name, array in self.classes.items()}
        w, b = owned["prototypes"], owned.get("bias")
        found = [np.empty(0, np.int64)]
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(self.embed(images[start : start + batch_size], batch_size))
            logits = cosines(x, w) if b is None else linear_logits(x, w, b)
            found.append(logits.argmax(dim=1).numpy())
        return np.concatenate(found)


def load_model(
    path: str | Path, device: str | torch.device = "cpu", normalise: published.Normalise | None = None
) -> Model:
    """The model of a run directory, whichever program trained it, or of a file of published weights.

    A file's network is recognised by the names and shapes of its tensors (`models/published.py`); its model embeds and
    has no classes.

    Args:
      path: the run directory, with `config.json`, `dataset.json` and `model.safetensors`; or a file, `.pt`, `.pth` or
        `.safetensors`.
      device: where its network computes.
      normalise: how a file's network takes its images: "half" (-1 to 1) or "imagenet" (ImageNet's mean and deviation);
        where None, as that network is known to.

    Raises:
      UserError: no run directory, or one without a trained model; a file that cannot be read or is of no known network;
        a normalisation that is not known, or any with a run, which has its own.

        model = load_model("runs/digits")
        model.predict(images)  # uint8 [N, H, W, C] -> int64 [N]
    """
    path = Path(path)
    if published.is_weights(path) and not path.is_dir():
        return _published(path, device, normalise)
    if normalise is not None:
        raise UserError(f"{path} is a run, which has its images' mean and deviation: give no normalisation")
    return _trained(path, device)


def _published(path: Path, device: str | torch.device, normalise: str | None) -> Model:
    """The model of a file of weights."""
    arrays = published.read_weights(path)
    network = published.recognise(arrays, path)
    name = network.normalise if normalise is None else normalise
    if name not in published.NORMALISATIONS:
        raise UserError(f"no normalisation is called {name!r}: {' or '.join(published.NORMALISATIONS)}")
    mean, std = published.NORMALISATIONS[name]

    def make() -> nn.Module:
        return make_backbone(network.backbone, network.image_shape, network.embedding_dim, network.width)

    try:
        backbone = _filled(make, arrays)
    except ValueError as error:
        raise UserError(f"{path} looks like {network.backbone}, but {error}") from None
    return Model(backbone.to(device), network.image_shape, network.embedding_dim, (), None, None, mean, std)


def _trained(run: Path, device: str | torch.device) -> Model:
    """The model of a run."""
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    described, config = read_description(run), read_json(run / "config.json")
    path = run / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{run} has no model.safetensors: its training is not finished")
    arrays = read_safetensors(path, kinds="f")
    names, (height, width, channels) = tuple(described["class_names"]), described["image_shape"]
    _check_network(config, run / "config.json")
    image_shape, dim = (height, width, channels), config["embedding_dim"]

    def make() -> nn.Module:
        return make_backbone(config["backbone"], image_shape, dim, config["width"], config["dropout"])

    of_backbone = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    try:
        backbone = _filled(make, of_backbone)
        prototypes, bias = _classes(arrays, len(names), dim)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    mean, std = np.array(described["mean"]), np.array(described["std"])
    return Model(backbone.to(device), image_shape, dim, names, prototypes, bias, mean, std, config["precision"])


def _filled(make: Callable[[], nn.Module], arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """A backbone with these weights; ValueError where they do not fit, before it takes memory."""
    with torch.device("meta"):
        weights.check_arrays(make(), arrays)
    backbone = make()
    weights.load_arrays(backbone, arrays)
    return backbone


def _check_network(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where the fields that describe the network are missing or of another kind."""
    for name, kinds, is_right in (
        ("backbone", str, lambda value: value in BACKBONES or is_own(value)),
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
