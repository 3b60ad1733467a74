"""A gallery of known people: their embeddings in one file, built once and added to, and who is nearest to a face."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_arcface.errors import UserError
from jax_arcface.files import atomic_write, read_npz, shown
from jax_arcface.models.trained import Model

_BATCH = 64
_SAME_MODEL = 0.999  # cosine of the embeddings of one image, by one model on two machines


class Match(NamedTuple):
    """Who is nearest to a face: a name, the cosine of the angle to the nearest of that person's faces, its file."""

    name: str
    cosine: float
    file: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Faces of known people.

    Args:
      embeddings: float32 [N, D], of length one.
      names: [N], whose each is. files: [N], where each is from.
      probe: float32 [D], the embedding that `probe_of` gives, which tells one model from another.

    >>> faces = Gallery.empty(np.array([1, 0], np.float32))
    >>> faces = faces.added([[3, 0], [0, 2], [1, 1]], ["Ann", "Bo", "Bo"], ["a.jpg", "b.jpg", "c.jpg"])
    >>> [match.name for match in faces.nearest(np.array([[2, 1]]))[0]]
    ['Bo', 'Ann']
    """

    embeddings: np.ndarray
    names: tuple[str, ...]
    files: tuple[str, ...]
    probe: np.ndarray

    @classmethod
    def empty(cls, probe: np.ndarray) -> Gallery:
        """One without faces, for embeddings of the model with this probe."""
        return cls(np.zeros((0, len(probe)), np.float32), (), (), unit(probe[None])[0])

    @classmethod
    def read(cls, path: Path) -> Gallery:
        """The gallery in a file.

        Raises:
          UserError: no such file, or another content.
        """
        held = read_npz(path, ["embeddings", "names", "files", "probe"])
        embeddings, names, files, probe = held.values()
        if (
            embeddings.dtype.kind != "f"
            or probe.dtype.kind != "f"
            or {names.dtype.kind, files.dtype.kind} != {"U"}
            or embeddings.shape != (len(names), *probe.shape)
            or names.shape != files.shape
            or names.ndim != 1
        ):
            raise UserError(f"{shown(path)} is not a gallery: its arrays do not fit each other")
        return cls(unit(embeddings), tuple(names.tolist()), tuple(files.tolist()), unit(probe[None])[0])

    def write(self, path: Path) -> None:
        """Writes the gallery to a file.

        Raises:
          UserError: a place where nothing can be written, or a gallery without faces.
        """
        if not self.names:
            raise UserError(f"{shown(path)} is not written: the gallery has no face")
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                embeddings=self.embeddings,
                names=np.array(self.names),
                files=np.array(self.files),
                probe=self.probe,
            )

    def check_model(self, probe: np.ndarray) -> None:
        """Raises UserError where the embeddings are of another model than the one with this probe."""
        if probe.shape != self.probe.shape or float(unit(probe[None])[0] @ self.probe) < _SAME_MODEL:
            raise UserError(
                "the gallery was made with another model, or one of the two with mirror images: they cannot be compared"
            )

    def added(self, embeddings: Any, names: Sequence[str], files: Sequence[str]) -> Gallery:
        """With further faces: embeddings [M, D], of any length; names and files [M]."""
        together = np.concatenate([self.embeddings, unit(np.asarray(embeddings, np.float32))])
        return Gallery(together, (*self.names, *names), (*self.files, *files), self.probe)

    def without(self, files: Collection[str]) -> Gallery:
        """Without the faces of these files."""
        kept = [i for i, file in enumerate(self.files) if file not in files]
        return dataclasses.replace(
            self,
            embeddings=self.embeddings[kept],
            names=tuple(self.names[i] for i in kept),
            files=tuple(self.files[i] for i in kept),
        )

    def nearest(self, embeddings: np.ndarray) -> list[list[Match]]:
        """All people for each embedding [F, D], the nearest first: each is as near as the nearest of their faces."""
        found = []
        for cosines in unit(embeddings) @ self.embeddings.T:
            best: dict[str, Match] = {}
            for i in np.argsort(-cosines, kind="stable"):
                best.setdefault(self.names[i], Match(self.names[i], float(cosines[i]), self.files[i]))
            found.append(list(best.values()))
        return found


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] made of length one, float32.

    Raises:
      UserError: one that is zero or not finite.
    """
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UserError("the embedding of a face is zero or not finite: it cannot be compared")
    return (embeddings / lengths).astype(np.float32)


def embed_crops(model: Model, crops: np.ndarray, flip: bool = False) -> np.ndarray:
    """Embeddings of length one, float32 [F, D], of one RGB crop or more, uint8 [F, S, S, 3], the size the model takes.

    Args:
      flip: add the embedding of the mirror image, as is usual in evaluations.
    """
    if model.image_shape[2] == 1:
        crops = np.round(crops @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    parts = []
    for start in range(0, len(crops), _BATCH):
        batch = crops[start : start + _BATCH]
        # filled up to few numbers of faces, so that few programs are compiled
        full = batch[np.resize(np.arange(len(batch)), 2 ** math.ceil(math.log2(len(batch))))]
        parts.append(model.embed(full, flip=flip)[: len(batch)])
    return unit(np.concatenate(parts))


def crop_size(model: Model) -> int:
    """The side of the crops that a model takes.

    Raises:
      UserError: a model for other than square images.
    """
    height, width, _ = model.image_shape
    if height != width:
        raise UserError(f"the model takes images of {height}x{width} pixels; aligned faces are square")
    return height


def probe_of(model: Model, flip: bool = False) -> np.ndarray:
    """The embedding of an image that is always the same, float32 [D]; `flip` as for `embed_crops`."""
    size = crop_size(model)
    y, x, channel = np.mgrid[:size, :size, :3]
    pixels = (255 * x // size * (2 + channel) // 4 + y // 2) % 256
    return embed_crops(model, pixels.astype(np.uint8)[None], flip)[0]
