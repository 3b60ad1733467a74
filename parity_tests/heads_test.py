import pytest
from flax import nnx

import jax_arcface
import torch_reference
from parity_tests.cases.heads import CASES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


@pytest.mark.parametrize("subcenters", [1, 4])
def test_prototypes_have_the_same_shape(subcenters):
    here = jax_arcface.ArcFaceHead(6, 3, subcenters=subcenters, rngs=nnx.Rngs(0))
    there = torch_reference.ArcFaceHead(6, 3, subcenters=subcenters)
    assert here.prototypes.shape == tuple(there.prototypes.shape)
    assert repr(here.margin) == repr(there.margin)
    assert here.scale == there.scale


@pytest.mark.parametrize(
    "change", [{"subcenters": 0}, {"scale": 0.0}, {"num_classes": 0}, {"embedding_dim": 0}], ids=str
)
def test_the_same_mistake_is_refused_by_both(change):
    (name,) = change
    options = {"embedding_dim": 4, "num_classes": 3} | change
    with pytest.raises(ValueError, match=name):
        jax_arcface.ArcFaceHead(**options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=name):
        torch_reference.ArcFaceHead(**options)
