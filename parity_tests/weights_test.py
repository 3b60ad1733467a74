import pytest

from parity_tests.cases.weights import CASES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()
