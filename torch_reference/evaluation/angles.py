"""The mean angles of ArcFace's table 3, in radians, and signs of a damaged set of embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_reference.evaluation.accuracy import Array
from torch_reference.evaluation.pairs import unit


class AngleStatistics(NamedTuple):
    """W-EC and W-Inter (None without prototypes), Intra and Inter, in radians."""

    w_ec: float | None
    w_inter: float | None
    intra: float
    inter: float


def angle_statistics(embeddings: Array, labels: Array, prototypes: Array | None = None) -> AngleStatistics:
    """Table 3's means: prototype to centre, prototype to the nearest one, example to centre, centre to the nearest one.

    A centre is the mean direction of a class's examples. Of sub-centres [C, K, D] the one nearest to the centre counts;
    classes without an example are left out.

    Raises:
      ValueError: fewer than two classes, or vectors without a direction.

    Reference: Deng et al. 2019, ArcFace, section 3.3, table 3.

    >>> x = torch.eye(2, dtype=torch.float64)
    >>> angle_statistics(x, torch.tensor([0, 1]), x).w_ec
    0.0
    """
    x, y = unit(embeddings).double(), torch.as_tensor(labels)
    if y.shape != x.shape[:1]:
        raise ValueError(f"{len(x)} embeddings have labels {list(y.shape)}")
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError("there is one class: two are needed for an angle between classes")
    centres = unit(torch.stack([x[y == one].mean(dim=0) for one in classes]))
    w_ec = w_inter = None
    if prototypes is not None:
        w = torch.as_tensor(prototypes).double()
        w = w[classes.long()].reshape(len(classes), -1, w.shape[-1])
        chosen = []
        for rows, centre in zip(w, centres, strict=True):
            directions = unit(rows)
            chosen.append(directions[(directions @ centre).argmax()])
        nearest = torch.stack(chosen)
        w_ec, w_inter = _angle((nearest * centres).sum(dim=1)).mean().item(), _between(nearest)
    to_centre = [_angle(x[y == one] @ centre) for one, centre in zip(classes, centres, strict=True)]
    return AngleStatistics(w_ec, w_inter, torch.cat(to_centre).mean().item(), _between(centres))


def _between(directions: Tensor) -> float:
    angles = _angle(directions @ directions.T)
    return angles.fill_diagonal_(torch.inf).amin(dim=1).mean().item()


def _angle(cosines: Tensor) -> Tensor:
    return cosines.clamp(-1, 1).arccos()


def health(embeddings: Array, labels: Array | None = None) -> dict[str, float | int | None]:
    """Counts and lengths that tell a collapsed or damaged set; docs/evaluation.md defines each.

    >>> health(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]))["duplicates"]
    1
    """
    x = torch.as_tensor(embeddings).double()
    finite = x.isfinite().all(dim=1)
    kept = x[finite]
    lengths = torch.linalg.vector_norm(kept, dim=1)
    rank = collapsed = None
    if len(kept) > 1:
        centred = kept - kept.mean(dim=0)
        eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(kept)).clamp(min=0)
        if eigenvalues.sum() > 0:
            rank = (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()
            collapsed = int((eigenvalues < 1e-6 * eigenvalues.max()).sum())
    some = len(kept) > 0
    return {
        "examples": x.shape[0],
        "dimensions": x.shape[1],
        "non_finite": int((~finite).sum()),
        "zeros": int((lengths == 0).sum()),
        "effective_rank": rank,
        "collapsed_dimensions": collapsed,
        "norm_mean": lengths.mean().item() if some else None,
        "norm_std": lengths.std(correction=0).item() if some else None,
        "norm_min": lengths.min().item() if some else None,
        "norm_max": lengths.max().item() if some else None,
        "duplicates": len(kept) - len(kept.unique(dim=0)),
        "singletons": None
        if labels is None
        else int((torch.as_tensor(labels).unique(return_counts=True)[1] == 1).sum()),
    }
