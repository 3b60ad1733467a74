import pytest

from jax_arcface.training import config as jax_config
from parity_tests.cases.training import CASES
from torch_reference.training import config as torch_config


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def test_every_optimiser_and_schedule_has_a_case():
    covered = {name for case in CASES for name in case.covers}
    for field, there in (("optimizer", torch_config.OPTIMIZERS), ("schedule", torch_config.SCHEDULES)):
        assert set(jax_config.CHOICES[field]) == set(there) <= covered
