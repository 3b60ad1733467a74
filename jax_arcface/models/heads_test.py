"""The head owns its prototypes and does with them what float64 numpy does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax

from jax_arcface.errors import UserError
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.terms import arcface, center, center_learnt, cosface, inter, intra, softmax, supcon
from jax_arcface.models.heads import ArcFaceHead, Head

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


def shifted(m):
    """cos(theta + m) by the addition theorem, cos(theta + m) past pi as SphereFace has it."""

    def psi(cosine):
        sum_ = cosine * np.cos(m) - np.sqrt(1 - cosine**2) * np.sin(m)
        return np.where(cosine >= -np.cos(m), sum_, -2 - sum_)

    return psi


@pytest.mark.parametrize("subcenters", [1, 3])
@pytest.mark.parametrize(
    ("options", "psi", "scale"),
    [
        ({}, shifted(0.5), 64.0),
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
    smoothed = ArcFaceHead(3, 5, subcenters=subcenters, label_smoothing=0.2, rngs=nnx.Rngs(0), **options)
    assert smoothed.loss(x, LABELS) == pytest.approx(smooth, abs=4e-6 * scale)


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
    np.testing.assert_allclose(logits, numpy_logits(x, head.prototypes[...], shifted(0.5), 64), atol=3e-4)
    assert jax.eval_shape(jax.grad(lambda x: head.loss(x, LABELS)), x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((0, 5), {}),
        ((3, -1), {}),
        ((3, 5), {"subcenters": 1.5}),
        *(((3, 5), {"scale": scale}) for scale in (0, float("nan"), float("inf"))),
    ],
)
def test_bad_sizes_are_refused(sizes, options):
    with pytest.raises(ValueError, match=r"it must be"):
        ArcFaceHead(*sizes, rngs=nnx.Rngs(0), **options)


def test_a_margin_that_is_a_number_is_refused():
    with pytest.raises(TypeError, match="must be a Margin"):
        ArcFaceHead(3, 5, margin=0.5, rngs=nnx.Rngs(0))


def test_a_head_owns_what_its_losses_need_and_keeps_their_states():
    head = Head(softmax() + 0.1 * center(rate=1.0) + center_learnt() + supcon(), 3, 5, rngs=nnx.Rngs(0))
    assert sorted(nnx.to_pure_dict(nnx.state(head, nnx.Param))) == ["bias", "centers", "prototypes"]
    before = head.states["center"]["centers"][...]
    outcome = head.outcome(embeddings(), LABELS)
    np.testing.assert_array_equal(head.states["center"]["centers"][...], before)  # nothing is changed
    assert head.loss(embeddings(), LABELS) == outcome.loss
    np.testing.assert_array_equal(head.states["center"]["centers"][...], outcome.state["center"]["centers"])
    assert np.abs(outcome.state["center"]["centers"]).max() > 0
    assert not nnx.to_pure_dict(nnx.state(Head(supcon(), 3, 5, rngs=nnx.Rngs(0)), nnx.Param))  # pairs own nothing


def test_a_head_classifies_by_its_bias_or_by_the_nearest_prototype():
    head = Head(softmax(), 2, 2, rngs=nnx.Rngs(0))
    head.prototypes[...], head.bias[...] = jnp.eye(2), jnp.array([0.0, 5.0])
    assert head.predict(jnp.eye(2)).tolist() == [1, 1]
    head = Head(arcface(), 2, 2, rngs=nnx.Rngs(0))
    head.prototypes[...] = jnp.eye(2)
    assert head.predict(jnp.array([[9.0, 1.0], [1.0, 2.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("objective", [intra(), arcface() + cosface(), arcface(subcenters=2) + inter()])
def test_losses_that_cannot_be_trained_with_are_refused(objective):
    with pytest.raises(UserError):
        Head(objective, 3, 5, rngs=nnx.Rngs(0))
