import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_arcface
import torch_reference
from parity_tests.cases.losses import CASES, batch


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def test_the_batch_takes_every_branch_past_pi():
    x, w, labels = batch("float64")
    cosine = np.asarray(torch_reference.cosines(torch.tensor(x), torch.tensor(w)))[np.arange(len(x)), labels]
    theta = np.arccos(cosine)
    assert (theta + 0.5 > np.pi).sum() >= 3
    assert set(np.floor(4 * theta / np.pi)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"labels": np.array([0, 9])}, ValueError),
        ({"labels": np.array([0, -1])}, ValueError),
        ({"labels": np.array([0])}, ValueError),
        ({"labels": np.array([0.0, 1.0])}, TypeError),
        ({"x": np.ones((2, 4))}, ValueError),
        ({"x": np.ones(3)}, ValueError),
        ({"scale": 0.0}, ValueError),
        ({"scale": -1.0}, ValueError),
    ],
    ids=str,
)
def test_the_same_mistake_is_refused_by_both(change, error):
    given = {"x": np.ones((2, 3)), "w": np.eye(3), "labels": np.array([0, 1]), "scale": 8.0} | change
    scale = given.pop("scale")
    for package, convert in ((jax_arcface, jnp.asarray), (torch_reference, torch.tensor)):
        x, w, labels = (convert(given[name]) for name in ("x", "w", "labels"))
        with pytest.raises(error):
            package.margin_softmax_loss(x, w, labels, package.Margin.arcface(), scale)
