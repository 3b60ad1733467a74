"""Tests of weights and reduction, of every loss: left out is left out, and sums are those of plain float64 loops."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from torch_reference.losses import adaptive, pairs, regularizers, softmax
from torch_reference.losses.margins import Margin

LABELS = [0, 2, 1, 0, 1, 0, 3, 2, 0]  # class 3 has one example
MASK = torch.tensor([True, True, False, True, True, False, True, True, True])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.25, 0.0, 3.0, 1.5, 0.75, 0.1], dtype=torch.float64)
COUNTED = [i for i in range(9) if WEIGHTS[i] > 0]
MARGINS = torch.linspace(0.1, 0.7, 9, dtype=torch.float64)


def elastic(x, w, y, **options):
    margins = {9: MARGINS, 7: MARGINS[MASK], 0: MARGINS[:0]}[len(x)]
    return softmax.margin_softmax_loss(x, w, y, Margin(m2=margins), 8.0, **options)


def of_pairs(function, **fixed):
    return lambda x, w, y, **options: function(x, y, **fixed, **options)


# each loss as a function of embeddings, prototypes and labels
EVERY = {
    "softmax_loss": lambda x, w, y, **o: softmax.softmax_loss(F.pad(x, (1, 1)), y, 0.1, **o),
    "margin_softmax": lambda x, w, y, **o: softmax.margin_softmax_loss(x, w, y, Margin.arcface(), 8.0, 0.1, 0.6, **o),
    "elastic": elastic,
    "linear_softmax": lambda x, w, y, **o: softmax.linear_softmax_loss(x, w, w[:, 0], y, **o),
    "modified_softmax": softmax.modified_softmax_loss,
    "a_softmax": softmax.a_softmax_loss,
    "adacos": lambda x, w, y, **o: adaptive.adacos_loss(x, w, y, 3.0, **o),
    "curricularface": lambda x, w, y, **o: adaptive.curricularface_loss(x, w, y, 0.3, scale=8.0, rate=0.2, **o),
    "magface": lambda x, w, y, **o: adaptive.magface_loss(x, w, y, shortest=1.0, longest=9.0, scale=8.0, **o),
    "adaface": lambda x, w, y, **o: adaptive.adaface_loss(x, w, y, 3.0, 2.0, rate=0.3, scale=8.0, **o),
    "center": regularizers.center_loss,
    "intra": regularizers.intra_loss,
    "inter": lambda x, w, y, **o: regularizers.inter_loss(w, y, 3, **o),
    "energy": lambda x, w, y, **o: regularizers.hyperspherical_energy(w, y, 3, **o),
    "contrastive l2": of_pairs(pairs.contrastive_loss),
    "contrastive angular": of_pairs(pairs.contrastive_loss, distance="angular"),
    **{
        f"triplet {distance} {mining}": of_pairs(pairs.triplet_loss, distance=distance, mining=mining)
        for distance in ("angular", "l2")
        for mining in ("all", "hard", "semi_hard")
    },
    "circle": of_pairs(pairs.circle_loss, gamma=16.0),
    "multi_similarity": of_pairs(pairs.multi_similarity_loss, base=0.6),
    "supcon": of_pairs(pairs.supcon_loss),
    "marginal": of_pairs(pairs.marginal_loss),
    "range": of_pairs(pairs.range_loss, alpha=0.3, beta=0.7, margin=50.0),
}
every_loss = pytest.mark.parametrize("name", list(EVERY))


def example():
    rng = np.random.default_rng(4)
    prototypes = rng.normal(size=(5, 3))
    embeddings = (prototypes[LABELS] + rng.normal(size=(9, 3))) * rng.uniform(0.5, 4, (9, 1))
    return torch.from_numpy(embeddings), torch.from_numpy(prototypes), torch.tensor(LABELS)


def loss_state_gradients(name, x, w, y, **options):
    """The loss of a batch, what comes beside it, and the gradients of the sum of the loss by x and w."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    found = EVERY[name](x, w, y, **options)
    loss, *state = found if isinstance(found, tuple) else (found,)
    gradients = torch.autograd.grad(loss.sum(), (x, w), materialize_grads=True)
    return [loss.detach(), *state, *gradients]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("hostile", [False, True], ids=["ordinary", "nan and no label"])
def test_a_mask_leaves_out_what_the_batch_would_not_have(name, reduction, hostile):
    x, w, y = example()
    loss, *rest, by_x, by_w = loss_state_gradients(name, x[MASK], w, y[MASK], reduction=reduction)
    if hostile:
        x[~MASK], y[~MASK] = math.nan, -1
    found_loss, *found = loss_state_gradients(name, x, w, y, reduction=reduction, weights=MASK)
    if reduction == "none":
        assert not found_loss[~MASK].any()
        found_loss = found_loss[MASK]
    assert not found[-2][~MASK].any()
    assert_close([found_loss, *found[:-2], found[-2][MASK], found[-1]], [loss, *rest, by_x, by_w])


@every_loss
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weights"])
def test_the_mean_is_the_sum_without_reduction_by_that_of_the_weights(name, weights):
    mean, *rest = loss_state_gradients(name, *example(), weights=weights)
    losses, *others = loss_state_gradients(name, *example(), weights=weights, reduction="none")
    assert losses.shape == (9,)
    total = 9 if weights is None else weights.sum()
    gradients = [gradient / total for gradient in others[-2:]]
    assert_close([losses.sum() / total, *others[:-2], *gradients], [mean, *rest])
    assert weights is None or losses[4] == 0


@every_loss
def test_weights_of_one_change_nothing(name):
    assert_close(loss_state_gradients(name, *example(), weights=torch.ones(9)), loss_state_gradients(name, *example()))


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("batch", [0, 9], ids=["empty", "of weight 0"])
def test_without_any_example_the_loss_is_0_and_nothing_moves(name, reduction, batch):
    x, w, y = example()
    options = {"weights": torch.zeros(9)} if batch else {}
    loss, *state, by_x, by_w = loss_state_gradients(name, x[:batch], w, y[:batch], reduction=reduction, **options)
    assert loss.shape == (() if reduction == "mean" else (batch,))
    for values in (loss, by_x, by_w):
        assert not values.any()
    before = {"adacos": [3.0], "curricularface": [0.3], "adaface": [3.0, 2.0]}
    assert [value.item() for value in state] == pytest.approx(before.get(name, []))


@every_loss
def test_gradients_with_weights_are_those_of_finite_differences(name):
    if name in ("circle", "adacos", "curricularface", "adaface"):
        pytest.skip("parts of it are constants for the gradient")
    x, w, y = example()
    inputs = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: EVERY[name](x, w, y, weights=WEIGHTS, reduction="none") + 0 * (x.sum() + w.sum()), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weights", [MASK, WEIGHTS, WEIGHTS.half(), MASK.int()], ids=lambda w: str(w.dtype))
@every_loss
def test_the_dtype_is_that_of_the_vectors(name, weights, dtype):
    x, w, y = example()
    loss, *state = loss_state_gradients(name, x.to(dtype), w.to(dtype), y, weights=weights, reduction="none")
    expected = dtype if name == "softmax_loss" else torch.float32
    assert loss.dtype == torch.float32
    assert all(value.dtype in (expected, dtype, torch.float32) for value in state)


# ---- weighted sums, one after the other


def tables():
    x = example()[0].numpy()
    cosine = [[x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j]) for j in range(9)] for i in range(9)]
    squared = [[sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) for j in range(9)] for i in range(9)]
    positives = {i: [j for j in COUNTED if j != i and LABELS[j] == LABELS[i]] for i in COUNTED}
    negatives = {i: [j for j in COUNTED if LABELS[j] != LABELS[i]] for i in COUNTED}
    return cosine, squared, positives, negatives


def weighted_mean(pairs):
    """sum(w v) / sum(w) of pairs (w, v)."""
    pairs = list(pairs)
    return sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)


def with_weights(name):
    found = EVERY[name](*example(), weights=WEIGHTS)
    return [value.item() for value in (found if isinstance(found, tuple) else (found,))]


v = WEIGHTS.tolist()


def test_contrastive_with_weights():
    c, _, positives, negatives = tables()
    d = [[math.sqrt(max(0, 2 - 2 * value)) for value in row] for row in c]
    same = weighted_mean((v[i] * v[j], d[i][j] ** 2 / 2) for i in COUNTED for j in positives[i])
    other = weighted_mean((v[i] * v[j], max(0, 1 - d[i][j]) ** 2 / 2) for i in COUNTED for j in negatives[i])
    assert with_weights("contrastive l2") == [pytest.approx(same + other, rel=1e-12)]


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
def test_triplet_with_weights(mining):
    c, _, positives, negatives = tables()
    d = [[math.acos(min(1, value)) for value in row] for row in c]
    triplets = []
    for a in COUNTED:
        if mining == "hard" and positives[a]:
            triplets.append((a, max(positives[a], key=lambda p: d[a][p]), min(negatives[a], key=lambda n: d[a][n])))
        for p in positives[a]:
            if mining == "all":
                triplets += [(a, p, n) for n in negatives[a] if d[a][p] + 0.35 > d[a][n]]
            if mining == "semi_hard":
                farther = [n for n in negatives[a] if d[a][n] > d[a][p]]
                n = min(farther, key=lambda n: d[a][n]) if farther else max(negatives[a], key=lambda n: d[a][n])
                triplets.append((a, p, n))
    expected = weighted_mean((v[a] * v[p] * v[n], max(0, d[a][p] + 0.35 - d[a][n])) for a, p, n in triplets)
    assert with_weights(f"triplet angular {mining}") == [pytest.approx(expected, rel=1e-12)]


def test_losses_of_anchors_with_weights():
    c, _, positives, negatives = tables()
    circle, supcon, multi = [], [], []
    for a in COUNTED:
        if positives[a]:
            of_n = sum(v[n] * math.exp(16 * max(0, c[a][n] + 0.25) * (c[a][n] - 0.25)) for n in negatives[a])
            of_p = sum(v[p] * math.exp(-16 * max(0, 1.25 - c[a][p]) * (c[a][p] - 0.75)) for p in positives[a])
            circle.append((v[a], math.log(1 + of_n * of_p)))
            whole = sum(v[i] * math.exp(c[a][i] / 0.1) for i in COUNTED if i != a)
            shares = weighted_mean((v[p], math.log(math.exp(c[a][p] / 0.1) / whole)) for p in positives[a])
            supcon.append((v[a], -shares))
            hard_p = [p for p in positives[a] if c[a][p] < max(c[a][n] for n in negatives[a]) + 0.1]
            hard_n = [n for n in negatives[a] if c[a][n] > min(c[a][p] for p in positives[a]) - 0.1]
            of_p = math.log(1 + sum(v[p] * math.exp(-2 * (c[a][p] - 0.6)) for p in hard_p)) / 2
            of_n = math.log(1 + sum(v[n] * math.exp(50 * (c[a][n] - 0.6)) for n in hard_n)) / 50
            multi.append((v[a], of_p + of_n))
        else:
            multi.append((v[a], 0.0))
    for name, losses in {"circle": circle, "supcon": supcon, "multi_similarity": multi}.items():
        assert with_weights(name) == [pytest.approx(weighted_mean(losses), rel=1e-12)], name


def test_range_with_weights():
    x = example()[0].numpy()
    _, squared, *_ = tables()
    parts, means, members = {}, {}, {}
    for label in set(LABELS):
        members[label] = [i for i in COUNTED if LABELS[i] == label]
        means[label] = sum(v[i] * x[i] for i in members[label]) / sum(v[i] for i in members[label])
        found = sorted(((squared[i][j], v[i] * v[j]) for i, j in itertools.combinations(members[label], 2)))[-2:]
        parts[label] = sum(u for _, u in found) / sum(u / d for d, u in found) if found else 0.0
    nearest = min(float((p - q) @ (p - q)) for p, q in itertools.combinations(means.values(), 2))
    too_near = max(0, 50 - nearest)
    assert too_near > 0
    assert with_weights("range") == [pytest.approx(0.3 * sum(parts.values()) + 0.7 * too_near, rel=1e-12)]
    each = EVERY["range"](*example(), weights=WEIGHTS, reduction="none").tolist()
    for i in range(9):
        share = parts[LABELS[i]] / sum(v[j] for j in members[LABELS[i]]) * sum(v)
        assert each[i] == pytest.approx(v[i] * (0.3 * share + 0.7 * too_near), rel=1e-12)


def test_the_scale_of_adacos_with_weights():
    x, w, y = (value.numpy() for value in example())
    c = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    theta = np.arccos(c)
    b = weighted_mean((v[i], sum(math.exp(3 * c[i, j]) for j in range(5) if j != y[i])) for i in COUNTED)
    median = sorted(theta[i, y[i]] for i in COUNTED)
    scale = math.log(b) / math.cos(min(math.pi / 4, (median[3] + median[4]) / 2))
    assert scale > math.log(4) / 2
    losses = [(v[i], math.log(sum(math.exp(scale * (c[i, j] - c[i, y[i]])) for j in range(5)))) for i in COUNTED]
    assert with_weights("adacos") == pytest.approx([weighted_mean(losses), scale], rel=1e-12)


def test_running_values_with_weights():
    x, w, y = (value.numpy() for value in example())
    cosine = [x[i] @ w[y[i]] / np.linalg.norm(x[i]) / np.linalg.norm(w[y[i]]) for i in range(9)]
    t = 0.2 * weighted_mean((v[i], cosine[i]) for i in COUNTED) + 0.8 * 0.3
    assert with_weights("curricularface")[1] == pytest.approx(t, rel=1e-12)
    n = [np.linalg.norm(row) for row in x]
    mean, total = weighted_mean((v[i], n[i]) for i in COUNTED), sum(v)
    variance = sum(v[i] * (n[i] - mean) ** 2 for i in COUNTED) / (total - sum(u * u for u in v) / total)
    expected = [0.3 * mean + 0.7 * 3.0, 0.3 * math.sqrt(variance) + 0.7 * 2.0]
    assert with_weights("adaface")[1:] == pytest.approx(expected, rel=1e-12)


def test_displacements_with_weights():
    x, centers, y = example()
    found = regularizers.center_displacements(x, centers, y, weights=WEIGHTS)
    for i in range(9):
        count = sum(v[j] for j in range(9) if y[j] == y[i])
        np.testing.assert_allclose(found[i], v[i] * (centers[y[i]] - x[i]) / (1 + count), rtol=1e-12)
    masked = regularizers.center_displacements(x, centers, y, weights=MASK)
    alone = regularizers.center_displacements(x[MASK], centers, y[MASK])
    assert torch.equal(masked[MASK], alone)
    assert not masked[~MASK].any()


# ---- mistakes


@every_loss
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reduction": "sum"}, ValueError),
        ({"weights": torch.ones(8)}, ValueError),
        ({"weights": torch.ones(9, 1)}, ValueError),
        ({"weights": -WEIGHTS}, ValueError),
        ({"weights": WEIGHTS * math.nan}, ValueError),
        ({"weights": WEIGHTS / 0}, ValueError),
        ({"weights": WEIGHTS * 1j}, TypeError),
    ],
    ids=["sum", "too few", "too deep", "negative", "nan", "inf", "complex"],
)
def test_a_bad_weight_or_reduction_is_refused(name, options, error):
    with pytest.raises(error, match=r"weights|reduction|real"):
        EVERY[name](*example(), **options)


@every_loss
def test_complex_vectors_are_refused(name):
    x, w, y = example()
    with pytest.raises(TypeError, match="complex128; they must be real"):
        EVERY[name](x * 1j, w * 1j, y)


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int32])
def test_labels_of_every_integer_dtype_are_taken(name, dtype):
    x, w, y = example()
    assert_close(loss_state_gradients(name, x, w, y.to(dtype)), loss_state_gradients(name, x, w, y))
