"""Tests of accuracy.py."""

import numpy as np
import pytest
import torch

from torch_reference import Margin, margin_softmax_loss
from torch_reference.evaluation import accuracy, mean_loss, predict


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5)])
def test_the_nearest_prototype_in_blocks(shape):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(23, 5)), rng.normal(size=shape)
    unit = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, w.reshape(4, -1, 5)))
    expected = np.einsum("nd,ckd->nck", *unit).max(axis=2).argmax(axis=1)
    for size in (1, 7, 1000):
        np.testing.assert_array_equal(predict(x, w, block_size=size), expected)
    assert predict(x, w).dtype == torch.int64
    labels = np.where(np.arange(23) < 20, expected, (expected + 1) % 4).astype(np.int32)
    assert accuracy(x, w, labels) == pytest.approx(20 / 23)


def test_the_first_of_equals():
    assert predict(torch.ones(1, 2), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]])).item() == 0


def test_mean_loss_does_not_depend_on_the_blocks():
    x, w, y = torch.randn(10, 3), torch.randn(4, 3), torch.arange(10) % 4
    whole = margin_softmax_loss(x, w, y, Margin.arcface(), 8.0).item()
    for size in (3, 100):
        assert mean_loss(x, w, y, Margin.arcface(), 8.0, block_size=size) == pytest.approx(whole, rel=1e-5)
