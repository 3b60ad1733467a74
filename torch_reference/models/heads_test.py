"""Tests of heads.py."""

import math

import pytest
import torch

from torch_reference import (
    ArcFaceHead,
    Head,
    Margin,
    arcface,
    center,
    center_learnt,
    cosines,
    elasticface,
    margin_logits,
    margin_softmax_loss,
    softmax,
    triplet,
)


@pytest.mark.parametrize("subcenters", [1, 3])
def test_logits_with_and_without_labels_and_the_loss(subcenters):
    head = ArcFaceHead(5, 4, margin=Margin.cosface(0.2), scale=10.0, subcenters=subcenters)
    assert head.prototypes.shape == ((4, 5) if subcenters == 1 else (4, 3, 5))
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert torch.equal(head(x, y), margin_logits(x, head.prototypes, y, head.margin, 10.0))
    assert torch.equal(head(x), 10 * cosines(x, head.prototypes))
    torch.testing.assert_close(head.loss(x, y), torch.nn.functional.cross_entropy(head(x, y), y))


def test_the_defaults_are_arcfaces():
    head = ArcFaceHead(12, 100)
    assert (head.margin, head.scale) == (Margin.arcface(0.5), 64)
    assert [name for name, _ in head.named_parameters()] == ["prototypes"]
    assert head.prototypes.abs().max() <= 0.5  # sqrt(3 / 12)
    assert head.prototypes.std().item() == pytest.approx(12**-0.5, rel=0.1)


@pytest.mark.parametrize("value", [0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["embedding_dim", "num_classes", "scale", "subcenters"])
def test_what_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be "):
        ArcFaceHead(**({"embedding_dim": 2, "num_classes": 2} | {name: value}))


def test_a_margin_that_is_a_number_is_refused():
    with pytest.raises(TypeError, match=r"margin is 0\.5; it must be a Margin, such as Margin\.arcface\(0\.5\)"):
        ArcFaceHead(2, 2, margin=0.5)


def test_the_exported_head_is_the_head_that_trains():
    one, other = ArcFaceHead(5, 4, margin=Margin.arcface(0.3), scale=8.0), Head(arcface(m=0.3, scale=8.0), 5, 4)
    assert isinstance(one, Head)
    other.load_state_dict(one.state_dict())
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    for growth in (0.5, 1.0):
        assert torch.equal(one.loss(x, y, growth=growth), other.loss(x, y, growth=growth))


def test_what_a_head_owns():
    def shapes(head):
        return {name: tuple(p.shape) for name, p in head.named_parameters()}

    assert shapes(Head(arcface(), 8, 4)) == {"prototypes": (4, 8)}
    assert shapes(Head(arcface(subcenters=3), 8, 4)) == {"prototypes": (4, 3, 8)}
    both = {"prototypes": (4, 8), "bias": (4,), "centers": (4, 8)}
    assert shapes(Head(softmax() + center_learnt(), 8, 4)) == both
    untrained = Head(triplet(), 8, 4)
    assert not shapes(untrained)
    assert {name: tuple(value.shape) for name, value in untrained.state_dict().items()} == {"prototypes": (4, 8)}
    remembers = Head(arcface() + center(), 8, 4)
    assert [tuple(value.shape) for value in remembers.objective.buffers()] == [(4, 8)]
    assert list(remembers.state_dict()) == ["prototypes"]


def test_a_head_tells_classes_apart_by_angle_or_linearly():
    x = torch.tensor([[4.0, 1.0]])
    angular, linear = Head(arcface(), 2, 2), Head(softmax(), 2, 2)
    with torch.no_grad():
        for head in (angular, linear):
            head.prototypes.copy_(torch.tensor([[1.0, 0.0], [4.0, 4.0]]))
        linear.bias.copy_(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(angular(x), torch.tensor([[4 / 17**0.5, 5 / 34**0.5]]))
    assert linear(x).tolist() == [[5, 18]]


def test_random_margins_are_drawn_in_training_and_their_mean_counts_in_evaluation():
    head = Head(elasticface(m=0.4, std=0.2), 5, 4)
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert head.loss(x, y) != head.loss(x, y)
    expected = margin_softmax_loss(x, head.prototypes, y, Margin.arcface(0.4))
    torch.testing.assert_close(head.eval().loss(x, y), expected)
