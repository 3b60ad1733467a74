"""The nearest prototype is found among vectors of any length and precision."""

from fractions import Fraction

import numpy as np
import pytest

from jax_arcface.evaluation import accuracy, predict


@pytest.mark.parametrize("length", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("prototypes", [(5, 8), (5, 3, 8)])
def test_float64_of_any_length(length, prototypes):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(40, 8)), rng.normal(size=prototypes)
    units = w / np.linalg.norm(w, axis=-1, keepdims=True)
    expected = np.einsum("nd,...d->n...", x, units).reshape(40, 5, -1).max(-1).argmax(1)
    np.testing.assert_array_equal(predict(x * length, w * length), expected)
    np.testing.assert_array_equal(predict(x.astype(np.float32), w * length), expected)
    assert accuracy(x * length, w, expected) == 1


def test_integers_that_float32_cannot_tell_apart():
    w = 2**60 + np.array([[2**34, 0, 0], [0, 2**34, 0], [0, 0, 2**34]])
    x = np.array([[3, 1, 1], [1, 3, 1], [1, 1, 3]])

    def cosine(a, b):  # of vectors with the same length, as these are: exact
        return sum(Fraction(int(p)) * int(q) for p, q in zip(a, b, strict=True))

    assert [max(range(3), key=lambda j: cosine(row, w[j])) for row in x] == [0, 1, 2]
    assert predict(x, w).tolist() == [0, 1, 2]


def test_a_bias_in_float64():
    x, w, b = np.array([[1e10, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0.5, 0.0])
    assert predict(x, w, b).tolist() == [1]  # float32 makes them equal
