"""Weights and reductions of every loss: masks against smaller batches, weights against float64 loops over indices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_arcface import losses as library
from jax_arcface.losses import adaptive, fused, pairs, regularizers, softmax
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.reduction import checked_weights, reduce

BATCH, CLASSES, DIMENSION = 9, 4, 3
LABELS = np.array([0, 1, 2, 0, 1, 0, 3, 2, 0])
KEPT = np.array([1, 1, 0, 1, 1, 0, 1, 0, 1], bool)
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 1.5, 0.3, 1.0, 0.7, 2.5])
ARCFACE = Margin.arcface(0.5)

# name: (embeddings, prototypes, labels, options) -> the loss, or the loss and a state
LOSSES = {
    "margin_softmax": lambda x, p, y, **o: softmax.margin_softmax_loss(x, p, y, ARCFACE, 8.0, 0.1, 0.9, **o),
    "softmax": lambda x, p, y, **o: softmax.softmax_loss(x[:, [0, 1, 2, 0]], y, **o),
    "linear_softmax": lambda x, p, y, **o: softmax.linear_softmax_loss(x, p, p[:, 0], y, **o),
    "modified_softmax": lambda x, p, y, **o: softmax.modified_softmax_loss(x, p, y, 0.1, **o),
    "a_softmax": lambda x, p, y, **o: softmax.a_softmax_loss(x, p, y, 3, 1.0, **o),
    "fused": lambda x, p, y, **o: fused.fused_margin_softmax_loss(x, p, y, ARCFACE, 8.0, 0.1, block_size=3, **o),
    "adacos": lambda x, p, y, **o: adaptive.adacos_loss(x, p, y, 2.0, **o),
    "curricularface": lambda x, p, y, **o: adaptive.curricularface_loss(x, p, y, 0.2, ARCFACE, 8.0, 0.3, **o),
    "magface": lambda x, p, y, **o: adaptive.magface_loss(x, p, y, shortest=0.5, longest=4.0, scale=8.0, **o),
    "adaface": lambda x, p, y, **o: adaptive.adaface_loss(x, p, y, 2.0, 1.0, h=0.5, rate=0.3, scale=8.0, **o),
    "center": lambda x, p, y, **o: regularizers.center_loss(x, p, y, **o),
    "intra": lambda x, p, y, **o: regularizers.intra_loss(x, p, y, **o),
    "inter": lambda x, p, y, **o: regularizers.inter_loss(p, y, 3, **o),
    "mhe": lambda x, p, y, **o: regularizers.hyperspherical_energy(p, y, 3, **o),
    "contrastive": lambda x, p, y, **o: pairs.contrastive_loss(x, y, **o),
    "contrastive, angular": lambda x, p, y, **o: pairs.contrastive_loss(x, y, 1.5, "angular", **o),
    "triplet": lambda x, p, y, **o: pairs.triplet_loss(x, y, 0.4, **o),
    "triplet, hard": lambda x, p, y, **o: pairs.triplet_loss(x, y, 0.4, mining="hard", **o),
    "triplet, semi_hard": lambda x, p, y, **o: pairs.triplet_loss(x, y, 0.4, "l2", "semi_hard", **o),
    "circle": lambda x, p, y, **o: pairs.circle_loss(x, y, gamma=8.0, **o),
    "multi_similarity": lambda x, p, y, **o: pairs.multi_similarity_loss(x, y, 2.0, 10.0, 0.5, **o),
    "supcon": lambda x, p, y, **o: pairs.supcon_loss(x, y, **o),
    "marginal": lambda x, p, y, **o: pairs.marginal_loss(x, y, **o),
    "range": lambda x, p, y, **o: pairs.range_loss(x, y, 2, 0.3, 0.2, 9.0, **o),
}
FIRST_STATES = {"adacos": (2.0,), "curricularface": (0.2,), "adaface": (2.0, 1.0)}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def example(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, DIMENSION)) * rng.uniform(0.5, 3, (BATCH, 1))
    return x, rng.normal(size=(CLASSES, DIMENSION))


def loss_and_state(name, x, p, y, **options):
    result = LOSSES[name](x, p, y, **options)
    return (result[0], result[1:]) if name in FIRST_STATES else (result, ())


class Result(NamedTuple):
    loss: jax.Array
    each: jax.Array
    state: tuple
    gradients: tuple  # by embeddings, prototypes and, where there are some, weights


@jax.jit
def everything(x, p, y, w=None):
    """The `Result` of each loss: compiled at once."""

    def mean(arguments, name):
        x, p, *w = arguments
        loss, state = loss_and_state(name, x, p, y, weights=w[0] if w else None)
        return loss, state

    arguments = (x, p) if w is None else (x, p, w)
    found = {}
    for name in LOSSES:
        (loss, state), gradients = jax.value_and_grad(mean, has_aux=True)(arguments, name)
        each, _ = loss_and_state(name, x, p, y, weights=w, reduction="none")
        found[name] = Result(loss, each, state, gradients)
    return found


@functools.cache
def computed(which):
    x, p = example()
    if which == "kept":
        return everything(x[KEPT], p, LABELS[KEPT])
    if which == "weighted":
        return everything(x, p, LABELS, WEIGHTS)
    spoilt = np.where(KEPT[:, None], x, np.nan), p, np.where(KEPT, LABELS, -1)
    return everything(*spoilt, {"masked": 1.0, "nothing": 0.0}[which] * KEPT)


def test_every_loss_of_the_library_is_here():
    called = " ".join(str(f.__code__.co_names) for f in LOSSES.values())
    public = {name for name in library.__all__ if name.endswith(("_loss", "_energy"))}
    assert {name for name in public if name not in called} == set()


@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_batch_is_the_smaller_one(name):
    loss, each, state, (dx, dp, dw) = computed("masked")[name]
    wanted, wanted_each, wanted_state, (wanted_dx, wanted_dp) = computed("kept")[name]
    for got, there in ((loss, wanted), (each[KEPT], wanted_each), (dx[KEPT], wanted_dx), (dp, wanted_dp)):
        np.testing.assert_allclose(got, there, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, wanted_state, rtol=1e-12)
    assert wanted != 0
    for got in (each, dx, dw):
        assert not got[~KEPT].any()


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_the_examples_have_the_mean_of_the_batch(name):
    for which, w in (("kept", np.ones(KEPT.sum())), ("masked", KEPT), ("weighted", WEIGHTS)):
        loss, each, *_ = computed(which)[name]
        assert loss.shape == ()
        assert each.shape == w.shape
        np.testing.assert_allclose(each.sum() / w.sum(), loss, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_weight_above_zero_there_is_no_loss_no_gradient_and_no_new_state(name):
    loss, each, state, gradients = computed("nothing")[name]
    assert loss == 0
    assert not each.any()
    assert not any(gradient.any() for gradient in gradients)
    np.testing.assert_array_equal(state, FIRST_STATES.get(name, ()))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_none_has_the_loss_zero(name):
    empty = np.zeros((0, DIMENSION)), example()[1], np.zeros(0, int)
    for w in (None, np.zeros(0)):
        loss, state = loss_and_state(name, *empty, weights=w)
        assert loss == 0
        np.testing.assert_array_equal(state, FIRST_STATES.get(name, ()))
    assert loss_and_state(name, *empty, reduction="none")[0].shape == (0,)


def test_both_modes_differentiate_by_embeddings_prototypes_and_weights():
    x, p = example()
    rng = np.random.default_rng(1)
    tangents = [rng.normal(size=v.shape) for v in (x, p, WEIGHTS)]

    @jax.jit
    def forward(x, p, w, tangents):
        names = [name for name in LOSSES if name != "fused"]  # reverse mode only
        losses = lambda *v: {n: loss_and_state(n, *v[:2], LABELS, weights=v[2])[0] for n in names}  # noqa: E731
        return jax.jvp(losses, (x, p, w), tuple(tangents))[1]

    gradients = {name: result.gradients for name, result in computed("weighted").items()}
    tangents[2] = WEIGHTS  # by a weight of 0 there is no derivative, and none may fall below
    steps = [[v + h * t for v, t in zip((x, p, WEIGHTS), tangents, strict=True)] for h in (1e-6, -1e-6)]
    ahead, behind = (everything(x, p, LABELS, w) for x, p, w in steps)
    for name, slope in forward(x, p, WEIGHTS, tangents).items():
        reverse = sum(np.vdot(gradient, t) for gradient, t in zip(gradients[name], tangents, strict=True))
        np.testing.assert_allclose(slope, reverse, rtol=1e-9, atol=1e-12, err_msg=name)
        if name not in {*FIRST_STATES, "circle"}:  # where the state, or a factor, is a constant
            difference = (ahead[name].loss - behind[name].loss) / 2e-6
            np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_fused_loss_has_the_gradient_by_weights_of_the_dense_loss():
    x, p = example()
    got, wanted = (
        jax.grad(lambda w, f=f: f(x, p, LABELS, ARCFACE, 8.0, weights=w))(WEIGHTS)
        for f in (fused.fused_margin_softmax_loss, softmax.margin_softmax_loss)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-10)
    assert got[WEIGHTS == 0] == 0


def test_weights_are_mapped_over():
    x, p = example()
    stack = np.stack([WEIGHTS, KEPT, 0 * WEIGHTS])
    names = ("margin_softmax", "adacos", "triplet, semi_hard", "range")

    @jax.vmap
    def values(w):
        return jnp.stack([loss_and_state(name, x, p, LABELS, weights=w)[0] for name in names])

    found = jax.jit(values)(stack)
    for i, which in enumerate(("weighted", "masked", "nothing")):
        np.testing.assert_allclose(found[i], [computed(which)[name].loss for name in names], rtol=1e-10)


# Weights against the equations -------------------------------------------------------------------------------------


def cosine(u, v):
    return u @ v / np.sqrt((u @ u) * (v @ v))


def weighted(values):
    """sum w l / sum w of pairs (w, l)."""
    values = list(values)
    return sum(w * loss for w, loss in values) / sum(w for w, _ in values)


def numpy_margin_softmax(x, p, y, w):
    def of_example(i):
        z = [8 * cosine(x[i], p[j]) for j in range(CLASSES)]
        phi = np.arccos(z[y[i]] / 8) + 0.5
        own = z[y[i]] = 8 * (np.cos(phi) if phi <= np.pi else -np.cos(phi) - 2)
        z = [0 if j != y[i] and z[j] > 8 * 0.9 else z[j] for j in range(CLASSES)]
        lse = np.log(sum(np.exp(z)))
        return 0.9 * (lse - own) + 0.1 * (lse - sum(z) / CLASSES)

    return weighted((w[i], of_example(i)) for i in range(BATCH))


def numpy_contrastive(x, p, y, w):
    d = lambda i, j: np.sqrt(max(0, 2 - 2 * cosine(x[i], x[j])))  # noqa: E731
    two = [(i, j) for i in range(BATCH) for j in range(i) if w[i] * w[j] > 0]
    own = weighted((w[i] * w[j], d(i, j) ** 2 / 2) for i, j in two if y[i] == y[j])
    return own + weighted((w[i] * w[j], max(0, 1 - d(i, j)) ** 2 / 2) for i, j in two if y[i] != y[j])


def triplets(x, y, w, d, mining):
    present = [i for i in range(BATCH) if w[i] > 0]
    for a in present:
        positives = [p for p in present if y[p] == y[a] and p != a]
        negatives = [n for n in present if y[n] != y[a]]
        if mining == "hard":
            positives = sorted(positives, key=lambda p: d(a, p))[-1:]
        for p in positives:
            farther = [n for n in negatives if d(a, n) > d(a, p)]
            chosen = {
                "all": negatives,
                "hard": sorted(negatives, key=lambda n: d(a, n))[:1],
                "semi_hard": sorted(farther, key=lambda n: d(a, n))[:1]
                or sorted(negatives, key=lambda n: d(a, n))[-1:],
            }[mining]
            for n in chosen:
                loss = max(0, d(a, p) + 0.4 - d(a, n))
                if mining != "all" or loss > 0:
                    yield w[a] * w[p] * w[n], loss


def numpy_triplet(mining):
    def loss(x, p, y, w):
        if mining == "semi_hard":
            return weighted(triplets(x, y, w, lambda i, j: 2 - 2 * cosine(x[i], x[j]), mining))
        return weighted(triplets(x, y, w, lambda i, j: np.arccos(cosine(x[i], x[j])), mining))

    return loss


def anchors(y, w):
    for a in range(BATCH):
        others = [j for j in range(BATCH) if j != a and w[j] > 0]
        yield a, [j for j in others if y[j] == y[a]], [j for j in others if y[j] != y[a]]


def numpy_circle(x, p, y, w):
    def of_anchor(a, positives, negatives):
        push = pull = 0
        for j in negatives:
            c = cosine(x[a], x[j])
            push += w[j] * np.exp(8 * max(0, c + 0.25) * (c - 0.25))
        for j in positives:
            c = cosine(x[a], x[j])
            pull += w[j] * np.exp(-8 * max(0, 1.25 - c) * (c - 0.75))
        return np.log(1 + push * pull)

    return weighted((w[a], of_anchor(a, pos, neg)) for a, pos, neg in anchors(y, w) if pos and neg and w[a] > 0)


def numpy_multi_similarity(x, p, y, w):
    def of_anchor(a, positives, negatives):
        if not positives or not negatives:
            return 0
        c = {j: cosine(x[a], x[j]) for j in (*positives, *negatives)}
        hard = [j for j in positives if c[j] < max(c[n] for n in negatives) + 0.1]
        near = [j for j in negatives if c[j] > min(c[q] for q in positives) - 0.1]
        pull = np.log(1 + sum(w[j] * np.exp(-2 * (c[j] - 0.5)) for j in hard)) / 2
        return pull + np.log(1 + sum(w[j] * np.exp(10 * (c[j] - 0.5)) for j in near)) / 10

    return weighted((w[a], of_anchor(a, pos, neg)) for a, pos, neg in anchors(y, w))


def numpy_supcon(x, p, y, w):
    def of_anchor(a, positives, negatives):
        lse = np.log(sum(w[j] * np.exp(cosine(x[a], x[j]) / 0.1) for j in (*positives, *negatives)))
        return weighted((w[j], lse - cosine(x[a], x[j]) / 0.1) for j in positives)

    return weighted((w[a], of_anchor(a, pos, neg)) for a, pos, neg in anchors(y, w) if pos and w[a] > 0)


def numpy_range(x, p, y, w):
    within, means = 0, []
    for label in set(y[w > 0]):
        here = [i for i in range(BATCH) if y[i] == label and w[i] > 0]
        means.append(sum(w[i] * x[i] for i in here) / sum(w[i] for i in here))
        two = sorted((sum((x[i] - x[j]) ** 2), w[i] * w[j]) for i in here for j in here if i < j)[-2:]
        within += sum(share for _, share in two) / sum(share / d for d, share in two) if two else 0
    nearest = min(sum((a - b) ** 2) for i, a in enumerate(means) for b in means[:i])
    return 0.3 * within + 0.2 * max(0, 9 - nearest)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("margin_softmax", numpy_margin_softmax),
        ("contrastive", numpy_contrastive),
        ("triplet", numpy_triplet("all")),
        ("triplet, hard", numpy_triplet("hard")),
        ("triplet, semi_hard", numpy_triplet("semi_hard")),
        ("circle", numpy_circle),
        ("multi_similarity", numpy_multi_similarity),
        ("supcon", numpy_supcon),
        ("range", numpy_range),
    ],
)
def test_weighted_losses_match_numpy(name, oracle):
    x, p = example()
    np.testing.assert_allclose(computed("weighted")[name].loss, oracle(x, p, LABELS, WEIGHTS), rtol=1e-12)


def test_weighted_statistics_match_numpy():
    x, p = example()
    own = np.array([cosine(x[i], p[LABELS[i]]) for i in range(BATCH)])
    others = [sum(np.exp(2 * cosine(x[i], p[j])) for j in range(CLASSES) if j != LABELS[i]) for i in range(BATCH)]
    b, median = np.average(others, weights=WEIGHTS), np.median(np.arccos(own[WEIGHTS > 0]))
    state = {name: computed("weighted")[name].state for name in FIRST_STATES}
    np.testing.assert_allclose(state["adacos"], [np.log(b) / np.cos(min(np.pi / 4, median))], rtol=1e-12)
    np.testing.assert_allclose(
        state["curricularface"], [0.3 * np.average(own, weights=WEIGHTS) + 0.7 * 0.2], rtol=1e-12
    )
    n = np.sqrt((x**2).sum(axis=1))
    mean, freedom = np.average(n, weights=WEIGHTS), WEIGHTS.sum() - (WEIGHTS**2).sum() / WEIGHTS.sum()
    std = np.sqrt(WEIGHTS @ (n - mean) ** 2 / freedom)
    np.testing.assert_allclose(state["adaface"], [0.3 * mean + 0.7 * 2, 0.3 * std + 0.7], rtol=1e-12)


def test_weighted_displacements_of_centres():
    x, centers = example()
    got = regularizers.center_displacements(x, centers, LABELS, weights=WEIGHTS)
    for i, label in enumerate(LABELS):
        wanted = WEIGHTS[i] * (centers[label] - x[i]) / (1 + WEIGHTS[label == LABELS].sum())
        np.testing.assert_allclose(got[i], wanted, rtol=1e-12, atol=1e-15)
    spoilt = np.where(KEPT[:, None], x, np.nan), centers, np.where(KEPT, LABELS, -1)
    masked = regularizers.center_displacements(*spoilt, weights=KEPT)
    np.testing.assert_allclose(masked[KEPT], regularizers.center_displacements(x[KEPT], centers, LABELS[KEPT]))
    assert not masked[~KEPT].any()


# What weights may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint32, np.float16, jnp.bfloat16, np.float64])
def test_any_real_numbers_are_weights(dtype):
    losses = jnp.arange(4.0, dtype=jnp.float32)
    w = checked_weights(np.array([1, 0, 1, 1]).astype(dtype), 4)
    mean = reduce(losses, w, "mean")
    assert mean.dtype == np.float32
    assert mean == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ([1.0, -1.0], ValueError),
        ([1.0, np.nan], ValueError),
        ([np.inf, 1.0], ValueError),
        ([1.0], ValueError),
        (1.0, ValueError),
        ([[1.0], [1.0]], ValueError),
        ([1j, 1.0], TypeError),
        (["a", "b"], TypeError),
    ],
)
def test_wrong_weights_are_refused(weights, error):
    with pytest.raises(error, match="weights"):
        checked_weights(weights, 2)


def test_a_wrong_weight_inside_jit_is_nan():
    f = jax.jit(lambda w: softmax.softmax_loss(np.zeros((2, 3)), np.array([0, 1]), weights=w))
    assert f(np.array([1.0, 0.0])) == pytest.approx(np.log(3))
    for bad in (-1.0, np.nan, np.inf):
        assert np.isnan(f(np.array([1.0, bad])))


def test_a_label_of_no_class_counts_where_its_weight_is_above_zero():
    logits, labels = np.zeros((2, 3)), np.array([0, 3])
    with pytest.raises(ValueError, match="found 3"):
        softmax.softmax_loss(logits, labels, weights=[1.0, 0.5])
    f = jax.jit(lambda w: softmax.softmax_loss(logits, labels, weights=w))
    assert f(np.array([1.0, 0.0])) == pytest.approx(np.log(3))
    assert np.isnan(f(np.array([1.0, 0.5])))


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_reduction_is_refused(name):
    with pytest.raises(ValueError, match="reduction is 'sum'"):
        LOSSES[name](*example(), LABELS, reduction="sum")
