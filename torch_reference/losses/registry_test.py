"""Tests of registry.py: options from signatures, sums, and the syntax of --loss."""

import re
from pathlib import Path

import pytest
import torch

from torch_reference import Head, Margin, a_softmax, arcface, center, combined, intra, mhe, softmax, triplet
from torch_reference.errors import UserError
from torch_reference.losses.registry import ALIASES, LOSSES, SHARED, describe, parse

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


def said(objective):
    return [(weight, term.name, term.options) for weight, term in objective]


def rows_of_the_docs():
    """For each name in the tables of docs/losses.md its cells by the titles of their columns, and its section."""
    rows, titles, section = {}, [], ""
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("| ") else []
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if cells and not cells[0].startswith("`"):
            titles = cells if cells[0] == "name" else []
        elif cells and titles:
            for name in re.findall(r"`(\w+)`", cells[0]):
                rows[name] = dict(zip(titles, cells, strict=True)) | {"section": section}
    return {name: row for name, row in rows.items() if row["section"] != "Functions"}


def as_given(word):
    try:
        return float(word)
    except ValueError:
        return None if word == "none" else word


def test_the_registry_is_the_tables_of_the_docs():
    rows = rows_of_the_docs()
    assert {*LOSSES, *ALIASES} == set(rows)
    sections = {
        "classification": "Classification losses",
        "regulariser": "Regularisers",
        "pairs": "Pair losses",
    }
    for name, loss in LOSSES.items():
        options = {key: as_given(value) for key, value in re.findall(r"(\w+)=([\w.-]+)", rows[name]["options"])}
        assert options == {key: option.default for key, option in loss.options.items() if key not in SHARED}, name
        assert sections[loss.kind] == rows[name]["section"]
        if loss.kind == "regulariser":
            assert loss.weight == float(rows[name]["weight"])
    assert DOCS.read_text().count("with (1, 0.3, 0.2), with (0.9, 0.4, 0.15)") == 1


def test_what_losses_share_is_that_of_the_docs():
    beyond_pi = ["sphereface", "arcface", "combined", "subcenter", "curricularface", "magface", "elasticface"]
    gradient = ["sphereface", "arcface", "combined", "subcenter"]
    unscaled = ["softmax", "modified_softmax", "a_softmax", "adacos"]
    for name, loss in LOSSES.items():
        is_classification = loss.kind == "classification"
        assert ("beyond_pi" in loss.options) == (name in beyond_pi)
        assert ("gradient" in loss.options) == (name in gradient)
        assert loss.has_margin == (name in [*beyond_pi, "cosface", "adaface", "elastic_cosface"])
        assert ("scale" in loss.options) == (is_classification and name not in unscaled)
        assert ("label_smoothing" in loss.options) == is_classification
        assert ("subcenters" in loss.options) == ("scale" in loss.options or name == "adacos")


def test_every_loss_is_described():
    lines = describe().splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"- {name}" for name in (*LOSSES, *ALIASES)]
    assert all(loss.equation for loss in LOSSES.values())
    assert describe().isascii()


# ---- objects


def test_a_sum_of_objects_is_the_sum_in_words():
    assert said(2 * arcface(m=0.4) + 0.01 * center(rate=0.3)) == said(
        parse("arcface:2,m=0.4+center:0.01,rate=0.3", defaults={"scale": 64.0})
    )
    assert said(arcface() * 2.0 * 3) == said(6 * arcface())
    assert said(combined(m1=0.9, m2=0.4, m3=0.15)) == said(parse("cm2"))
    assert said(a_softmax() + mhe()) == said(parse("sphereface_plus"))


def test_an_objective_keeps_nothing_of_what_it_was_made_from():
    one = softmax()
    both = one + center()
    both.build(3, 2)
    assert not list(one.buffers())
    head = Head(both, 2, 3)
    head.loss(torch.eye(2), torch.tensor([0, 1]))
    assert not next(both.buffers()).any()
    assert next(head.objective.buffers()).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: arcface(m=4.0),
        lambda: arcface(scale=0.0),
        lambda: arcface(subcenters=2.5),
        lambda: arcface(beyond_pi="easy"),
        lambda: combined(m1=2.0, beyond_pi="linear"),
        lambda: triplet(mining="soft"),
        lambda: 0.0 * arcface(),
        lambda: arcface() + softmax(),
        lambda: intra() + intra(),
        lambda: Head(intra(), 2, 3),
        lambda: Head(arcface(subcenters=2) + mhe(), 2, 3),
    ],
)
def test_mistakes_in_objects(make):
    with pytest.raises(ValueError, match=r"\w"):
        make()


# ---- the syntax of --loss


def test_words():
    (_, arc), (weight, second) = parse("arcface:m=0.4+triplet:0.5,mining=hard")
    assert (arc.name, arc.options["m"], arc.options["filter"]) == ("arcface", 0.4, None)
    assert weight == 0.5
    assert second.options == {"m": 0.35, "distance": "angular", "mining": "hard"}
    found = [(term.name, weight) for weight, term in parse("softmax+center:0.01+marginal")]
    assert found == [("softmax", 1), ("center", 0.01), ("marginal", 1)]
    assert parse("softmax+center").weights == (1.0, 0.003)
    assert said(parse("arcface", {"m": 0.3})) == said(parse("arcface:m=0.3"))
    assert isinstance(parse("a_softmax:m=3.0").classifier.options["m"], int)


def test_options_beside_the_text():
    given = {"scale": 8.0, "label_smoothing": 0.1}
    assert parse("triplet+arcface", given).classifier.options.items() >= given.items()
    assert parse("arcface:scale=8", given, {"scale": 16.0}).classifier.options["scale"] == 8
    assert parse("arcface:scale=8", {}, {"scale": 16.0}).classifier.options["scale"] == 8
    assert parse("arcface", {}, {"scale": 16.0}).classifier.options["scale"] == 16
    assert parse("softmax", {}, {"scale": 16.0}).classifier.options == {"label_smoothing": 0.0}
    for text, beside in (("arcface:scale=9", given), ("softmax", given), ("triplet", given), ("cm1", {"m": 0.3})):
        with pytest.raises(UserError):
            parse(text, beside)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("arcfac", "'arcface'"),
        ("ARCFACE", "'arcface'"),
        ("", "no loss is called ''"),
        ("arcface+", "no loss is called ''"),
        ("arcface+cosface", "arcface and cosface"),
        ("arcface+arcface", "arcface is there twice"),
        ("a_softmax+mhe+sphereface_plus", "a_softmax is there twice"),
        ("intra", "softmax+intra"),
        ("triplet+center", "softmax+center"),
        ("cm1:m2=0.1", "combined:m1=1,m2=0.3,m3=0.2"),
        ("arcface:n=1", "'n'; it has m, filter"),
        ("arcface:m=0.1,m=0.2", "m twice"),
        ("arcface:2,3+triplet", "two weights"),
        ("arcface:0+triplet", "the weight of arcface is 0; it must be > 0"),
        ("arcface:inf+triplet", "finite"),
        ("arcface:nan+triplet", "finite"),
        ("arcface+center:1_0", "must be a number"),
        ("arcface:m=1_0", "must be a number"),
        ("arcface:m= 0.1", "must be a number"),
        ("arcface:m=\u0660.\u0665", "must be a number"),
        ("arcface:+triplet", "must be a number"),
        ("arcface:m=x", "m of arcface is 'x'"),
        ("arcface:m=4", "at least 0 and below 3.142"),
        ("a_softmax:m=2.5", "whole number"),
        ("triplet:mining=x", "all or hard or semi_hard"),
        ("softmax+range:k=0", "at least 1"),
        ("magface:low=0.9", "low is 0.9; it must be below high, 0.8"),
        ("magface:longest=5", "shortest is 10; it must be below longest, 5"),
        ("a_softmax:first=1", "last is 5; it must be at most first, 1"),
        ("softmax+center:rate=1.5", "at most 1"),
        ("circle:gamma=0", "at least 0.001"),
        ("sphereface:beyond_pi=linear", "monotone or wrap"),
        ("subcenter:subcenters=1", "at least 2"),
        # a bare number is a weight, and a loss alone has no use for one
        ("arcface:0.3", "did you mean arcface:m=0.3?"),
        ("softmax:2", "leave it out"),
    ],
)
def test_mistakes_name_what_is_wrong_and_what_is_right(text, names):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "softmax+center:rate=1",
        "adaface:rate=1",
        "curricularface:rate=1",
        "a_softmax:first=7,last=7",
        "supcon:0.5",
        "arcface:0.5+triplet",
    ],
)
def test_the_ends_of_the_ranges(text):
    assert len(parse(text).terms) >= 1


# ---- the growth of a margin


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.has_margin])
def test_a_margin_grows_from_none(name):
    options = LOSSES[name].options
    grown = {key: option.at(option.default, 0.25) for key, option in options.items()}
    for key, option in options.items():
        neutral = 1.0 if key == "m1" or name == "sphereface" else 0.0
        if option.grows:
            assert grown[key] == pytest.approx(neutral + (option.default - neutral) / 4)
        else:
            assert grown[key] == option.default
    margins = {"m", "m1", "m2", "m3", "low", "high", "std"}
    assert {key for key, option in options.items() if option.grows} == margins & options.keys()


def test_any_margin_grows_as_a_whole():
    margin = Margin(1.4, 0.4, -0.2, gradient="straight_through")
    head = Head(parse("arcface"), 2, 3)
    from torch_reference.losses.terms import margin_softmax

    (_, term), *_ = margin_softmax(margin)
    assert term.loss.options["margin"].at(margin, 0.5) == margin.grown(0.5)
    assert head.objective.classifier.options["m"] == 0.5


@pytest.mark.parametrize("other", [3, None, "softmax"])
def test_only_losses_are_added_to_a_loss(other):
    with pytest.raises(TypeError, match="unsupported operand"):
        parse("triplet") + other
