"""The registries of both programs are the same, and so is what each entry computes."""

import pytest

from jax_arcface.errors import UserError as JaxUserError
from jax_arcface.losses import registry as jax_objective
from parity_tests.cases.objective import CASES, changed_words, example, torch_steps, words
from parity_tests.compare import differences, torch_side
from torch_reference.errors import UserError as TorchUserError
from torch_reference.losses import registry as torch_objective


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    case.check()


def described(module):
    """Names, kinds, weights, and the options with their defaults."""
    shared = set(jax_objective.SHARED)
    return {
        name: (entry.kind, entry.weight, {k: o.default for k, o in entry.options.items() if k not in shared})
        for name, entry in module.LOSSES.items()
    }


def test_registries_are_the_same():
    assert described(jax_objective) == described(torch_objective)
    assert list(jax_objective.LOSSES) == list(torch_objective.LOSSES)
    assert jax_objective.ALIASES == torch_objective.ALIASES
    assert jax_objective.SHARED == torch_objective.SHARED


@pytest.mark.parametrize(
    "text", [*words(), *changed_words(), "softmax+center:0.5,rate=0.1", "arcface:m=0.2+circle:gamma=80"]
)
def test_words_are_read_alike(text):
    shared = jax_objective.SHARED
    here = [
        (term.name, term.weight, {k: v for k, v in dict(term.options).items() if k not in shared})
        for term in jax_objective.parse(text).terms
    ]
    there = [
        (term.name, weight, {k: v for k, v in term.options.items() if k not in shared})
        for weight, term in torch_objective.parse(text)
    ]
    assert here == there


@pytest.mark.parametrize("text", changed_words())
def test_each_changed_option_has_an_effect(text):
    inputs = example("float64")
    changed = torch_side(torch_steps(text), inputs, range(4))
    loss, _, options = text.partition(":")
    for option in (options := options.split(",")):
        others = ",".join(other for other in options if other != option)
        without = torch_side(torch_steps(f"{loss}:{others}" if others else loss), inputs, range(4))
        assert any(d.relative > 1e-6 for d in differences(changed, without)), option


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("arcfase", None),
        ("arcface+", None),
        ("arcface+cosface", None),
        ("arcface+intra+intra", None),
        ("intra", None),
        ("cm1:m1=2", None),
        ("arcface:k=2", None),
        ("intra:k=2", None),
        ("arcface:m=4", None),
        ("a_softmax:m=2.5", None),
        ("triplet:mining=soft", None),
        ("softmax+center:0", None),
        ("softmax+center:1,2", None),
        ("magface:low=0.9", None),
        ("softmax", 0.5),
        ("triplet", 0.5),
        ("arcface:m=0.3", 0.5),
        ("cosface", 2.0),
        ("arcface:0.3", None),
    ],
)
def test_mistakes_are_refused_by_both(text, margin):
    with pytest.raises(JaxUserError):
        jax_objective.parse(text, m=margin)
    with pytest.raises(TorchUserError):
        torch_objective.parse(text, {} if margin is None else {"m": margin})
