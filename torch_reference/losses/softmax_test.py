"""Tests of softmax.py and vectors.py: against float64 numpy written from equation 4 of the paper, and its limits."""

import math

import mpmath
import numpy as np
import pytest
import torch

from torch_reference.losses.margins import Margin
from torch_reference.losses.softmax import (
    a_softmax_loss,
    annealed_lambda,
    linear_softmax_loss,
    margin_logits,
    margin_softmax_loss,
    modified_softmax_loss,
    softmax_loss,
)
from torch_reference.losses.vectors import cosines, lengths, normalize


def example(dtype=torch.float64, subcenters=None):
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.normal(size=(6, 5)) * 3).to(dtype)
    prototypes = torch.from_numpy(rng.normal(size=(4, 5) if subcenters is None else (4, subcenters, 5))).to(dtype)
    return embeddings, prototypes, torch.tensor([0, 3, 1, 1, 2, 0])


def paper(embeddings, prototypes, labels, m1, m2, m3, s, smoothing=0.0):
    """Equation 4, one example after the other; every m1 theta + m2 is below pi."""
    losses = []
    for x, y in zip(embeddings.double().numpy(), labels.tolist(), strict=True):
        theta = [math.acos(x @ w / np.linalg.norm(x) / np.linalg.norm(w)) for w in prototypes.double().numpy()]
        logits = [s * math.cos(angle) for angle in theta]
        assert m1 * theta[y] + m2 < math.pi
        logits[y] = s * (math.cos(m1 * theta[y] + m2) - m3)
        log_sum = math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits)
        own = log_sum - logits[y]
        losses.append((1 - smoothing) * own + smoothing * np.mean([log_sum - logit for logit in logits]))
    return np.mean(losses)


@pytest.mark.parametrize("values", [(1, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (1.35, 0, 0), (1.1, 0.2, 0.1)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str)
def test_the_loss_is_equation_4(values, smoothing, dtype, bound):
    embeddings, prototypes, labels = example(dtype)
    labels = cosines(embeddings, prototypes).argsort(dim=1)[:, 2]  # a near class, so that no angle gets past pi
    loss = margin_softmax_loss(embeddings, prototypes, labels, Margin(*values), 16.0, smoothing)
    expected = paper(embeddings, prototypes, labels, *values, 16.0, smoothing)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=bound)


@pytest.mark.parametrize("subcenters", [None, 3])
@pytest.mark.parametrize("margin", [Margin.softmax(), Margin.arcface(), Margin.sphereface(4.0), Margin.cosface()])
def test_gradients_are_those_of_finite_differences(margin, subcenters):
    embeddings, prototypes, labels = example(subcenters=subcenters)
    embeddings.requires_grad_()
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: margin_softmax_loss(x, w, labels, margin, 8.0, 0.1), (embeddings, prototypes)
    )


def test_only_the_own_class_gets_the_margin():
    embeddings, prototypes, labels = example()
    with_margin = margin_logits(embeddings, prototypes, labels, Margin.cosface(0.25), scale=4.0)
    difference = 4 * cosines(embeddings, prototypes) - with_margin
    np.testing.assert_allclose(difference, np.eye(4)[labels], atol=1e-15)


def test_collinear_and_opposite_have_finite_gradients():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        embeddings = torch.tensor([[3.0, 4.0], [-3.0, -4.0]], dtype=dtype, requires_grad=True)
        prototypes = torch.tensor([[3.0, 4.0], [4.0, -3.0]], dtype=dtype, requires_grad=True)
        margin_softmax_loss(embeddings, prototypes, torch.tensor([0, 0]), Margin.arcface()).backward()
        assert embeddings.grad.isfinite().all()
        assert prototypes.grad.isfinite().all()
        assert prototypes.grad.dtype == dtype


@pytest.mark.parametrize("factor", [1e-29, 1e-20, 1.0, 1e20, 1e38])
def test_normalize_neither_overflows_nor_underflows(factor):
    vector = torch.tensor([[3.0, -4.0]]) / 4 * factor
    vector.requires_grad_()
    unit = normalize(vector)
    np.testing.assert_allclose(unit.detach(), [[0.6, -0.8]], rtol=1e-6)
    unit[0, 0].backward()
    length = 1.25 * factor  # d (x / |x|) / dx = (1 - u u^T) / |x|
    np.testing.assert_allclose(vector.grad.double() * length, [[0.64, 0.48]], rtol=1e-5)


@pytest.mark.parametrize("entry", [0.0, 2.0**-101])
def test_normalize_leaves_zero_at_zero(entry):
    vector = torch.full((2, 3), entry, requires_grad=True)
    unit = normalize(vector)
    unit.sum().backward()
    assert not unit.any()
    assert not vector.grad.any()


@pytest.mark.parametrize("factor", [1e-29, 1e-20, 1.0, 1e20, 1e37])
def test_lengths_and_their_gradient(factor):
    vectors = (torch.tensor([[3.0, -4.0], [0.0, 5.0]]) * factor).requires_grad_()
    found = lengths(vectors)
    np.testing.assert_allclose(found.detach().double() / factor, [5, 5], rtol=1e-6)
    found.sum().backward()
    np.testing.assert_allclose(vectors.grad, [[0.6, -0.8], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("entry", [0.0, 2.0**-101])
def test_what_counts_as_zero_has_no_length(entry):
    vector = torch.full((2, 3), entry, requires_grad=True)
    lengths(vector).sum().backward()
    assert not lengths(vector).any()
    assert not vector.grad.any()


def test_normalize_hides_no_nan():
    assert normalize(torch.tensor([math.nan, 1.0])).isnan().any()
    assert normalize(torch.tensor([math.inf, 1.0])).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_dtype_is_widened_and_its_gradient_saturates(dtype):
    tiny = 2.0**-24 if dtype == torch.float16 else 2.0**-99
    vector = torch.tensor([tiny, 0.0], dtype=dtype, requires_grad=True)
    unit = normalize(vector)
    assert (unit.dtype, unit.tolist()) == (torch.float32, [1, 0])
    unit.backward(torch.tensor([0.0, -(2.0**40)]))
    assert vector.grad.tolist() == [0, -torch.finfo(dtype).max]
    assert vector.grad.dtype == dtype


# one embedding at the angle theta to its class, others at 0.9 or 2 to theirs: the loss from 1e-14 down to 1e-50
@pytest.mark.parametrize("theta", [0.3, 1e-2, 1e-3])
@pytest.mark.parametrize("margin", [Margin.arcface(), Margin.cosface(), Margin.softmax()], ids=["m2", "m3", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_small_loss_keeps_its_digits_and_so_does_its_gradient(theta, margin, smoothing):
    mpmath.mp.dps = 40
    angles = (0.0, 0.9 + theta, 2.0 + theta)
    w = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)
    x = torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=torch.float64, requires_grad=True)

    def exact(turned):
        """Of the same numbers, the embedding being turned by an angle."""
        direction = mpmath.atan2(x[0, 1].item(), x[0, 0].item()) + turned
        cosine = [mpmath.cos(direction - mpmath.atan2(b, a)) for a, b in w.tolist()]
        z = [64 * mpmath.cos(mpmath.acos(cosine[0]) + margin.m2) - 64 * margin.m3, 64 * cosine[1], 64 * cosine[2]]
        of_each = [mpmath.log(sum(mpmath.exp(b - a) for b in z)) for a in z]
        return (1 - smoothing) * of_each[0] + smoothing * sum(of_each) / 3

    loss = margin_softmax_loss(x, w, torch.tensor([0]), margin, 64.0, smoothing)
    loss.backward()
    assert loss.item() == pytest.approx(float(exact(0)), rel=5e-12)
    turned = (x.grad[0, 1] * x[0, 0] - x.grad[0, 0] * x[0, 1]).item()  # x is a unit vector
    assert turned == pytest.approx(float(mpmath.diff(exact, 0)), rel=2e-9)

    narrow = margin_softmax_loss(x.detach().float(), w.float(), torch.tensor([0]), margin, 64.0, smoothing)
    assert narrow.item() == pytest.approx(float(exact(0)), rel=1e-3)


def test_of_a_single_class_there_is_no_loss():
    logits = torch.tensor([[3.0], [-1e30]], requires_grad=True)
    loss = softmax_loss(logits, torch.tensor([0, 0]), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_the_nearest_subcenter_counts_and_the_first_of_equals_takes_the_gradient():
    embeddings = torch.tensor([[1.0, 1.0]])
    prototypes = torch.tensor([[[0.0, -1.0], [1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0]] * 3], requires_grad=True)
    cosine = cosines(embeddings, prototypes)
    np.testing.assert_allclose(cosine.detach(), [[0.5**0.5, -(0.5**0.5)]], rtol=1e-6)
    cosine.sum().backward()
    assert prototypes.grad.abs().sum(dim=2).bool().tolist() == [[False, True, False], [True, False, False]]


def test_angles_stay_float32_under_autocast():
    embeddings, prototypes, _ = example(torch.float32)
    expected = cosines(embeddings, prototypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosines(embeddings, prototypes), expected)


# ---- losses by the embedding's length


def cross_entropy(logits, y):
    return math.log(sum(math.exp(logit - logits[y]) for logit in logits))


def test_the_linear_softmax_is_equation_1():
    embeddings, weights, labels = example()
    bias = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
    expected = []
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        logits = [
            sum(a * b for a, b in zip(w, x, strict=True)) + b for w, b in zip(weights.tolist(), bias, strict=True)
        ]
        expected.append(cross_entropy(logits, y))
    assert linear_softmax_loss(embeddings, weights, bias, labels).item() == pytest.approx(np.mean(expected), rel=1e-12)
    wide = linear_softmax_loss(embeddings.bfloat16(), weights.float(), bias.float(), labels, 0.1)
    assert wide.dtype == torch.float32


def angles_and_length(x, prototypes):
    norm = math.sqrt(sum(v * v for v in x))
    theta = []
    for w in prototypes:
        cosine = sum(a * b for a, b in zip(w, x, strict=True)) / norm / math.sqrt(sum(v * v for v in w))
        theta.append(math.acos(cosine))
    return theta, norm


def test_the_modified_softmax_is_spherefaces_equation_5():
    embeddings, prototypes, labels = example()
    expected = []
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        theta, norm = angles_and_length(x, prototypes.tolist())
        expected.append(cross_entropy([norm * math.cos(angle) for angle in theta], y))
    assert modified_softmax_loss(embeddings, prototypes, labels).item() == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("lam", [0.0, 5.0, 1000.0])
def test_a_softmax_is_spherefaces_equation_7(m, lam):
    embeddings, prototypes, _ = example()
    embeddings, labels = embeddings.repeat(4, 1), torch.arange(4).repeat_interleave(6)  # every pair
    expected, branches = [], set()
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        theta, norm = angles_and_length(x, prototypes.tolist())
        logits = [norm * math.cos(angle) for angle in theta]
        k = next(k for k in range(m) if k * math.pi / m <= theta[y] <= (k + 1) * math.pi / m)
        psi = (-1) ** k * math.cos(m * theta[y]) - 2 * k
        logits[y] = norm * (lam * math.cos(theta[y]) + psi) / (1 + lam)
        expected.append(cross_entropy(logits, y))
        branches.add(k)
    assert len(branches) >= min(m, 3)
    found = a_softmax_loss(embeddings, prototypes, labels, m, lam)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("size", [1e10, 1e30])
def test_large_logits_are_those_of_small_ones_times_their_size(size):
    """Where exp leaves nothing but the largest, cross entropy is its distance from the own class."""
    embeddings, prototypes, labels = example()
    for loss in (
        modified_softmax_loss,
        a_softmax_loss,
        lambda x, w, y: margin_softmax_loss(x, w, y, Margin.softmax(), x.abs().max().item()),
    ):
        x, w = (size * embeddings).float().requires_grad_(), prototypes.float().requires_grad_()
        found = loss(x, w, labels)
        expected = loss(1e6 * embeddings, prototypes, labels) * (size / 1e6)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        found.backward()
        assert x.grad.isfinite().all()
        assert w.grad.isfinite().all()


def test_lambda_falls_as_in_spherefaces_published_training():
    # what its layer logs in its first iterations, and where lambda reaches its last value
    found = [annealed_lambda(t) for t in (1, 2, 3, 4, 5, 100, 1658, 1659)]
    np.testing.assert_allclose(found, [892.857, 806.452, 735.294, 675.676, 625.0, 76.9231, 5.00100, 5.0], rtol=1e-6)


def test_lambda_falls_from_first_to_last():
    found = [annealed_lambda(t, first=100.0, last=10.0, decay=0.5) for t in (0, 1, 2, 8, 18, 19, 1000)]
    np.testing.assert_allclose(found, [100, 100 / 1.5, 50, 20, 10, 10, 10], rtol=1e-15)
    assert annealed_lambda(0) == 1000
    assert annealed_lambda(10**6) == 5


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, w, y: linear_softmax_loss(x, w, torch.tensor([0.3, -1.0, 0.0, 2.0]).double(), y, 0.1),
        lambda x, w, y: modified_softmax_loss(x, w, y, 0.1),
        lambda x, w, y: a_softmax_loss(x, w, y, 4, 2.0, 0.1),
        lambda x, w, y: margin_softmax_loss(x, w, y, Margin.cosface(), 8.0, filter_above=0.2),
    ],
    ids=["linear", "modified", "a_softmax", "filter"],
)
def test_their_gradients_are_those_of_finite_differences(loss):
    embeddings, prototypes, labels = example()
    embeddings.requires_grad_()
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: loss(x, w, labels), (embeddings, prototypes))


def test_a_wrong_class_above_the_filter_gets_zero():
    embeddings, prototypes, labels = example()
    cosine = cosines(embeddings, prototypes).numpy()
    expected, filtered = 4 * cosine, 0
    for i, y in enumerate(labels.tolist()):
        for j in range(4):
            if j == y:
                expected[i, j] = 4 * (cosine[i, j] - 0.25)
            elif cosine[i, j] > 0.1:
                expected[i, j], filtered = 0, filtered + 1
    assert 0 < filtered < 18
    assert (cosine[range(6), labels] > 0.1).any()  # the own class is not filtered
    found = margin_logits(embeddings, prototypes, labels, Margin.cosface(0.25), 4.0, filter_above=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, w, y: linear_softmax_loss(x, w, w.new_zeros(6), y),
        modified_softmax_loss,
        a_softmax_loss,
        lambda x, w, y: margin_softmax_loss(x, w, y, Margin.arcface(), filter_above=0.1),
        lambda x, w, y: margin_softmax_loss(x, w, y, Margin.sphereface(4.0)),
    ],
    ids=["linear", "modified", "a_softmax", "arcface", "sphereface"],
)
def test_what_is_hard_to_compute_stays_finite(loss, dtype, hostile_batch, assert_finite):
    embeddings, labels = hostile_batch
    # prototypes along and against embeddings, and one that is zero
    prototypes = torch.cat([embeddings[:1], -embeddings[:1], torch.eye(4).double()[:3], torch.zeros(1, 4)])
    x, w = (values.to(dtype).clone().requires_grad_() for values in (embeddings, prototypes))
    assert_finite(loss(x, w, labels), x, w)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_loss_of_narrow_logits_is_computed_in_float32(dtype):
    logits = torch.tensor([[1.0, 2.0, 4.0], [6e4, -6e4, 0.0]], dtype=dtype)  # their difference is no float16
    largest = logits[1, 0].item()
    expected = (math.log(math.exp(-3) + math.exp(-2) + 1) + 3 + 2 * largest) / 2
    loss = softmax_loss(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": torch.tensor([0, 4])}, ValueError, r"labels must lie in \[0, 4\); found 4"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, r"labels must lie in \[0, 4\); found -1"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels have dtype float32; they must be integers"),
        ({"labels": torch.tensor([True, False])}, TypeError, "labels have dtype bool; they must be integers"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels have shape \(1,\).*: \(2,\)"),
        ({"prototypes": torch.ones(4, 2)}, ValueError, r"embeddings \(2, 3\) and prototypes \(4, 2\) do not fit"),
        ({"embeddings": torch.ones(3)}, ValueError, r"embeddings \(3,\) and prototypes \(4, 3\) do not fit"),
        ({"scale": 0}, ValueError, "scale is 0; it must be > 0"),
        ({"scale": math.nan}, ValueError, "scale is nan; it must be > 0"),
        ({"scale": math.inf}, ValueError, "scale is inf; it must be > 0 and finite"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1"),
    ],
)
def test_mistakes_are_named(changes, error, message):
    arguments = {
        "embeddings": torch.ones(2, 3),
        "prototypes": torch.eye(4, 3) + 1,
        "labels": torch.tensor([0, 1]),
        "margin": Margin.arcface(),
    }
    assert margin_softmax_loss(**arguments).isfinite()
    with pytest.raises(error, match=message):
        margin_softmax_loss(**(arguments | changes))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, w, y: a_softmax_loss(x, w, y, m=2.5), "m is 2.5; it must be a whole number of at least 1"),
        (lambda x, w, y: a_softmax_loss(x, w, y, m=0), "m is 0; it must be a whole number"),
        (lambda x, w, y: a_softmax_loss(x, w, y, lam=-1.0), "lam is -1.0; it must be at least 0 and finite"),
        (lambda x, w, y: a_softmax_loss(x, w, y, lam=math.inf), "lam is inf; it must be at least 0 and finite"),
        (
            lambda x, w, y: linear_softmax_loss(x, w, torch.zeros(3), y),
            r"embeddings \(6, 5\), prototypes \(4, 5\) and bias \(3,\) do not fit",
        ),
        (lambda x, w, y: linear_softmax_loss(x, w, torch.zeros(4), y + 3), r"labels must lie in \[0, 4\); found 6"),
        (lambda x, w, y: a_softmax_loss(x, w, y - 1), r"labels must lie in \[0, 4\); found -1"),
    ],
)
def test_other_mistakes_are_named(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(*example())
