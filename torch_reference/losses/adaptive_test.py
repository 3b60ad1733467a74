"""Tests of adaptive.py: against plain loops in float64, written from the papers' equations."""

import math

import numpy as np
import pytest
import torch

from torch_reference.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from torch_reference.losses.margins import Margin
from torch_reference.losses.softmax import margin_softmax_loss


def example(batch=7):
    rng = np.random.default_rng(1)
    labels = np.array([0, 3, 1, 1, 2, 0, 4])[:batch]
    prototypes = rng.normal(size=(5, 3))
    # near their class, so that no angle gets past pi with its margin
    embeddings = (prototypes[labels] + 0.6 * rng.normal(size=(batch, 3))) * rng.uniform(1, 40, (batch, 1))
    return torch.from_numpy(embeddings), torch.from_numpy(prototypes), torch.from_numpy(labels)


def plain(embeddings, prototypes, labels):
    """For each example its length, its angles to all classes, and its class."""
    for x, y in zip(embeddings.numpy(), labels.tolist(), strict=True):
        norm = math.sqrt(sum(v * v for v in x))
        yield norm, [math.acos(x @ w / norm / math.sqrt(sum(v * v for v in w))) for w in prototypes.numpy()], y


def cross_entropy(logits, y):
    return math.log(sum(math.exp(logit - logits[y]) for logit in logits))


@pytest.mark.parametrize("batch", [6, 7], ids=["even", "odd"])
def test_adacos(batch):
    embeddings, prototypes, labels = example(batch)
    examples = list(plain(embeddings, prototypes, labels))
    for scale in (initial_adacos_scale(5), 6.0):
        sums = [sum(math.exp(scale * math.cos(t)) for j, t in enumerate(theta) if j != y) for _, theta, y in examples]
        own = sorted(theta[y] for _, theta, y in examples)
        median = own[3] if batch == 7 else (own[2] + own[3]) / 2
        assert 0.3 < median < math.pi / 4
        new = math.log(sum(sums) / batch) / math.cos(median)
        expected = np.mean([cross_entropy([new * math.cos(t) for t in theta], y) for _, theta, y in examples])
        loss, found = adacos_loss(embeddings, prototypes, labels, scale)
        assert found.item() == pytest.approx(new, rel=1e-12)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_adacos_takes_no_angle_beyond_45_degrees_and_its_scale_has_no_gradient():
    embeddings, prototypes, labels = example()
    far = (-embeddings).requires_grad_()
    loss, scale = adacos_loss(far, prototypes, labels, 3.0)
    examples = list(plain(far.detach(), prototypes, labels))
    sums = [sum(math.exp(3 * math.cos(t)) for j, t in enumerate(theta) if j != y) for _, theta, y in examples]
    assert scale.item() == pytest.approx(math.log(np.mean(sums)) / math.cos(math.pi / 4), rel=1e-12)
    assert not scale.requires_grad
    (found,) = torch.autograd.grad(loss, far)
    (expected,) = torch.autograd.grad(margin_softmax_loss(far, prototypes, labels, Margin.softmax(), scale.item()), far)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 2.0, 1000.0])
def test_the_scale_of_adacos_stays_above_0(scale):
    w = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])  # all others are opposite: log B = log 2 - scale
    loss, new = adacos_loss(torch.tensor([[1.0, 0.0]]), w, torch.tensor([0]), scale)
    assert new.item() == pytest.approx(math.log(2) / 2)
    assert loss.item() == pytest.approx(math.log(1 + 2 / 2))  # 2 e^-2s = 2 / 2


def test_the_fixed_points_of_adacos_are_not_moved():
    """The nearest that one comes to the bound: 0.5 log(2) is itself the fixed point of opposite prototypes."""
    x, labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    for other in ([-1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]):
        cosine = other[0] / math.hypot(*other)
        fixed = math.log(2) / (1 - cosine)  # s = log(2 e^(s cosine))
        _, new = adacos_loss(x, torch.tensor([[1.0, 0.0], other, other], dtype=torch.float64), labels, fixed)
        assert new.item() == pytest.approx(fixed, rel=1e-12)


def test_a_large_adacos_scale_does_not_overflow():
    embeddings, prototypes, labels = example()
    for sign in (1, -1):
        loss, scale = adacos_loss(sign * embeddings.float(), prototypes.float(), labels, 1000.0)
        assert loss.isfinite()
        assert scale.isfinite()


def test_the_first_scale_of_adacos():
    assert initial_adacos_scale(101) == pytest.approx(6.5127, abs=5e-5)  # sqrt(2) log(100)
    with pytest.raises(ValueError, match="there are 2 classes; AdaCos needs at least 3"):
        initial_adacos_scale(2)
    with pytest.raises(ValueError, match="there are 2 classes; AdaCos needs at least 3"):
        adacos_loss(torch.ones(1, 2), torch.eye(2), torch.tensor([0]), 1.0)


@pytest.mark.parametrize("t", [0.0, 0.7])
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_curricularface(t, rate):
    embeddings, prototypes, labels = example()
    examples = list(plain(embeddings, prototypes, labels))
    new = rate * np.mean([math.cos(theta[y]) for _, theta, y in examples]) + (1 - rate) * t
    losses, hard = [], 0
    for _, theta, y in examples:
        psi = math.cos(theta[y] + 0.5)
        logits = []
        for j, angle in enumerate(theta):
            if j == y:
                logits.append(8 * psi)
            elif math.cos(angle) > psi:
                logits.append(8 * math.cos(angle) * (new + math.cos(angle)))
                hard += 1
            else:
                logits.append(8 * math.cos(angle))
        losses.append(cross_entropy(logits, y))
    assert 0 < hard < 28
    loss, found = curricularface_loss(embeddings, prototypes, labels, t, scale=8.0, rate=rate)
    assert found.item() == pytest.approx(new, rel=1e-12)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_curricularface_compares_with_the_policy_beyond_pi():
    x = torch.tensor([[-1.0, 0.1]], dtype=torch.float64)  # theta_y is near pi, and theta_y + 0.5 beyond it
    w = torch.tensor([[1.0, 0.0], [-1.0, -0.5]], dtype=torch.float64)
    own, other = (math.acos(c) for c in ((x @ w.T)[0] / x.norm() / w.norm(dim=1)).tolist())
    psi = -math.cos(own + 0.5) - 2  # monotone: k = 1
    assert math.cos(own + 0.5) < math.cos(other)
    logits = [psi, math.cos(other) * (0.99 * 0.2 + 0.01 * math.cos(own) + math.cos(other))]
    loss, _ = curricularface_loss(x, w, torch.tensor([0]), 0.2, scale=1.0)
    assert loss.item() == pytest.approx(cross_entropy(logits, 0), rel=1e-12)


@pytest.mark.parametrize("clipped", [False, True])
def test_magface(clipped):
    embeddings, prototypes, labels = example()
    low, high, shortest, longest, weight = (0.2, 0.6, 12.0, 60.0, 7.0) if clipped else (0.2, 0.6, 1.0, 200.0, 7.0)
    losses, outside = [], 0
    for norm, theta, y in plain(embeddings, prototypes, labels):
        a = min(max(norm, shortest), longest)
        outside += a != norm
        logits = [8 * math.cos(angle) for angle in theta]
        logits[y] = 8 * math.cos(theta[y] + low + (high - low) * (a - shortest) / (longest - shortest))
        losses.append(cross_entropy(logits, y) + weight * (a / longest**2 + 1 / a))
    assert (outside > 0) == clipped
    found = magface_loss(embeddings, prototypes, labels, low, high, shortest, longest, weight, scale=8.0)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_adaface(rate):
    embeddings, prototypes, labels = example()
    embeddings[0] *= 100  # longer than 100
    examples = list(plain(embeddings, prototypes, labels))
    lengths = [min(max(norm, 0.001), 100) for norm, *_ in examples]
    assert max(lengths) == 100
    mean = rate * sum(lengths) / 7 + (1 - rate) * 20
    deviation = math.sqrt(sum((n - sum(lengths) / 7) ** 2 for n in lengths) / 6)
    std = rate * deviation + (1 - rate) * 15
    losses, clipped = [], 0
    for n, (_, theta, y) in zip(lengths, examples, strict=True):
        z = min(max((n - mean) / (std + 0.001) * 0.6, -1), 1)
        clipped += abs(z) == 1
        logits = [8 * math.cos(angle) for angle in theta]
        logits[y] = 8 * (math.cos(min(max(theta[y] - 0.4 * z, 0), math.pi)) - 0.4 * z - 0.4)
        losses.append(cross_entropy(logits, y))
    assert 0 < clipped < 7
    found = adaface_loss(embeddings, prototypes, labels, 20.0, 15.0, 0.4, 0.6, rate, scale=8.0)
    assert [value.item() for value in found] == pytest.approx([np.mean(losses), mean, std], rel=1e-12)


def test_adafaces_angle_stays_between_0_and_pi():
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for x, mean, z, cosine in (([1.0, 0.01], 0.0, 1, 1.0), ([-1.0, 0.01], 5.0, -1, -1.0)):
        embedding = torch.tensor([x], dtype=torch.float64)
        loss, *_ = adaface_loss(embedding, w, torch.tensor([0]), mean, 0.0, 0.4, h=1.0, rate=0.0, scale=1.0)
        other = embedding[0, 1] / embedding.norm()
        assert loss.item() == pytest.approx(cross_entropy([cosine - 0.4 * z - 0.4, other.item()], 0), rel=1e-12)


def test_the_length_is_a_constant_for_adaface_and_none_for_magface():
    """Along the embedding itself no angle changes, so the derivative is that by the length."""
    embeddings, prototypes, labels = example()
    x = embeddings.requires_grad_()

    def radial(loss):
        (gradient,) = torch.autograd.grad(loss, x)
        return (gradient * x).sum(dim=1).abs().detach()

    assert (radial(adaface_loss(x, prototypes, labels, 20.0, 15.0)[0]) < 1e-12).all()
    inside = (x.norm(dim=1) > 10) & (x.norm(dim=1) < 40)
    assert 0 < inside.sum() < 7
    moved = radial(magface_loss(x, prototypes, labels, longest=40.0))
    assert torch.equal(moved > 1e-12, inside)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, w, y: magface_loss(x, w, y, shortest=1.0, longest=200.0, scale=8.0),
        lambda x, w, y: magface_loss(x, w, y, low=0.4, high=1.2, beyond_pi="linear", label_smoothing=0.1),
        lambda x, w, y: margin_softmax_loss(x, w, y, Margin(m2=torch.linspace(0.1, 0.7, 7)), 8.0),
    ],
    ids=["magface", "clipped", "elastic"],
)
def test_gradients_are_those_of_finite_differences(loss):
    embeddings, prototypes, labels = example()
    inputs = embeddings.requires_grad_(), prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: loss(x, w, labels), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss",
    [
        lambda x, w, y: adacos_loss(x, w, y, 3.0),
        lambda x, w, y: curricularface_loss(x, w, y, 0.0),
        lambda x, w, y: (magface_loss(x, w, y),),
        lambda x, w, y: adaface_loss(x, w, y, 20.0, 100.0),
    ],
    ids=["adacos", "curricularface", "magface", "adaface"],
)
def test_what_is_hard_to_compute_stays_finite(loss, dtype, hostile_batch, assert_finite):
    embeddings, labels = hostile_batch
    prototypes = torch.cat([embeddings[:1], -embeddings[:1], torch.eye(4).double()[:3], torch.zeros(1, 4)])
    x, w = (values.to(dtype).clone().requires_grad_() for values in (embeddings, prototypes))
    value, *state = loss(x, w, labels)
    assert all(number.isfinite() and not number.requires_grad for number in state)
    assert_finite(value, x, w)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, w, y: adacos_loss(x, w, y, 0.0), "scale is 0.0; it must be > 0 and finite"),
        (lambda x, w, y: magface_loss(x, w, y, shortest=0.0), "shortest is 0.0; it must be > 0 and finite"),
        (lambda x, w, y: magface_loss(x, w, y, longest=math.inf), "longest is inf; it must be > 0 and finite"),
        (
            lambda x, w, y: magface_loss(x, w, y, shortest=20.0, longest=10.0),
            "shortest is 20.0; it must be below longest, 10.0",
        ),
        (lambda x, w, y: magface_loss(x, w, y, low=-4.0), "low is -4.0; it must be in radians, between -pi and pi"),
        (lambda x, w, y: magface_loss(x, w, y, high=45), "high is 45; it must be in radians"),
        (lambda x, w, y: magface_loss(x, w, y, weight=-1), "weight is -1; it must be at least 0 and finite"),
        (lambda x, w, y: curricularface_loss(x, w, y, 0.0, scale=0.0), "scale is 0.0; it must be > 0"),
        (lambda x, w, y: curricularface_loss(x, w, y, 0.0, rate=5), "rate is 5; it must be between 0 and 1"),
        (lambda x, w, y: adaface_loss(x, w, y, 20.0, 100.0, m=-1), "m is -1; it must be at least 0 and finite"),
        (lambda x, w, y: adaface_loss(x, w, y, 20.0, 100.0, h=math.nan), "h is nan; it must be at least 0"),
        (lambda x, w, y: adaface_loss(x, w, y, 20.0, 100.0, rate=3), "rate is 3; it must be between 0 and 1"),
        (lambda x, w, y: adaface_loss(x, w, y, 20.0, 100.0, scale=-1.0), "scale is -1.0; it must be > 0"),
        (lambda x, w, y: adacos_loss(x, w, y + 1, 1.0), r"labels must lie in \[0, 5\); found 5"),
        (lambda x, w, y: adaface_loss(x, w, y + 1, 20.0, 100.0), r"labels must lie in \[0, 5\); found 5"),
        (lambda x, w, y: curricularface_loss(x, w, y + 1, 0.0), r"labels must lie in \[0, 5\); found 5"),
    ],
)
def test_mistakes_are_named(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(*example())
