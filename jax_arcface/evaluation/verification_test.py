"""Verification against scikit-learn and brute force, with ties."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from jax_arcface.evaluation import verification as v


def scores_with_ties(seed, count=4000, levels=50):
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.3
    return np.round(rng.normal(size=count) + 1.2 * same, 3 if seed else 1) / levels, same


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_roc_and_its_area_are_scikit_learns(seed):
    scores, same = scores_with_ties(seed)
    thresholds, far, tar = v.roc(v.tally(scores, same))
    expected = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(far, expected[0], atol=1e-12)
    np.testing.assert_allclose(tar, expected[1], atol=1e-12)
    np.testing.assert_array_equal(thresholds, expected[2])
    assert abs(v.auc(v.tally(scores, same)) - roc_auc_score(same, scores)) < 1e-12


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thresholds_by_trying_each(seed):
    scores, same = scores_with_ties(seed, 3000)
    every = [np.inf, *np.unique(scores)[::-1]]
    accepted = scores >= np.array(every)[:, None]
    far, tar = accepted[:, ~same].mean(axis=1), accepted[:, same].mean(axis=1)
    right = (accepted == same).mean(axis=1)
    found = v.tally(scores, same)
    assert v.best_accuracy(found) == (right.max(), every[int(right.argmax())])
    for point in v.tar_at_far(found, (0.1, 0.01, 1e-3)):
        if point.far_wished * (~same).sum() < 10:
            assert point.tar is point.far is point.threshold is None
            continue
        at = np.flatnonzero(far <= point.far_wished)[-1]
        assert (point.tar, point.far, point.threshold) == (tar[at], far[at], every[at])
    at = int(np.argmax(far >= 1 - tar))  # the crossing lies on the line to the threshold before
    rate, _ = v.eer(found)
    line = np.linspace(0, 1, 200_001)
    x, y = far[at - 1] + line * (far[at] - far[at - 1]), tar[at - 1] + line * (tar[at] - tar[at - 1])
    assert abs(rate - x[np.argmin(np.abs(x - (1 - y)))]) < 1e-5


def test_lfws_protocol_by_trying_each_threshold():
    scores, same = scores_with_ties(1, 600)
    fold = np.arange(600) % 5
    found = v.cross_validated(scores, same, fold)
    for number in range(5):
        rest, inside = fold != number, fold == number
        every = np.array([np.inf, *np.unique(scores[rest])[::-1]])
        right = ((scores[rest] >= every[:, None]) == same[rest]).mean(axis=1)
        assert found.thresholds[number] == every[int(right.argmax())]
        assert found.accuracies[number] == ((scores[inside] >= found.thresholds[number]) == same[inside]).mean()
    assert found.standard_error == pytest.approx(np.std(found.accuracies, ddof=1) / 5**0.5, abs=1e-15)


def test_perfect_and_useless_scores():
    perfect = v.tally([0.9, 0.8, 0.2, 0.1], [True, True, False, False])
    assert (v.auc(perfect), v.eer(perfect)[0], v.best_accuracy(perfect)) == (1.0, 0.0, (1.0, 0.8))
    useless = v.tally([0.5] * 4, [True, False, True, False])
    assert (v.auc(useless), v.eer(useless)[0], v.best_accuracy(useless)[0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("scores", "same"),
    [([0.1, np.nan], [True, False]), ([0.1, 0.2], [True, True]), ([0.1], [False]), ([0.1, 0.2], [True])],
)
def test_pairs_that_cannot_be_judged(scores, same):
    with pytest.raises(ValueError, match=r"\w"):
        v.tally(scores, same)
