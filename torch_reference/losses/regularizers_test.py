"""Tests of regularizers.py: against plain loops in float64, written from the papers' equations."""

import math

import numpy as np
import pytest
import torch

from torch_reference.losses.regularizers import (
    center_displacements,
    center_loss,
    hyperspherical_energy,
    inter_loss,
    intra_loss,
)

LABELS = torch.tensor([0, 3, 1, 1, 6, 0, 0])


def example(shape=(7, 4)):
    rng = np.random.default_rng(2)
    return torch.from_numpy(rng.normal(size=(7, 4)) * 3), torch.from_numpy(rng.normal(size=shape))


def angle(v, w):
    return math.acos(v @ w / math.sqrt(v @ v) / math.sqrt(w @ w))


def test_center_loss():
    embeddings, centers = example()
    expected = [
        sum((a - b) ** 2 for a, b in zip(x, centers[y], strict=True)) for x, y in zip(embeddings, LABELS, strict=True)
    ]
    assert center_loss(embeddings, centers, LABELS).item() == pytest.approx(np.mean(expected) / 2, rel=1e-12)


def test_centres_move_by_their_own_rule():
    embeddings, centers = example()
    x, c = embeddings.numpy(), centers.numpy()
    moved = c.copy()
    for j in range(7):  # Wen et al., equation 4, with the rate 0.5
        members = [i for i in range(7) if LABELS[i] == j]
        moved[j] -= 0.5 * sum((c[j] - x[i] for i in members), np.zeros(4)) / (1 + len(members))
    found = centers.index_add(0, LABELS, center_displacements(embeddings, centers, LABELS), alpha=-0.5)
    np.testing.assert_allclose(found, moved, rtol=1e-12)
    np.testing.assert_array_equal(found[[2, 4, 5]], centers[[2, 4, 5]])


@pytest.mark.parametrize("shape", [(7, 4), (7, 3, 4)], ids=["prototypes", "sub-centres"])
def test_intra_is_equation_5(shape):
    embeddings, prototypes = example(shape)
    expected = [
        min(angle(x, w) for w in prototypes[y].reshape(-1, 4).numpy()) / math.pi
        for x, y in zip(embeddings.numpy(), LABELS, strict=True)
    ]
    assert intra_loss(embeddings, prototypes, LABELS).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_intra_moves_the_nearest_subcentre_the_first_of_equals():
    prototypes = torch.tensor([[[0.0, -1.0], [1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    intra_loss(torch.tensor([[1.0, 1.0]]), prototypes, torch.tensor([0])).backward()
    assert prototypes.grad.abs().sum(dim=2).bool().tolist() == [[False, True, False]]


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_inter_is_equation_6_in_blocks(block_size):
    _, prototypes = example()
    w = prototypes.numpy()
    expected = [-sum(angle(w[y], w[j]) for j in range(7) if j != y) / (math.pi * 6) for y in LABELS]
    assert inter_loss(prototypes, LABELS, block_size).item() == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_the_energy_in_blocks(block_size):
    _, prototypes = example()
    unit = [w / math.sqrt(w @ w) for w in prototypes.numpy()]
    expected = [sum(1 / sum((unit[y] - unit[j]) ** 2) for j in range(7) if j != y) / 6 for y in LABELS]
    assert hyperspherical_energy(prototypes, LABELS, block_size).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_prototypes_that_nearly_coincide_have_a_finite_energy_without_gradient():
    near = 2.0**-11  # a squared distance of 2^-22
    prototypes = torch.tensor([[1.0, 0.0], [1.0, near], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    energy = hyperspherical_energy(prototypes[:2], torch.tensor([0]))
    assert energy.item() == 2.0**20
    energy.backward()
    assert not prototypes.grad.any()
    hyperspherical_energy(prototypes, torch.tensor([1])).backward()
    assert prototypes.grad.any()


@pytest.mark.parametrize("function", [inter_loss, hyperspherical_energy])
def test_blocks_change_no_gradient_and_finite_differences_agree(function):
    _, prototypes = example()
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: function(w, LABELS, block_size=3), prototypes)
    whole, blocks = (torch.autograd.grad(function(prototypes, LABELS, size), prototypes)[0] for size in (7, 2))
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("function", [inter_loss, hyperspherical_energy])
def test_no_comparison_of_all_classes_is_held_for_the_gradient(function):
    batch, classes, dim = 50, 600, 2
    prototypes = torch.randn(classes, dim, requires_grad=True)
    labels = torch.arange(batch)

    def held(block_size):
        """How many numbers autograd keeps from the forward pass."""
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = function(prototypes, labels, block_size)
        loss.backward()
        return sum(storages.values())

    assert held(20) < batch * classes / 2
    assert prototypes.grad.isfinite().all()


def test_gradients_of_center_and_intra_are_those_of_finite_differences():
    embeddings, others = example((7, 3, 4))
    x, w = embeddings.requires_grad_(), others.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: intra_loss(x, w, LABELS), (x, w))
    assert torch.autograd.gradcheck(lambda x, w: center_loss(x, w[:, 0], LABELS), (x, w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["center", "intra", "inter", "energy"])
def test_what_is_hard_to_compute_stays_finite(name, dtype, hostile_batch, assert_finite):
    embeddings, labels = hostile_batch
    others = torch.cat([embeddings[:1], -embeddings[:1], torch.eye(4).double()[:3], torch.zeros(1, 4)])
    x, w = (values.to(dtype).clone().requires_grad_() for values in (embeddings, others))
    if name == "center":
        assert_finite(center_loss(x, w, labels), x, w)
    elif name == "intra":
        assert_finite(intra_loss(x, w, labels), x, w)
    else:
        assert_finite((inter_loss if name == "inter" else hyperspherical_energy)(w, labels), w)
        # the embeddings as prototypes: identical, opposite, zero; and a single class
        own = torch.arange(len(x))
        assert_finite((inter_loss if name == "inter" else hyperspherical_energy)(x, own), x)


def test_entries_beyond_2_to_the_40_count_as_that():
    embeddings = torch.tensor([[1e30, 0.0], [2.0**40, 3.0]], requires_grad=True)
    loss = center_loss(embeddings, torch.zeros(1, 2), torch.tensor([0, 0]))
    assert loss.item() == 2.0**79
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert gradient.tolist() == [[0, 0], [2.0**39, 1.5]]


@pytest.mark.parametrize("function", [inter_loss, hyperspherical_energy])
def test_a_single_class_has_no_others(function):
    prototypes = torch.ones(1, 3, requires_grad=True)
    loss = function(prototypes, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert not prototypes.grad.any()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, w: center_loss(x, w[:, :2], LABELS), r"embeddings \(7, 4\) and centers \(7, 2\) do not fit"),
        (lambda x, w: center_loss(x, w, LABELS + 1), r"labels must lie in \[0, 7\); found 7"),
        (lambda x, w: center_displacements(x, w, LABELS + 1), r"labels must lie in \[0, 7\); found 7"),
        (lambda x, w: intra_loss(x, w[:, :2], LABELS), r"embeddings \(7, 4\) and prototypes \(7, 2\) do not fit"),
        (lambda x, w: intra_loss(x, w, LABELS - 1), r"labels must lie in \[0, 7\); found -1"),
        (lambda x, w: inter_loss(w, LABELS - 1), r"labels must lie in \[0, 7\); found -1"),
        (
            lambda x, w: inter_loss(w.reshape(7, 2, 2), LABELS),
            r"prototypes have shape \(7, 2, 2\); \[C, D\] is expected",
        ),
        (lambda x, w: hyperspherical_energy(w, LABELS, 0), "block_size is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(*example())
