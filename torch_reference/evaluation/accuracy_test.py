"""Tests of accuracy.py."""

import numpy as np
import pytest
import torch

from torch_reference import Margin, adacos, arcface, center, elasticface, margin_softmax_loss, softmax, triplet
from torch_reference.evaluation import accuracy, class_means, mean_loss, predict


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


def test_with_a_bias_the_classifier_is_linear():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(23, 5)), rng.normal(size=(4, 5)), rng.normal(size=4)
    expected = [max(range(4), key=lambda j: sum(w[j] * v) + b[j]) for v in x]
    assert expected != predict(x, w).tolist()
    for size in (7, 1000):
        assert predict(x, w, b, block_size=size).tolist() == expected
    labels = np.where(np.arange(23) < 20, expected, (np.array(expected) + 1) % 4)
    assert accuracy(x, w, labels, b) == pytest.approx(20 / 23)


def test_class_means_are_those_of_normalised_embeddings():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, 5)) * rng.uniform(1, 9, (20, 1)), np.arange(20) % 3
    means = class_means(x, labels, 4)
    for j in range(3):
        members = [v / np.linalg.norm(v) for v, label in zip(x, labels, strict=True) if label == j]
        np.testing.assert_allclose(means[j], sum(members) / len(members), rtol=1e-12)
    assert means[3].tolist() == [0] * 5
    assert class_means(np.float32(x), labels, 4).dtype == torch.float32
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\); found 2"):
        class_means(x, labels, 2)


def test_the_first_of_equals():
    assert predict(torch.ones(1, 2), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]])).item() == 0


def test_mean_loss_does_not_depend_on_the_blocks():
    x, w, y = torch.randn(10, 3), torch.randn(4, 3), torch.arange(10) % 4
    for threshold in (None, 0.1):
        whole = margin_softmax_loss(x, w, y, Margin.arcface(), 8.0, filter_above=threshold).item()
        for size in (3, 100):
            objective = 2 * arcface(filter=threshold, scale=8.0, label_smoothing=0.1) + center()
            assert mean_loss(objective, {"prototypes": w}, x, y, block_size=size) == pytest.approx(2 * whole, rel=1e-5)


def test_mean_loss_of_a_linear_classifier_and_where_there_is_none():
    x, w, y, b = torch.randn(10, 3), torch.randn(4, 3), torch.arange(10) % 4, torch.randn(4)
    expected = torch.nn.functional.cross_entropy(x @ w.T + b, y).item()
    assert mean_loss(softmax(), {"prototypes": w, "bias": b}, x.numpy(), y.numpy()) == pytest.approx(expected, rel=1e-5)
    for objective in (triplet(), adacos(), elasticface()):
        assert mean_loss(objective, {"prototypes": w}, x, y) is None


def test_large_integers_keep_their_digits():
    """Directions that float32 cannot tell apart."""
    near = 2**60 + 2**36 - 2**20  # float32 makes 2**60 of it
    prototypes = np.array([[2**60, near], [near, 2**60]])
    assert predict(prototypes, prototypes).tolist() == [0, 1]
