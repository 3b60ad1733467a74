"""Tests of heads.py."""

import pytest
import torch

from torch_reference import ArcFaceHead, Margin, cosines, margin_logits


@pytest.mark.parametrize("subcenters", [1, 3])
def test_logits_with_and_without_labels(subcenters):
    head = ArcFaceHead(5, 4, margin=Margin.cosface(0.2), scale=10.0, subcenters=subcenters)
    assert head.prototypes.shape == ((4, 5) if subcenters == 1 else (4, 3, 5))
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    assert torch.equal(head(x, y), margin_logits(x, head.prototypes, y, head.margin, 10.0))
    assert torch.equal(head(x), 10 * cosines(x, head.prototypes))


def test_the_defaults_are_arcfaces():
    head = ArcFaceHead(12, 100)
    assert (head.margin, head.scale) == (Margin.arcface(0.5), 64)
    assert [name for name, _ in head.named_parameters()] == ["prototypes"]
    assert head.prototypes.abs().max() <= 0.5  # sqrt(3 / 12)
    assert head.prototypes.std().item() == pytest.approx(12**-0.5, rel=0.1)


@pytest.mark.parametrize("name", ["embedding_dim", "num_classes", "scale", "subcenters"])
def test_what_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be > 0"):
        ArcFaceHead(**({"embedding_dim": 2, "num_classes": 2} | {name: 0}))
