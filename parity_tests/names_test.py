"""What is public on one side is public on the other, and compared somewhere."""

import importlib
import inspect

import pytest

from parity_tests.cases import all_cases

# The pairs of twins whose public names must be the same; `data` is a package on one side and a file on the other.
PAIRS = ["", ".evaluation", ".data"]

# Public on one side only, and why.
ONE_SIDE_ONLY = {
    "DataError": "torch_reference raises UserError, of which it is a kind",
    "fused_margin_softmax_loss": "the same loss as margin_softmax_loss, in less memory; fused_test.py compares them",
    "prepare_tfds": "torchvision, not TFDS, is where torch_reference gets its data sets",
}


def public_names(module):
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.getmodule(value) is module or isinstance(value, tuple))
    }


@pytest.mark.parametrize("pair", [*PAIRS, ".adaptive", ".objective", ".pairs", ".regularizers"])
def test_public_names_are_the_same(pair):
    here = public_names(importlib.import_module(f"jax_arcface{pair}"))
    there = public_names(importlib.import_module(f"torch_reference{pair}"))
    assert {name for name in here ^ there if name not in ONE_SIDE_ONLY} == set()


def test_no_exception_is_out_of_date():
    here, there = (
        {name for pair in PAIRS for name in public_names(importlib.import_module(f"{package}{pair}"))}
        for package in ("jax_arcface", "torch_reference")
    )
    assert set(ONE_SIDE_ONLY) == set(ONE_SIDE_ONLY) & (here ^ there)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_public_name_has_a_parity_case(pair):
    names = public_names(importlib.import_module(f"jax_arcface{pair}")) - set(ONE_SIDE_ONLY)
    covered = {name for case in all_cases() for name in case.covers}
    # the tuple of names is compared by data_test.py
    assert names - {"DATASETS"} - covered == set()


def test_every_case_is_run_by_its_test_file():
    for case in all_cases():
        assert case in importlib.import_module(f"parity_tests.{case.pair}_test").CASES
