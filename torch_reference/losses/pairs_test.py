"""Tests of pairs.py: against plain loops in float64, written from the equations, and pytorch-metric-learning."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from torch_reference.losses.pairs import (
    circle_loss,
    contrastive_loss,
    marginal_loss,
    multi_similarity_loss,
    range_loss,
    supcon_loss,
    triplet_loss,
)

LABELS = [0, 2, 1, 0, 1, 0, 7, 2, 0]  # class 7 has one example
BATCH = range(9)
POSITIVES = [[j for j in BATCH if j != i and LABELS[j] == LABELS[i]] for i in BATCH]
NEGATIVES = [[j for j in BATCH if LABELS[j] != LABELS[i]] for i in BATCH]


def example(spread=1.0):
    """Embeddings around a common direction, nearer to each other the smaller the spread."""
    rng = np.random.default_rng(3)
    embeddings = np.array([1.0, 0.5, 0.0]) + spread * rng.normal(size=(9, 3))
    return torch.from_numpy(embeddings * rng.uniform(0.5, 4, (9, 1))), torch.tensor(LABELS)


def cosine_table(embeddings):
    x = embeddings.numpy()
    return [[x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j]) for j in BATCH] for i in BATCH]


def distance_table(embeddings, distance):
    cosine = cosine_table(embeddings)
    measure = {
        "l2": lambda i, j: math.sqrt(2 - 2 * cosine[i][j]),
        "angular": lambda i, j: math.acos(cosine[i][j]),
    }[distance]
    return [[measure(i, j) if i != j else 0.0 for j in BATCH] for i in BATCH]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("distance", ["l2", "angular"])
def test_contrastive(distance):
    embeddings, labels = example()
    d = distance_table(embeddings, distance)
    pairs = list(itertools.combinations(BATCH, 2))
    same = [d[i][j] for i, j in pairs if LABELS[i] == LABELS[j]]
    other = [d[i][j] for i, j in pairs if LABELS[i] != LABELS[j]]
    assert min(other) < 1 < max(other)
    expected = mean(v**2 / 2 for v in same) + mean(max(0, 1 - v) ** 2 / 2 for v in other)
    assert contrastive_loss(embeddings, labels, 1.0, distance).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distance", ["l2", "angular"])
@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_triplet(distance, mining, spread):
    embeddings, labels = example(spread)
    d = distance_table(embeddings, distance)
    if distance == "l2":
        d = [[v**2 for v in row] for row in d]
    found = []
    kinds = set()
    for a in BATCH:
        if not POSITIVES[a]:
            continue
        to_negatives = [d[a][n] for n in NEGATIVES[a]]
        if mining == "hard":
            found.append(max(0, max(d[a][p] for p in POSITIVES[a]) + 0.35 - min(to_negatives)))
        for p in POSITIVES[a]:
            if mining == "semi_hard":
                farther = [v for v in to_negatives if v > d[a][p]]
                kinds.add(bool(farther))
                found.append(max(0, d[a][p] + 0.35 - (min(farther) if farther else max(to_negatives))))
            if mining == "all":
                found += [v for v in (d[a][p] + 0.35 - v for v in to_negatives) if v > 0]
    assert mining != "semi_hard" or spread == 1 or kinds == {True, False}
    result = triplet_loss(embeddings, labels, 0.35, distance, mining)
    assert result.item() == pytest.approx(mean(found), rel=1e-12)


def test_circle():
    embeddings, labels = example()
    c = cosine_table(embeddings)
    found = []
    for a in BATCH:
        if POSITIVES[a]:
            of_n = sum(math.exp(16 * max(0, c[a][n] + 0.25) * (c[a][n] - 0.25)) for n in NEGATIVES[a])
            of_p = sum(math.exp(-16 * max(0, 1.25 - c[a][p]) * (c[a][p] - 0.75)) for p in POSITIVES[a])
            found.append(math.log(1 + of_n * of_p))
    assert circle_loss(embeddings, labels, gamma=16.0).item() == pytest.approx(mean(found), rel=1e-12)


def test_the_weights_of_circle_are_constants_for_the_gradient():
    """Of one anchor, one positive and one negative the derivatives are those of equation 10 of the paper."""
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    angle = torch.tensor([0.9, 1.1], dtype=torch.float64, requires_grad=True)
    turned = torch.stack([x[0], *torch.stack([angle.cos(), angle.sin()], dim=1)])
    m, gamma = 0.25, 2.0

    def logit(a_p, a_n, c_p, c_n):
        return gamma * (a_n * (c_n - m) - a_p * (c_p - 1 + m))

    c_01, c_02, c_12 = (math.cos(v) for v in (0.9, 1.1, 0.2))
    # anchors 0 and 1 are of one class; anchor 2 has no positive
    expected = 0.0
    for c_p, c_n, by_angle in ((c_01, c_02, -math.sin(0.9)), (c_01, c_12, -math.sin(0.9))):
        a_p, a_n = 1 + m - c_p, c_n + m
        share = 1 / (1 + math.exp(-logit(a_p, a_n, c_p, c_n)))
        expected += share * -gamma * a_p * by_angle / 2
        if c_n == c_12:
            expected += share * gamma * a_n * math.sin(1.1 - 0.9) / 2  # d cos(1.1 - angle) / d angle
    circle_loss(turned, torch.tensor([0, 0, 1]), m, gamma).backward()
    assert angle.grad[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_multi_similarity(spread):
    embeddings, labels = example(spread)
    c = cosine_table(embeddings)
    found, left_out = [], 0
    for a in BATCH:
        of_p, of_n = [], []
        if POSITIVES[a]:
            of_p = [c[a][p] for p in POSITIVES[a] if c[a][p] < max(c[a][n] for n in NEGATIVES[a]) + 0.1]
            of_n = [c[a][n] for n in NEGATIVES[a] if c[a][n] > min(c[a][p] for p in POSITIVES[a]) - 0.1]
            left_out += len(POSITIVES[a]) + len(NEGATIVES[a]) - len(of_p) - len(of_n)
        found.append(
            math.log(1 + sum(math.exp(-2 * (v - 0.6)) for v in of_p)) / 2
            + math.log(1 + sum(math.exp(50 * (v - 0.6)) for v in of_n)) / 50
        )
    assert left_out > 0
    result = multi_similarity_loss(embeddings, labels, base=0.6)
    assert result.item() == pytest.approx(mean(found), rel=1e-12)


def test_supcon():
    embeddings, labels = example()
    c = cosine_table(embeddings)
    found = []
    for i in BATCH:
        if POSITIVES[i]:
            whole = sum(math.exp(c[i][a] / 0.1) for a in BATCH if a != i)
            found.append(-mean(math.log(math.exp(c[i][p] / 0.1) / whole) for p in POSITIVES[i]))
    assert supcon_loss(embeddings, labels).item() == pytest.approx(mean(found), rel=1e-12)


def test_marginal():
    embeddings, labels = example()
    d = distance_table(embeddings, "l2")
    found = [
        max(0, 0.3 - (1 if LABELS[i] == LABELS[j] else -1) * (1.2 - d[i][j] ** 2))
        for i, j in itertools.permutations(BATCH, 2)
    ]
    assert 0 < sum(v == 0 for v in found) < len(found)
    assert marginal_loss(embeddings, labels).item() == pytest.approx(sum(found) / (81 - 9), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("margin", [0.01, 50.0])
def test_range(k, margin):
    embeddings, labels = example()
    x = embeddings.numpy()

    def squared(v, w):
        return sum((a - b) ** 2 for a, b in zip(v, w, strict=True))

    within, means = 0.0, []
    for label in (0, 1, 2, 7):
        members = [x[i] for i in BATCH if LABELS[i] == label]
        means.append(sum(members) / len(members))
        largest = sorted((squared(v, w) for v, w in itertools.combinations(members, 2)), reverse=True)[:k]
        if largest:
            within += len(largest) / sum(1 / v for v in largest)
    nearest = min(squared(v, w) for v, w in itertools.combinations(means, 2))
    assert (nearest < margin) == (margin == 50)
    expected = 0.3 * within + 0.7 * max(0, margin - nearest)
    assert range_loss(embeddings, labels, k, 0.3, 0.7, margin).item() == pytest.approx(expected, rel=1e-12)


def test_the_range_of_a_class_with_a_distance_of_0_is_0():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [5.0, 5.0], [5.0, 6.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert range_loss(x[:3], labels[:3], k=3, alpha=1.0).item() == 0
    loss = range_loss(x, labels, k=3, alpha=1.0, beta=0.0)
    assert loss.item() == 1
    loss.backward()
    assert x.grad.tolist() == [[0, 0], [0, 0], [0, 0], [0, -2], [0, 2]]
    assert range_loss(x[:3], labels[:3], k=2, alpha=1.0).item() == 9  # the two largest are 9 and 9


def test_the_range_of_tiny_distances():
    x = torch.tensor([[0.0], [3e-20], [9e-20]], requires_grad=True)
    loss = range_loss(x, torch.zeros(3, dtype=torch.int64), alpha=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 / (1 / 81e-40 + 1 / 36e-40), rel=1e-4)  # their inverses are beyond float32
    assert x.grad.isfinite().all()
    assert x.grad.any()


# ---- another library

METRIC_LEARNING = {
    "triplet all": (
        lambda x, y: triplet_loss(x, y, 0.35, "l2"),
        losses.TripletMarginLoss(0.35, distance=distances.LpDistance(power=2)),
        None,
    ),
    "triplet hard": (
        lambda x, y: triplet_loss(x, y, 0.35, "l2", "hard"),
        losses.TripletMarginLoss(0.35, distance=distances.LpDistance(power=2), reducer=reducers.MeanReducer()),
        miners.BatchHardMiner(distance=distances.LpDistance(power=2)),
    ),
    "circle": (lambda x, y: circle_loss(x, y, 0.4, 80.0), losses.CircleLoss(0.4, 80.0), None),
    "multi_similarity": (
        lambda x, y: multi_similarity_loss(x, y, base=0.5),
        losses.MultiSimilarityLoss(2.0, 50.0, 0.5, reducer=reducers.MeanReducer()),
        miners.MultiSimilarityMiner(0.1),
    ),
    "supcon": (supcon_loss, losses.SupConLoss(0.1), None),
}


@pytest.mark.parametrize("name", list(METRIC_LEARNING))
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_values_and_gradients_are_those_of_pytorch_metric_learning(name, spread):
    ours, theirs, miner = METRIC_LEARNING[name]
    embeddings, labels = example(spread)
    one, other = (embeddings.clone().requires_grad_() for _ in range(2))
    found = ours(one, labels)
    expected = theirs(other, labels, miner(other, labels) if miner else None)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


# ---- gradients, and what is hard to compute

ALL = {
    "contrastive l2": contrastive_loss,
    "contrastive angular": lambda x, y: contrastive_loss(x, y, distance="angular"),
    **{
        f"triplet {distance} {mining}": lambda x, y, d=distance, m=mining: triplet_loss(x, y, distance=d, mining=m)
        for distance in ("angular", "l2")
        for mining in ("all", "hard", "semi_hard")
    },
    "multi_similarity": multi_similarity_loss,
    "supcon": supcon_loss,
    "marginal": marginal_loss,
    "range": range_loss,
    "circle": circle_loss,
}


@pytest.mark.parametrize("name", [name for name in ALL if name != "circle"])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_gradients_are_those_of_finite_differences(name, spread):
    embeddings, labels = example(spread)
    assert torch.autograd.gradcheck(lambda x: ALL[name](x, labels), embeddings.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(ALL))
def test_what_is_hard_to_compute_stays_finite(name, dtype, hostile_batch, assert_finite):
    embeddings, labels = hostile_batch
    x = embeddings.to(dtype).clone().requires_grad_()
    assert_finite(ALL[name](x, labels), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(ALL))
def test_huge_embeddings(name, dtype, assert_finite):
    embeddings, labels = example()
    x = (1e30 * embeddings).to(dtype).requires_grad_()
    assert_finite(ALL[name](x, labels), x)


# which losses have something to say of a batch of one class, and of one whose examples are all of their own class
OF_ONE_CLASS = {"contrastive l2", "contrastive angular", "supcon", "marginal", "range"}
OF_MANY_CLASSES = {"contrastive l2", "contrastive angular", "marginal", "range"}


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("kind", ["no example", "one example", "one class", "each its own class"])
def test_without_the_pairs_it_needs_a_loss_is_0_and_so_is_its_gradient(name, kind):
    x = example(0.3)[0][: {"no example": 0, "one example": 1}.get(kind, 4)]
    y = torch.arange(len(x)) if kind == "each its own class" else torch.zeros(len(x), dtype=torch.int64)
    x.requires_grad_()
    loss = ALL[name](x, y)
    loss.backward()
    says = name in {"one class": OF_ONE_CLASS, "each its own class": OF_MANY_CLASSES}.get(kind, set())
    assert (loss.item() != 0) == says
    assert x.grad.any() == says


@pytest.mark.parametrize("distance", ["l2", "angular"])
def test_identical_embeddings_of_two_classes_are_not_driven_apart(distance):
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # nor is there a NaN on the way
        loss = contrastive_loss(x, torch.tensor([0, 1]), distance=distance)
        loss.backward()
    assert loss.item() == 0.5
    assert not x.grad.any()


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
def test_the_gradient_goes_to_the_first_of_equals(mining):
    unit = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.36, 0.48, 0.8], [0.36, 0.48, 0.8]]
    x = torch.tensor(unit, requires_grad=True)
    triplet_loss(x, torch.tensor([0, 0, 1, 2]), m=3.0, mining=mining).backward()
    assert x.grad[2].any()
    assert not x.grad[3].any()


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            lambda x, y: contrastive_loss(x, y, distance="l1"),
            ValueError,
            "distance is 'l1'; it must be one of 'l2', 'angular'",
        ),
        (lambda x, y: triplet_loss(x, y, distance="cosine"), ValueError, "distance is 'cosine'; it must be one of"),
        (
            lambda x, y: triplet_loss(x, y, mining="soft"),
            ValueError,
            "mining is 'soft'; it must be one of 'all', 'hard'",
        ),
        (lambda x, y: contrastive_loss(x, y, m=-1), ValueError, "m is -1; it must be at least 0 and finite"),
        (lambda x, y: contrastive_loss(x, y, m=math.inf), ValueError, "m is inf; it must be at least 0 and finite"),
        (lambda x, y: triplet_loss(x, y, m=-0.5), ValueError, "m is -0.5; it must be at least 0"),
        (lambda x, y: circle_loss(x, y, m=-0.1), ValueError, "m is -0.1; it must be at least 0"),
        (lambda x, y: circle_loss(x, y, gamma=-1), ValueError, "gamma is -1; it must be at least 0"),
        (lambda x, y: multi_similarity_loss(x, y, alpha=0), ValueError, "alpha is 0; it must be > 0 and finite"),
        (lambda x, y: multi_similarity_loss(x, y, beta=-1.0), ValueError, "beta is -1.0; it must be > 0 and finite"),
        (lambda x, y: multi_similarity_loss(x, y, epsilon=-0.5), ValueError, "epsilon is -0.5; it must be at least 0"),
        (lambda x, y: supcon_loss(x, y, tau=0), ValueError, "tau is 0; it must be > 0 and finite"),
        (lambda x, y: marginal_loss(x, y, theta=math.nan), ValueError, "theta is nan; it must be at least 0"),
        (lambda x, y: marginal_loss(x, y, xi=-1), ValueError, "xi is -1; it must be at least 0"),
        (lambda x, y: range_loss(x, y, k=0), ValueError, "k is 0; it must be a whole number of at least 1"),
        (lambda x, y: range_loss(x, y, k=1.5), ValueError, "k is 1.5; it must be a whole number of at least 1"),
        (lambda x, y: range_loss(x, y, alpha=-1), ValueError, "alpha is -1; it must be at least 0"),
        (lambda x, y: range_loss(x, y, beta=-1), ValueError, "beta is -1; it must be at least 0"),
        (lambda x, y: range_loss(x, y, margin=-1), ValueError, "margin is -1; it must be at least 0"),
        (lambda x, y: supcon_loss(x, y[:3]), ValueError, r"labels have shape \(3,\).*: \(9,\)"),
        (lambda x, y: circle_loss(x, y.float()), TypeError, "labels have dtype float32; they must be integers"),
        (lambda x, y: marginal_loss(x[0], y), ValueError, r"embeddings have shape \(3,\); \[B, D\] is expected"),
    ],
)
def test_mistakes_are_named(loss, error, message):
    with pytest.raises(error, match=message):
        loss(*example())
