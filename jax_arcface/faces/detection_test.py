"""Which of the faces in a photo are meant."""

import numpy as np
import pytest

from jax_arcface.faces.detection import CHOICES, Faces, choose

FOUND = Faces(
    np.array([[0, 0, 90, 100], [140, 90, 170, 120], [-50, 0, 45, 80]], np.float32),
    np.array([0.99, 0.98, 0.97], np.float32),
    np.arange(30, dtype=np.float32).reshape(3, 5, 2),
)


@pytest.mark.parametrize(
    ("which", "min_size", "expected"),
    [
        *(("largest", 0, [0]), ("central", 0, [1]), ("all", 0, [0, 1, 2]), ("all", 31, [0, 2])),
        *(("central", 31, [0]), ("largest", 101, [])),
    ],
)
def test_choice(which, min_size, expected):
    """The photo is 300 wide and 200 high."""
    found = choose(FOUND, which, (200, 300, 3), min_size)
    np.testing.assert_array_equal(found.points, FOUND.points[expected])
    np.testing.assert_array_equal(found.scores, FOUND.scores[expected])


def test_no_faces_and_an_unknown_choice():
    none = FOUND[np.zeros(3, bool)]
    assert [len(choose(none, which, (200, 300))) for which in CHOICES] == [0, 0, 0]
    with pytest.raises(ValueError, match="first"):
        choose(FOUND, "first", (200, 300))
