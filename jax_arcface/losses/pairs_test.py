"""Pair losses against float64 numpy, a pair or a triplet at a time; finite for whatever is finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import hmean

from jax_arcface.losses.pairs import (
    circle_loss,
    contrastive_loss,
    marginal_loss,
    multi_similarity_loss,
    range_loss,
    supcon_loss,
    triplet_loss,
)

BATCH, DIMENSION = 8, 3
LABEL_SETS = {
    "several": np.array([7, 0, 7, -3, 0, 999_999, 7, -3]),  # 999,999 is alone
    "one class": np.full(BATCH, 5),
    "all different": np.arange(BATCH),
    "two classes": np.array([1, 1, 1, 1, 0, 0, 0, 0]),
}


def example(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(BATCH, DIMENSION)) * rng.uniform(0.2, 5, (BATCH, 1))


# The oracles: loops over indices, written from the equations -------------------------------------------------------


def unit(vector):
    length = np.sqrt(sum(entry**2 for entry in vector))
    return vector / length if length else vector


def cos(x, i, j):
    return float(unit(x[i]) @ unit(x[j]))


def squared(x, i, j):
    return sum((unit(x[i]) - unit(x[j])) ** 2)


def angle(x, i, j):
    return np.arccos(np.clip(cos(x, i, j), -1, 1))


def positives(y, i):
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def negatives(y, i):
    return [j for j in range(len(y)) if y[j] != y[i]]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def numpy_contrastive(x, y, m=1.0, distance="l2"):
    own, other = [], []
    for i in range(len(y)):
        for j in range(i):
            d = np.sqrt(squared(x, i, j)) if distance == "l2" else angle(x, i, j)
            if y[i] == y[j]:
                own.append(d**2 / 2)
            else:
                other.append(max(0, m - d) ** 2 / 2)
    return mean(own) + mean(other)


def numpy_triplets(x, y, distance, mining):
    d = squared if distance == "l2" else angle
    if mining == "all":
        return [(a, p, n) for a in range(len(y)) for p in positives(y, a) for n in negatives(y, a)]
    triplets = []
    for a in range(len(y)):
        others = negatives(y, a)
        if mining == "hard" and positives(y, a) and others:
            p = max(positives(y, a), key=lambda p: d(x, a, p))
            triplets.append((a, p, min(others, key=lambda n: d(x, a, n))))
        for p in positives(y, a) if mining == "semi_hard" and others else []:
            farther = [n for n in others if d(x, a, n) > d(x, a, p)]
            nearest = min(farther, key=lambda n: d(x, a, n)) if farther else max(others, key=lambda n: d(x, a, n))
            triplets.append((a, p, nearest))
    return triplets


def numpy_triplet(x, y, m=0.35, distance="angular", mining="all"):
    d = squared if distance == "l2" else angle
    losses = [max(0, d(x, a, p) + m - d(x, a, n)) for a, p, n in numpy_triplets(x, y, distance, mining)]
    return mean([loss for loss in losses if loss > 0] if mining == "all" else losses)


def numpy_circle(x, y, m=0.25, gamma=256.0, constant=None):
    """`constant`: the embeddings that the weights a are taken from."""
    constant = x if constant is None else constant
    losses = []
    for i in range(len(y)):
        push = [gamma * max(0, cos(constant, i, n) + m) * (cos(x, i, n) - m) for n in negatives(y, i)]
        pull = [-gamma * max(0, 1 + m - cos(constant, i, p)) * (cos(x, i, p) - 1 + m) for p in positives(y, i)]
        if push and pull:
            losses.append(np.logaddexp(0, logsumexp([n + p for n in push for p in pull])))
    return mean(losses)


def numpy_multi_similarity(x, y, alpha=2.0, beta=50.0, base=1.0, epsilon=0.1):
    losses = []
    for i in range(len(y)):
        loss = 0.0
        own, other = [cos(x, i, p) for p in positives(y, i)], [cos(x, i, n) for n in negatives(y, i)]
        if own and other:
            loss += np.log(1 + sum(np.exp(-alpha * (c - base)) for c in own if c < max(other) + epsilon)) / alpha
            loss += np.log(1 + sum(np.exp(beta * (c - base)) for c in other if c > min(own) - epsilon)) / beta
        losses.append(loss)
    return mean(losses)


def numpy_supcon(x, y, tau=0.1):
    losses = []
    for i in range(len(y)):
        total = sum(np.exp(cos(x, i, a) / tau) for a in range(len(y)) if a != i)
        if positives(y, i):
            losses.append(-mean([np.log(np.exp(cos(x, i, p) / tau) / total) for p in positives(y, i)]))
    return mean(losses)


def numpy_marginal(x, y, theta=1.2, xi=0.3):
    total, batch = 0.0, len(y)
    for i in range(batch):
        for j in range(batch):
            if i != j:
                total += max(0, xi - (1 if y[i] == y[j] else -1) * (theta - squared(x, i, j)))
    return total / (batch**2 - batch)


def numpy_range(x, y, k=2, alpha=5e-5, beta=1e-4, margin=2e4):
    within, means = 0.0, []
    for label in sorted(set(y)):
        rows = x[y == label]
        distances = sorted(sum((rows[i] - rows[j]) ** 2) for i in range(len(rows)) for j in range(i))
        if distances:
            within += hmean(distances[-k:])
        means.append(rows.mean(axis=0))
    between = [sum((means[i] - means[j]) ** 2) for i in range(len(means)) for j in range(i)]
    return alpha * within + (beta * max(0, margin - min(between)) if between else 0)


CASES = {
    "contrastive": (contrastive_loss, numpy_contrastive, {}),
    "triplet": (triplet_loss, numpy_triplet, {}),
    "triplet, hard": (triplet_loss, numpy_triplet, {"mining": "hard"}),
    "triplet, semi_hard": (triplet_loss, numpy_triplet, {"m": 0.5, "mining": "semi_hard"}),
    "circle": (circle_loss, numpy_circle, {"gamma": 20.0}),
    "multi_similarity": (multi_similarity_loss, numpy_multi_similarity, {"beta": 10.0, "base": 0.5}),
    "supcon": (supcon_loss, numpy_supcon, {"tau": 0.3}),
    "marginal": (marginal_loss, numpy_marginal, {}),
    "range": (range_loss, numpy_range, {"k": 4, "alpha": 0.7, "beta": 0.3, "margin": 9.0}),
}
MORE_CASES = {
    "contrastive, angular": (contrastive_loss, numpy_contrastive, {"m": 1.5, "distance": "angular"}),
    "triplet, l2": (triplet_loss, numpy_triplet, {"m": 0.2, "distance": "l2"}),
    "triplet, l2, hard": (triplet_loss, numpy_triplet, {"m": 0.2, "distance": "l2", "mining": "hard"}),
    "triplet, l2, semi_hard": (triplet_loss, numpy_triplet, {"m": 0.3, "distance": "l2", "mining": "semi_hard"}),
    "circle, by default": (circle_loss, numpy_circle, {}),
    "multi_similarity, by default": (multi_similarity_loss, numpy_multi_similarity, {}),
    "supcon, by default": (supcon_loss, numpy_supcon, {}),
    "range, by default": (range_loss, numpy_range, {}),
}


def values_and_gradients(x, labels, cases):
    return {
        name: jax.value_and_grad(functools.partial(loss, **options))(x, labels)
        for name, (loss, _, options) in cases.items()
    }


# compiled once for each dtype and shape
everything = jax.jit(functools.partial(values_and_gradients, cases=CASES))
even_more = jax.jit(functools.partial(values_and_gradients, cases=CASES | MORE_CASES))


def numpy_gradient(f, x):
    """By central differences, an entry at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        gradient[i] = (f(x + step) - f(x - step)) / 2e-6
    return gradient


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS)
@pytest.mark.parametrize("name", CASES | MORE_CASES)
def test_value_and_gradient_match_numpy(name, labels):
    _, oracle, options = (CASES | MORE_CASES)[name]
    x = example()
    with jax.enable_x64(True):
        value, gradient = even_more(x, labels)[name]
    assert value == pytest.approx(oracle(x, labels, **options), rel=1e-12, abs=1e-15)
    constant = {"constant": x} if oracle is numpy_circle else {}
    expected = numpy_gradient(lambda x: oracle(x, labels, **options, **constant), x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8 * (1 + abs(expected).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_narrow_inputs_are_widened(dtype):
    x = jnp.asarray(example(), dtype)
    results = everything(x, LABEL_SETS["several"])
    with jax.enable_x64(True):
        wide = jax.tree.map(np.asarray, even_more(np.float64(x), LABEL_SETS["several"]))
    for name, (value, gradient) in results.items():
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        assert value == pytest.approx(float(wide[name][0]), rel=2e-5), name
        rounding = max(1e-4, float(jnp.finfo(dtype).eps))
        expected = wide[name][1]
        np.testing.assert_allclose(np.float64(gradient), expected, rounding, 1e-4 * abs(expected).max(), err_msg=name)


def test_vmap_over_batches():
    x = np.stack([example(seed) for seed in range(4)]).astype(np.float32)
    labels = np.stack(list(LABEL_SETS.values()))

    @jax.jit
    @jax.vmap
    def mapped(x, labels):
        return {name: loss(x, labels, **options) for name, (loss, _, options) in CASES.items()}

    for name, values in mapped(x, labels).items():
        expected = [everything(x[i], labels[i])[name][0] for i in range(4)]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6, err_msg=name)


# Whatever is finite in, is finite out ------------------------------------------------------------------------------


def awkward(dtype):
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_subnormal)
    one, other = np.array([1.0, 1, 1]), np.array([1.0, -1, 0])
    x = example()
    return {
        "zero": 0 * x,
        "identical": np.tile(x[0], (BATCH, 1)),
        "opposite": np.outer([1, -1] * 4, x[0]),
        "nearly identical": one + 1e-3 * x,
        "largest": np.outer([1, -1] * 4, largest * one),
        "tiny": np.outer([1, -1] * 4, tiny * one),
        "of all lengths": np.stack(
            [0 * one, one, -one, largest * one, -largest * other, tiny * one, tiny * other, other]
        ),
        "short": 2.0**-10 * x if dtype == jnp.float16 else 2.0**-99 * np.sign(x),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_finite_for_every_finite_input(dtype):
    for kind, x in awkward(dtype).items():
        for labels in LABEL_SETS.values():
            for name, result in everything(jnp.asarray(x, dtype), labels).items():
                for leaf in result:
                    assert np.isfinite(np.float64(leaf)).all(), (name, kind, labels)


def test_what_is_not_a_number_stays_so():
    x = np.float32(example())
    x[5, 1] = np.nan
    for name, (value, gradient) in everything(x, LABEL_SETS["two classes"]).items():
        assert np.isnan(value), name
        assert np.isnan(gradient).any(), name


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_of_none_or_of_one_has_no_loss_and_no_gradient(size):
    for name, (value, gradient) in everything(np.float32(example()[:size]), np.full(size, 3)).items():
        assert value == 0, name
        assert not gradient.any(), name


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("one class", ["triplet", "circle", "multi_similarity"]),
        ("all different", ["triplet", "circle", "multi_similarity", "supcon"]),
    ],
)
def test_without_a_pair_of_the_needed_kind_there_is_no_loss_and_no_gradient(labels, names):
    for name, (value, gradient) in everything(np.float32(example()), LABEL_SETS[labels]).items():
        if name.split(",")[0] in names:
            assert value == 0, name
            assert not gradient.any(), name


def test_two_classes_at_one_point_have_no_gradient_in_the_contrastive_loss():
    x, labels = np.float32(np.tile([0.6, 0.8], (2, 1))), np.array([0, 1])
    of = jax.jit(jax.value_and_grad(contrastive_loss), static_argnums=3)
    for distance in ("l2", "angular"):
        value, gradient = of(x, labels, 1.5, distance)
        assert value == 1.5**2 / 2
        assert not gradient.any()


# Known values and promises -----------------------------------------------------------------------------------------


def test_contrastive_wants_squares_of_angles():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = (np.pi / 2) ** 2 / 2 + (0.5**2 / 2 + 0) / 2  # of (0, 1); of (1, 2), and (0, 2) is far enough
    assert contrastive_loss(x, [0, 0, 1], np.pi / 2 + 0.5, "angular") == pytest.approx(expected, rel=1e-6)


def test_circle_of_one_pair_of_each_kind():
    """Softplus of gamma (a_n (c_n - m) - a_p (c_p - 1 + m)), here with c_p = 0.6 and c_n = 0."""
    x = jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    logit = 2.0 * (0.25 * -0.25 - 0.65 * -0.15)
    loss, gradient = jax.jit(jax.value_and_grad(circle_loss))(x, np.array([0, 0, 1]), 0.25, 2.0)
    assert loss == pytest.approx(np.log1p(np.exp(logit)), rel=1e-5)
    # the weights are constants: x_2 is pushed from both by gamma a_n, halved by the mean over two anchors
    np.testing.assert_allclose(gradient[2], 2.0 * 0.25 * expit(logit) / 2 * np.array([1.6, 0.8, 0]), rtol=1e-5)


def test_supcon_with_many_alike_is_the_logarithm_of_their_number():
    assert supcon_loss(np.ones((5, 2), np.float32), [1, 1, 1, 2, 2]) == pytest.approx(np.log(4), rel=1e-6)


triplet_gradient = jax.jit(jax.grad(triplet_loss), static_argnums=(3, 4))


@pytest.mark.parametrize(
    ("mining", "x", "labels", "triplets"),
    [
        ("hard", [[1, 0], [0, 1], [0, 1], [0.6, 0.8]], [0, 0, 0, 1], [(0, 1, 3), (1, 0, 3), (2, 0, 3)]),
        ("hard", [[1, 0], [0.6, 0.8], [0, 1], [0, 1]], [0, 0, 1, 2], [(0, 1, 2), (1, 0, 2)]),
        ("semi_hard", [[1, 0], [0.6, 0.8], [0, 1], [0, 1]], [0, 0, 1, 2], [(0, 1, 2), (1, 0, 2)]),  # farther; farthest
        ("semi_hard", [[1, 0], [0, 1], [0, 1], [-1, 0]], [0, 0, 1, 2], [(0, 1, 3), (1, 0, 3)]),  # equal is not
    ],
)
def test_the_gradient_goes_to_the_first_of_equals(mining, x, labels, triplets):
    x = np.float32(x)
    gradient = triplet_gradient(x, np.array(labels), 1.5, "l2", mining)

    def of_triplets(x):
        return mean([max(0, squared(x, a, p) + 1.5 - squared(x, a, n)) for a, p, n in triplets])

    np.testing.assert_allclose(gradient, numpy_gradient(of_triplets, np.float64(x)), atol=1e-5)


def test_semi_hard_takes_what_is_farther_else_the_farthest():
    x = np.array([[np.cos(t), np.sin(t)] for t in (0.0, 0.5, 0.7, 0.9)])
    expected = ((0.5 + 0.35 - 0.7) + (0.5 + 0.35 - 0.4)) / 2  # 2 is nearest beyond 1; for 1 no negative is beyond 0
    assert triplet_loss(x, [0, 0, 1, 2], mining="semi_hard") == pytest.approx(expected, rel=1e-5)


def test_range_counts_the_first_of_equal_pairs():
    x = jnp.array([[0.0], [1.0], [-1.0]])  # distances 1, 1 and 4: the pair (0, 1) counts beside (1, 2)
    value, gradient = jax.jit(jax.value_and_grad(range_loss), static_argnums=2)(x, np.array([4, 4, 4]), 2, 1.0)
    assert value == pytest.approx(2 / (1 + 1 / 4))
    # d hmean / d d_i = hmean^2 / (2 d_i^2): 1.28 and 0.08
    np.testing.assert_allclose(gradient.ravel(), [-2 * 1.28, 2 * 1.28 + 4 * 0.08, -4 * 0.08], rtol=1e-5)


def test_range_of_a_class_with_a_distance_of_zero_among_its_largest_is_zero():
    x = jnp.array([[3.0, 1.0], [3.0, 1.0], [0.0, 0.0], [5.0, 5.0], [5.0, 7.0]])
    labels = jnp.array([0, 0, 0, 1, 1])
    of_both = jax.jit(jax.value_and_grad(functools.partial(range_loss, alpha=1.0, beta=0.0)), static_argnums=2)
    for k, expected in ((2, 10.0 + 4.0), (3, 4.0)):
        value, gradient = of_both(x, labels, k)
        assert value == pytest.approx(expected)
        assert bool(gradient[:3].any()) == (k == 2)
        np.testing.assert_allclose(gradient[3:], [[0, -4], [0, 4]])


def test_range_sees_small_distances_far_from_the_origin():
    x = np.float32([[4096.0, 0], [4096.25, 0], [4097.0, 0]])  # squares differ by less than float32 resolves
    expected = 2 / (1 / 1 + 1 / 0.75**2)
    assert range_loss(x, [0, 0, 0], alpha=1.0, beta=0.0) == pytest.approx(expected, rel=1e-6)


def test_labels_may_be_any_integers():
    x = np.float32(example())
    expected = marginal_loss(x, LABEL_SETS["two classes"])
    for labels in (
        [2**40] * 4 + [0] * 4,  # 2^40 is 0 in 32 bits
        np.array([2**63] * 4 + [2**63 + 1] * 4, np.uint64),
        np.array([200] * 4 + [0] * 4, np.uint8),
        jnp.array([-(2**31)] * 4 + [2**31 - 1] * 4),
    ):
        assert marginal_loss(x, labels) == expected


@pytest.mark.parametrize("name", ["triplet", "triplet, semi_hard", "range"])
def test_neither_pass_holds_all_triplets_or_all_differences(name):
    batch = dim = 128
    loss, _, options = CASES[name]
    of_embeddings = jax.jit(jax.grad(functools.partial(loss, **options)))
    compiled = of_embeddings.lower(jnp.zeros((batch, dim)), jnp.zeros(batch, int)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * batch**3 / 4


# What is refused ---------------------------------------------------------------------------------------------------

LOSSES = [contrastive_loss, triplet_loss, circle_loss, multi_similarity_loss, supcon_loss, marginal_loss, range_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_and_labels_that_do_not_fit_are_refused(loss):
    for of in (loss, jax.jit(loss)):
        with pytest.raises(ValueError, match=r"embeddings have shape \(4,\); they must be \[B, D\]"):
            of(np.ones(4), np.zeros(4, int))
        for shape in ((3,), (4, 1), ()):
            with pytest.raises(ValueError, match=r"labels have shape \(.*\); .*: \(4,\)"):
                of(np.ones((4, 2)), np.zeros(shape, int))
        for labels in (np.zeros(4), np.zeros(4, bool)):
            with pytest.raises(TypeError, match=r"labels have dtype .*; they must be integers"):
                of(np.ones((4, 2)), labels)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (contrastive_loss, {"m": -1}, "m is -1; it must be at least 0 and finite"),
        (contrastive_loss, {"m": np.inf}, "m is inf"),
        (contrastive_loss, {"distance": "l1"}, "distance is 'l1'; it must be one of 'l2', 'angular'"),
        (triplet_loss, {"m": np.float32(-1)}, "m is -1.0"),
        (triplet_loss, {"distance": "cosine"}, "distance is 'cosine'"),
        (triplet_loss, {"mining": "easy"}, "mining is 'easy'; it must be one of 'all', 'hard', 'semi_hard'"),
        (circle_loss, {"m": -0.1}, "m is -0.1"),
        (circle_loss, {"gamma": np.nan}, "gamma is nan"),
        (multi_similarity_loss, {"alpha": 0}, "alpha is 0; it must be > 0 and finite"),
        (multi_similarity_loss, {"beta": -1.0}, "beta is -1.0"),
        (multi_similarity_loss, {"epsilon": -0.5}, "epsilon is -0.5"),
        (supcon_loss, {"tau": 0.0}, "tau is 0.0; it must be > 0 and finite"),
        (marginal_loss, {"theta": -1}, "theta is -1"),
        (marginal_loss, {"xi": -1}, "xi is -1"),
        (range_loss, {"k": 0}, "k is 0; it must be a whole number of at least 1"),
        (range_loss, {"k": 1.5}, "k is 1.5"),
        (range_loss, {"alpha": -1}, "alpha is -1"),
        (range_loss, {"beta": -1}, "beta is -1"),
        (range_loss, {"margin": -1}, "margin is -1"),
    ],
)
def test_parameters_out_of_range_are_refused(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(np.ones((4, 2)), np.zeros(4, int), **options)
