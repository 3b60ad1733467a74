"""Rates and angles where they are known: by hand, by trying every threshold, and by scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from torch_reference import evaluation as e
from torch_reference.evaluation import verification as v


@pytest.mark.parametrize("seed", [0, 1])
def test_scikit_learns_area_and_rates(seed):
    g = torch.Generator().manual_seed(seed)
    same = torch.rand(3000, generator=g) < 0.3
    scores = (torch.randn(3000, generator=g, dtype=torch.float64) + same).mul(20).round() / 20
    t = v.tally(scores, same)
    assert abs(v.auc(t) - roc_auc_score(same, scores)) < 1e-12
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    for point in v.tar_at_far(t, (0.3, 0.05, 0.01)):
        at = max(i for i in range(len(far)) if far[i] <= point.far_wished)
        assert (point.tar, point.far, point.threshold) == pytest.approx((tar[at], far[at], thresholds[at]), abs=1e-12)
    rate, _ = v.eer(t)
    after = next(i for i in range(len(far)) if far[i] >= 1 - tar[i])
    assert min(far[after - 1], 1 - tar[after]) <= rate <= max(far[after], 1 - tar[after - 1])
    best, threshold = v.best_accuracy(t)
    assert best == max(((scores >= x) == same).double().mean().item() for x in [*scores.unique(), math.inf])
    assert best == ((scores >= threshold) == same).double().mean().item()


def test_all_pairs_by_counting():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g, dtype=torch.float64), torch.randint(0, 4, (50,), generator=g)
    t = e.all_pairs(x, y, block_size=7)
    one, two = torch.triu_indices(50, 50, offset=1)
    cosines = torch.nn.functional.cosine_similarity(x[one], x[two])
    assert abs(v.auc(t) - roc_auc_score(y[one] == y[two], cosines)) < 1e-5
    assert (int(t.positives.sum()), int(t.negatives.sum())) == (
        int((y[one] == y[two]).sum()),
        int((y[one] != y[two]).sum()),
    )


def test_the_four_angles_of_a_plane():
    degrees = torch.tensor([0.0, 20, 90, 110, 200]).double().deg2rad()
    x, w = (
        torch.stack([a.cos(), a.sin()], dim=1) for a in (degrees, torch.tensor([15.0, 100, 190]).double().deg2rad())
    )
    found = e.angle_statistics(x, torch.tensor([0, 0, 1, 1, 2]), w)
    expected = ((5 + 0 + 10) / 3, (85 + 85 + 90) / 3, 40 / 5, (90 + 90 + 100) / 3)
    assert [math.degrees(value) for value in found] == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_embeddings_without_a_direction(value):
    x = torch.eye(3)
    x[1] = value
    with pytest.raises(ValueError, match="1"):
        e.all_pairs(x, torch.tensor([0, 0, 1]))
