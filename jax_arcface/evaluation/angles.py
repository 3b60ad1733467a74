"""The angles of the paper's table 3, and how a trained margin lies among them. All are radians."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from jax_arcface.evaluation.pairs import labelled, unit


@dataclasses.dataclass(frozen=True)
class AngleStatistics:
    """Means of angles, in radians.

    Args:
      w_ec: between a class's prototype and its centre. w_inter: of each prototype to the nearest other.
      intra: of each example to its class's centre. inter: of each centre to the nearest other.
      A centre is the mean direction of a class's unit embeddings. w_ec and w_inter are None without prototypes.
    """

    w_ec: float | None
    w_inter: float | None
    intra: float
    inter: float


def angle_statistics(embeddings: ArrayLike, labels: ArrayLike, prototypes: ArrayLike | None = None) -> AngleStatistics:
    """The four means of ArcFace's table 3; classes without an example are left out.

    Args:
      embeddings: [N, D]. labels: integers [N], in [0, C) where there are prototypes.
      prototypes: [C, D], or [C, K, D], of which a class's sub-centre nearest to its centre counts.

    Raises:
      ValueError: embeddings that are zero or not finite, labels that do not fit, or fewer than two classes.

    Reference: Deng et al. 2019, ArcFace, section 3.3 and table 3.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> angle_statistics(x, [0, 1], x).inter == np.pi / 2
    True
    """
    units, labels = labelled(embeddings, labels, _unit)
    classes, where = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("angles between classes need at least two classes")
    sums = np.zeros((len(classes), units.shape[1]))
    np.add.at(sums, where, units)
    centres = unit(sums)
    w_ec = w_inter = None
    if prototypes is not None:
        shaped = _directions(prototypes, classes)
        cosines = np.einsum("ckd,cd->ck", shaped, centres)
        nearest = shaped[np.arange(len(classes)), cosines.argmax(axis=1)]
        w_ec, w_inter = float(_angle(cosines.max(axis=1)).mean()), _to_nearest(nearest)
    intra = _angle(np.einsum("nd,nd->n", units, centres[where]))
    return AngleStatistics(w_ec, w_inter, float(intra.mean()), _to_nearest(centres))


def target_angles(embeddings: ArrayLike, labels: ArrayLike, prototypes: ArrayLike) -> np.ndarray:
    """theta_y: each embedding's angle to its class's (nearest) prototype, float64 [N] in radians.

    >>> target_angles(np.array([[0.0, 2.0]]), [0], np.array([[1.0, 0.0]])).round(4).tolist()
    [1.5708]
    """
    units, labels = labelled(embeddings, labels, _unit)
    classes, where = np.unique(labels, return_inverse=True)
    return _angle(np.einsum("nkd,nd->nk", _directions(prototypes, classes)[where], units).max(axis=1))


def _unit(embeddings: ArrayLike) -> np.ndarray:
    return unit(embeddings).astype(np.float64)


def _directions(prototypes: ArrayLike, classes: np.ndarray) -> np.ndarray:
    """Unit prototypes of some classes, in rising order, with an axis for sub-centres: [C', K, D]."""
    rows = np.asarray(prototypes, np.float64)
    if classes[0] < 0 or classes[-1] >= len(rows):
        raise ValueError(f"labels must lie in [0, {len(rows)}), one for each prototype")
    return unit(rows[classes].reshape(-1, rows.shape[-1])).reshape(len(classes), -1, rows.shape[-1])


def _to_nearest(units: np.ndarray) -> float:
    """The mean angle from each vector to the nearest other."""
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    return float(_angle(cosines.max(axis=1)).mean())


def _angle(cosines: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip(cosines, -1, 1))
