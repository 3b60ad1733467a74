import dataclasses

import numpy as np
import pytest

from jax_arcface.data import sampling as jax_sampling
from parity_tests.cases.sampling import CASES
from torch_reference.data import sampling as torch_sampling


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def test_augmentations_have_the_same_fields():
    here, there = jax_sampling.Augmentation, torch_sampling.Augmentation
    assert {f.name: f.default for f in dataclasses.fields(here)} == {
        f.name: f.default for f in dataclasses.fields(there)
    }


def test_zooms_are_drawn_alike_for_every_zoom():
    # log(1 + z) may be rounded in more ways than one, and one in some millions of draws would show it
    for zoom in np.linspace(0.01, 1, 100).tolist():
        here = jax_sampling.draw_augmentation(jax_sampling.Augmentation(zoom=zoom), 0, 0, 3000, 8, 8)["affine"]
        drawn = torch_sampling.draw_augmentation(torch_sampling.Augmentation(zoom=zoom), 0, 0, 3000, 8, 8)
        np.testing.assert_array_equal(here, drawn.matrix.numpy())
