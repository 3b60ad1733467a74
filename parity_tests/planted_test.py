import dataclasses

import pytest

from parity_tests import planted
from parity_tests.cases import PAIRS, Result
from parity_tests.planted import ERRORS, NOTHING, ROOT, measured, planted_text

# For each pair an error, and a case of its own that sees it and none of the others: so one process can measure them
# all. `python -m parity_tests planted` takes every error by itself, and the whole of its pairs.
CAUGHT = {
    "margins": (
        "straight-through gradient never taken",
        "margin on a grid of angles: wrap, straight_through gradient, float64",
    ),
    "losses": (
        "second of two equal sub-centres takes the gradient",
        "cosines, with sub-centres, equal ones and a zero vector, float64",
    ),
    "objective": ("centres moved away from their embeddings", "loss softmax+center, float64"),
    "heads": ("head without labels forgets its scale", "head with 1 prototype a class: logits, loss, float64"),
    "backbones": (
        "last of equal pixels takes the gradient of max pooling",
        "equal pixels under max pooling, PReLU at 0, float64",
    ),
    "sampling": ("flips that do not alternate", "what is drawn for each example, float64"),
    "weights": ("initial weights of every seed those of seed 0", "initial weights of lenet, float32"),
    "data": ("images resized by the bicubic filter", "digits resized to 13x13, uint8"),
    "training": ("weight decay of AdamW coupled", "adamw, momentum 0.9: 100 steps, float64"),
    "trajectories": ("margin's warm-up one step late", "training on digits, first step: each loss, float32"),
    "evaluation": ("mean loss of blocks not weighted by their sizes", "mean loss, float32"),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.name)
def test_every_error_still_has_its_place(error):
    assert planted_text(error) != (ROOT / error.file).read_text()


def test_the_table_of_the_docs_has_the_same_errors():
    table = (ROOT / "docs" / "parity.md").read_text().partition("| planted | in |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in table.splitlines()[2:]]
    named = {(name, file, cases.partition("(")[2].rstrip(")")) for name, file, cases in rows}
    assert len(named) == len(rows)
    expected = {(error.name, error.file, ", ".join(error.pairs)) for error in (NOTHING, *ERRORS)}
    assert sorted(named ^ expected) == []


def test_a_text_that_is_gone_is_told():
    with pytest.raises(ValueError, match="0 times, not once"):
        planted_text(dataclasses.replace(ERRORS[0], old="psi - m33"))


def test_every_pair_catches_an_error():
    errors = {error.name: error for error in ERRORS}
    results = measured([errors[name] for name, _ in CAUGHT.values()], "--cases", *(case for _, case in CAUGHT.values()))
    assert [result.pair for result in results] == list(CAUGHT) == list(PAIRS)
    assert [result.pair for result in results if result.passed] == []


def result(pair, passed):
    return Result("x", pair, "float64", 0.0, 0.0, 0.0, 0.0, "exact", passed, "")


@pytest.mark.parametrize(
    ("error", "missed", "expected"),
    [
        (ERRORS[0], {"margins", "losses"}, True),
        (ERRORS[0], {"margins"}, False),
        (ERRORS[0], set(), False),
        (NOTHING, set(), True),
        (NOTHING, {"losses"}, False),
    ],
)
def test_an_error_is_caught_where_each_of_its_pairs_misses_a_bound(error, missed, expected, monkeypatch):
    def measured(errors, only, *pairs):
        assert (list(errors), only, pairs) == ([error] if error is ERRORS[0] else [], "--only", error.pairs)
        return [result(pair, passed) for pair in pairs for passed in (True, pair not in missed)]

    monkeypatch.setattr(planted, "measured", measured)
    found = planted.outcome(error)
    assert (found.measured, {r.pair for r in found.missed}) == (2 * len(error.pairs), missed)
    assert found.as_expected == expected
