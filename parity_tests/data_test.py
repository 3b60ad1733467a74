import pytest

from jax_arcface import data as jax_data
from parity_tests.cases import Unavailable
from parity_tests.cases.data import CASES
from torch_reference import data as torch_data


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    try:
        case.check()
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_every_data_set_has_a_case():
    assert set(jax_data.DATASETS) == set(torch_data.DATASETS) <= {name for case in CASES for name in case.covers}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("minst", {}),
        ("nowhere", {}),
        ("./nowhere/at/all", {}),
        ("digits", {"data_dir": "x"}),
        ("digits", {"image_size": 0}),
    ],
)
def test_the_same_mistake_has_the_same_message(name, options):
    messages = []
    for module in (jax_data, torch_data):
        with pytest.raises(ValueError, match=r"\w") as caught:
            module.load(name, **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
