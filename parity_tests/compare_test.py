import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity_tests.cases import Case
from parity_tests.compare import Place, compare, difference


def arrays():
    """A reference, and what differs from it: a little at [0, 1], much at [1, 0], most at [2, 1]."""
    reference = np.ones((3, 2))
    actual = reference.copy()
    actual[0, 1] += 1e-15
    actual[1, 0] += 1e-3
    actual[2, 1] += 1e-2
    return actual, reference


def test_the_first_place_beyond_the_bound_and_the_farthest():
    found = difference("x", *arrays(), bound=1e-12)
    assert found.first == Place((1, 0), 1.001, 1.0)
    assert found.farthest == Place((2, 1), 1.01, 1.0)
    assert difference("x", *arrays(), bound=0.1).first is None


def test_a_missed_case_names_the_farthest_place():
    case = Case("x", "margins", "float64", 1e-12, lambda: [difference("small", 0.0, 1e-16), difference("y", *arrays())])
    with pytest.raises(AssertionError, match=r"farthest: small"):
        case.check()
    case = Case("x", "margins", "float64", 1e-12, lambda: [difference("y", *arrays())])
    with pytest.raises(AssertionError, match=r"farthest: y at \[2, 1\]: 1\.01 and 1$"):
        case.check()


def test_a_report_names_the_first_place_beyond_its_bound():
    actual, reference = arrays()
    report = compare(
        lambda x: x * jnp.asarray(actual), lambda x: x * torch.tensor(reference), np.ones((3, 2)), bound=1e-12
    )
    assert not report.agrees
    assert str(report).startswith("They part in output at [1, 0]: 1.00")


def test_nothing_is_farthest_where_shapes_differ():
    found = difference("x", np.ones(2), np.ones(3))
    assert found.absolute == np.inf
    assert found.at(found.farthest) == "x (shapes [2] and [3])"
