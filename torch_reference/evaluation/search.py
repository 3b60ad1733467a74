"""Nearest neighbours of the right class (retrieval), and the right identity in a gallery (identification)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_reference.evaluation.accuracy import Array
from torch_reference.evaluation.pairs import unit
from torch_reference.evaluation.verification import FEWEST


class Retrieval(NamedTuple):
    """Means over queries; docs/evaluation.md defines each."""

    precision_at_1: float
    recall_at_k: dict[int, float]
    r_precision: float
    map_at_r: float
    mean_average_precision: float
    knn_accuracy: float
    queries: int
    left_out: int


def directions(embeddings: Array) -> Tensor:
    """Unit vectors in float64."""
    return unit(torch.as_tensor(embeddings).double())


def cosine(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines [B, M] of float64 unit vectors to 2**-40, so that equal vectors have equal ones."""
    return ((rows @ columns.T).clamp(-1, 1) * 2.0**40).round() / 2.0**40


def retrieval(
    embeddings: Array,
    labels: Array,
    references: tuple[Array, Array] | None = None,
    *,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    neighbours: int = 10,
    block_size: int = 256,
) -> Retrieval:
    """Ranks the references (by default, the other examples) by cosine for each example, of equal ones the first first.

    Args:
      embeddings: [N, D]. labels: [N].
      references: [M, D] and [M].
      neighbours: voters of the k-NN accuracy, each with its cosine, if that is above 0.
      block_size: queries ranked at a time.

    Raises:
      ValueError: embeddings without a direction, or no class with a reference for a query.

    Reference: Musgrave et al. 2020, A Metric Learning Reality Check, section 3.2.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> retrieval(x, torch.tensor([0, 0, 1, 1])).precision_at_1
    1.0
    """
    x, y = directions(embeddings), torch.as_tensor(labels)
    z, classes = (x, y) if references is None else (directions(references[0]), torch.as_tensor(references[1]))
    names, of_reference = classes.unique(return_inverse=True)
    values: dict[str, list[Tensor]] = {name: [] for name in ("first", "rp", "mapr", "ap", "knn")}
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for start in range(0, len(x), block_size):
        cosines, own = cosine(x[start : start + block_size], z), y[start : start + block_size]
        if references is None:  # an example is not its own neighbour
            cosines[torch.arange(len(own)), torch.arange(start, start + len(own))] = -torch.inf
        order = cosines.argsort(dim=1, descending=True, stable=True)[:, : len(z) - (references is None)]
        hits = classes[order] == own[:, None]
        has = hits.any(dim=1)
        hits, order, cosines = hits[has].double(), order[has], cosines[has]
        total = hits.sum(dim=1)
        place = torch.arange(1, hits.shape[1] + 1)
        precision = hits.cumsum(dim=1) / place
        early = hits * (place <= total[:, None])
        values["first"].append(hits[:, 0])
        values["rp"].append(early.sum(dim=1) / total)
        values["mapr"].append((precision * early).sum(dim=1) / total)
        values["ap"].append((precision * hits).sum(dim=1) / total)
        for k in ks:
            found[k].append(hits[:, :k].amax(dim=1))
        near = order[:, :neighbours]
        votes = torch.zeros(len(near), len(names), dtype=cosines.dtype)
        votes.scatter_add_(1, of_reference[near], cosines.gather(1, near).clamp(min=0))
        seen = torch.zeros_like(votes).scatter_(1, of_reference[near], 1) > 0
        votes[~seen] = -1  # a class that is not among the neighbours has no vote
        chosen = (votes == votes.amax(dim=1, keepdim=True)).int().argmax(dim=1)
        values["knn"].append((names[chosen] == own[has]).double())
    means = {name: torch.cat(parts).mean().item() if parts else 0.0 for name, parts in values.items()}
    queries = sum(map(len, values["first"]))
    if not queries:
        raise ValueError("no example has another of its class to find")
    recalls = {k: torch.cat(parts).mean().item() for k, parts in found.items()}
    return Retrieval(
        *(means["first"], recalls, means["rp"], means["mapr"], means["ap"], means["knn"]), queries, len(x) - queries
    )


class Clusters(NamedTuple):
    """Normalised (by the arithmetic mean) and adjusted mutual information of k-means clusters and classes."""

    nmi: float
    ami: float


def clusters(embeddings: Array, labels: Array, seed: int = 0) -> Clusters:
    """Clusters unit embeddings by scikit-learn's k-means, one cluster for each class."""
    from sklearn import cluster, metrics

    y = torch.as_tensor(labels).numpy()
    kmeans = cluster.KMeans(n_clusters=len(set(y.tolist())), n_init=1, random_state=seed)
    found = kmeans.fit_predict(unit(embeddings).numpy())
    return Clusters(
        float(metrics.normalized_mutual_info_score(y, found)), float(metrics.adjusted_mutual_info_score(y, found))
    )


class Identification(NamedTuple):
    """The share of mated probes whose rank is at most 1, 2, ... [G], TPIR by FPIR, and numbers of probes."""

    cmc: Tensor
    tpir_at_fpir: dict[float, float | None]
    mated: int
    unmated: int


def identify(
    gallery: tuple[Array, Array], probes: tuple[Array, Array], *, fpirs: tuple[float, ...] = (0.1, 0.01, 0.001)
) -> Identification:
    """Searches each probe in the gallery; an identity scores as its best entry does, and ties count against a probe.

    TPIR @ FPIR: the threshold is the lowest at which at most that share of the unmated probes finds anybody.

    Args:
      gallery, probes: embeddings [G, D] and labels [G].
      fpirs: rates; TPIR is None where fewer than ten unmated probes would decide it.

    Raises:
      ValueError: no probe that the gallery has, or embeddings without a direction.
    """
    (g, names), (p, labels) = ((directions(x), torch.as_tensor(y)) for x, y in (gallery, probes))
    identities = names.unique()
    cosines = cosine(p, g)
    scores = torch.stack([cosines[:, names == one].amax(dim=1) for one in identities], dim=1).double()
    mated = torch.isin(labels, identities)
    if not mated.any():
        raise ValueError("the gallery has none of the probes' identities")
    own = scores[mated][labels[mated][:, None] == identities]
    rank = (scores[mated] >= own[:, None]).sum(dim=1)
    cmc = torch.stack([(rank <= r).double().mean() for r in range(1, len(identities) + 1)])
    alarms = scores[~mated].amax(dim=1) if (~mated).any() else torch.zeros(0)
    tpir: dict[float, float | None] = {}
    for rate in fpirs:
        if rate * len(alarms) < FEWEST:
            tpir[rate] = None
            continue
        candidates = torch.cat([own, alarms]).unique()
        false = (alarms >= candidates[:, None]).sum(dim=1)
        allowed = candidates[false <= rate * len(alarms) * (1 + 1e-12)]
        threshold = allowed.min() if len(allowed) else torch.inf
        tpir[rate] = ((rank == 1) & (own >= threshold)).double().mean().item()
    return Identification(cmc, tpir, int(mated.sum()), int((~mated).sum()))


def first_of_each(labels: Array) -> Tensor:
    """Whether each example is the first of its class, bool [N]."""
    y = torch.as_tensor(labels).numpy()
    first = torch.zeros(len(y), dtype=torch.bool)
    first[torch.from_numpy(np.unique(y, return_index=True)[1])] = True
    return first
