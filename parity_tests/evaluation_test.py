import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from jax_arcface import data
from jax_arcface import evaluation as jax_evaluation
from jax_arcface.evaluation.pairs_test import clustered
from parity_tests.cases.evaluation import CASES, predictions, runs
from torch_reference import evaluation as torch_evaluation


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


@pytest.mark.parametrize("trained_by", [0, 1])
def test_the_exchanged_models_have_learnt(trained_by):
    here, _ = predictions(runs().pair[trained_by])
    assert (here == data.load("digits").test.labels).mean() > 0.85


def nearest(query, k, reference, embeddings_come_from_same_source):
    cosines = query.numpy() @ reference.numpy().T
    if embeddings_come_from_same_source:
        np.fill_diagonal(cosines, np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, embeddings_come_from_same_source:][:, :k]
    return torch.tensor(np.take_along_axis(cosines, order, axis=1)), torch.tensor(order)


@pytest.mark.parametrize("module", [jax_evaluation, torch_evaluation])
@pytest.mark.parametrize("alone", [True, False])
def test_retrieval_is_pytorch_metric_learnings(alone, module):
    (x, a), (y, b) = clustered(0, 80), clustered(1, 57)
    found = module.retrieval(x, a, None if alone else (y, b), block_size=13)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision")
    calculator = AccuracyCalculator(include=names, k=None, knn_func=nearest)
    query, reference = (torch.nn.functional.normalize(torch.tensor(z)) for z in (x, y))
    references = () if alone else (reference, torch.tensor(b))
    expected = calculator.get_accuracy(query, torch.tensor(a), *references)
    ours = (found.precision_at_1, found.r_precision, found.map_at_r, found.mean_average_precision)
    np.testing.assert_allclose(ours, [expected[name] for name in names], atol=1e-9)


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
