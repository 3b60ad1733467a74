"""The head owns its prototypes and does with them what float64 numpy does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax

from jax_arcface.losses.margins import Margin
from jax_arcface.models.heads import ArcFaceHead

LABELS = np.array([0, 2, 2, 4])


def embeddings():
    return np.float32(np.random.default_rng(0).normal(size=(4, 3)))


def numpy_cosines(x, prototypes):
    """[B, C]: the largest of each class's sub-centres [C, K, D]."""
    x, w = np.float64(x), np.float64(prototypes)
    w = w.reshape(len(w), -1, x.shape[1])
    x, w = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, w))
    return np.einsum("bd,ckd->bck", x, w).max(axis=2)


def numpy_logits(x, prototypes, psi, scale):
    """s psi(theta) where the label is, s cos(theta) elsewhere."""
    cosine = numpy_cosines(x, prototypes)
    return scale * np.where(np.eye(cosine.shape[1])[LABELS] == 1, psi(cosine), cosine)


def arcface(m):
    """cos(theta + m) by the addition theorem, cos(theta + m) past pi as SphereFace has it."""

    def psi(cosine):
        sum_ = cosine * np.cos(m) - np.sqrt(1 - cosine**2) * np.sin(m)
        return np.where(cosine >= -np.cos(m), sum_, -2 - sum_)

    return psi


@pytest.mark.parametrize("subcenters", [1, 3])
@pytest.mark.parametrize(
    ("options", "psi", "scale"),
    [
        ({}, arcface(0.5), 64.0),
        ({"margin": Margin.cosface(0.2), "scale": 10.0}, lambda cosine: cosine - 0.2, 10.0),
        ({"margin": Margin.softmax(), "scale": 1}, lambda cosine: cosine, 1.0),
        ({"margin": Margin.sphereface(2)}, lambda c: np.where(c >= 0, 2 * c**2 - 1, -1 - 2 * c**2), 64.0),
    ],
    ids=["default", "cosface", "softmax", "sphereface"],
)
def test_logits_and_loss_match_numpy(subcenters, options, psi, scale):
    head = ArcFaceHead(3, 5, subcenters=subcenters, rngs=nnx.Rngs(0), **options)
    x, prototypes = embeddings(), np.asarray(head.prototypes[...])
    assert prototypes.shape == ((5, 3) if subcenters == 1 else (5, 3, 3))
    logits = numpy_logits(x, prototypes, psi, scale)
    np.testing.assert_allclose(head(x, LABELS), logits, atol=4e-6 * scale)
    np.testing.assert_allclose(head(x), scale * numpy_cosines(x, prototypes), atol=1e-6 * scale)
    logs = log_softmax(logits, axis=1)
    hard = -logs[np.arange(4), LABELS].mean()
    assert head.loss(x, LABELS) == pytest.approx(hard, abs=4e-6 * scale)
    smooth = 0.8 * hard - 0.2 * logs.mean()
    assert head.loss(x, LABELS, label_smoothing=0.2) == pytest.approx(smooth, abs=4e-6 * scale)


def test_the_loss_of_many_classes_holds_no_logits():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ArcFaceHead(8, 100_000, rngs=nnx.Rngs(0))))
    loss = jax.jit(jax.value_and_grad(lambda state, x, labels: nnx.merge(graphdef, state).loss(x, labels)))
    x, labels = jax.ShapeDtypeStruct((128, 8), jnp.float32), jax.ShapeDtypeStruct((128,), jnp.int32)
    temporary = loss.lower(state, x, labels).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 25e6  # [B, C] would be 51 million


def test_initial_prototypes():
    weights = np.asarray(ArcFaceHead(48, 200, rngs=nnx.Rngs(1)).prototypes[...])
    assert abs(weights).max() <= 0.25  # sqrt(3 / 48)
    assert weights.std() == pytest.approx(48**-0.5, rel=0.03)  # so that a prototype's length is about 1
    again, other = (np.asarray(ArcFaceHead(48, 200, rngs=nnx.Rngs(s)).prototypes[...]) for s in (1, 2))
    np.testing.assert_array_equal(weights, again)
    assert (weights != other).mean() > 0.9
    only_params = ArcFaceHead(48, 200, rngs=nnx.Rngs(params=1, dropout=5)).prototypes[...]
    np.testing.assert_array_equal(weights, only_params)


def test_prototypes_are_all_that_is_learnt_and_saved():
    head = ArcFaceHead(3, 5, rngs=nnx.Rngs(0))
    assert list(nnx.to_pure_dict(nnx.state(head))) == ["prototypes"]
    assert list(nnx.to_pure_dict(nnx.state(head, nnx.Param))) == ["prototypes"]


def test_training_under_jit_aligns_prototypes_with_their_examples():
    head = ArcFaceHead(3, 5, margin=Margin(1.1, 0.3, 0.1), scale=16.0, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(head, optax.sgd(0.1), wrt=nnx.Param)
    x = np.float32(np.eye(3)[[0, 1, 1, 2]])

    @nnx.jit
    def step(head, optimizer, x, labels):
        loss, gradient = nnx.value_and_grad(lambda head: head.loss(x, labels))(head)
        optimizer.update(head, gradient)
        return loss

    losses = [float(step(head, optimizer, x, LABELS)) for _ in range(60)]
    assert losses[-1] < 0.01 * losses[0]
    assert (np.diagonal(numpy_cosines(np.eye(3), head.prototypes[...][np.array([0, 2, 4])])) > 0.7).all()
    assert np.isnan(step(head, optimizer, x, np.array([0, 5, 2, 4])))  # inside jit a bad label cannot be refused


def test_bad_labels_are_refused():
    head = ArcFaceHead(3, 5, rngs=nnx.Rngs(0))
    for f in (head, head.loss):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\); found 5"):
            f(embeddings(), np.array([0, 5, 2, 4]))
        with pytest.raises(TypeError, match="they must be integers"):
            f(embeddings(), np.float32(LABELS))
    with pytest.raises(ValueError, match="do not fit"):
        head(np.ones((4, 2)))


def test_bfloat16_embeddings_give_float32_logits():
    head = ArcFaceHead(3, 5, rngs=nnx.Rngs(0))
    x = jnp.asarray(embeddings(), jnp.bfloat16)
    logits = jax.jit(lambda x: head(x, LABELS))(x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, numpy_logits(x, head.prototypes[...], arcface(0.5), 64), atol=3e-4)
    assert jax.eval_shape(jax.grad(lambda x: head.loss(x, LABELS)), x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((0, 5), {}, "embedding_dim is 0; it must be a whole number of at least 1"),
        ((3, -1), {}, "num_classes is -1; it must be a whole number of at least 1"),
        ((3, 5), {"subcenters": 1.5}, r"subcenters is 1\.5; it must be a whole number of at least 1"),
        ((3, 5), {"scale": 0}, "scale is 0; it must be > 0 and finite"),
        ((3, 5), {"scale": float("nan")}, "scale is nan; it must be > 0 and finite"),
        ((3, 5), {"scale": float("inf")}, "scale is inf; it must be > 0 and finite"),
    ],
)
def test_bad_sizes_are_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        ArcFaceHead(*sizes, rngs=nnx.Rngs(0), **options)


def test_a_margin_that_is_a_number_is_refused():
    with pytest.raises(TypeError, match=r"margin is 0\.5; it must be a Margin, such as Margin\.arcface\(0\.5\)"):
        ArcFaceHead(3, 5, margin=0.5, rngs=nnx.Rngs(0))
