import numpy as np
import pytest

from parity_tests.cases import Unavailable
from parity_tests.cases.trajectories import CASES, TRAININGS, trained


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    try:
        case.check()
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_the_training_on_digits_learns():
    # agreement of two trainings that stand still would prove little
    losses, _ = trained("digits", "float64", TRAININGS["digits"].steps, False)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[22:44])
