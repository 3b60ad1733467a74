import numpy as np
import pytest

from jax_arcface import config as jax_config
from parity_tests.cases import Unavailable
from parity_tests.cases.training import CASES, TRAININGS, trained
from torch_reference import config as torch_config


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    try:
        case.check()
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_every_optimiser_schedule_and_loss_has_a_case():
    covered = {name for case in CASES for name in case.covers}
    for name in ("OPTIMIZERS", "SCHEDULES", "LOSSES"):
        assert set(getattr(jax_config, name)) == set(getattr(torch_config, name)) <= covered


def test_the_training_on_digits_learns():
    # agreement of two trainings that stand still would prove little
    losses, _, _ = trained("digits", "float64", TRAININGS["digits"][2])
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[22:44])
