"""The protocols by name: to add one, write its function here, and `evaluate` and its file have it.

>>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
>>> PROTOCOLS["verification"](Embedded(x, np.array([0, 0, 1, 1]), {}))["auc"]
1.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_arcface.evaluation.angles import angle_statistics
from jax_arcface.evaluation.health import health as health_of
from jax_arcface.evaluation.identification import first_of_each, identify
from jax_arcface.evaluation.metrics import Embedded
from jax_arcface.evaluation.pairs import draw_pairs, pair_scores
from jax_arcface.evaluation.retrieval import clusters
from jax_arcface.evaluation.retrieval import retrieval as retrieval_of
from jax_arcface.evaluation.verification import Verification, cross_validated, verify

# K-means is fitted to at most this many embeddings.
_CLUSTERED = 20_000
Protocol = Callable[[Embedded], dict[str, Any]]
PROTOCOLS: dict[str, Protocol] = {}


def protocol(function: Protocol) -> Protocol:
    """Registers a function as a protocol, by its name."""
    PROTOCOLS[function.__name__] = function
    return function


@protocol
def verification(e: Embedded) -> dict[str, Any]:
    """Same class or not? All pairs, and 6,000 drawn pairs in 10 folds."""
    drawn = draw_pairs(e.labels)
    folds = cross_validated(pair_scores(e.embeddings, drawn), drawn.same, drawn.fold)
    return describe(verify(e.pairs, folds))


@protocol
def identification(e: Embedded) -> dict[str, Any]:
    """Which class? A gallery of each class's first example; all others are probes."""
    chosen = first_of_each(e.labels)
    found = identify((e.embeddings[chosen], e.labels[chosen]), (e.embeddings[~chosen], e.labels[~chosen]))
    ranks = {f"rank_{r}": found.rank(r) for r in (1, 5, 10) if r <= len(found.cmc)}
    return {"gallery": int(chosen.sum()), "probes": found.mated, **ranks}


@protocol
def retrieval(e: Embedded) -> dict[str, Any]:
    """Are the nearest neighbours of the same class? Each example against all others."""
    found = dataclasses.asdict(retrieval_of(e.embeddings, e.labels))
    found["recall_at_k"] = {str(k): value for k, value in found["recall_at_k"].items()}
    few = slice(0, _CLUSTERED)
    return found | dataclasses.asdict(clusters(e.embeddings[few], e.labels[few]))


@protocol
def angles(e: Embedded) -> dict[str, Any]:
    """The paper's table 3, in radians."""
    found = dataclasses.asdict(angle_statistics(e.embeddings, e.labels, e.owned.get("prototypes")))
    return {name: value for name, value in found.items() if value is not None}


@protocol
def health(e: Embedded) -> dict[str, Any]:
    """Collapsed dimensions, lengths, duplicates."""
    return dataclasses.asdict(health_of(e.embeddings, e.labels))


def describe(found: Verification) -> dict[str, Any]:
    """The verification part of `evaluation.json`."""
    described: dict[str, Any] = {
        "positives": found.positives,
        "negatives": found.negatives,
        "auc": found.auc,
        "eer": found.eer,
        "eer_threshold": found.eer_threshold,
        "best_accuracy": found.best_accuracy,
        "best_threshold": found.best_threshold if np.isfinite(found.best_threshold) else None,
    }
    if found.folds is not None:
        described["accuracy_mean"] = found.folds.mean
        described["accuracy_std"] = found.folds.std
        described["accuracy_standard_error"] = found.folds.standard_error
    described["tar_at_far"] = {f"{p.far_wished:.0e}": p.tar for p in found.points}
    described["threshold_at_far"] = {
        f"{p.far_wished:.0e}": p.threshold if p.threshold is not None and np.isfinite(p.threshold) else None
        for p in found.points
    }
    return described
