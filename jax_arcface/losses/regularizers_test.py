"""Regularisers against float64 numpy, an example and a class at a time; what they hold, and finite throughout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.losses.regularizers import (
    center_displacements,
    center_loss,
    hyperspherical_energy,
    inter_loss,
    intra_loss,
)

BATCH, CLASSES, SUBCENTERS, DIMENSION = 6, 7, 2, 3
LABELS = np.array([0, 3, 3, 6, 3, 0])
OF_PROTOTYPES = [inter_loss, hyperspherical_energy]


def example(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, DIMENSION)) * rng.uniform(0.1, 10, (BATCH, 1))
    return x, rng.normal(size=(CLASSES, DIMENSION)) * rng.uniform(0.1, 10, (CLASSES, 1))


# The oracles: loops over indices, written from the equations -------------------------------------------------------


def unit(vector):
    return vector / np.sqrt(sum(vector**2))


def angle(v, w):
    return np.arccos(np.clip(unit(v) @ unit(w), -1, 1))


def numpy_center(x, centers, labels):
    return sum(sum((x[i] - centers[y]) ** 2) for i, y in enumerate(labels)) / len(labels) / 2


def numpy_intra(x, w, labels):
    own = [np.atleast_2d(w[y]) for y in labels]
    return sum(min(angle(x[i], of_class) for of_class in own[i]) for i in range(len(labels))) / len(labels) / np.pi


def numpy_inter(w, labels):
    total = sum(angle(w[y], w[j]) for y in labels for j in range(len(w)) if j != y)
    return -total / len(labels) / (np.pi * (len(w) - 1))


def numpy_energy(w, labels):
    total = sum(1 / sum((unit(w[y]) - unit(w[j])) ** 2) for y in labels for j in range(len(w)) if j != y)
    return total / len(labels) / (len(w) - 1)


def numpy_gradient(f, x):
    """By central differences, an entry at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        gradient[i] = (f(x + step) - f(x - step)) / 2e-6
    return gradient


@jax.jit
def everything(x, w, labels):
    """Values and gradients of all: compiled once for each dtype and shape."""
    of_both = {f: jax.value_and_grad(f, argnums=(0, 1))(x, w, labels) for f in (center_loss, intra_loss)}
    of_prototypes = {f: jax.value_and_grad(functools.partial(f, block_size=3))(w, labels) for f in OF_PROTOTYPES}
    return {
        "center": of_both[center_loss],
        "intra": of_both[intra_loss],
        "inter": of_prototypes[inter_loss],
        "energy": of_prototypes[hyperspherical_energy],
        "displacements": (center_displacements(x, w, labels), ()),
    }


def test_values_and_gradients_match_numpy():
    with jax.enable_x64(True):
        x, w = example()
        results = everything(x, w, LABELS)
    for name, oracle in (("center", numpy_center), ("intra", numpy_intra)):
        value, (dx, dw) = results[name]
        assert value == pytest.approx(oracle(x, w, LABELS), rel=1e-12)
        np.testing.assert_allclose(dx, numpy_gradient(lambda x, f=oracle: f(x, w, LABELS), x), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(dw, numpy_gradient(lambda w, f=oracle: f(x, w, LABELS), w), rtol=1e-6, atol=1e-8)
    for name, oracle in (("inter", numpy_inter), ("energy", numpy_energy)):
        value, dw = results[name]
        assert value == pytest.approx(oracle(w, LABELS), rel=1e-12)
        np.testing.assert_allclose(dw, numpy_gradient(lambda w, f=oracle: f(w, LABELS), w), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_narrow_inputs_are_widened(dtype):
    x, w = (jnp.asarray(a, dtype) for a in example())
    x64, w64 = np.float64(x), np.float64(w)
    results = everything(x, w, LABELS)
    for name, expected in (
        ("center", numpy_center(x64, w64, LABELS)),
        ("intra", numpy_intra(x64, w64, LABELS)),
        ("inter", numpy_inter(w64, LABELS)),
        ("energy", numpy_energy(w64, LABELS)),
    ):
        value, gradients = results[name]
        assert value.dtype == jnp.float32
        assert value == pytest.approx(expected, rel=1e-5)
        assert all(gradient.dtype == dtype for gradient in jax.tree.leaves(gradients))
    assert results["displacements"][0].dtype == jnp.float32


def test_displacements_are_the_papers_rule():
    """Wen et al. 2016, equation 4 and algorithm 1, a class at a time."""
    with jax.enable_x64(True):
        x, centers = example()
        moves, _ = everything(x, centers, LABELS)["displacements"]
        moved = jnp.asarray(centers).at[LABELS].add(-0.3 * moves)
    for j in range(CLASSES):
        delta = sum(centers[j] - x[i] for i in range(BATCH) if LABELS[i] == j) / (1 + sum(LABELS == j))
        np.testing.assert_allclose(moved[j], centers[j] - 0.3 * delta, rtol=1e-12)


def test_the_nearest_subcentre_counts_and_of_equals_the_first():
    x, _ = example()
    w = np.random.default_rng(1).normal(size=(CLASSES, SUBCENTERS, DIMENSION))
    w[6, 1] = 2 * w[6, 0]
    value, dw = jax.jit(jax.value_and_grad(intra_loss, argnums=1))(np.float32(x), np.float32(w), LABELS)
    assert value == pytest.approx(numpy_intra(x, w, LABELS), rel=1e-6)
    nearest = {(y, min(range(SUBCENTERS), key=lambda k: angle(x[i], w[y, k]))) for i, y in enumerate(LABELS)}
    touched = {(int(y), int(k)) for y, k in np.argwhere(np.abs(dw).max(axis=-1) > 0)}
    assert touched == {(y, k) for y, k in nearest if y != 6} | {(6, 0)}


# Blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", OF_PROTOTYPES)
def test_the_size_of_the_blocks_does_not_count(loss):
    with jax.enable_x64(True):
        _, w = example()
        of_prototypes = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        expected, expected_dw = of_prototypes(w, LABELS, 4096)
        for block_size in (1, 5, CLASSES):  # 5 leaves a remainder
            value, dw = of_prototypes(w, LABELS, block_size)
            assert value == pytest.approx(float(expected), rel=1e-12)
            np.testing.assert_allclose(dw, expected_dw, rtol=1e-12, atol=1e-12 * abs(expected_dw).max())


@pytest.mark.parametrize("loss", OF_PROTOTYPES)
def test_neither_pass_holds_all_classes_for_each_example(loss):
    batch, dimension, classes = 1024, 4, (1000, 4000)

    def held(classes):
        gradient = jax.jit(jax.grad(functools.partial(loss, block_size=64)))
        w, labels = jnp.zeros((classes, dimension)), jnp.zeros(batch, int)
        return gradient.lower(w, labels).compile().memory_analysis().temp_size_in_bytes

    of_prototypes = 4 * dimension * (classes[1] - classes[0])  # bytes that the prototypes grow by
    assert held(classes[1]) - held(classes[0]) < 6 * of_prototypes  # [B, C] grows by 256 times as much


def test_of_one_class_there_are_no_others():
    for loss in OF_PROTOTYPES:
        value, dw = jax.jit(jax.value_and_grad(loss))(np.ones((1, 3), np.float32), np.array([0, 0]))
        assert value == 0
        assert not dw.any()


# Numbers -----------------------------------------------------------------------------------------------------------


def test_near_prototypes_have_a_bounded_energy_and_no_gradient():
    of_prototypes = jax.jit(jax.value_and_grad(hyperspherical_energy))
    value, dw = of_prototypes(np.float32([[1, 0], [2, 1e-3]]), np.array([0, 1]))  # |u - v|^2 = 2^-22
    assert value == 2**20
    assert not dw.any()
    value, dw = of_prototypes(np.float32([[1, 0], [1, 4e-3]]), np.array([0, 1]))
    assert value == pytest.approx(1 / 4e-3**2, rel=0.02)
    assert dw.any()
    _, dw = of_prototypes(2.0**-99 * np.float32([[1, 0], [1, 1.1e-3]]), np.array([0, 1]))
    assert np.abs(dw).max() == np.finfo(np.float32).max  # 2^130, or so, does not fit


def awkward(dtype):
    """Pairs of embeddings and prototypes."""
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    one = np.ones(DIMENSION)
    x, w = example()
    ends = np.outer([1, -1, 0, 1, -1, 1], one), np.outer([1, -1, 0, -1, 1, 1, -1], one)
    near = one + 2e-3 * w
    yield from ((0 * x, 0 * w), (x, 0 * w), (0 * x, w), ends, (largest * ends[0], largest * ends[1]))
    yield from ((tiny * ends[0], tiny * ends[1]), (tiny * ends[0], largest * ends[1]), (near[:BATCH], near))
    yield from ((x, w[[3] * CLASSES]), (w[LABELS], w), (-w[LABELS], w))
    if dtype != jnp.float16:
        yield 2.0**-99 * near[:BATCH], 2.0**-99 * near


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_finite_for_every_finite_input(dtype):
    for number, (x, w) in enumerate(awkward(dtype)):
        for labels in (LABELS, np.full(BATCH, 3)):
            for name, result in everything(jnp.asarray(x, dtype), jnp.asarray(w, dtype), labels).items():
                for leaf in jax.tree.leaves(result):
                    assert np.isfinite(np.float64(leaf)).all(), (name, number)


def test_a_batch_of_one():
    x, w = (np.float32(a) for a in example())
    results = everything(x[:1], w, LABELS[1:2])
    assert results["center"][0] == pytest.approx(numpy_center(x[:1], w, LABELS[1:2]), rel=1e-6)
    assert results["intra"][0] == pytest.approx(numpy_intra(x[:1], w, LABELS[1:2]), rel=1e-6)
    assert results["inter"][0] == pytest.approx(numpy_inter(w, LABELS[1:2]), rel=1e-6)
    assert results["energy"][0] == pytest.approx(numpy_energy(w, LABELS[1:2]), rel=1e-5)
    np.testing.assert_allclose(results["displacements"][0][0], (w[3] - x[0]) / 2, rtol=1e-6)


# Labels and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, CLASSES])
def test_a_label_out_of_range_is_nan_inside_jit_and_raises_outside(bad):
    x, w = (np.float32(a) for a in example())
    labels = np.array([0, 3, bad, 6, 3, 0])
    results = everything(x, w, labels)
    for name in ("center", "intra", "inter", "energy"):
        value, gradients = results[name]
        assert np.isnan(value), name
        assert all(np.isnan(gradient).any() for gradient in jax.tree.leaves(gradients)), name
    np.testing.assert_array_equal(np.isnan(results["displacements"][0]).any(axis=1), labels == bad)
    for loss, arguments in of_each(x, w, labels):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 7\); found {bad}"):
            loss(*arguments)


def of_each(x, w, labels):
    yield from ((f, (x, w, labels)) for f in (center_loss, center_displacements, intra_loss))
    yield from ((f, (w, labels)) for f in OF_PROTOTYPES)


def test_shapes_and_labels_that_do_not_fit_are_refused():
    x, w = (np.float32(a) for a in example())
    for loss, arguments in of_each(x, w, np.float32(LABELS)):
        with pytest.raises(TypeError, match=r"labels have dtype .*; they must be integers"):
            loss(*arguments)
    for loss, arguments in of_each(x, w, LABELS[:, None]):
        with pytest.raises(ValueError, match=r"labels have shape \(6, 1\)"):
            loss(*arguments)
    with pytest.raises(ValueError, match=r"embeddings \(6, 3\) and prototypes \(7, 2\) do not fit"):
        intra_loss(x, w[:, :2], LABELS)
    for loss in (center_loss, center_displacements):
        for centers, shape in ((w[:, :2], r"\(7, 2\)"), (w[:, None], r"\(7, 1, 3\)")):
            message = rf"embeddings \(6, 3\) and centers {shape} do not fit: they must be \[B, D\] and \[C, D\]$"
            with pytest.raises(ValueError, match=message):
                loss(x, centers, LABELS)
    for loss in OF_PROTOTYPES:
        with pytest.raises(ValueError, match=r"they must be \[C, D\], without sub-centres"):
            loss(w[:, None], LABELS)
        with pytest.raises(ValueError, match="block_size is 0; it must be a whole number"):
            loss(w, LABELS, 0)


def test_vmap_over_batches():
    x, w = (np.stack(arrays).astype(np.float32) for arrays in zip(example(), example(1), strict=True))
    labels = np.stack([LABELS, LABELS[::-1]])
    mapped = jax.jit(jax.vmap(everything))(x, w, labels)
    for i in range(2):
        alone = everything(x[i], w[i], labels[i])
        for got, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(got[i], expected, rtol=1e-3, atol=1e-5)
