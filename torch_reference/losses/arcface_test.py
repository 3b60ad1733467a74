"""The five lines are the loss that trains, but near 0 and pi."""

import math

import pytest
import torch

from torch_reference.losses.arcface import arcface_loss
from torch_reference.losses.margins import Margin
from torch_reference.losses.softmax import margin_softmax_loss


@pytest.mark.parametrize("s", [1.0, 16.0, 64.0])
def test_five_lines_are_the_margin_softmax_with_its_gradients(s):
    x, w = torch.randn(2, 40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = w[:5]
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(w).T
    theta = cosine.acos()
    y = theta.argsort(dim=1)[:, 1]  # near, but not the nearest
    assert theta.min() > 0.1
    assert (theta.gather(1, y[:, None]) + 0.5).max() < math.pi
    found, expected = [], []
    for loss, to in ((arcface_loss, found), (margin_softmax_loss, expected)):
        inputs = x.clone().requires_grad_(), w.clone().requires_grad_()
        value = loss(*inputs, y, 0.5, s) if loss is arcface_loss else loss(*inputs, y, Margin.arcface(0.5), s)
        to += [value, *torch.autograd.grad(value, inputs)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_the_five_lines_have_no_gradient_at_theta_0_and_the_real_loss_has():
    for loss in (arcface_loss, lambda x, w, y: margin_softmax_loss(x, w, y, Margin.arcface())):
        x = torch.tensor([[1.0, 0.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(x, torch.eye(2), torch.tensor([0])), x)
        assert gradient.isfinite().all() == (loss is not arcface_loss)
