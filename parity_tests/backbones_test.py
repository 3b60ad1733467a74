import pytest

from jax_arcface.models import backbones as jax_backbones
from parity_tests.cases.backbones import ALIKE, CASES, SHAPES
from torch_reference.models import backbones as torch_backbones


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def test_every_backbone_has_a_case():
    assert {*SHAPES, *ALIKE} == set(jax_backbones.BACKBONES) == set(torch_backbones.BACKBONES)
