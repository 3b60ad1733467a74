import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_arcface
import torch_reference
from parity_tests.cases.losses import CASES, batch
from parity_tests.compare import compare


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


def test_the_five_lines_of_the_docs_are_the_loss_of_the_other_package():
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
    in_torch, in_jax = ({}, {})
    for code, names in zip(re.findall(r"```python\n(.*?)```", text, re.DOTALL), (in_torch, in_jax), strict=True):
        exec(code, names)
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(8, 6)), rng.normal(size=(5, 6))
    y = (x @ w.T).argmax(axis=1)  # a near class, so that no angle gets past pi
    real_jax, real_torch = (
        lambda x, w, y, package=package: package.margin_softmax_loss(x, w, y, package.Margin.arcface(0.5), 64.0)
        for package in (jax_arcface, torch_reference)
    )
    for here, there in ((in_jax["arcface_loss"], real_torch), (real_jax, in_torch["arcface_loss"])):
        assert all(found.relative < 1e-12 for found in compare(here, there, x, w, y).differences)
