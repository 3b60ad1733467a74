"""Retrieval and identification against scikit-learn and brute force; parity_tests has pytorch-metric-learning."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jax_arcface.evaluation.identification import identify
from jax_arcface.evaluation.pairs_test import clustered
from jax_arcface.evaluation.retrieval import _decreasing, retrieval


def units(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_average_precision_is_scikit_learns():
    (x, a), (y, b) = clustered(0, 40), clustered(1, 57)
    y, b = y[8:], b[8:]  # scikit-learn counts equal cosines together
    cosines = units(x) @ units(y).T
    expected = np.mean([average_precision_score(b == label, row) for label, row in zip(a, cosines, strict=True)])
    assert retrieval(x, a, (y, b)).mean_average_precision == pytest.approx(expected, abs=1e-12)


def test_equal_cosines_stand_by_index():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (20, 300)) / 4.0
    scores[0, :5] = [-0.0, 0.0, -1.0, 1.0, 0.0]
    np.testing.assert_array_equal(_decreasing(scores), np.argsort(-scores, axis=1, kind="stable"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_duplicates_tie_wherever_they_stand(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 512)).astype(dtype)
    probes = x[rng.integers(0, 9, 40)] + rng.normal(size=(40, 512)).astype(dtype)
    gallery = np.concatenate([x, x])  # each under two names
    for block_size in (1, 7, 64):
        found = identify((gallery, np.arange(18)), (probes, rng.integers(0, 18, 40)), block_size=block_size)
        assert found.rank(1) == 0
    twice = np.concatenate([probes, probes])
    one, other = (retrieval(twice, np.arange(80) % 10, block_size=size) for size in (1, 64))
    assert (one.map_at_r, one.knn_accuracy) == pytest.approx((other.map_at_r, other.knn_accuracy), abs=1e-14)


def test_recall_votes_and_queries_without_a_reference():
    references = (np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), [5, 7, 7])
    found = retrieval(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), [7, 7, 9], references, ks=(1, 2), neighbours=3)
    assert (found.queries, found.left_out) == (2, 1)
    assert found.recall_at_k == {1: 0.5, 2: 1.0}
    # the first query: 5 has 1, and 7 has 1 / sqrt(1.01) and 0; the second: 7 has nearly all
    assert found.knn_accuracy == 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_identification_by_brute_force(seed):
    x, labels = clustered(seed, count=900, classes=12)
    probes, others = slice(0, 700), slice(700, 900)
    gallery = labels[others] < 8  # four identities have no entry
    g, names = x[others][gallery], labels[others][gallery]
    found = identify((g, names), (x[probes], labels[probes]), fpirs=(0.2, 0.05, 1e-3), block_size=50)
    cosines = units(x[probes]) @ units(g).T
    ids = np.unique(names)
    best = np.stack([cosines[:, names == i].max(axis=1) for i in ids], axis=1)
    mated = np.isin(labels[probes], ids)
    own = np.array([best[n, ids == label][0] if m else np.nan for n, (label, m) in enumerate(zip(labels, mated))])  # noqa: B905
    ranks = np.array([(best[n] >= own[n]).sum() for n in np.flatnonzero(mated)])
    np.testing.assert_allclose(found.cmc, [(ranks <= r).mean() for r in range(1, len(ids) + 1)], atol=1e-12)
    top = best[~mated].max(axis=1)
    for wished in (0.2, 0.05):
        every = np.unique([*top, *own[mated]])
        threshold = min([t for t in every if (top >= t).mean() <= wished], default=np.inf)
        expected = np.mean((ranks == 1) & (own[mated] >= threshold))
        assert found.tpir_at_fpir[wished] == pytest.approx(expected, abs=1e-12)
    assert found.tpir_at_fpir[1e-3] is None


def test_a_tie_counts_against_the_probe():
    found = identify((np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1]), (np.array([[1.0, 0.0]]), [0]))
    assert (found.rank(1), found.rank(2)) == (0.0, 1.0)
