"""Losses by name: the words of `--loss`, the sum that they describe, its states, and that every loss trains."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface import data
from jax_arcface.errors import UserError
from jax_arcface.losses import pairs, regularizers, softmax
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.registry import ALIASES, LOSSES, Choice, Inputs, describe, initial_states, parse, total_loss
from jax_arcface.training import fit as training
from jax_arcface.training.config import recipe

CLASSES, DIM = 4, 3
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 0])


def batch(**changes):
    rng = np.random.default_rng(0)
    inputs = Inputs(
        embeddings=jnp.asarray(rng.normal(size=(8, DIM)) * 3, jnp.float32),
        labels=jnp.asarray(LABELS),
        prototypes=jnp.asarray(rng.normal(size=(CLASSES, DIM)), jnp.float32),
        bias=jnp.asarray(rng.normal(size=CLASSES), jnp.float32),
        centers=jnp.asarray(rng.normal(size=(CLASSES, DIM)), jnp.float32),
        scale=4.0,
        normal=jnp.asarray(rng.normal(size=8), jnp.float32),
    )
    return inputs._replace(**changes)


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ("arcface", [("arcface", 1.0, {"m": 0.5, "filter": None})]),
        ("arcface:m=0.4,filter=0.3", [("arcface", 1.0, {"m": 0.4, "filter": 0.3})]),
        ("softmax+center:0.01,rate=0.25", [("softmax", 1.0, {}), ("center", 0.01, {"rate": 0.25})]),
        ("softmax+center", [("softmax", 1.0, {}), ("center", 0.003, {"rate": 0.5})]),
        ("triplet:mining=hard,2", [("triplet", 2.0, {"m": 0.35, "distance": "angular", "mining": "hard"})]),
        ("cm1", [("combined", 1.0, {"m1": 1.0, "m2": 0.3, "m3": 0.2, "filter": None})]),
        ("cm2", [("combined", 1.0, {"m1": 0.9, "m2": 0.4, "m3": 0.15, "filter": None})]),
        (
            "sphereface_plus",
            [("a_softmax", 1.0, {"m": 4, "first": 1000.0, "last": 5.0, "decay": 0.12}), ("mhe", 1.0, {})],
        ),
    ],
)
def test_words_become_terms(words, terms):
    assert [(term.name, term.weight, dict(term.options)) for term in parse(words).terms] == terms


@pytest.mark.parametrize(
    ("words", "margin", "said"),
    [
        ("arcfase", None, "there is no --loss 'arcfase': did you mean 'arcface'?"),
        ("ARCFACE", None, "there is no --loss 'ARCFACE': did you mean 'arcface'?"),
        ("", None, "there is no --loss ''"),
        ("arcface+", None, "there is no --loss ''"),
        ("arcface+cosface", None, "has 2 classification losses, arcface and cosface; leave one"),
        ("cm1+combined", None, "has combined twice"),
        ("intra", None, "intra needs a classification loss beside it, such as softmax+intra"),
        ("triplet+center", None, "center needs a classification loss beside it"),
        ("cm1:m1=2", None, "cm1 is short for combined:m1=1,m2=0.3,m3=0.2 and takes no options"),
        ("arcface:k=2", None, "arcface has no option 'k'; its options are m, filter"),
        ("intra:k=2", None, "intra has no option 'k'; it has none"),
        ("arcface:m=4", None, "m of arcface is 4; it must be at least 0 and below 3.142 (in radians)"),
        ("arcface:m=nan", None, "m of arcface is nan; it must be at least 0"),
        ("arcface:m=x", None, "m of arcface is 'x'; it must be a number"),
        ("arcface:m=0.1,m=0.2", None, "arcface has m twice"),
        ("a_softmax:m=2.5", None, "m of a_softmax is 2.5; it must be a whole number, at least 1 and below 9"),
        ("triplet:mining=soft", None, "mining of triplet is 'soft'; it must be all or hard or semi_hard"),
        ("softmax+center:0", None, "the weight of center is 0; it must be > 0 and finite"),
        ("softmax+center:inf", None, "the weight of center is inf; it must be > 0 and finite"),
        ("softmax+center:1,2", None, "center has two weights, 1 and 2"),
        ("softmax+center:", None, "the weight of center is ''; it must be a number"),
        ("magface:low=0.9", None, "low of magface is 0.9; it must be below high, 0.8"),
        ("adaface:rate=1.5", None, "rate of adaface is 1.5; it must be at least 0 and at most 1"),
        ("softmax+center:rate=1.0001", None, "rate of center is 1.0001; it must be at least 0 and at most 1"),
        ("circle:gamma=0", None, "gamma of circle is 0; it must be at least 0.001 and finite"),
        ("softmax", 0.5, "--margin has no effect on --loss softmax, which has no margin m"),
        ("triplet", 0.5, "--margin has no effect on --loss triplet"),
        ("arcface:m=0.3", 0.5, "--loss arcface:m=0.3 and --margin both give arcface its margin"),
        ("cosface", 2.0, "--margin is 2; for --loss cosface it must be at least 0 and below 2 (in units of cosine)"),
    ],
)
def test_words_that_make_no_sense(words, margin, said):
    with pytest.raises(UserError, match=re.escape(said)):
        parse(words, margin)


@pytest.mark.parametrize(
    ("words", "margin", "said"),
    [
        ("a_softmax:first=1", None, "last of a_softmax is 5; it must be at most first, 1"),
        ("a_softmax:first=7,last=7,decay=1", None, "decay of a_softmax has no effect where first = last"),
        ("a_softmax:decay=0,last=2", None, "last of a_softmax has no effect where decay = 0"),
        ("a_softmax:first=9", 1.0, "first of a_softmax has no effect where m = 1"),
        ("adaface:h=0,rate=0.5", None, "rate of adaface has no effect where h = 0"),
        ("adaface:m=0,h=0.5", None, "h of adaface has no effect where m = 0"),
        ("softmax+range:beta=0,margin=5", None, "margin of range has no effect where beta = 0"),
        ("softmax+range:alpha=0,k=3", None, "k of range has no effect where alpha = 0"),
    ],
)
def test_an_option_without_effect_is_refused(words, margin, said):
    with pytest.raises(UserError) as caught:
        parse(words, margin)
    assert str(caught.value) == f"--loss {words}: {said}"


def test_what_makes_an_option_idle_is_no_mistake_by_itself():
    for words in (
        "a_softmax:first=7,last=7",
        "a_softmax:decay=0",
        "a_softmax:m=1",
        "adaface:h=0",
        "softmax+range:beta=0",
    ):
        parse(words)
    for words in ("curricularface:rate=1", "adaface:rate=1", "softmax+center:rate=1"):
        assert parse(words).terms[-1].options["rate"] == 1


@pytest.mark.parametrize(
    ("words", "margin", "formula"),
    [
        ("arcface", None, (1, 0.5, 0)),
        ("arcface", 0.3, (1, 0.3, 0)),
        ("arcface+intra", 0.3, (1, 0.3, 0)),
        ("cosface", None, (1, 0, 0.35)),
        ("sphereface", 4.0, (4, 0, 0)),
        ("norm_softmax", None, (1, 0, 0)),
        ("subcenter", None, (1, 0.5, 0)),
        ("cm2", None, (0.9, 0.4, 0.15)),
    ],
)
def test_margin_of_the_words(words, margin, formula):
    value = parse(words, margin).margin()
    assert (value.m1, value.m2, value.m3) == formula


def test_other_losses_have_no_margin_value():
    assert parse("softmax").margin() is parse("magface").margin() is parse("triplet").margin() is None


def test_the_sum_is_weighted():
    inputs = batch(margin=Margin.arcface(0.3))
    found, *_ = total_loss(parse("arcface:2,m=0.3+intra:0.5+inter+supcon:0.25,tau=0.5"), inputs, {})
    x, w, y = inputs.embeddings, inputs.prototypes, inputs.labels
    expected = (
        2 * softmax.margin_softmax_loss(x, w, y, Margin.arcface(0.3), 4.0)
        + 0.5 * regularizers.intra_loss(x, w, y)
        + regularizers.inter_loss(w, y)
        + 0.25 * pairs.supcon_loss(x, y, 0.5)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_centres_move_by_their_own_rule():
    """Wen et al. 2016, equation 4 and algorithm 1, an example at a time; the loss sees the centres of before."""
    objective = parse("softmax+center:0.1,rate=0.3")
    states = initial_states(objective, CLASSES, DIM)
    centers = np.zeros((CLASSES, DIM))
    step = jax.jit(lambda x, states: total_loss(objective, batch(embeddings=x), states))
    for number in range(3):
        inputs = batch(embeddings=batch().embeddings + number)
        x = np.float64(inputs.embeddings)
        found, states, _ = step(inputs.embeddings, states)
        classify = softmax.linear_softmax_loss(inputs.embeddings, inputs.prototypes, inputs.bias, inputs.labels)
        pull = np.mean([0.5 * np.sum((x[i] - centers[y]) ** 2) for i, y in enumerate(LABELS)])
        np.testing.assert_allclose(found, classify + 0.1 * pull, rtol=1e-5)
        moved = centers.copy()
        for j in range(CLASSES):
            of_class = np.flatnonzero(LABELS == j)
            moved[j] -= 0.3 * sum(centers[j] - x[i] for i in of_class) / (1 + len(of_class))
        centers = moved
        np.testing.assert_allclose(states["center"]["centers"], centers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.003, 1.0])
def test_learnt_centres_have_the_displacement_for_a_gradient(weight):
    objective, inputs = parse(f"softmax+center_learnt:{weight}"), batch()

    def loss(embeddings, centers):
        return total_loss(objective, inputs._replace(embeddings=embeddings, centers=centers), {})[0]

    def classify(embeddings):
        return softmax.linear_softmax_loss(embeddings, inputs.prototypes, inputs.bias, inputs.labels)

    value, (dx, dc) = jax.value_and_grad(loss, argnums=(0, 1))(inputs.embeddings, inputs.centers)
    x, c = np.float64(inputs.embeddings), np.float64(inputs.centers)
    np.testing.assert_allclose(
        value, classify(inputs.embeddings) + weight * 0.5 * np.mean(np.sum((x - c[LABELS]) ** 2, axis=1)), rtol=1e-5
    )
    for j in range(CLASSES):
        n = np.sum(LABELS == j)
        np.testing.assert_allclose(dc[j], (n * c[j] - x[LABELS == j].sum(axis=0)) / (1 + n), rtol=1e-5, atol=1e-6)
    expected = jax.grad(classify)(inputs.embeddings) + weight * (x - c[LABELS]) / len(x)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_has_an_effect(name):
    """On the value of two steps or on its gradient; the states of the first step go into the second."""
    alone = f"softmax+{name}" if LOSSES[name].kind == "regulariser" else name

    @functools.partial(jax.jit, static_argnums=0)
    def both(words):
        objective = parse(words)
        margin = objective.margin() or Margin()

        def of(x, w):
            inputs = batch(embeddings=x, prototypes=w, margin=margin, step=50, growth=1.0)
            first, states, _ = total_loss(objective, inputs, initial_states(objective, CLASSES, DIM))
            return first + total_loss(objective, inputs._replace(embeddings=2 * x), states)[0]

        return jax.value_and_grad(of, argnums=(0, 1))(batch().embeddings, batch().prototypes)

    # the range of options in which this batch shows them
    others = {
        "k": 1,
        "first": 20.0,
        "m": 0.2,
        "shortest": 1.0,
        "longest": 9.0,
        "margin": 50.0,
        "filter": 0.1,
        "high": 0.9,
        "last": 500.0,
        "epsilon": 1.5,
    }
    others |= {"a_softmax": {"m": 2}, "sphereface": {"m": 1.1}}.get(name, {})
    standing = {"magface": "shortest=2,longest=20,"}.get(name, "")
    for option, kind in LOSSES[name].options.items():
        values = kind.known[1:] if isinstance(kind, Choice) else [others.get(option, (kind.default or 0) * 0.5 + 0.01)]
        kept = ",".join(item for item in standing.split(",") if item and not item.startswith(option))
        base = f"{alone}:{kept}" if kept else alone
        for value in values:
            changed = f"{base}{',' if kept else ':'}{option}={value}"
            assert any(
                np.abs(a - b).max() > 1e-6
                for a, b in zip(jax.tree.leaves(both(base)), jax.tree.leaves(both(changed)), strict=True)
            ), changed


def test_the_page_of_losses_tells_every_name_and_default():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    rows = {}
    for row in re.findall(r"^\| (`.*)$", page, re.MULTILINE):
        cells = re.split(r"(?<!\\)\|", row)
        for name in re.findall(r"`(\w+)`", cells[0]):
            rows.setdefault(name, row)
    for name in [*LOSSES, *ALIASES]:
        source, when_to_use = re.split(r"(?<!\\)\|", rows[name])[-3:-1]
        assert source.strip(), name
        assert when_to_use.strip(), name
    for name, loss in LOSSES.items():
        for option, kind in loss.options.items():
            written = {None: "none"}.get(kind.default, kind.default)
            if isinstance(written, str):
                assert re.search(rf"\b{option}={written}\b", rows[name]), (name, option)
            else:
                value = re.search(rf"\b{option}=(-?[\d.e+-]+)", rows[name])
                assert value, (name, option)
                assert float(value[1].rstrip(".")) == kind.default, (name, option)
        if loss.weight != 1:
            assert f"| {loss.weight:g} |" in rows[name]
    assert set(ALIASES) <= set(rows)


def test_help_tells_every_name_and_equation():
    lines = dict(line.removeprefix("- ").split(": ", 1) for line in describe().splitlines())
    assert set(lines) == {*LOSSES, *ALIASES}
    assert all(loss.equation in lines[name] for name, loss in LOSSES.items())
    assert "[m=0.35, distance=angular|l2, mining=all|hard|semi_hard]" in lines["triplet"]
    assert "None" not in describe()


# ---- every loss trains

# What the paper's table 2 compares, and every other row of docs/losses.md.
TABLE_2 = [
    *(f"arcface:m={m}" for m in (0.4, 0.45, 0.5, 0.55)),
    *("sphereface", "cosface", "cm1", "cm2", "softmax", "norm_softmax", "triplet"),
    *("norm_softmax+intra", "norm_softmax+inter", "norm_softmax+intra+inter"),
    *("arcface+intra", "arcface+inter", "arcface+intra+inter", "arcface+triplet"),
]
OTHERS = [
    # with lambda's own decay A-Softmax hardly has a margin in so few steps; an embedding this small is short
    *("a_softmax:decay=3", "a_softmax:decay=3+mhe", "magface:shortest=2,longest=20"),
    *("modified_softmax", "combined", "subcenter", "adacos", "curricularface", "adaface"),
    *("elasticface", "elastic_cosface", "arcface:filter=0.5", "cosface:filter=0.5"),
    *("softmax+center", "softmax+center_learnt", "softmax+range", "softmax+marginal", "arcface+mhe"),
    *("contrastive", "contrastive:distance=angular", "triplet:mining=hard", "triplet:mining=semi_hard"),
    # with base = 1 embeddings spread slowly; 0.5 is that of the authors' code
    *("triplet:distance=l2,m=0.2", "circle", "multi_similarity:base=0.5", "supcon"),
]


def test_every_loss_is_trained():
    trained = {term.name for words in [*TABLE_2, *OTHERS] for term in parse(words).terms}
    assert trained == set(LOSSES)
    assert {word for words in [*TABLE_2, *OTHERS] for word in words.split("+")} >= set(ALIASES) - {"sphereface_plus"}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize("words", [*TABLE_2, *OTHERS])
def test_every_loss_learns_the_digits(words, digits):
    # without augmentation a small network is there after a few seconds, most of which are spent compiling; the
    # contrastive loss needs the recipe's own network, and pair losses have the limit on the gradient from the recipe
    defaults = recipe("digits", words)
    quick = {"epochs": 8, "learning_rate": 0.2, "rotate": 0.0, "zoom": 0.0, "shift": 0}
    quick |= {"clip_norm": 1.0} if defaults.objective.classifier else {}
    quick |= {"epochs": 12} if "contrastive" in words else {"width": 0.25, "embedding_dim": 32}
    warmup = min(2.0, defaults.margin_warmup_epochs)
    config = dataclasses.replace(defaults, **quick, margin_warmup_epochs=warmup)

    class Last(training.Reporter):
        accuracy = math.nan

        def on_epoch(self, replica, record, state):
            self.accuracy = record.test_accuracy

    last = Last()
    training.fit([config], digits, reporter=last)
    assert last.accuracy >= 0.97
