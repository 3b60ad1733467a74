"""Normalisation, cosines, logits and losses, with their gradients; and what numpy and another library say of them."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import jax_arcface
import torch_reference
from jax_arcface.losses import pairs as jax_pairs
from jax_arcface.losses import regularizers as jax_regularizers
from parity_tests.cases import Case, Unavailable, bound_of, renamed
from parity_tests.cases.margins import GRADIENTS, POLICIES, presets
from parity_tests.compare import Difference, compare, difference, differences, direction, jax_side, torch_side
from torch_reference.losses import pairs as torch_pairs
from torch_reference.losses import regularizers as torch_regularizers

SCALE = 16.0
CLASSES, DIM = 5, 7
PML_CLASSES = ("ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "NormalizedSoftmaxLoss", "SubCenterArcFaceLoss")


def batch(dtype: str, subcenters: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [24, D] at angles from 0.2 to pi - 0.2 to their class, prototypes, and labels.

    A random batch in a few dimensions, steered so that every branch past pi is taken. Angles nearer to 0 and pi are
    left to `cases/margins.py`, which starts from the cosine: from embeddings the cosine itself is only known to its
    last digit, whose worth in angle grows as 1 / sin(theta).
    """
    rng = np.random.default_rng(3)
    shape = (CLASSES, DIM) if subcenters == 1 else (CLASSES, subcenters, DIM)
    prototypes = rng.normal(size=shape)
    labels = np.arange(24) % CLASSES
    own = (prototypes if subcenters == 1 else prototypes[:, 0])[labels]
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    aside = rng.normal(size=own.shape)
    aside -= (aside * own).sum(axis=1, keepdims=True) * own
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    theta = rng.permutation(np.linspace(0.2, math.pi - 0.2, 24))[:, None]
    embeddings = (np.cos(theta) * own + np.sin(theta) * aside) * rng.uniform(0.1, 10, (24, 1))
    return embeddings.astype(dtype), prototypes.astype(dtype), labels.astype(np.int64)


@functools.cache
def _jax(name: str, policy: Any, gradient: Any) -> Callable[..., Any]:
    # the margins are arguments, so that all presets share one compiled function
    def logits(x, w, labels, m1, m2, m3):
        margin = jax_arcface.Margin(m1, m2, m3, policy, gradient)
        return jax_arcface.margin_logits(x, w, labels, margin, SCALE)

    def loss(x, w, labels, m1, m2, m3):
        margin = jax_arcface.Margin(m1, m2, m3, policy, gradient)
        return jax_arcface.margin_softmax_loss(x, w, labels, margin, SCALE)

    return {"logits": logits, "loss": loss}[name]


def _torch(name: str, policy: str, gradient: str) -> Callable[..., torch.Tensor]:
    def logits(x, w, labels, m1, m2, m3):
        margin = torch_reference.Margin(m1.item(), m2.item(), m3.item(), policy, gradient)
        return torch_reference.margin_logits(x, w, labels, margin, SCALE)

    def loss(x, w, labels, m1, m2, m3):
        margin = torch_reference.Margin(m1.item(), m2.item(), m3.item(), policy, gradient)
        return torch_reference.margin_softmax_loss(x, w, labels, margin, SCALE)

    return {"logits": logits, "loss": loss}[name]


def _scalars(values: tuple[float, ...], dtype: str) -> list[np.ndarray]:
    return [np.asarray(value, dtype) for value in values]


def _margin_losses(name: str, policy: str, gradient: str, dtype: str) -> Iterator[Difference]:
    x, w, labels = batch(dtype)
    for preset, values in presets(policy).items():
        # m3 = 0.2 is not the same number in float32 and float64; both sides are given the rounded one
        inputs = (x, w, labels, *_scalars(values, dtype))
        here = jax_side(_jax(name, policy, gradient), inputs, (0, 1))
        there = torch_side(_torch(name, policy, gradient), inputs, (0, 1))
        yield from renamed(f"{preset}:", differences(here, there))


def corners(policy: str, m1: float, m2: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [5, 2] at the angles 0, pi, pi / 2 and where m1 theta + m2 = pi, prototypes [2, 2], and labels.

    At the first three the cosines are 1, -1 and 0, exactly. Under `linear` the logit jumps at the last, where the last
    digit of theta decides which side is taken: there the embeddings are to both sides.
    """
    near = 1e-6 if policy == "linear" else 0.0
    turn = np.clip((math.pi - m2) / m1 + np.array([-near, near]), 0, math.pi)
    axes = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    embeddings = np.concatenate([axes, np.stack([np.cos(turn), np.sin(turn)], axis=1)])
    # a turn that is cut off at pi is pi exactly
    embeddings[embeddings[:, 0] == -1, 1] = 0.0
    return 2 * embeddings, np.array([[1.0, 0.0], [0.0, 3.0]]), np.zeros(len(embeddings), np.int64)


def _corners(policy: str, gradient: str) -> Iterator[Difference]:
    for preset, values in presets(policy).items():
        inputs = (*corners(policy, *values[:2]), *_scalars(values, "float64"))
        here = jax_side(_jax("logits", policy, gradient), inputs, (0, 1))
        there = torch_side(_torch("logits", policy, gradient), inputs, (0, 1))
        yield from renamed(f"{preset}:", differences(here, there))


def _smoothed(dtype: str) -> Iterator[Difference]:
    x, w, labels = batch(dtype)
    for smoothing in (0.1, 0.5):
        report = compare(
            lambda x, w, y, s=smoothing: jax_arcface.margin_softmax_loss(
                x, w, y, jax_arcface.Margin.arcface(), SCALE, s
            ),
            lambda x, w, y, s=smoothing: torch_reference.margin_softmax_loss(
                x, w, y, torch_reference.Margin.arcface(), SCALE, s
            ),
            x,
            w,
            labels,
        )
        yield from renamed(f"label smoothing {smoothing}:", report.differences)


def _softmax(dtype: str) -> Iterator[Difference]:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 4)).astype(dtype) * 30, rng.integers(0, 4, 9)
    for smoothing in (0.0, 0.2):
        report = compare(
            functools.partial(jax_arcface.softmax_loss, label_smoothing=smoothing),
            functools.partial(torch_reference.softmax_loss, label_smoothing=smoothing),
            logits,
            labels,
        )
        yield from renamed(f"label smoothing {smoothing}:", report.differences)


def _normalize(dtype: str) -> Iterator[Difference]:
    rng = np.random.default_rng(0)
    for exponent in (0, 30, -25):
        vectors = (rng.normal(size=(6, DIM)) * 10.0**exponent).astype(dtype)
        vectors[2] = 0
        yield from renamed(
            f"entries about 1e{exponent}:",
            compare(jax_arcface.normalize, torch_reference.normalize, vectors).differences,
        )


def _cosines(dtype: str) -> Iterator[Difference]:
    for subcenters in (1, 3):
        x, w, _ = batch(dtype, subcenters)
        x[3] = 0
        report = compare(jax_arcface.cosines, torch_reference.cosines, x, w)
        yield from renamed(f"{subcenters} sub-centres:", report.differences)
    # equally near, whatever the order of summation: the first takes the gradient
    axes = np.eye(DIM, dtype=dtype)[[[0, 1, 1], [2, 2, 3], [4, 4, 4]]]
    yield from renamed("equal sub-centres:", compare(jax_arcface.cosines, torch_reference.cosines, x, axes).differences)


# ---- weights and reduction


def _x_w_y(package: Any, *inputs: Any) -> tuple[Any, ...]:
    return inputs


def _x_y(package: Any, x: Any, w: Any, y: Any) -> tuple[Any, ...]:
    return x, y


def _w_y(package: Any, x: Any, w: Any, y: Any) -> tuple[Any, ...]:
    return w, y


# every loss: its module and function, what it takes of (package, embeddings, prototypes, labels), and its options
_LOSSES: dict[str, tuple[str, str, Callable[..., tuple[Any, ...]], dict[str, Any]]] = {
    "softmax": ("softmax", "softmax_loss", lambda package, x, w, y: (x, y, 0.1), {}),
    "margin softmax": (
        "softmax",
        "margin_softmax_loss",
        lambda package, x, w, y: (x, w, y, package.Margin.arcface(), SCALE, 0.1, 0.5),
        {},
    ),
    "elastic": (
        "softmax",
        "margin_softmax_loss",
        lambda package, x, w, y: (x, w, y, package.Margin(m2=0.2 + abs(x[:, 0]) % 0.5), SCALE),
        {},
    ),
    "linear softmax": ("softmax", "linear_softmax_loss", lambda package, x, w, y: (x, w, w[:, 0], y), {}),
    "modified softmax": ("softmax", "modified_softmax_loss", _x_w_y, {}),
    "a_softmax": ("softmax", "a_softmax_loss", _x_w_y, {}),
    "adacos": ("adaptive", "adacos_loss", lambda package, x, w, y: (x, w, y, 3.0), {}),
    "curricularface": ("adaptive", "curricularface_loss", lambda package, x, w, y: (x, w, y, 0.3), {"rate": 0.2}),
    "magface": ("adaptive", "magface_loss", _x_w_y, {"shortest": 1.0, "longest": 8.0}),
    "adaface": ("adaptive", "adaface_loss", lambda package, x, w, y: (x, w, y, 3.0, 2.0), {"rate": 0.3}),
    "center": ("regularizers", "center_loss", _x_w_y, {}),
    "intra": ("regularizers", "intra_loss", _x_w_y, {}),
    "inter": ("regularizers", "inter_loss", _w_y, {"block_size": 2}),
    "energy": ("regularizers", "hyperspherical_energy", _w_y, {"block_size": 2}),
    "contrastive": ("pairs", "contrastive_loss", _x_y, {}),
    "contrastive, angular": ("pairs", "contrastive_loss", _x_y, {"distance": "angular"}),
    **{
        f"triplet, {distance}, {mining}": ("pairs", "triplet_loss", _x_y, {"distance": distance, "mining": mining})
        for distance, mining in (("angular", "all"), ("l2", "hard"), ("angular", "semi_hard"))
    },
    "circle": ("pairs", "circle_loss", _x_y, {"gamma": 16.0}),
    "multi_similarity": ("pairs", "multi_similarity_loss", _x_y, {"base": 0.5}),
    "supcon": ("pairs", "supcon_loss", _x_y, {}),
    "marginal": ("pairs", "marginal_loss", _x_y, {}),
    "range": ("pairs", "range_loss", _x_y, {"alpha": 0.3, "beta": 0.7, "margin": 100.0}),
}

_ONE_OF_EACH_KIND = ("margin softmax", "adaface", "intra", "triplet, angular, all", "supcon", "range")


@functools.cache
def _reduced(package: Any, name: str) -> Callable[..., Any]:
    """The mean with weights, and what there is without reduction, with weights and without; with the states beside."""
    module, function, arguments, options = _LOSSES[name]
    loss = getattr(importlib.import_module(f"{package.__name__}.losses.{module}"), function)

    def all_three(x, w, labels, weights):
        given = arguments(package, x, w, labels)
        return {
            "mean": loss(*given, weights=weights, **options),
            "none": loss(*given, weights=weights, reduction="none", **options),
            "without weights": loss(*given, reduction="none", **options),
        }

    return all_three


def weightings() -> dict[str, np.ndarray]:
    """Weights [24] by name; those of 0 are at classes of their own, too."""
    some = np.random.default_rng(5).uniform(0.1, 3.0, 24)
    some[[0, 7, 8, 13]] = 0
    mask = np.ones(24)
    mask[[1, 6, 11, 16, 21, 3, 4, 5]] = 0  # all of class 1, and others
    return {"weights": some, "mask": mask, "all 0": np.zeros(24)}


def _weighted(name: str) -> Iterator[Difference]:
    x, w, labels = batch("float64")
    for what, weights in weightings().items():
        inputs = (x, w, labels, weights)
        here = jax_side(_reduced(jax_arcface, name), inputs, (0, 1))
        there = torch_side(_reduced(torch_reference, name), inputs, (0, 1))
        yield from renamed(f"{what}:", differences(here, there))


def _displacements() -> Iterator[Difference]:
    x, centers, labels = batch("float64")
    for what, weights in weightings().items():
        report = compare(
            lambda *given: jax_regularizers.center_displacements(*given[:3], weights=given[3]),
            lambda *given: torch_regularizers.center_displacements(*given[:3], weights=given[3]),
            *(x, centers, labels, weights),
        )
        yield from renamed(f"{what}:", report.differences)


# ---- third opinions


def paper_loss(
    x: np.ndarray, w: np.ndarray, labels: np.ndarray, margin: tuple[float, float, float], policy: str
) -> dict[str, np.ndarray]:
    """ArcFace's equation 4, with SphereFace's equation 7 past pi, and its gradient by hand: numpy from the papers.

    L = -1/B sum_i log softmax(s psi_ij)_{y_i}, so dL / d cos_ij = s (p_ij - [j = y_i]) psi'_ij / B, and the cosine's
    gradient is d cos_ij / d x_i = (w_j / |w_j| - cos_ij x_i / |x_i|) / |x_i|, and alike for w_j.
    """
    m1, m2, m3 = margin
    length_x, length_w = np.linalg.norm(x, axis=1, keepdims=True), np.linalg.norm(w, axis=1, keepdims=True)
    unit_x, unit_w = x / length_x, w / length_w
    cosine = unit_x @ unit_w.T
    psi, slope = cosine.copy(), np.ones_like(cosine)
    for i, y in enumerate(labels):
        theta = math.acos(cosine[i, y])
        phi = m1 * theta + m2
        if phi > math.pi and policy == "linear":
            psi[i, y] = cosine[i, y] - m2 * math.sin(m2)
        else:
            k = math.floor(phi / math.pi) if policy == "monotone" else 0
            psi[i, y] = (-1) ** k * math.cos(phi) - 2 * k
            slope[i, y] = (-1) ** k * m1 * math.sin(phi) / math.sin(theta)
        psi[i, y] -= m3
    exponentials = np.exp(SCALE * psi)
    own = np.arange(len(labels)), labels
    loss = np.mean(np.log(exponentials.sum(axis=1)) - SCALE * psi[own])
    by_logit = exponentials / exponentials.sum(axis=1, keepdims=True)
    by_logit[own] -= 1
    by_cosine = SCALE * by_logit * slope / len(labels)
    by_x = (by_cosine @ unit_w - (by_cosine * cosine).sum(axis=1, keepdims=True) * unit_x) / length_x
    by_w = (by_cosine.T @ unit_x - (by_cosine * cosine).sum(axis=0)[:, None] * unit_w) / length_w
    return {"output": np.float64(loss), "gradient 0": by_x, "gradient 1": by_w}


def _paper(twin: str, policy: str) -> Iterator[Difference]:
    x, w, labels = batch("float64")
    for preset, values in presets(policy).items():
        inputs = [x, w, labels, *_scalars(values, "float64")]
        if twin == "jax_arcface":
            found = jax_side(_jax("loss", policy, "exact"), inputs, (0, 1))
        else:
            found = torch_side(_torch("loss", policy, "exact"), inputs, (0, 1))
        expected = paper_loss(x, w, labels, values, policy)
        # a scalar's gradient by `compare` is multiplied by its random weight
        weight = direction("output", (), 0)
        for name, value in expected.items():
            yield difference(f"{preset}: {name}", found[name], value if name == "output" else weight * value)


def _metric_learning() -> Any:
    try:
        import pytorch_metric_learning
        import pytorch_metric_learning.distances
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
        import pytorch_metric_learning.reducers
    except ImportError:
        raise Unavailable("pytorch-metric-learning is not installed") from None
    return pytorch_metric_learning


def _library(name: str) -> Iterator[Difference]:
    """pytorch-metric-learning's loss of that name against both twins, its conventions translated.

    It holds prototypes as [D, C] (class by class, sub-centre by sub-centre), takes ArcFace's margin in degrees (28.6 by
    default), goes on past pi as our `linear`, multiplies SphereFace's logits by the embeddings' lengths (which are made
    1 here; its margin is a whole number), and writes the scale of the normalised softmax as a temperature of 1 / s.
    """
    library = _metric_learning()
    subcenters = 3 if name == "SubCenterArcFaceLoss" else 1
    x, w, labels = batch("float64", subcenters)
    arcface: dict[str, Any] = {"m2": math.radians(28.6), "beyond_pi": "linear"}
    translated: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "ArcFaceLoss": ({"scale": SCALE}, arcface),
        "CosFaceLoss": ({"margin": 0.35, "scale": SCALE}, {"m3": 0.35}),
        "SphereFaceLoss": ({"margin": 4, "scale": SCALE}, {"m1": 4.0}),
        "NormalizedSoftmaxLoss": ({"temperature": 1 / SCALE}, {}),
        "SubCenterArcFaceLoss": ({"sub_centers": subcenters, "scale": SCALE}, arcface),
    }
    options, ours = translated[name]

    def theirs(x, w, labels):
        loss = getattr(library.losses, name)(num_classes=CLASSES, embedding_size=DIM, **options).double()
        # a parameter would be a leaf of its own: the tensor takes its place, so that gradients reach `w`
        del loss.W
        loss.W = w.reshape(-1, DIM).T
        loss.cast_types = lambda dtype, device: None
        if name == "SphereFaceLoss":
            loss.n_range = loss.n_range.double()
            loss.margin_choose_n = loss.margin_choose_n.double()
            loss.scale_logits = lambda logits, embeddings: logits * SCALE
        return loss(x, labels)

    def here(x, w, labels):
        return jax_arcface.margin_softmax_loss(x, w, labels, jax_arcface.Margin(**ours), SCALE)

    def there(x, w, labels):
        return torch_reference.margin_softmax_loss(x, w, labels, torch_reference.Margin(**ours), SCALE)

    yield from _both_against(theirs, here, there, [x, w, labels], (0, 1))


def _both_against(
    theirs: Callable[..., Any],
    here: Callable[..., Any],
    there: Callable[..., Any],
    inputs: list[np.ndarray],
    argnums: tuple[int, ...],
) -> Iterator[Difference]:
    expected = torch_side(theirs, inputs, argnums)
    yield from renamed("jax_arcface:", differences(jax_side(here, inputs, argnums), expected))
    yield from renamed("torch_reference:", differences(torch_side(there, inputs, argnums), expected))


def _library_contrastive() -> Iterator[Difference]:
    """pytorch-metric-learning's contrastive loss against both twins, its conventions translated.

    Its losses of a pair are d and max(0, m - d), of which half the squares are taken here as in the paper; and its
    means are over the pairs with a loss by default.
    """
    library = _metric_learning()
    x, _, labels = batch("float64")
    for m in (1.0, 1.8):  # a few of the pairs of two classes are nearer than 1, and most are nearer than 1.8

        def theirs(x, labels, m=m):
            loss = library.losses.ContrastiveLoss(neg_margin=m, reducer=library.reducers.MeanReducer())
            of_pair = loss.get_per_pair_loss
            loss.get_per_pair_loss = lambda *pair: of_pair(*pair) ** 2 / 2
            return loss(x, labels)

        here = functools.partial(jax_pairs.contrastive_loss, m=m)
        there = functools.partial(torch_pairs.contrastive_loss, m=m)
        yield from renamed(f"m = {m}:", _both_against(theirs, here, there, [x, labels], (0,)))


def _library_triplet() -> Iterator[Difference]:
    """pytorch-metric-learning's triplet loss against both twins, its conventions translated.

    Its distance is here the square of that between normalised embeddings, `l2`, or given to it as an angle; its means
    are, as here, over the triplets with a loss by default, and its miners choose before the loss does.
    """
    library = _metric_learning()
    x, _, labels = batch("float64")

    class Angles(library.distances.CosineSimilarity):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            self.is_inverted = False  # near is small

        def compute_mat(self, *embeddings):
            # of an embedding to itself the arc cosine has no derivative
            return super().compute_mat(*embeddings).clamp(-1 + 1e-15, 1 - 1e-15).arccos()

    distances = {"l2": library.distances.LpDistance(power=2), "angular": Angles()}
    for name, mining in itertools.product(distances, ("all", "hard")):

        def theirs(x, labels, distance=distances[name], mining=mining):
            if mining == "all":
                return library.losses.TripletMarginLoss(0.35, distance=distance)(x, labels)
            loss = library.losses.TripletMarginLoss(0.35, distance=distance, reducer=library.reducers.MeanReducer())
            return loss(x, labels, library.miners.BatchHardMiner(distance=distance)(x, labels))

        here, there = (
            functools.partial(module.triplet_loss, m=0.35, distance=name, mining=mining)
            for module in (jax_pairs, torch_pairs)
        )
        yield from renamed(f"{name}, {mining}:", _both_against(theirs, here, there, [x, labels], (0,)))


# ----

_FUNCTIONS: dict[str, tuple[str, Callable[[str], Iterator[Difference]]]] = {
    "normalize": ("normalize, with zero, small and large vectors", _normalize),
    "cosines": ("cosines, with sub-centres, equal ones and a zero vector", _cosines),
    "softmax_loss": ("softmax loss, with label smoothing", _softmax),
    "margin_softmax_loss": ("margin softmax loss with label smoothing", _smoothed),
}

CASES = [
    *(
        Case(
            what,
            "losses",
            dtype,
            **bound_of(dtype),
            measure=functools.partial(measure, dtype),
            covers=(name,),
            slow=dtype == "float32",
        )
        for dtype in ("float64", "float32")
        for name, (what, measure) in _FUNCTIONS.items()
    ),
    *(
        Case(
            f"weights and reduction: {name}",
            "losses",
            "float64",
            **bound_of("float64"),
            measure=functools.partial(_weighted, name),
            slow=name not in _ONE_OF_EACH_KIND,
        )
        for name in _LOSSES
    ),
    Case(
        "weights: displacements of centres",
        "losses",
        "float64",
        **bound_of("float64"),
        measure=_displacements,
    ),
    *(
        Case(
            f"{what}, every preset: {policy}, {gradient} gradient",
            "losses",
            dtype,
            **bound_of(dtype),
            measure=functools.partial(_margin_losses, short, policy, gradient, dtype),
            covers=(name,),
            slow=dtype == "float32",
        )
        for dtype, (short, name, what), policy, gradient in itertools.product(
            ("float64", "float32"),
            (
                ("logits", "margin_logits", "margin logits"),
                ("loss", "margin_softmax_loss", "margin softmax loss"),
            ),
            POLICIES,
            GRADIENTS,
        )
        if dtype == "float64" or gradient == "exact"
    ),
    *(
        Case(
            f"margin logits at 0, pi, pi - m and pi / 2: {policy}, {gradient} gradient",
            "losses",
            "float64",
            **bound_of("float64"),
            measure=functools.partial(_corners, policy, gradient),
        )
        for policy, gradient in itertools.product(POLICIES, GRADIENTS)
    ),
    *(
        Case(
            f"{twin} against numpy: margin softmax loss, {policy}",
            "losses",
            "float64",
            **bound_of("float64"),
            measure=functools.partial(_paper, twin, policy),
        )
        for twin, policy in itertools.product(("jax_arcface", "torch_reference"), POLICIES)
    ),
    *(
        Case(
            f"both against pytorch-metric-learning: {name}",
            "losses",
            "float64",
            **bound_of("float64"),
            measure=functools.partial(_library, name),
        )
        for name in PML_CLASSES
    ),
    Case(
        "both against pytorch-metric-learning: ContrastiveLoss",
        "losses",
        "float64",
        **bound_of("float64"),
        measure=_library_contrastive,
    ),
    Case(
        "both against pytorch-metric-learning: TripletMarginLoss",
        "losses",
        "float64",
        **bound_of("float64"),
        measure=_library_triplet,
    ),
]
