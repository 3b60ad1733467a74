import typing

import pytest

from jax_arcface.losses import margins as jax_margins
from parity_tests.cases.margins import CASES
from torch_reference.losses import margins as torch_margins


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def test_policies_and_gradients_are_the_same():
    assert typing.get_args(jax_margins.BeyondPi) == torch_margins.BEYOND_PI
    assert typing.get_args(jax_margins.Gradient) == torch_margins.GRADIENTS


@pytest.mark.parametrize("preset", ["softmax", "sphereface", "cosface", "arcface"])
def test_presets_are_the_same(preset):
    here, there = getattr(jax_margins.Margin, preset)(), getattr(torch_margins.Margin, preset)()
    assert repr(here) == repr(there)


@pytest.mark.parametrize(
    "fields",
    [
        {"m1": 0.0},
        {"m1": -1.0},
        {"m2": 3.2},
        {"m2": float("nan")},
        {"m3": float("inf")},
        {"beyond_pi": "easy"},
        {"gradient": "none"},
        {"m1": 2.0, "beyond_pi": "linear"},
    ],
    ids=str,
)
def test_the_same_mistake_is_refused_by_both(fields):
    for module in (jax_margins, torch_margins):
        with pytest.raises(ValueError, match=r"must|defined"):
            module.Margin(**fields)
