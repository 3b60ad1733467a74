"""A trained model, of a run or of published weights: `load_model("runs/mine").embed(images)`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jax_arcface import files
from jax_arcface.errors import UserError
from jax_arcface.losses.fused import classify
from jax_arcface.losses.softmax import linear_logits
from jax_arcface.losses.vectors import cosines
from jax_arcface.models import published, weights
from jax_arcface.models.backbones import backbone_factory
from jax_arcface.models.images import ImageShape, normalise

Images = np.ndarray | Array


def make_embed(backbone_of: Callable[[Any], Any]) -> Callable[[Any, Images, Any, Any], np.ndarray]:
    """A function from (weights, images, mean, scale) to the embeddings of all images, float32 [N, D].

    Args:
      backbone_of: from weights to the backbone; traced.

    Images are [N, H, W, C], on the host or on the device; `mean` and `scale` [C] normalise them.
    """

    @jax.jit
    def embed_batch(state: Any, images: Array, mean: Array, scale: Array) -> Array:
        backbone = backbone_of(state)
        backbone.eval()
        return backbone(normalise(images, mean, scale)).astype(jnp.float32)

    gather = jax.jit(lambda images, index: images[index])

    def embed(state: Any, images: Images, mean: Any, scale: Any, batch_size: int = 500) -> np.ndarray:
        n, parts = len(images), []
        batch_size = min(batch_size, n)
        for start in range(0, n, batch_size):
            # the last batch is filled up from the front, so that one compiled shape serves all
            index = np.arange(start, start + batch_size) % n
            batch = images[index] if isinstance(images, np.ndarray) else gather(images, index)
            parts.append(np.asarray(embed_batch(state, batch, mean, scale)))
        return np.concatenate(parts)[:n]

    return embed


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model.

    Args:
      backbone: from normalised images to embeddings, an nnx module in evaluation mode.
      image_shape: (H, W, C) of the images that it takes.
      embedding_dim: D.
      class_names: [C]; none of published weights, which have no classes.
      prototypes: [C, D], or [C, K, D] with sub-centres; None without classes.
      bias: [C], of a linear classifier; None where the nearest prototype counts.
      mean, std: of each channel, [C], in grey levels.
    """

    backbone: nnx.Module
    image_shape: ImageShape
    embedding_dim: int
    class_names: tuple[str, ...]
    prototypes: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    std: np.ndarray

    @property
    def classes(self) -> dict[str, np.ndarray]:
        """What it classifies by: `prototypes`, and `bias` if there is one.

        Raises:
          ValueError: a model without classes.
        """
        if self.prototypes is None:
            raise ValueError("the model has no classes: it is made of published weights, which only embed")
        return {"prototypes": self.prototypes} | ({} if self.bias is None else {"bias": self.bias})

    def embed(self, images: np.ndarray, *, flip: bool = False) -> np.ndarray:
        """Embeddings, float32 [N, D], of images, uint8 [N, H, W, C].

        With `flip` an image's embedding is the sum of its own and its mirror image's, which is how faces are scored.

        Raises:
          ValueError: images of another shape.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images have shape {images.shape}; the model takes [N, {list(self.image_shape)}]")
        if len(images) == 0:
            return np.zeros((0, self.embedding_dim), np.float32)
        constants = [np.asarray(c, np.float32) for c in (self.mean, 1 / self.std)]
        found = self._embed(self._state, images, *constants)
        return found + self._embed(self._state, images[:, :, ::-1], *constants) if flip else found

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """The score of each class, [N, C], of embeddings [N, D]: W x + b with a bias, cosines without.

        Raises:
          ValueError: a model without classes.
        """
        if "bias" in (owned := self.classes):
            return np.asarray(linear_logits(embeddings, **owned))
        return np.asarray(cosines(embeddings, owned["prototypes"]))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The classes' numbers, int64 [N], of images, uint8 [N, H, W, C]; raises as `embed` and `scores`."""
        return np.asarray(classify(self.embed(images), **self.classes), np.int64)

    @functools.cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.backbone)

    @property
    def _state(self) -> nnx.State:
        return self._split[1]

    @functools.cached_property
    def _embed(self) -> Callable[..., np.ndarray]:
        graphdef = self._split[0]
        return make_embed(lambda state: nnx.merge(graphdef, state))


def load_model(path: str | Path, normalise: published.Normalise | None = None) -> Model:
    """Loads the model of a run directory, whichever program trained it, or of a file of published weights.

    A file (`.pt`, `.pth`, `.safetensors`) is recognised by the names and shapes of its tensors; see
    `models/published.py`. Its model embeds and has no classes.

    Args:
      path: the run directory or the file.
      normalise: how a file's network takes its images: "half" (to [-1, 1]) or "imagenet" (ImageNet's mean and standard
        deviation); None takes what is known of the network. Of a run it is always known.

    Raises:
      UserError: no run directory, one whose training has not ended, or files that do not fit each other; a file that
        cannot be read, or of a network that is not known here; a normalisation of a run, or of another name.
    """
    path = Path(path)
    if published.is_weights(path) and not path.is_dir():
        return _of_weights(path, normalise)
    if normalise is not None:
        raise UserError(f"{path} is a run, whose images' mean and deviation are known: no other normalisation fits")
    return _of_run(path)


def _of_weights(path: Path, normalise: published.Normalise | None) -> Model:
    arrays = published.read_weights(path)
    found = published.recognise(arrays, path)
    if (normalise or found.normalise) not in published.NORMALISATIONS:
        raise UserError(f"there is no normalisation {normalise!r}: {' or '.join(published.NORMALISATIONS)}")
    mean, std = published.NORMALISATIONS[normalise or found.normalise]
    try:
        backbone = _filled(found.backbone, found.image_shape, found.embedding_dim, found.width, None, arrays)
    except ValueError as error:
        raise UserError(f"{path} looks like {found.backbone}, but {error}") from None
    return Model(backbone, found.image_shape, found.embedding_dim, (), None, None, mean, std)


def _of_run(run: Path) -> Model:
    config, dataset = files.read_json(run / "config.json"), files.read_dataset(run / "dataset.json")
    values = files.read_safetensors(run / "model.safetensors", "f")
    try:
        shape = tuple(dataset["image_shape"])
        dtype = jnp.bfloat16 if config["precision"] == "bfloat16" else None
        head = {name.removeprefix("head."): values.pop(name) for name in list(values) if name.startswith("head.")}
        values = {name.removeprefix("backbone."): array for name, array in values.items()}
        backbone = _filled(config["backbone"], shape, config["embedding_dim"], config["width"], dtype, values)
        return Model(
            backbone,
            shape,
            config["embedding_dim"],
            tuple(dataset["class_names"]),
            head["prototypes"],
            head.get("bias"),
            np.array(dataset["mean"]),
            np.array(dataset["std"]),
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} does not hold a model that fits its config.json and dataset.json: {error}") from None


def _filled(
    name: str, shape: ImageShape, embedding_dim: int, width: float, dtype: Any, values: weights.Weights
) -> nnx.Module:
    """A backbone with these weights, in evaluation mode; ValueError where they do not fit."""
    backbone = nnx.eval_shape(
        lambda: backbone_factory(name)(shape, embedding_dim, width, dtype=dtype, rngs=nnx.Rngs(0))
    )
    parts: Any = nnx.split(backbone, nnx.Not(nnx.RngState), nnx.RngState)
    graphdef, abstract, streams = parts
    streams = jax.tree.map(_stream, streams)  # of an own network's dropout, which draws nothing here
    backbone = nnx.merge(graphdef, weights.from_pytorch(abstract, values), streams)
    backbone.eval()
    return backbone


def _stream(leaf: jax.ShapeDtypeStruct) -> Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key(0) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
