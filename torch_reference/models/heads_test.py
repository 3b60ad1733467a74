"""Tests of heads.py."""

import math

import pytest
import torch

from torch_reference import ArcFaceHead, Margin, cosines, margin_logits
from torch_reference.models.heads import ClassHead


@pytest.mark.parametrize("subcenters", [1, 3])
def test_logits_with_and_without_labels_and_the_loss(subcenters):
    head = ArcFaceHead(5, 4, margin=Margin.cosface(0.2), scale=10.0, subcenters=subcenters)
    assert head.prototypes.shape == ((4, 5) if subcenters == 1 else (4, 3, 5))
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert torch.equal(head(x, y), margin_logits(x, head.prototypes, y, head.margin, 10.0))
    assert torch.equal(head(x), 10 * cosines(x, head.prototypes))
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(head(x, y), y, label_smoothing=smoothing)
        torch.testing.assert_close(head.loss(x, y, smoothing), expected)


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


def test_what_a_class_head_owns():
    plain = ClassHead(8, 4)
    assert [name for name, _ in plain.named_parameters()] == ["prototypes"]
    whole = ClassHead(8, 4, bias=True, centers=True)
    assert {name: tuple(p.shape) for name, p in whole.named_parameters()} == {
        "prototypes": (4, 8),
        "bias": (4,),
        "centers": (4, 8),
    }
    untrained = ClassHead(8, 4, trained=False)
    assert not list(untrained.parameters())
    assert untrained.state_dict()["prototypes"].shape == (4, 8)
    assert ClassHead(8, 4, subcenters=3).prototypes.shape == (4, 3, 8)


def test_a_class_head_tells_classes_apart_by_angle_or_linearly():
    x = torch.tensor([[4.0, 1.0]])
    angular, linear = ClassHead(2, 2), ClassHead(2, 2, bias=True)
    with torch.no_grad():
        for head in (angular, linear):
            head.prototypes.copy_(torch.tensor([[1.0, 0.0], [4.0, 4.0]]))
        linear.bias.copy_(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(angular(x), torch.tensor([[4 / 17**0.5, 5 / 34**0.5]]))
    assert linear(x).tolist() == [[5, 18]]
