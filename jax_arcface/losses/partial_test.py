import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_arcface.losses.margins import Margin
from jax_arcface.losses.partial import sample_classes, take_rows, update_rows
from jax_arcface.losses.softmax import margin_softmax_loss


def test_the_batchs_classes_and_others_drawn_alike():
    labels = jnp.array([3, 17, 3])
    draw = jax.jit(jax.vmap(lambda key: sample_classes(key, labels, jnp.zeros((20, 1)), share=0.5)))
    chosen, place = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_array_equal(np.take_along_axis(chosen, place, axis=1), np.tile(labels, (2000, 1)))
    assert (np.diff(chosen, axis=1) > 0).all()
    count = np.bincount(chosen.ravel(), minlength=20)
    assert (count[[3, 17]] == 2000).all()
    others = np.delete(count, [3, 17])
    assert abs(others - 2000 * 8 / 18).max() < 5 * np.sqrt(2000 * (8 / 18) * (10 / 18))


def test_where_the_batch_has_more_classes_than_the_share_all_of_them_are_taken():
    chosen, _ = sample_classes(jax.random.key(0), jnp.arange(7), jnp.zeros((20, 1)), share=0.1)
    assert chosen.tolist() == list(range(7))


@pytest.mark.parametrize(
    "optimizer", [optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, 0.9)), optax.adamw(0.1)]
)
def test_sampled_rows_move_as_if_there_were_no_others_and_the_rest_stays(optimizer):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(3, 4)), "f"), jnp.asarray(rng.normal(size=(12, 4)), "f")
    labels = jnp.array([3, 8, 3])
    sample = sample_classes(jax.random.key(1), labels, w, share=0.5)
    rows, rest = np.asarray(sample.rows), np.setdiff1d(np.arange(12), sample.rows)

    @jax.jit
    @jax.grad
    def gradient(rows):
        return margin_softmax_loss(x, rows, sample.labels, Margin.arcface(), 8.0)

    step = jax.jit(functools.partial(update_rows, optimizer))
    new, state, alone = w, optimizer.init(w), take_rows(w, sample)
    of_alone = optimizer.init(alone)
    for _ in range(2):
        new, state = step(gradient(take_rows(new, sample)), state, new, sample)
        updates, of_alone = optimizer.update(gradient(alone), of_alone, alone)
        alone = optax.apply_updates(alone, updates)
    np.testing.assert_allclose(new[rows], alone, rtol=1e-4)
    np.testing.assert_array_equal(new[rest], w[rest])
    for whole, part in zip(jax.tree.leaves(state), jax.tree.leaves(of_alone), strict=True):
        if whole.ndim:
            np.testing.assert_allclose(whole[rows], part, rtol=1e-4)
            np.testing.assert_array_equal(whole[rest], 0)
        else:
            assert whole == part


def test_a_gradient_through_the_rows_is_dense():
    w = jnp.ones((5, 2))
    sample = sample_classes(jax.random.key(0), jnp.array([4]), w, share=0.4)
    gradient = jax.grad(lambda w: jnp.sum(take_rows(w, sample)))(w)
    np.testing.assert_array_equal(np.flatnonzero(gradient[:, 0]), sample.rows)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        sample_classes(jax.random.key(0), jnp.array([0]), jnp.zeros((4, 1)), share)
