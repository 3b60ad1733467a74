"""The fused loss against float64 numpy and the dense loss, finite for whatever is finite, and never [B, C]."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jax_arcface.losses.fused import fused_margin_softmax_loss, loss_and_correct, nearest_class
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import margin_softmax_loss

BATCH, CLASSES, DIMENSION = 5, 6, 4
LABELS = np.array(
    [0, 1, 1, 3, 5]
)  # both ends of blocks of 3; what a smaller last block adds is tested where it says so
POLICIES = ["monotone", "linear", "wrap"]
MARGINS = [
    (1.0, 0.0, 0.0),
    (1.0, 0.5, 0.0),
    (1.0, 0.0, 0.35),
    (1.35, 0.0, 0.0),
    (4.0, 0.2, 0.1),
    (1.0, -0.3, -0.2),
    ([1.0, 1.2, 1.0, 3.0, 0.9], [0.5, 0.1, 0.9, 0.0, 0.3], [0.0, 0.1, 0.2, 0.35, -0.1]),  # one for each example
]


def margins_of(beyond_pi):
    margins = MARGINS if beyond_pi != "linear" else [m for m in MARGINS if m[0] == 1]
    return [tuple(np.broadcast_to(np.float64(number), BATCH) for number in m) for m in margins]


def example(seed=0, classes=CLASSES, subcenters=()):
    """Embeddings and prototypes of many lengths; the second embedding lies almost opposite to its prototype."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(BATCH, DIMENSION)), rng.normal(size=(classes, *subcenters, DIMENSION))
    if classes == CLASSES and not subcenters:
        x[1] = 0.3 * rng.normal(size=DIMENSION) - 2 * w[LABELS[1]]
    return x * rng.uniform(0.1, 10, (BATCH, 1)), w * rng.uniform(0.1, 10, (*w.shape[:-1], 1))


def unit(vectors):
    """To length 1; 0 where nothing is as large as 2^-100."""
    vectors = np.float64(vectors)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = vectors / np.where(largest < 2.0**-100, np.inf, largest)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)


def numpy_loss(x, w, margin, beyond_pi="monotone", scale=64.0, smoothing=0.0, above=np.inf, labels=LABELS):
    """ArcFace's equation 4, with sub-centres, label smoothing and inter-class filtering, an example at a time."""
    losses = []
    for i, label in enumerate(labels):
        m1, m2, m3 = (np.broadcast_to(number, len(labels))[i] for number in margin)
        cosine = unit(w) @ unit(x[i])
        cosine = cosine.reshape(len(w), -1).max(axis=1)
        phi, lower = m1 * np.arccos(np.clip(cosine[label], -1, 1)) + m2, 0
        target = cosine[label] - m2 * np.sin(m2)
        if beyond_pi != "linear" or phi <= np.pi:
            while phi > np.pi and beyond_pi == "monotone":
                phi, lower = phi - np.pi, lower + 2
            target = np.cos(phi) - lower
        cosine[cosine > above] = 0
        cosine[label] = target - m3
        wanted = (1 - smoothing) * np.eye(len(w))[label] + smoothing / len(w)
        losses.append(-wanted @ log_softmax(scale * cosine))
    return np.mean(losses)


def numpy_gradient(f, x):
    """By central differences, an entry at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-5 * max(abs(x[i]), 0.1)
        gradient[i] = (f(x + step) - f(x - step)) / (2 * step[i])
    return gradient


@functools.partial(jax.jit, static_argnames=("smoothing", "block_size", "matmul_dtype"))
def compute(x, w, labels, margin, scale=64.0, above=None, smoothing=0.0, **options):
    """The fused loss and its gradients to embeddings, prototypes, margin and scale: compiled once for each policy."""
    loss_and_gradients = jax.value_and_grad(fused_margin_softmax_loss, argnums=(0, 1, 3, 4))
    return loss_and_gradients(x, w, labels, margin, scale, smoothing, above, **options)


@functools.partial(jax.jit, static_argnames="smoothing")
def dense(x, w, labels, margin, scale=64.0, above=None, smoothing=0.0):
    return jax.value_and_grad(margin_softmax_loss, argnums=(0, 1, 3, 4))(x, w, labels, margin, scale, smoothing, above)


def assert_close(got, wanted, relative):
    """Each array to within `relative` of its largest entry, or of 1 where that is larger."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, 0, relative * max(1, np.abs(b).max()))


# The same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond_pi", POLICIES)
def test_loss_and_gradients_match_numpy(beyond_pi):
    with jax.enable_x64(True):
        x, w = example()
        for m, scale in zip(margins_of(beyond_pi), itertools.cycle([64.0, 10.0]), strict=False):
            loss, (dx, dw, d_margin, d_scale) = compute(x, w, LABELS, Margin(*m, beyond_pi), scale, block_size=3)
            rest = (beyond_pi, scale)
            assert loss == pytest.approx(numpy_loss(x, w, m, *rest), rel=1e-12)
            wanted = (
                numpy_gradient(lambda x, m=m, rest=rest: numpy_loss(x, w, m, *rest), x),
                numpy_gradient(lambda w, m=m, rest=rest: numpy_loss(x, w, m, *rest), w),
                numpy_gradient(lambda m, rest=rest: numpy_loss(x, w, m, *rest), np.array(m)),
                numpy_gradient(lambda s, m=m: numpy_loss(x, w, m, beyond_pi, s), np.array(scale)),
            )
            assert_close((dx, dw, np.array([d_margin.m1, d_margin.m2, d_margin.m3]), d_scale), wanted, 1e-7)


@pytest.mark.parametrize("beyond_pi", POLICIES)
@pytest.mark.parametrize(("gradient", "options"), [("exact", (None, 0.0)), ("straight_through", (0.35, 0.2))])
def test_the_dense_loss_to_the_last_digits(beyond_pi, gradient, options):
    with jax.enable_x64(True):
        for seed, m in enumerate(margins_of(beyond_pi)):
            x, w = example(seed)
            rest = LABELS, Margin(*m, beyond_pi, gradient), 64.0, *options
            assert_close(compute(x, w, *rest, block_size=3), dense(x, w, *rest), 1e-12)


@pytest.mark.parametrize("subcenters", [(), (3,)], ids=["prototypes", "subcentres"])
def test_smoothing_filtering_and_subcentres_match_numpy(subcenters):
    with jax.enable_x64(True):
        x, w = example(1, subcenters=subcenters)
        cosine = np.sort((unit(w) @ unit(x).T).reshape(CLASSES, -1, BATCH).max(axis=1).ravel())
        above = cosine[-10:-8].mean()
        rest = ((1.0, 0.5, 0.0), "monotone", 16.0, 0.3, above)
        assert numpy_loss(x, w, *rest) != pytest.approx(numpy_loss(x, w, *rest[:-1]))
        inputs = x, w, LABELS, Margin.arcface(), 16.0, above, 0.3
        result = compute(*inputs, block_size=4)  # and one of 2
        loss, (dx, dw, _, d_scale) = result
        assert loss == pytest.approx(numpy_loss(x, w, *rest), rel=1e-12)
        wanted = (
            numpy_gradient(lambda x: numpy_loss(x, w, *rest), x),
            numpy_gradient(lambda w: numpy_loss(x, w, *rest), w),
            numpy_gradient(lambda s: numpy_loss(x, w, *rest[:2], s, *rest[3:]), np.array(16.0)),
        )
        assert_close((dx, dw, d_scale), wanted, 1e-7)
        assert_close(result, dense(*inputs), 1e-12)


@pytest.mark.parametrize(("classes", "block_size"), [(1, 4), (2, 1), (300, 128)])
def test_any_number_of_classes_in_blocks_of_any_size(classes, block_size):
    with jax.enable_x64(True):
        x, w = example(2, classes)
        labels = np.random.default_rng(3).integers(classes, size=BATCH)
        labels[:2] = 0, classes - 1
        m = 1.2, 0.4, 0.1
        result = compute(x, w, labels, Margin(*m), 32.0, block_size=block_size)
        assert result[0] == pytest.approx(numpy_loss(x, w, m, scale=32.0, labels=labels), rel=1e-12, abs=1e-12)
        assert_close(result, dense(x, w, labels, Margin(*m), 32.0), 1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_single_precision_loses_no_more_digits_than_the_dense_loss(dtype):
    rng = np.random.default_rng(4)
    x, w = (jnp.asarray(rng.normal(size=(n, 16)), dtype) for n in (64, 500))
    labels = rng.integers(500, size=64)
    rest = labels, Margin(1.1, 0.3, 0.1)
    got, near = compute(x, w, *rest, block_size=96), dense(x, w, *rest)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [leaf.dtype for leaf in jax.tree.leaves(near)]
    with jax.enable_x64(True):
        exact = dense(np.float64(x), np.float64(w), *rest)
    for a, b, c in zip(*map(jax.tree.leaves, (got, near, exact)), strict=True):
        a, b, c = np.float64(a), np.float64(b), np.float64(c)
        ulp = float(jnp.finfo(jax.tree.leaves(got)[1].dtype).eps) * np.abs(c).max()
        assert np.abs(a - c).max() <= max(2 * np.abs(b - c).max(), 4 * ulp)


def test_of_equal_subcentres_the_first_takes_the_gradient():
    x, w = (np.float32(a) for a in example())
    _, (dx, dw, *_) = compute(x, np.stack([w, w], axis=1), LABELS, Margin.arcface(), block_size=3)
    _, (dx_alone, dw_alone, *_) = compute(x, w, LABELS, Margin.arcface(), block_size=3)
    assert not dw[:, 1].any()
    assert_close((dx, dw[:, 0]), (dx_alone, dw_alone), 1e-5)


def test_whole_numbers_are_numbers():
    x, w = np.array([[3, 1], [-2, 2]]), np.array([[1, 0], [0, 5], [-1, -1]])
    loss = fused_margin_softmax_loss(x, w, [0, 1], Margin(m1=2), scale=8, filter_above=1)
    assert loss == pytest.approx(numpy_loss(x, w, (2, 0, 0), scale=8, labels=[0, 1]), rel=1e-5)


# Rounded matrix products ------------------------------------------------------------------------------------------


def test_rounded_matrix_products_round_all_but_the_target():
    rng = np.random.default_rng(5)
    x, w = np.float32(rng.normal(size=(BATCH, 64))), np.float32(rng.normal(size=(50, 64)))
    rest = LABELS, Margin.arcface(), 16.0
    loss, gradients = compute(x, w, *rest, block_size=16, matmul_dtype=jnp.bfloat16)
    u, v = (np.float64(unit(a).astype(jnp.bfloat16)) for a in (x, w))
    logits = 16 * u @ v.T
    target = 16 * np.cos(np.arccos((unit(np.float64(x)) * unit(np.float64(w[LABELS]))).sum(axis=1)) + 0.5)
    logits[np.arange(BATCH), LABELS] = target
    assert loss == pytest.approx(-log_softmax(logits, axis=1)[np.arange(BATCH), LABELS].mean(), rel=1e-5)
    exact_loss, exact = compute(x, w, *rest, block_size=16)
    assert loss != exact_loss
    for got, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(got, wanted, 0, 0.03 * np.abs(wanted).max())


# Whatever is finite in, is finite out -----------------------------------------------------------------------------


def awkward(dtype):
    """Embeddings [B, D], prototypes [C, D], labels: the corners of the dtype, each towards and away from its class."""
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    sizes = [size for size in (1.0, 0.0, largest, tiny, float(jnp.finfo(dtype).tiny), 1e30, 1e-30) if size <= largest]
    directions = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 0, 0]])
    rows = [sign * size * d for d in directions for size in sizes for sign in (1, -1)]
    prototypes = np.array([*directions, 0 * directions[0], largest * directions[1], tiny * directions[2]])
    pairs = list(itertools.product(rows, range(len(prototypes))))
    x, labels = np.array([row for row, _ in pairs]), np.array([label for _, label in pairs])
    return jnp.asarray(x, dtype), jnp.asarray(prototypes, dtype), labels


@pytest.mark.parametrize(
    ("dtype", "gradient"),
    [(jnp.float32, "exact"), (jnp.float32, "straight_through"), (jnp.float16, "exact"), (jnp.bfloat16, "exact")],
)
def test_finite_for_every_finite_input(dtype, gradient):
    x, w, labels = awkward(dtype)
    for m in MARGINS[:-1]:
        got = compute(x, w, labels, Margin(*m, gradient=gradient), block_size=4)
        assert all(np.isfinite(np.float64(leaf)).all() for leaf in jax.tree.leaves(got))
        assert got[0] == pytest.approx(numpy_loss(x, w, m, labels=labels), rel=1e-4)


def test_identical_and_zero_embeddings_are_like_the_dense_loss():
    _, w = (np.float32(a) for a in example())
    for row in (np.zeros(DIMENSION), w[1], -w[1], np.full(DIMENSION, 1e-30)):
        x = np.float32(np.tile(row, (BATCH, 1)))
        got = compute(x, w, LABELS, Margin.arcface(), 16.0, block_size=3)
        assert_close(
            (got[0], got[1][1]), (lambda r: (r[0], r[1][1]))(dense(x, w, LABELS, Margin.arcface(), 16.0)), 1e-3
        )


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e6])
def test_any_scale(scale):
    x, w = (np.float32(a) for a in example())
    got = compute(x, w, LABELS, Margin.arcface(), scale, block_size=3)
    assert got[0] == pytest.approx(numpy_loss(np.float64(x), np.float64(w), (1, 0.5, 0), scale=scale), rel=1e-5)
    wanted = dense(x, w, LABELS, Margin.arcface(), scale)[1]
    assert_close(got[1], wanted, max(1e-5, 3e-7 * scale))  # a rounded cosine moves a logit by so much


# Wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**32 + 1])
def test_a_label_out_of_range_raises_outside_jit(bad):
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 6\); found {bad}"):
        fused_margin_softmax_loss(*example(), np.array([0, 1, bad, 4, 5]), Margin.arcface())


@pytest.mark.parametrize("bad", [-1, CLASSES])
def test_a_label_out_of_range_is_nan_inside_jit(bad):
    x, w = (np.float32(a) for a in example())
    labels = np.array([0, 1, bad, 4, 5])
    loss, (dx, dw, *_) = compute(x, w, labels, Margin.arcface(), block_size=3)
    assert np.isnan(loss)
    assert np.isnan(dx[2]).all()
    assert np.isnan(dw).all()
    assert np.isfinite(np.delete(dx, 2, axis=0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((5, 3))}, r"embeddings \(5, 3\) and prototypes \(6, 4\) do not fit"),
        ({"labels": np.zeros(4, int)}, r"labels have shape \(4,\)"),
        ({"scale": 0}, "scale is 0; it must be > 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ({"scale": np.full(5, 64.0)}, r"scale has shape \(5,\); it must be a scalar"),
        ({"scale": np.full((5, 1), 64.0)}, r"scale has shape \(5, 1\); it must be a scalar"),
        ({"prototypes": np.ones((0, 4))}, r"prototypes have shape \(0, 4\); they must hold at least one number"),
        ({"prototypes": np.ones((6, 0, 4))}, r"prototypes have shape \(6, 0, 4\); they must hold"),
        ({"matmul_dtype": jnp.int8}, "matmul_dtype is .*int8.*; it must be a float dtype or None"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    x, w = example()
    fine = {"embeddings": x, "prototypes": w, "labels": LABELS, "margin": Margin.arcface()}
    with pytest.raises(ValueError, match=message):
        fused_margin_softmax_loss(**(fine | change))


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (3,)])
def test_margins_of_a_shape_that_the_dense_loss_refuses_are_refused_alike(shape):
    said = []
    for loss in (margin_softmax_loss, fused_margin_softmax_loss):
        with pytest.raises(ValueError, match="broadcast") as error:
            loss(*example(), LABELS, Margin(m2=np.full(shape, 0.5)))
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "f", [lambda *a, **o: fused_margin_softmax_loss(*a, LABELS, Margin.arcface(), **o), nearest_class]
)
@pytest.mark.parametrize("size", [0, 2.5, -1])
def test_a_block_size_that_is_no_count_is_refused(f, size):
    with pytest.raises(ValueError, match=f"block_size is {size}; it must be a whole number of at least 1"):
        f(*example(), block_size=size)


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="labels have dtype float64; they must be integers"):
        fused_margin_softmax_loss(*example(), np.float64(LABELS), Margin.arcface())


# Second derivatives -----------------------------------------------------------------------------------------------


def penalty(loss, which, x, w, **options):
    """|d L / d x|^2, or w for x: as a gradient penalty has it."""
    margin = Margin(1.1, 0.3, 0.1)
    gradient = jax.grad(lambda *vectors: loss(*vectors, LABELS, margin, 8.0, 0.2, 0.6, **options), argnums=which)(x, w)
    return jnp.sum(gradient**2)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("subcenters", [(), (3,)], ids=["prototypes", "subcentres"])
def test_a_gradient_penalty_has_the_gradients_of_the_dense_loss(which, subcenters):
    with jax.enable_x64(True):
        x, w = example(6, subcenters=subcenters)
        wanted = jax.jit(jax.grad(lambda *v: penalty(margin_softmax_loss, which, *v), argnums=(0, 1)))(x, w)
        assert all(np.abs(leaf).max() > 1e-3 for leaf in wanted)
        fused = jax.jit(
            jax.grad(lambda *v: penalty(fused_margin_softmax_loss, which, *v, block_size=4), argnums=(0, 1))
        )
        assert_close(fused(x, w), wanted, 1e-10)


def test_second_derivatives_are_finite_where_the_target_is_far_above_all_others():
    x, w = np.float32([[1.0, 0.01]]), np.float32([[1.0, 0.0], [-1.0, 0.1]])  # exp(128) is infinite in float32

    def along(loss):
        gradient = jax.grad(lambda w: loss(x, w, [0], Margin(m2=3.0), 64.0))
        return jax.grad(lambda w: jnp.sum(gradient(w) ** 2))(w)

    assert_close(along(fused_margin_softmax_loss), along(margin_softmax_loss), 1e-3)


def test_second_derivatives_to_bfloat16_prototypes_are_refused():
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in example())
    with pytest.raises(NotImplementedError, match="convert them to float32"):
        jax.grad(lambda w: penalty(fused_margin_softmax_loss, 0, x, w))(w)


def test_the_nearest_class_is_known_beside_a_gradient_to_bfloat16_prototypes():
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in example())
    found = jax.grad(lambda w: (jnp.sum(w), nearest_class(x, w)), has_aux=True)(w)[1]
    assert found.tolist() == nearest_class(x, w).tolist()


# Transformations and memory ---------------------------------------------------------------------------------------


def test_vmap_over_batches_and_margins():
    with jax.enable_x64(True):
        xs = np.stack([example(seed)[0] for seed in range(3)])
        _, w = example()
        labels = np.stack([LABELS, LABELS[::-1], LABELS])
        margins = jax.tree.map(lambda *m: jnp.stack(m), *(Margin(1.0, m, 0.1) for m in (0.2, 0.4, 0.6)))

        def loss(x, labels, margin):
            return fused_margin_softmax_loss(x, w, labels, margin, 16.0, block_size=3)

        got = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 2))))(xs, labels, margins)
        for i, m2 in enumerate((0.2, 0.4, 0.6)):
            wanted, (dx, _, d_margin, _) = dense(xs[i], w, labels[i], Margin(1.0, m2, 0.1), 16.0)
            assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], got), (wanted, (dx, d_margin)), 1e-12)


@pytest.mark.parametrize(("classes", "subcenters"), [(1_000_000, ()), (1_000_000, (3,))])
def test_memory_does_not_grow_with_the_classes(classes, subcenters):
    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    step = jax.jit(jax.value_and_grad(fused_margin_softmax_loss, argnums=(0, 1)))
    inputs = array(256, 32), array(classes, *subcenters, 32), array(256, dtype=jnp.int32), Margin.arcface()
    temporary = step.lower(*inputs).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 20e6  # beside a gradient of 128 or 384 million bytes; [B, C] would be 1,024 million


@pytest.mark.parametrize("subcenters", [(), (3,)], ids=["prototypes", "subcentres"])
@pytest.mark.parametrize("block_size", [1, 4, 20, None])
def test_the_nearest_class_is_that_of_all_cosines(subcenters, block_size):
    x, w = example(classes=21, subcenters=subcenters)
    cosines = np.einsum("bd,c...d->bc...", unit(x), unit(w)).reshape(BATCH, 21, -1).max(axis=2)
    assert nearest_class(x, w, block_size=block_size).tolist() == cosines.argmax(axis=1).tolist()


@pytest.mark.parametrize("subcenters", [(), (3,)], ids=["prototypes", "subcentres"])
@pytest.mark.parametrize("above", [None, 0.1])
def test_the_loss_knows_which_embeddings_are_nearest_to_their_class(subcenters, above):
    x, w = example(3, classes=21, subcenters=subcenters)
    cosines = np.einsum("bd,c...d->bc...", unit(x), unit(w)).reshape(BATCH, 21, -1).max(axis=2)
    largest = cosines.argmax(axis=1)
    assert cosines.max() > 0.1  # so that the filter has an effect
    labels = np.where([True, False, True, False, True], largest, (largest + 1) % 21)
    inputs = (x, w, labels, Margin.arcface(0.5), 16.0, 0.0, above)
    for block_size in (4, 21):
        loss, correct = loss_and_correct(*inputs, block_size=block_size)
        assert correct.tolist() == [True, False, True, False, True]
        np.testing.assert_allclose(loss, margin_softmax_loss(*inputs), rtol=1e-5)


def test_an_embedding_as_near_to_another_class_is_no_hit():
    x, w = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert loss_and_correct(x, w, [0, 1], Margin.arcface(0.5))[1].tolist() == [False, False]


@jax.jit
def hits_of(labels):
    return loss_and_correct(jnp.eye(2), jnp.eye(2), labels, Margin.arcface(0.5))[1]


def test_a_label_of_no_class_is_no_hit():
    assert hits_of(jnp.array([0, 2])).tolist() == hits_of(jnp.array([0, -1])).tolist() == [True, False]


def test_of_equal_classes_the_first_is_nearest():
    w = np.array([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    assert nearest_class(np.array([[2.0, 0.0]]), w, block_size=2).tolist() == [1]
    assert nearest_class(np.zeros((1, 2)), w, block_size=2).tolist() == [0]
