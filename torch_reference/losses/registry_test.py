"""Tests of objective.py: the registry against the tables of docs/losses.md, sums against the functions themselves."""

import math
import re
from pathlib import Path

import pytest
import torch

from torch_reference.errors import UserError
from torch_reference.losses import adaptive, pairs, regularizers, softmax
from torch_reference.losses.margins import Margin
from torch_reference.losses.registry import ALIASES, LOSSES, Inputs, Number, describe, initial_states, parse, total_loss

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"
CLASSES, DIM = 5, 4


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
    for name, row in rows.items():
        assert row["source"], name
        assert row["when to use"], name
    sections = {
        "classification": "Classification losses",
        "regulariser": "Regularisers",
        "pairs": "Pair losses",
    }
    for name, loss in LOSSES.items():
        options = {key: as_given(value) for key, value in re.findall(r"(\w+)=([\w.-]+)", rows[name]["options"])}
        assert options == {key: option.default for key, option in loss.options.items()}, name
        assert sections[loss.kind] == rows[name]["section"]
        if loss.kind == "regulariser":
            assert loss.weight == float(rows[name]["weight"])
    assert DOCS.read_text().count("with (1, 0.3, 0.2), with (0.9, 0.4, 0.15)") == 1


def test_flags_are_those_of_the_docs():
    beyond_pi = ["sphereface", "arcface", "combined", "subcenter", "curricularface", "magface", "elasticface"]
    gradient = ["sphereface", "arcface", "combined", "subcenter"]
    warmup = [*beyond_pi, "cosface", "adaface", "elastic_cosface"]
    unscaled = ["softmax", "modified_softmax", "a_softmax", "adacos"]
    for name, loss in LOSSES.items():
        assert ("beyond_pi" in loss.takes) == (name in beyond_pi)
        assert ("gradient" in loss.takes) == (name in gradient)
        assert ("margin_warmup_epochs" in loss.takes) == (name in warmup)
        assert ("scale" in loss.takes) == (loss.kind == "classification" and name not in unscaled)
        assert ("label_smoothing" in loss.takes) == (loss.kind == "classification")
        assert ("subcenters" in loss.takes) == ("scale" in loss.takes or name == "adacos")


def test_a_default_is_in_its_range():
    for name, loss in LOSSES.items():
        for key, option in loss.options.items():
            if isinstance(option, Number) and option.default is not None:
                assert option.low <= option.default < option.high
                parse_with(name, f"{key}={option.default}")


def parse_with(name, items):
    words = f"{name}:{items}"
    return parse(words if LOSSES[name].kind != "regulariser" else f"softmax+{words}")


def test_help_has_every_name_in_ascii():
    lines = describe().splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"- {name}" for name in (*LOSSES, *ALIASES)]
    assert describe().isascii()


def test_help_has_every_word_of_a_choice():
    lines = {line.removeprefix("- ").partition(":")[0]: line for line in describe().splitlines()}
    assert lines["triplet"].endswith(" [m=0.35, distance=angular|l2, mining=all|hard|semi_hard]")
    assert lines["contrastive"].endswith(" [m=1.0, distance=l2|angular]")
    assert lines["arcface"].endswith(" [m=0.5, filter=none]")


# ---- the words of --loss


def test_words():
    (arc, triplet) = parse("arcface:m=0.4+triplet:0.5,mining=hard").terms
    assert (arc.name, arc.weight, arc.options) == ("arcface", 1.0, {"m": 0.4, "filter": None})
    assert (triplet.name, triplet.weight) == ("triplet", 0.5)
    assert triplet.options == {"m": 0.35, "distance": "angular", "mining": "hard"}
    assert [(term.name, term.weight) for term in parse("softmax+center:0.01+marginal").terms] == [
        ("softmax", 1),
        ("center", 0.01),
        ("marginal", 1),
    ]
    assert parse("arcface", margin=0.3) == parse("arcface:m=0.3")
    assert parse("cm2") == parse("combined:m1=0.9,m2=0.4,m3=0.15")
    assert parse("sphereface_plus") == parse("a_softmax+mhe")
    assert isinstance(parse("a_softmax:m=3.0").terms[0].options["m"], int)


def test_the_margin_of_a_margin_softmax():
    policies = {"beyond_pi": "wrap", "gradient": "straight_through"}
    assert parse("arcface").margin(**policies) == Margin(m2=0.5, **policies)
    assert parse("sphereface:m=2+intra").margin() == Margin(m1=2.0)
    assert parse("cosface").margin(**policies) == Margin(m3=0.35)
    assert parse("norm_softmax").margin() == Margin()
    assert parse("cm1").margin() == Margin(1.0, 0.3, 0.2)
    assert parse("cm2").margin() == Margin(0.9, 0.4, 0.15)
    assert parse("combined:m1=1.1").margin() == Margin(1.1, 0.3, 0.2)
    for others in ("softmax", "a_softmax", "adacos", "magface", "triplet"):
        assert parse(others).margin() is None


MISTAKES = [
    ("arcfac", "there is no --loss 'arcfac': did you mean 'arcface'? known: softmax, "),
    ("ARCFACE", "there is no --loss 'ARCFACE': did you mean 'arcface'? known: softmax, "),
    ("", "there is no --loss '': known: softmax, "),
    ("arcface+", "there is no --loss '': known: "),
    ("arcface+cosface", "--loss arcface+cosface has 2 classification losses, arcface and cosface; leave one"),
    ("arcface+arcface", "--loss arcface+arcface has arcface twice"),
    ("a_softmax+mhe+sphereface_plus", "--loss a_softmax+mhe+sphereface_plus has a_softmax twice"),
    ("intra", "--loss intra: intra needs a classification loss beside it, such as softmax+intra"),
    ("triplet+center", "--loss triplet+center: center needs a classification loss beside it, such as softmax+center"),
    ("cm1:m2=0.1", "--loss cm1:m2=0.1: cm1 is short for combined:m1=1,m2=0.3,m3=0.2 and takes no options"),
    ("arcface:n=1", "--loss arcface:n=1: arcface has no option 'n'; its options are m, filter"),
    ("softmax:m=1", "--loss softmax:m=1: softmax has no option 'm'; it has none"),
    ("arcface:m=0.1,m=0.2", "--loss arcface:m=0.1,m=0.2: arcface has m twice"),
    ("arcface:2,3", "--loss arcface:2,3: arcface has two weights, 2 and 3"),
    ("arcface:0", "--loss arcface:0: the weight of arcface is 0; it must be > 0 and finite"),
    ("arcface:inf", "--loss arcface:inf: the weight of arcface is inf; it must be > 0 and finite"),
    ("arcface:nan", "--loss arcface:nan: the weight of arcface is nan; it must be > 0 and finite"),
    ("arcface:", "--loss arcface:: the weight of arcface is ''; it must be a number"),
    ("arcface:m=x", "--loss arcface:m=x: m of arcface is 'x'; it must be a number"),
    ("arcface:m=4", "--loss arcface:m=4: m of arcface is 4; it must be at least 0 and below 3.142 (in radians)"),
    (
        "a_softmax:m=2.5",
        "--loss a_softmax:m=2.5: m of a_softmax is 2.5; it must be a whole number, at least 1 and below 9",
    ),
    ("triplet:mining=x", "--loss triplet:mining=x: mining of triplet is 'x'; it must be all or hard or semi_hard"),
    (
        "softmax+range:k=0",
        "--loss softmax+range:k=0: k of range is 0; it must be a whole number, at least 1 and finite",
    ),
    ("magface:low=0.9", "--loss magface:low=0.9: low of magface is 0.9; it must be below high, 0.8"),
    ("magface:longest=5", "--loss magface:longest=5: shortest of magface is 10; it must be below longest, 5"),
    ("a_softmax:first=1", "--loss a_softmax:first=1: last of a_softmax is 5; it must be at most first, 1"),
    (
        "a_softmax:first=2,last=2,decay=1",
        "--loss a_softmax:first=2,last=2,decay=1: decay of a_softmax has no effect where first = last",
    ),
    ("a_softmax:last=1,decay=0", "--loss a_softmax:last=1,decay=0: last of a_softmax has no effect where decay = 0"),
    ("a_softmax:m=1,decay=1", "--loss a_softmax:m=1,decay=1: decay of a_softmax has no effect where m = 1"),
    ("adaface:h=0,rate=0.5", "--loss adaface:h=0,rate=0.5: rate of adaface has no effect where h = 0"),
    ("adaface:m=0,h=1", "--loss adaface:m=0,h=1: h of adaface has no effect where m = 0"),
    (
        "softmax+range:beta=0,margin=5",
        "--loss softmax+range:beta=0,margin=5: margin of range has no effect where beta = 0",
    ),
    ("softmax+range:k=3,alpha=0", "--loss softmax+range:k=3,alpha=0: k of range has no effect where alpha = 0"),
    (
        "softmax+center:rate=1.5",
        "--loss softmax+center:rate=1.5: rate of center is 1.5; it must be at least 0 and at most 1",
    ),
    ("circle:gamma=0", "--loss circle:gamma=0: gamma of circle is 0; it must be at least 0.001 and finite"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(words, message):
    with pytest.raises(UserError) as caught:
        parse(words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "margin", "message"),
    [
        ("arcface:m=0.1", 0.2, "--loss arcface:m=0.1 and --margin both give arcface its margin: leave one of them out"),
        ("softmax", 0.2, "--margin has no effect on --loss softmax, which has no margin m"),
        ("cm1", 0.2, "--margin has no effect on --loss cm1, which has no margin m"),
        ("triplet", 0.2, "--margin has no effect on --loss triplet; its margin is an option, such as triplet:m=0.3"),
        ("arcface+triplet", 5.0, "--margin is 5; for --loss arcface+triplet it must be at least 0 and below 3.142"),
    ],
)
def test_a_margin_that_does_not_fit(words, margin, message):
    with pytest.raises(UserError) as caught:
        parse(words, margin)
    assert str(caught.value).startswith(message)


def test_the_ends_of_the_ranges():
    for words in ("center:rate=1", "adaface:rate=1", "curricularface:rate=1"):
        name, _, items = words.partition(":")
        assert parse_with(name, items).terms[-1].options["rate"] == 1
    # with these others would have no effect, but none of them is given
    for words in ("a_softmax:first=7,last=7", "a_softmax:decay=0", "a_softmax:m=1", "adaface:h=0", "adaface:m=0"):
        assert len(parse(words).terms) == 1


# ---- the sum


def inputs(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    given = {
        "embeddings": 10 * torch.randn(6, DIM, dtype=dtype),
        "labels": torch.tensor([0, 1, 1, 0, 4, 2]),
        "prototypes": torch.randn(CLASSES, DIM, dtype=dtype),
        "bias": torch.randn(CLASSES, dtype=dtype),
        "centers": torch.randn(CLASSES, DIM, dtype=dtype),
        "margin": Margin(m2=0.3),
        "growth": 0.5,
        "scale": 8.0,
        "label_smoothing": 0.1,
        "beyond_pi": "wrap",
        "step": 100,
        "normal": torch.randn(6),
    }
    return Inputs(**(given | changes))


def drawn(i, mean, std):
    return 0.5 * (mean + std * i.normal)


# words with an option other than its default, and the function called by hand
BY_HAND = {
    "softmax": lambda i: softmax.linear_softmax_loss(i.embeddings, i.prototypes, i.bias, i.labels, 0.1),
    "modified_softmax": lambda i: softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, 0.1),
    "a_softmax:m=3,first=100,last=2,decay=0.1": lambda i: softmax.a_softmax_loss(
        i.embeddings, i.prototypes, i.labels, 3, 100 / 11, 0.1
    ),
    **{
        words: lambda i: softmax.margin_softmax_loss(i.embeddings, i.prototypes, i.labels, i.margin, 8.0, 0.1)
        for words in ("norm_softmax", "sphereface", "cosface", "arcface", "combined", "subcenter")
    },
    **{
        f"{name}:filter=0.1": lambda i: softmax.margin_softmax_loss(
            i.embeddings, i.prototypes, i.labels, i.margin, 8.0, 0.1, 0.1
        )
        for name in ("cosface", "arcface", "combined", "subcenter")
    },
    "adacos": lambda i: adaptive.adacos_loss(
        i.embeddings, i.prototypes, i.labels, math.sqrt(2) * math.log(CLASSES - 1), 0.1
    )[0],
    "curricularface:m=0.8,rate=0.2": lambda i: adaptive.curricularface_loss(
        i.embeddings, i.prototypes, i.labels, 0.0, Margin(m2=0.4, beyond_pi="wrap"), 8.0, 0.2, 0.1
    )[0],
    "magface:low=0.2,high=0.6,shortest=1,longest=50,weight=2": lambda i: adaptive.magface_loss(
        i.embeddings, i.prototypes, i.labels, 0.1, 0.3, 1.0, 50.0, 2.0, 8.0, "wrap", 0.1
    ),
    "adaface:m=0.6,h=0.5,rate=0.2": lambda i: adaptive.adaface_loss(
        i.embeddings, i.prototypes, i.labels, 20.0, 100.0, 0.3, 0.5, 0.2, 8.0, 0.1
    )[0],
    "elasticface:m=0.4,std=0.1": lambda i: softmax.margin_softmax_loss(
        i.embeddings, i.prototypes, i.labels, Margin(m2=drawn(i, 0.4, 0.1), beyond_pi="wrap"), 8.0, 0.1
    ),
    "elastic_cosface:m=0.2,std=0.1": lambda i: softmax.margin_softmax_loss(
        i.embeddings, i.prototypes, i.labels, Margin(m3=drawn(i, 0.2, 0.1)), 8.0, 0.1
    ),
    "center:rate=0.25": lambda i: regularizers.center_loss(i.embeddings, 0 * i.centers, i.labels),
    "center_learnt": lambda i: regularizers.center_loss(i.embeddings, i.centers, i.labels),
    "intra": lambda i: regularizers.intra_loss(i.embeddings, i.prototypes, i.labels),
    "inter": lambda i: regularizers.inter_loss(i.prototypes, i.labels),
    "mhe": lambda i: regularizers.hyperspherical_energy(i.prototypes, i.labels),
    "range:k=1,alpha=0.1,beta=0.2,margin=900": lambda i: pairs.range_loss(i.embeddings, i.labels, 1, 0.1, 0.2, 900.0),
    "marginal:theta=1,xi=0.2": lambda i: pairs.marginal_loss(i.embeddings, i.labels, 1.0, 0.2),
    "contrastive:m=0.8,distance=angular": lambda i: pairs.contrastive_loss(i.embeddings, i.labels, 0.8, "angular"),
    "triplet:m=0.8,distance=l2,mining=semi_hard": lambda i: pairs.triplet_loss(
        i.embeddings, i.labels, 0.8, "l2", "semi_hard"
    ),
    "circle:m=0.4,gamma=8": lambda i: pairs.circle_loss(i.embeddings, i.labels, 0.4, 8.0),
    "multi_similarity:alpha=1,beta=3,base=0.5,epsilon=0.2": lambda i: pairs.multi_similarity_loss(
        i.embeddings, i.labels, 1.0, 3.0, 0.5, 0.2
    ),
    "supcon:tau=0.5": lambda i: pairs.supcon_loss(i.embeddings, i.labels, 0.5),
}


def test_every_loss_is_called_by_hand():
    assert {words.partition(":")[0] for words in BY_HAND} == set(LOSSES)
    for name, loss in LOSSES.items():
        given = {key for words in BY_HAND for key in re.findall(r"(\w+)=", words) if words.partition(":")[0] == name}
        # a margin softmax takes its margin from the inputs
        assert given == set(loss.options) - set(loss.margin or ())


@pytest.mark.parametrize("words", list(BY_HAND))
def test_a_loss_by_its_name_is_the_function_with_these_options(words):
    i = inputs()
    name = words.partition(":")[0]
    beside = "modified_softmax+" if LOSSES[name].kind == "regulariser" else ""
    colon, weighted = (":0.25,", words) if ":" in words else (":0.25", f"{words}:")
    objective = parse(beside + weighted.replace(":", colon, 1))
    found, _ = total_loss(objective, i, initial_states(objective, CLASSES, DIM))
    expected = 0.25 * BY_HAND[words](i)
    if beside:
        expected = expected + softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, 0.1)
    assert expected != 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # states begin in float32


def test_a_sum_is_the_sum_of_its_terms_each_with_its_weight():
    i = inputs()
    one, other, third = (total_loss(parse(words), i, {})[0] for words in ("arcface", "triplet", "supcon"))
    found, states = total_loss(parse("triplet:0.5+arcface:3+supcon:2"), i, {})
    torch.testing.assert_close(found, 0.5 * other + 3 * one + 2 * third, rtol=1e-12, atol=0)
    assert states == {}


def test_states_go_in_and_come_out():
    i = inputs(embeddings=inputs().embeddings.requires_grad_())
    by_hand = {
        "adacos": lambda s: adaptive.adacos_loss(i.embeddings, i.prototypes, i.labels, s["scale"])[1:],
        "curricularface": lambda s: adaptive.curricularface_loss(i.embeddings, i.prototypes, i.labels, s["t"])[1:],
        "adaface": lambda s: adaptive.adaface_loss(i.embeddings, i.prototypes, i.labels, s["mean"], s["std"])[1:],
    }
    for name, function in by_hand.items():
        objective = parse(name)
        states = initial_states(objective, CLASSES, DIM)
        for _ in range(3):
            expected = function(states[name])
            _, states = total_loss(objective, i, states)
            torch.testing.assert_close(tuple(states[name].values()), expected, rtol=1e-12, atol=0)
            assert not any(value.requires_grad for value in states[name].values())
    stateless = set(LOSSES) - set(by_hand) - {"center"}
    assert not any(LOSSES[name].initial(CLASSES, DIM) for name in stateless)


def test_centres_begin_at_0_and_move_after_the_loss():
    i = inputs()
    objective = parse("modified_softmax+center:1,rate=0.25")
    states = initial_states(objective, CLASSES, DIM)
    assert not states["center"]["centers"].any()
    centers = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    classify = softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, 0.1)
    for _ in range(2):
        loss, states = total_loss(objective, i, states)
        expected = torch.stack(
            [(x - centers[y]).square().sum() / 2 for x, y in zip(i.embeddings, i.labels, strict=True)]
        )
        torch.testing.assert_close(loss - classify, expected.mean(), rtol=1e-9, atol=0)
        before = centers.clone()
        for j in range(CLASSES):
            members = [x for x, y in zip(i.embeddings, i.labels.tolist(), strict=True) if y == j]
            for x in members:
                centers[j] -= 0.25 * (before[j] - x) / (1 + len(members))
        torch.testing.assert_close(states["center"]["centers"], centers, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weight", [0.003, 5.0])
def test_learnt_centres_get_their_displacement_as_gradient_whatever_the_weight(weight):
    i = inputs(centers=inputs().centers.requires_grad_())
    i = i._replace(embeddings=i.embeddings.requires_grad_())
    loss, states = total_loss(parse(f"softmax+center_learnt:{weight}"), i, {})
    loss.backward()
    fixed = i._replace(embeddings=i.embeddings.detach().requires_grad_(), centers=i.centers.detach())
    loss = total_loss(parse("softmax"), fixed, {})[0] + weight * BY_HAND["center_learnt"](fixed)
    loss.backward()
    torch.testing.assert_close(i.embeddings.grad, fixed.embeddings.grad, rtol=1e-12, atol=0)
    expected = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    for x, y in zip(fixed.embeddings.detach(), i.labels.tolist(), strict=True):
        expected[y] += (fixed.centers[y] - x) / (1 + i.labels.tolist().count(y))
    torch.testing.assert_close(i.centers.grad, expected, rtol=1e-12, atol=1e-15)
    assert states == {}


@pytest.mark.parametrize("words", ["arcface+triplet+supcon", "magface+marginal", "a_softmax+center+range", "circle"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_of_narrow_embeddings_add_up_to_a_finite_gradient(words, dtype):
    i = inputs(torch.float32)
    x = (i.embeddings * 2.0**-20).to(dtype).requires_grad_()
    objective = parse(words)
    loss, _ = total_loss(objective, i._replace(embeddings=x), initial_states(objective, CLASSES, DIM))
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
