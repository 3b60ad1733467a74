"""The parts of an evaluation by name, as `evaluate --protocol` and evaluation.json have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torch_reference.evaluation.angles import angle_statistics
from torch_reference.evaluation.angles import health as health_of
from torch_reference.evaluation.metrics import Evaluated
from torch_reference.evaluation.pairs import draw_pairs, pair_scores
from torch_reference.evaluation.search import clusters, first_of_each, identify
from torch_reference.evaluation.search import retrieval as retrieval_of
from torch_reference.evaluation.verification import (
    FEWEST,
    Folds,
    Tally,
    auc,
    best_accuracy,
    cross_validated,
    eer,
    tar_at_far,
)

CLUSTERED = 20_000  # embeddings that k-means is fitted to, at most


def verification(e: Evaluated) -> dict[str, Any]:
    """All pairs of examples, and 6,000 drawn pairs in ten folds."""
    drawn = draw_pairs(e.labels)
    folds = cross_validated(pair_scores(e.embeddings, drawn), drawn.same, drawn.fold)
    return verified(e.pairs, folds)


def verified(t: Tally, folds: Folds | None, fewest: float = FEWEST) -> dict[str, Any]:
    """The numbers of verification, with LFW's if there are folds; `fewest` as in `tar_at_far`."""
    (rate, at), (best, threshold), points = eer(t), best_accuracy(t), tar_at_far(t, fewest=fewest)
    found: dict[str, Any] = {
        "positives": int(t.positives.sum()),
        "negatives": int(t.negatives.sum()),
        "auc": auc(t),
        "eer": rate,
        "eer_threshold": at,
        "best_accuracy": best,
        "best_threshold": threshold if math.isfinite(threshold) else None,
    }
    if folds is not None:
        accuracies = folds.accuracies.numpy()
        found["accuracy_mean"] = float(accuracies.mean())
        found["accuracy_std"] = float(accuracies.std())
        found["accuracy_standard_error"] = float(accuracies.std(ddof=1)) / math.sqrt(len(accuracies))
    found["tar_at_far"] = {f"{p.far_wished:.0e}": p.tar for p in points}
    found["threshold_at_far"] = {
        f"{p.far_wished:.0e}": p.threshold if p.threshold is not None and math.isfinite(p.threshold) else None
        for p in points
    }
    return found


def identification(e: Evaluated) -> dict[str, Any]:
    """Each class's first example is its gallery; the others are probes."""
    x, y, first = torch.as_tensor(e.embeddings), torch.as_tensor(e.labels), first_of_each(e.labels)
    found = identify((x[first], y[first]), (x[~first], y[~first]))
    ranks = {f"rank_{r}": found.cmc[r - 1].item() for r in (1, 5, 10) if r <= len(found.cmc)}
    return {"gallery": int(first.sum()), "probes": found.mated, **ranks}


def retrieval(e: Evaluated) -> dict[str, Any]:
    """Each example against all others, and k-means."""
    found = retrieval_of(e.embeddings, e.labels)._asdict()
    found["recall_at_k"] = {str(k): value for k, value in found["recall_at_k"].items()}
    return found | clusters(e.embeddings[:CLUSTERED], e.labels[:CLUSTERED])._asdict()


def angles(e: Evaluated) -> dict[str, Any]:
    """ArcFace's table 3, in radians."""
    found = angle_statistics(e.embeddings, e.labels, e.classes.get("prototypes"))._asdict()
    return {name: value for name, value in found.items() if value is not None}


def health(e: Evaluated) -> dict[str, Any]:
    """Signs of collapse and damage."""
    return health_of(e.embeddings, e.labels)


PROTOCOLS: dict[str, Callable[[Evaluated], dict[str, Any]]] = {
    f.__name__: f for f in (verification, identification, retrieval, angles, health)
}
