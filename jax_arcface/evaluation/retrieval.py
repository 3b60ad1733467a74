"""Retrieval: are an embedding's nearest neighbours of its class? And clustering."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from jax_arcface.evaluation.pairs import ROUNDED, check_dimensions, cosines64, labelled, unit, unit64


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The metrics of retrieval, means over queries; see `retrieval`."""

    precision_at_1: float
    recall_at_k: dict[int, float]
    r_precision: float
    map_at_r: float
    mean_average_precision: float
    knn_accuracy: float
    queries: int
    left_out: int


def retrieval(
    embeddings: ArrayLike,
    labels: ArrayLike,
    references: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    neighbours: int = 10,
    block_size: int = 256,
) -> Retrieval:
    """Ranks the references by their cosine with each query, and looks where those of the query's class stand.

    With R references of a query's class and p(i) the precision among the i nearest:

    - precision@1: whether the nearest is of its class; recall@k: whether one of the k nearest is.
    - R-precision: p(R).
    - MAP@R: the sum of p(i) over the i <= R at which a reference of its class stands, divided by R.
    - MAP: the same sum over all i (average precision).
    - k-NN accuracy: whether its class has the largest sum of cosines among the `neighbours` nearest (negative cosines
      count as 0; of equals the class with the smaller label).

    Cosines are float64, rounded to multiples of 2**-40, so that those of equal vectors are equal. Of equal cosines the
    reference with the smaller index stands first. A query whose class has no reference is left out.

    Args:
      embeddings: [N, D], the queries. labels: integers [N].
      references: embeddings [M, D] and labels [M]; where None, the other queries.
      block_size: queries ranked at a time; memory is that of [block_size, M].

    Raises:
      ValueError: embeddings that are zero or not finite, labels that do not fit, or no query that has a reference.

    Reference: Musgrave et al. 2020, A Metric Learning Reality Check, section 3.2 (R-precision, MAP@R).

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> retrieval(x, [0, 0, 1, 1]).map_at_r
    1.0
    """
    queries, labels = labelled(embeddings, labels, unit64)
    alone = references is None
    found, classes = (queries, labels) if references is None else labelled(*references, unit64)
    check_dimensions(queries, found)
    size = len(found) - alone
    sums: dict[str, float] = dict.fromkeys(("p1", "rp", "mapr", "map", "knn"), 0.0)
    recalls, asked = np.zeros(len(ks)), 0
    for start in range(0, len(queries), block_size):
        rows = slice(start, start + block_size)
        cosines = cosines64(queries[rows], found)
        order = _decreasing(cosines)
        if alone:
            mine = np.arange(start, start + len(order))[:, None]
            order = order[order != mine].reshape(len(order), size)
        right = classes[order] == labels[rows, None]
        r = right.sum(axis=1)
        asks = r > 0
        right, r, order = right[asks], r[asks, None], order[asks]
        asked += len(r)
        if not len(r):
            continue
        precision = np.cumsum(right, axis=1) / np.arange(1, size + 1)
        inside = np.arange(size) < r
        sums["p1"] += right[:, 0].sum()
        sums["rp"] += ((right & inside).sum(axis=1) / r[:, 0]).sum()
        sums["mapr"] += ((precision * (right & inside)).sum(axis=1) / r[:, 0]).sum()
        sums["map"] += ((precision * right).sum(axis=1) / r[:, 0]).sum()
        recalls += [right[:, :k].any(axis=1).sum() for k in ks]
        near = order[:, :neighbours]
        weights = np.maximum(np.take_along_axis(cosines[asks], near, axis=1), 0)
        sums["knn"] += (_votes(classes[near], weights) == labels[rows][asks]).sum()
    if not asked:
        raise ValueError("no query has a reference of its class: retrieval needs a class with two examples")
    means = {name: float(total / asked) for name, total in sums.items()}
    return Retrieval(
        means["p1"],
        {k: float(value / asked) for k, value in zip(ks, recalls, strict=True)},
        means["rp"],
        means["mapr"],
        means["map"],
        means["knn"],
        asked,
        len(queries) - asked,
    )


def _decreasing(scores: np.ndarray) -> np.ndarray:
    """Each row's indices by decreasing score, as `cosines64` gives them; of equals the smaller index first."""
    if scores.shape[1] > 2**21:
        return np.argsort(-scores, axis=1, kind="stable")
    # 42 bits of the score above 21 of the index: one key, sorted many times faster than by argsort
    keys = (ROUNDED - scores * ROUNDED).astype(np.int64) << 21
    keys |= np.arange(scores.shape[1])
    keys.sort(axis=1)
    return keys & (2**21 - 1)


def _votes(classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row's class with the largest sum of weights; of equals the smallest."""
    sums = np.stack([(weights * (classes == classes[:, i, None])).sum(axis=1) for i in range(classes.shape[1])], axis=1)
    best = sums == sums.max(axis=1, keepdims=True)
    return np.where(best, classes, np.iinfo(classes.dtype).max).min(axis=1)


@dataclasses.dataclass(frozen=True)
class Clusters:
    """How well k-means clusters are the classes: normalised and adjusted mutual information, at most 1."""

    nmi: float
    ami: float


def clusters(embeddings: ArrayLike, labels: ArrayLike, seed: int = 0) -> Clusters:
    """Compares scikit-learn's k-means of the unit embeddings, with as many clusters as classes, with the classes.

    NMI is divided by the arithmetic mean of both entropies.

    >>> clusters(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), [0, 0, 1, 1]).ami
    1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    labels = np.asarray(labels)
    found = KMeans(len(np.unique(labels)), n_init=1, random_state=seed).fit_predict(unit(embeddings))
    return Clusters(
        float(normalized_mutual_info_score(labels, found)), float(adjusted_mutual_info_score(labels, found))
    )
