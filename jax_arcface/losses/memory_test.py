import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface.losses import pairs
from jax_arcface.losses.memory import empty_memory, remember

LOSSES = {
    "contrastive": pairs.contrastive_loss,
    "triplet": functools.partial(pairs.triplet_loss, mining="hard"),
    "all triplets": pairs.triplet_loss,
    "semi-hard": functools.partial(pairs.triplet_loss, mining="semi_hard"),
    "circle": functools.partial(pairs.circle_loss, gamma=4.0),
    "multi_similarity": pairs.multi_similarity_loss,
    "supcon": pairs.supcon_loss,
    "marginal": pairs.marginal_loss,
}
rng = np.random.default_rng(0)
x, y = jnp.asarray(rng.normal(size=(6, 4)), "f"), jnp.array([0, 0, 1, 1, 2, 2])
old, of_old = jnp.asarray(rng.normal(size=(5, 4)), "f"), jnp.array([0, 1, 2, 3, 3])


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_empty_memory_changes_nothing(loss):
    weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 3.0])
    for w in (None, weights):
        of = jax.jit(jax.value_and_grad(lambda x, w=w, memory=None: loss(x, y, weights=w, memory=memory)))
        for found, expected in zip(of(x, memory=empty_memory(3, 4)), of(x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["supcon", "circle"])
def test_an_anchor_sees_batch_and_memory_as_one_large_batch(name):
    """Of which each example's own part is known: the memory's examples are anchors there, but not here."""
    memory = remember(empty_memory(9, 4), old, of_old)
    of = jax.jit(functools.partial(LOSSES[name], reduction="none"))
    found = of(x, y, memory=memory)
    whole = of(jnp.concatenate([x, old]), jnp.concatenate([y, of_old]))
    assert (whole > 0).all()  # every anchor counts, here and there
    np.testing.assert_allclose(found, whole[:6], rtol=1e-5)


def test_contrastive_by_hand():
    """The cosines of one embedding with three remembered ones, of which one is of its class."""
    memory = remember(empty_memory(4, 2), jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), jnp.array([7, 8, 8]))
    loss = jax.jit(pairs.contrastive_loss)(jnp.array([[0.0, 2.0]]), jnp.array([7]), m=1.0, memory=memory)
    distances = np.sqrt(2 - 2 * np.array([0.0, 0.8, 1.0]))
    expected = distances[0] ** 2 / 2 + np.mean(np.maximum(0, 1 - distances[1:]) ** 2) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_memory_takes_no_gradient_and_numpy_labels_keep_their_numbers():
    memory = remember(empty_memory(5, 4), np.asarray(old), np.asarray(of_old) + 40)
    assert memory.labels.tolist() == [40, 41, 42, 43, 43]

    @jax.jit
    def loss(x, embeddings):
        return pairs.supcon_loss(x, np.asarray(y) + 40, memory=memory._replace(embeddings=embeddings))

    by_x, by_memory = jax.grad(loss, (0, 1))(x, memory.embeddings)
    assert (by_x != 0).any()
    np.testing.assert_array_equal(by_memory, 0)


def test_the_oldest_make_room():
    memory, seen = empty_memory(5, 1), []
    for step in range(4):
        batch = jnp.arange(2 * step, 2 * step + 2)
        memory = jax.jit(remember)(memory, batch[:, None].astype(float), batch)
        seen = [*seen, *batch.tolist()][-5:]
        assert sorted(memory.labels[memory.is_taken].tolist()) == seen
        np.testing.assert_array_equal(memory.embeddings[:, 0][memory.is_taken], memory.labels[memory.is_taken])


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="fit"):
        remember(empty_memory(3, 4), x, y)
