import pytest

from jax_arcface import data
from parity_tests.cases.evaluation import CASES, predictions, runs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


@pytest.mark.parametrize("trained_by", [0, 1])
def test_the_exchanged_models_have_learnt(trained_by):
    here, _ = predictions(runs().pair[trained_by])
    assert (here == data.load("digits").test.labels).mean() > 0.85
