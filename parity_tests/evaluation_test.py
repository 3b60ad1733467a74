import numpy as np
import pytest

from jax_arcface import data
from jax_arcface import evaluation as jax_evaluation
from parity_tests.cases.evaluation import CASES, predictions, runs
from torch_reference import evaluation as torch_evaluation


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


@pytest.mark.parametrize("trained_by", [0, 1])
def test_the_exchanged_models_have_learnt(trained_by):
    here, _ = predictions(runs().pair[trained_by])
    assert (here == data.load("digits").test.labels).mean() > 0.85


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0], [0.0, 1.0]])
def test_labels_that_do_not_fit_have_the_same_message(labels):
    messages = []
    for module in (jax_evaluation, torch_evaluation):
        with pytest.raises((ValueError, TypeError), match="labels") as caught:
            module.class_means(np.eye(2, 3), np.array(labels), 2)
        messages.append(f"{type(caught.value)} {caught.value}")
    assert messages[0] == messages[1]


def test_of_no_embeddings_nothing_is_predicted():
    for module in (jax_evaluation, torch_evaluation):
        found = np.asarray(module.predict(np.zeros((0, 3), np.float32), np.eye(2, 3, dtype=np.float32)))
        assert (found.shape, found.dtype) == ((0,), np.int64)
