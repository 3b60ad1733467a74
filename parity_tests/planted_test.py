import dataclasses

import pytest

from parity_tests.planted import ERRORS, ROOT, Outcome, outcome, planted_text


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.name)
def test_every_error_still_has_its_place(error):
    assert planted_text(error) != (ROOT / error.file).read_text()


def test_a_text_that_is_gone_is_told():
    with pytest.raises(ValueError, match="0 times, not once"):
        planted_text(dataclasses.replace(ERRORS[0], old="psi - m33"))


def test_an_error_is_caught():
    error = next(error for error in ERRORS if error.pairs == ("sampling",))
    found = outcome(error)
    assert found.as_expected
    assert 0 < len(found.missed) < found.measured
    # where nothing is missed the error was not caught
    assert not Outcome(error, found.measured, []).as_expected
