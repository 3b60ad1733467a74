"""Drawn pairs are what they claim; all pairs are all of them."""

import numpy as np
import pytest

from jax_arcface.evaluation import pairs as p
from jax_arcface.evaluation import verification as v


def clustered(seed=0, count=61, classes=5, dim=7, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    x = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(count, dim))
    x[7], labels[7] = x[3], labels[3]  # a duplicate
    return x.astype(dtype), labels


@pytest.mark.parametrize("seed", [0, 1])
def test_drawn_pairs(seed):
    labels = np.array([4, 4, 9, 4, 1, 1, 9, 2])  # 2 has one example
    found = p.draw_pairs(labels, count=4000, folds=10, seed=seed)
    assert (found.first != found.second).all()
    np.testing.assert_array_equal(labels[found.first] == labels[found.second], found.same)
    for fold in range(10):
        assert found.same[found.fold == fold].sum() == 200
        assert (found.fold == fold).sum() == 400
    positive = {(a, b) for a, b in zip(found.first[found.same], found.second[found.same], strict=True)}
    assert positive == {(a, b) for a in range(8) for b in range(8) if a != b and labels[a] == labels[b]}
    negative = {(a, b) for a, b in zip(found.first[~found.same], found.second[~found.same], strict=True)}
    assert negative == {(a, b) for a in range(8) for b in range(8) if labels[a] != labels[b]}


@pytest.mark.parametrize("block_size", [7, 64])
def test_all_pairs_are_counted_once(block_size):
    x, labels = clustered()
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    upper = np.triu_indices(len(x), 1)
    scores = np.rint((units @ units.T)[upper] * 2**20) / 2**20
    expected = v.tally(scores, (labels[:, None] == labels)[upper])
    for found in (p.all_pairs(x, labels, block_size=block_size), p.all_pairs(x * 1e200, labels)):
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.positives, expected.positives)
        np.testing.assert_array_equal(found.negatives, expected.negatives)
    single = p.all_pairs(x.astype(np.float32), labels * 2**32, block_size=block_size)  # labels of more than 32 bits
    assert v.auc(single) == pytest.approx(v.auc(expected), abs=1e-4)
    assert single.positives.sum() == expected.positives.sum()


def test_all_pairs_of_two_sets():
    (x, a), (y, b) = clustered(0), clustered(1, count=33)
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    expected = v.tally(np.rint((units[0] @ units[1].T).ravel() * 2**20) / 2**20, (a[:, None] == b).ravel())
    found = p.all_pairs(x, a, (y, b), block_size=10)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.positives, expected.positives)


def test_the_angles_histogram_counts_every_pair():
    x, labels = clustered()
    found = p.all_pairs(x, labels)
    positive, negative = p.angle_histogram(found, bins=9)
    assert (positive.sum(), negative.sum()) == (found.positives.sum(), found.negatives.sum())
    within = (np.arccos(found.scores) >= p.angle_edges(9)[2]) & (np.arccos(found.scores) < p.angle_edges(9)[3])
    assert positive[2] == found.positives[within].sum()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embeddings_without_a_direction(value):
    x, labels = clustered()
    x[5] = value
    with pytest.raises(ValueError, match="5"):
        p.all_pairs(x, labels)


def test_labels_without_pairs():
    for labels in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"\w"):
            p.draw_pairs(labels)
        with pytest.raises(ValueError, match=r"\w"):
            p.all_pairs(np.eye(3), labels)
