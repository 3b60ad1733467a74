import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.__main__ import main
from experiments.partial_fc import numbers, only_sampled_rows
from jax_arcface.data import Split


def test_a_prototype_that_is_not_sampled_stays_where_it_is_and_keeps_its_momentum():
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, 0.9))
    params = {"prototypes": jnp.ones((3, 2)), "kernel": jnp.ones((2, 2))}
    gradients = {"prototypes": jnp.zeros((3, 2)).at[1].set(1.0), "kernel": jnp.zeros((2, 2))}
    sampled = only_sampled_rows(optimizer)
    updates, state = sampled.update(gradients, sampled.init(params), params)
    whole, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["prototypes"][jnp.array([0, 2])], 0)
    np.testing.assert_array_equal(updates["prototypes"][1], whole["prototypes"][1])
    np.testing.assert_array_equal(updates["kernel"], whole["kernel"])
    (trace,) = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 2)]
    np.testing.assert_allclose(trace, [[0, 0], [1.1, 1.1], [0, 0]], rtol=1e-6)


def test_numbers_are_composed_of_images_of_their_digits():
    """An image's pixels name its digit and which of its images it is."""
    labels = np.tile(np.arange(10), 3)
    images = (10 * np.arange(30) + labels).astype(np.uint8).reshape(30, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    made, of = numbers(Split(images, labels), each=4, digits=3, seed=0)
    assert made.shape == (4000, 2, 6, 1)
    digit = {int(image[0, 0, 0]): label for image, label in zip(images, labels, strict=True)}
    found = np.vectorize(digit.get)(made[:, 0, ::2, 0]) @ [100, 10, 1]
    np.testing.assert_array_equal(found, of)
    np.testing.assert_array_equal(np.bincount(of), np.full(1000, 4))
    assert len(np.unique(made[of == 0], axis=0)) > 1


@pytest.mark.slow
def test_a_share_of_the_classes_learns_what_all_of_them_do(tmp_path, capsys):
    path = tmp_path / "found.json"
    words = "partial_fc --digits 2 --shares 1 0.5 --seeds 1 --epochs 3 --each 40 --json"
    assert main([*words.split(), str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["share"] for row in rows] == [1.0, 0.5]
    assert all(row["test_accuracy"][0] > 0.5 for row in rows)
    assert f"share 0.5   {100 * rows[1]['test_accuracy'][0]:.2f} %" in capsys.readouterr().out


def test_a_share_out_of_range_is_one_line_and_status_2(capsys):
    assert main(["partial_fc", "--shares", "1", "2"]) == 2
    said = capsys.readouterr().err
    assert said == "experiments: --shares has 2; a share must be above 0 and at most 1; see partial_fc --help\n"
