"""Tests of terms.py: what each loss computes, by a call of its function, and what it remembers."""

import math
import re

import pytest
import torch

from torch_reference.losses import adaptive, pairs, regularizers, softmax
from torch_reference.losses.margins import Margin
from torch_reference.losses.registry import LOSSES, SHARED, Batch, parse
from torch_reference.losses.terms import margin_softmax

CLASSES, DIM, GROWTH = 5, 4, 0.5
BESIDE = {"scale": 8.0, "label_smoothing": 0.1, "beyond_pi": "wrap"}


def example(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    given = {
        "embeddings": 10 * torch.randn(6, DIM, dtype=dtype),
        "labels": torch.tensor([0, 1, 1, 0, 4, 2]),
        "prototypes": torch.randn(CLASSES, DIM, dtype=dtype),
        "bias": torch.randn(CLASSES, dtype=dtype),
        "centers": torch.randn(CLASSES, DIM, dtype=dtype),
        "step": 100,
        "normal": torch.randn(6),
    }
    return Batch(**(given | changes))


def made(text, dtype=torch.float64):
    objective = parse(text, defaults=BESIDE)
    objective.build(CLASSES, DIM)
    return objective.to(dtype)


def drawn(i, mean, std):
    return mean + std * i.normal


def by_margin(margin, filter_above=None):
    return lambda i: softmax.margin_softmax_loss(
        i.embeddings, i.prototypes, i.labels, margin(i) if callable(margin) else margin, 8.0, 0.1, filter_above
    )


# words with options other than their defaults, and the function called by hand with half the margin
BY_HAND = {
    "softmax": lambda i: softmax.linear_softmax_loss(i.embeddings, i.prototypes, i.bias, i.labels, 0.1),
    "modified_softmax": lambda i: softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, 0.1),
    "a_softmax:m=3,first=100,last=2,decay=0.1": lambda i: softmax.a_softmax_loss(
        i.embeddings, i.prototypes, i.labels, 3, 100 / 11, 0.1
    ),
    "norm_softmax": by_margin(Margin()),
    "sphereface:m=1.6": by_margin(Margin(m1=1.3, beyond_pi="wrap")),
    "cosface:m=0.2,filter=0.1": by_margin(Margin(m3=0.1), 0.1),
    "arcface:m=0.8,filter=0.1": by_margin(Margin(m2=0.4, beyond_pi="wrap"), 0.1),
    "combined:m1=1.2,m2=0.8,m3=0.4,filter=0.1": by_margin(Margin(1.1, 0.4, 0.2, beyond_pi="wrap"), 0.1),
    "subcenter:m=0.8,filter=0.1": by_margin(Margin(m2=0.4, beyond_pi="wrap"), 0.1),
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
    "elasticface:m=0.4,std=0.1": by_margin(lambda i: Margin(m2=drawn(i, 0.2, 0.05), beyond_pi="wrap")),
    "elastic_cosface:m=0.2,std=0.1": by_margin(lambda i: Margin(m3=drawn(i, 0.1, 0.05))),
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
    assert {text.partition(":")[0] for text in BY_HAND} == set(LOSSES)
    for text in BY_HAND:
        assert {*re.findall(r"(\w+)=", text)} == LOSSES[text.partition(":")[0]].options.keys() - {*SHARED}


@pytest.mark.parametrize("text", list(BY_HAND))
def test_a_loss_by_its_name_is_the_function_with_these_options(text):
    i = example()
    name = text.partition(":")[0]
    beside = "triplet+" if LOSSES[name].kind != "regulariser" else "modified_softmax+"
    colon, weighted = (":0.25,", text) if ":" in text else (":0.25", f"{text}:")
    if name == "triplet":
        beside = "supcon+"
    found = made(beside + weighted.replace(":", colon, 1))(i, GROWTH)
    expected = 0.25 * BY_HAND[text](i)
    assert expected != 0
    others = {
        "triplet+": lambda: pairs.triplet_loss(i.embeddings, i.labels),
        "supcon+": lambda: pairs.supcon_loss(i.embeddings, i.labels),
        "modified_softmax+": lambda: BY_HAND["modified_softmax"](i),
    }
    torch.testing.assert_close(found, expected + others[beside](), rtol=1e-6, atol=0)  # states begin in float32


def test_any_margin_can_be_trained():
    i, margin = example(), Margin(1.2, 0.8, 0.4)
    expected = softmax.margin_softmax_loss(i.embeddings, i.prototypes, i.labels, Margin(1.1, 0.4, 0.2), 8.0)
    found = margin_softmax(margin, scale=8.0)(i, GROWTH)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_sum_is_the_sum_of_its_terms_each_with_its_weight():
    i = example()
    one, other, third = (made(text)(i) for text in ("arcface", "triplet", "supcon"))
    found = made("triplet:0.5+arcface:3+supcon:2")(i)
    torch.testing.assert_close(found, 0.5 * other + 3 * one + 2 * third, rtol=1e-12, atol=0)


def test_states_move_in_training_and_stay_in_evaluation():
    i = example(embeddings=example().embeddings.requires_grad_())
    by_hand = {
        "adacos": lambda s: adaptive.adacos_loss(i.embeddings, i.prototypes, i.labels, s["scale"])[1:],
        "curricularface": lambda s: adaptive.curricularface_loss(i.embeddings, i.prototypes, i.labels, s["t"])[1:],
        "adaface": lambda s: adaptive.adaface_loss(i.embeddings, i.prototypes, i.labels, s["mean"], s["std"])[1:],
    }
    for name, function in by_hand.items():
        objective = made(name)
        term = objective.classifier
        for _ in range(3):
            before = dict(term.named_buffers())
            objective.eval()(i)
            assert dict(term.named_buffers()) == before
            objective.train()(i)
            torch.testing.assert_close(tuple(term.buffers()), function(before), rtol=1e-12, atol=0)
            assert not any(value.requires_grad for value in term.buffers())
            assert not term.state_dict()
    stateless = set(LOSSES) - set(by_hand) - {"center"}
    assert not any(LOSSES[name].state(CLASSES, DIM) for name in stateless)


def test_labels_are_not_smoothed_in_evaluation():
    i = example()
    objective = made("norm_softmax").eval()
    expected = softmax.margin_softmax_loss(i.embeddings, i.prototypes, i.labels, Margin(), 8.0)
    torch.testing.assert_close(objective(i), expected, rtol=1e-12, atol=0)


def test_centres_begin_at_0_and_move_after_the_loss():
    i = example()
    objective = made("modified_softmax+center:1,rate=0.25")
    (_, term) = list(objective)[1]
    assert not term.centers.any()
    centers = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    classify = softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, 0.1)
    for _ in range(2):
        loss = objective(i)
        expected = torch.stack(
            [(x - centers[y]).square().sum() / 2 for x, y in zip(i.embeddings, i.labels, strict=True)]
        )
        torch.testing.assert_close(loss - classify, expected.mean(), rtol=1e-9, atol=0)
        before = centers.clone()
        for j in range(CLASSES):
            members = [x for x, y in zip(i.embeddings, i.labels.tolist(), strict=True) if y == j]
            for x in members:
                centers[j] -= 0.25 * (before[j] - x) / (1 + len(members))
        torch.testing.assert_close(term.centers, centers, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weight", [0.003, 5.0])
def test_learnt_centres_get_their_displacement_as_gradient_whatever_the_weight(weight):
    i = example(centers=example().centers.requires_grad_())
    i = i._replace(embeddings=i.embeddings.requires_grad_())
    made(f"softmax+center_learnt:{weight}")(i).backward()
    fixed = i._replace(embeddings=i.embeddings.detach().requires_grad_(), centers=i.centers.detach())
    (made("softmax")(fixed) + weight * BY_HAND["center_learnt"](fixed)).backward()
    torch.testing.assert_close(i.embeddings.grad, fixed.embeddings.grad, rtol=1e-12, atol=0)
    expected = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    for x, y in zip(fixed.embeddings.detach(), i.labels.tolist(), strict=True):
        expected[y] += (fixed.centers[y] - x) / (1 + i.labels.tolist().count(y))
    torch.testing.assert_close(i.centers.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("words", ["arcface+triplet+supcon", "magface+marginal", "a_softmax+center+range", "circle"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_of_narrow_embeddings_add_up_to_a_finite_gradient(words, dtype):
    i = example(torch.float32)
    x = (i.embeddings * 2.0**-20).to(dtype).requires_grad_()
    loss = made(words, torch.float32)(i._replace(embeddings=x))
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("text", list(BY_HAND))
def test_an_example_of_weight_0_is_as_if_it_were_not_there(text):
    beside = "modified_softmax+" if LOSSES[text.partition(":")[0]].kind == "regulariser" else ""
    i = example()
    mask = torch.tensor([True, True, True, True, False, True])
    few = Batch(i.embeddings[mask], i.labels[mask], *i[2:6], normal=i.normal[mask])
    masked = i._replace(weights=mask, labels=torch.where(mask, i.labels, 99))
    one, other = made(beside + text), made(beside + text)
    torch.testing.assert_close(one(masked), other(few), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(list(one.buffers()), list(other.buffers()), rtol=1e-12, atol=1e-15)
