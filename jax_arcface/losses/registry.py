"""Losses by name: the registry, the words of `--loss`, and the sum that they describe.

`arcface+intra+center:0.01` is a sum of terms, `NAME[:ITEM,ITEM...]`; an item is the term's weight or an option,
`KEY=VALUE`. `docs/losses.md` tells what each name means.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.errors import UserError, nearest
from jax_arcface.losses import adaptive, fused, pairs, regularizers, softmax, vectors
from jax_arcface.losses.margins import Margin

State = dict[str, Array]
Options = Mapping[str, Any]
Kind = Literal["classification", "regulariser", "pairs"]


class Inputs(NamedTuple):
    """What a training step gives to its losses.

    Args:
      embeddings: [B, D], any float dtype. labels: [B].
      prototypes: [C, D] or [C, K, D]; those of no account where there are pair losses alone.
      bias: [C], with `softmax`. centers: [C, D], with `center_learnt`.
      margin: of the margin softmax losses, as far as it has grown.
      growth: the share of the margin that has grown, for the losses whose margin is no `Margin`.
      scale, label_smoothing, beyond_pi: as in the configuration.
      step: steps done.
      normal: [B], standard normal draws, where `Objective.needs_normal`.
    """

    embeddings: Array
    labels: Array
    prototypes: Array
    bias: Array | None = None
    centers: Array | None = None
    margin: Margin = Margin()
    growth: Array | float = 1.0
    scale: float = 64.0
    label_smoothing: float = 0.0
    beyond_pi: Any = "monotone"
    step: Array | int = 0
    normal: Array | None = None


class Outcome(NamedTuple):
    """What a term gives, or the sum of all.

    Args:
      loss: a scalar.
      state: of the term after this step; of the sum, all terms' by name.
      correct: bool [B], which embeddings have their largest cosine with their own class; None where that was not found
        out on the way to the loss.
    """

    loss: Array
    state: dict[str, Any]
    correct: Array | None = None


@dataclasses.dataclass(frozen=True)
class Number:
    """An option that is a number, with low <= value < high.

    Args:
      default: None where it is off unless given.
      whole: whether it must be a whole number.
      closed: whether it may be `high` itself.
      idle: other options, each with the value, or the option whose value, takes the effect from this one.
    """

    default: float | None
    low: float = 0.0
    high: float = math.inf
    unit: str = ""
    whole: bool = False
    closed: bool = False
    idle: tuple[tuple[str, float | str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """An option that is one of a few words; the first is the default."""

    known: tuple[str, ...]

    @property
    def default(self) -> str:
        """The first."""
        return self.known[0]


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Args:
      kind: `classification` losses own the prototypes; `regulariser`s need one beside them; `pairs` need neither.
      equation: what it is, in one line.
      apply: from (inputs, options, state) to its outcome.
      options: by name.
      weight: where none is given.
      takes: the flags beside --loss that have an effect on it.
      margin: for a margin softmax, the field of `Margin` that each option sets; None for all others.
      initial: from (number of classes, embedding dimension) to its state before the first step.
    """

    kind: Kind
    equation: str
    apply: Callable[[Inputs, Options, State], Outcome]
    options: Mapping[str, Number | Choice] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    takes: frozenset[str] = frozenset()
    margin: Mapping[str, str] | None = None
    initial: Callable[[int, int], State] = lambda classes, dim: {}


# ---- how each is computed


def _softmax(i: Inputs, o: Options, state: State) -> Outcome:
    assert i.bias is not None
    return Outcome(softmax.linear_softmax_loss(i.embeddings, i.prototypes, i.bias, i.labels, i.label_smoothing), state)


def _modified_softmax(i: Inputs, o: Options, state: State) -> Outcome:
    return Outcome(softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, i.label_smoothing), state)


def _a_softmax(i: Inputs, o: Options, state: State) -> Outcome:
    lam = softmax.annealed_lambda(i.step, o["first"], o["last"], o["decay"])
    return Outcome(softmax.a_softmax_loss(i.embeddings, i.prototypes, i.labels, o["m"], lam, i.label_smoothing), state)


def _margin_softmax(i: Inputs, o: Options, state: State) -> Outcome:
    arguments = (i.embeddings, i.prototypes, i.labels, i.margin, i.scale, i.label_smoothing, o.get("filter"))
    if not fused.has_many_cosines(i.embeddings, i.prototypes):
        return Outcome(softmax.margin_softmax_loss(*arguments), state)
    loss, correct = fused.loss_and_correct(*arguments)
    return Outcome(loss, state, correct)


def _adacos(i: Inputs, o: Options, state: State) -> Outcome:
    loss, scale = adaptive.adacos_loss(i.embeddings, i.prototypes, i.labels, state["scale"], i.label_smoothing)
    return Outcome(loss, {"scale": scale})


def _curricularface(i: Inputs, o: Options, state: State) -> Outcome:
    margin = Margin(m2=i.growth * o["m"], beyond_pi=i.beyond_pi)
    loss, t = adaptive.curricularface_loss(
        i.embeddings, i.prototypes, i.labels, state["t"], margin, i.scale, o["rate"], i.label_smoothing
    )
    return Outcome(loss, {"t": t})


def _magface(i: Inputs, o: Options, state: State) -> Outcome:
    loss = adaptive.magface_loss(
        i.embeddings,
        i.prototypes,
        i.labels,
        i.growth * o["low"],
        i.growth * o["high"],
        o["shortest"],
        o["longest"],
        o["weight"],
        i.scale,
        i.beyond_pi,
        i.label_smoothing,
    )
    return Outcome(loss, state)


def _adaface(i: Inputs, o: Options, state: State) -> Outcome:
    loss, mean, std = adaptive.adaface_loss(
        i.embeddings,
        i.prototypes,
        i.labels,
        state["mean"],
        state["std"],
        i.growth * o["m"],
        o["h"],
        o["rate"],
        i.scale,
        i.label_smoothing,
    )
    return Outcome(loss, {"mean": mean, "std": std})


def _elastic(field: str) -> Callable[[Inputs, Options, State], Outcome]:
    def apply(i: Inputs, o: Options, state: State) -> Outcome:
        assert i.normal is not None
        normal = i.normal.astype(i.embeddings.dtype)
        fields: dict[str, Any] = {field: i.growth * (o["m"] + o["std"] * normal)}
        if field == "m2":
            fields["beyond_pi"] = i.beyond_pi
        loss = softmax.margin_softmax_loss(
            i.embeddings, i.prototypes, i.labels, Margin(**fields), i.scale, i.label_smoothing
        )
        return Outcome(loss, state)

    return apply


def _center(i: Inputs, o: Options, state: State) -> Outcome:
    centers = state["centers"]
    loss = regularizers.center_loss(i.embeddings, centers, i.labels)
    moves = regularizers.center_displacements(jax.lax.stop_gradient(i.embeddings), centers, i.labels)
    return Outcome(loss, {"centers": centers.at[i.labels].add(-o["rate"] * moves)})


def _center_learnt(i: Inputs, o: Options, state: State) -> Outcome:
    assert i.centers is not None
    return Outcome(regularizers.center_loss(i.embeddings, jax.lax.stop_gradient(i.centers), i.labels), state)


def _center_pull(i: Inputs) -> Array:
    """0, whose gradient is what the examples move the learnt centres by, whatever the term's weight."""
    assert i.centers is not None
    constant = jax.lax.stop_gradient(i.embeddings)
    moves = jax.lax.stop_gradient(regularizers.center_displacements(constant, i.centers, i.labels))
    own = i.centers[i.labels]
    return jnp.sum(moves * (own - jax.lax.stop_gradient(own)))


def _intra(i: Inputs, o: Options, state: State) -> Outcome:
    return Outcome(regularizers.intra_loss(i.embeddings, i.prototypes, i.labels), state)


def _inter(i: Inputs, o: Options, state: State) -> Outcome:
    return Outcome(regularizers.inter_loss(i.prototypes, i.labels), state)


def _mhe(i: Inputs, o: Options, state: State) -> Outcome:
    return Outcome(regularizers.hyperspherical_energy(i.prototypes, i.labels), state)


def _of_pairs(function: Callable[..., Array]) -> Callable[[Inputs, Options, State], Outcome]:
    return lambda i, o, state: Outcome(function(i.embeddings, i.labels, **o), state)


# ---- the registry

_SCALED = frozenset({"scale", "subcenters", "label_smoothing"})
_GROWS = _SCALED | {"margin_warmup_epochs"}
_ANGULAR = _GROWS | {"beyond_pi"}
_MARGIN = _ANGULAR | {"gradient"}
_FILTER = {"filter": Number(None, -1.0, 1.0, "a cosine")}


def _radians(default: float, low: float = 0.0) -> Number:
    return Number(default, low, math.pi, "in radians")


def _cosine(default: float, low: float = 0.0) -> Number:
    return Number(default, low, 2.0, "in units of cosine")


def _share(default: float, idle: tuple[tuple[str, float | str], ...] = ()) -> Number:
    return Number(default, 0.0, 1.0, closed=True, idle=idle)


LOSSES: dict[str, Loss] = {
    "softmax": Loss("classification", "CE(W_j . x + b_j)", _softmax, takes=frozenset({"label_smoothing"})),
    "modified_softmax": Loss(
        "classification", "CE(|x| cos theta_j)", _modified_softmax, takes=frozenset({"label_smoothing"})
    ),
    "norm_softmax": Loss("classification", "CE(s cos theta_j)", _margin_softmax, takes=_SCALED, margin={}),
    "a_softmax": Loss(
        "classification",
        "own class |x| (lambda cos theta + psi) / (1 + lambda), psi = (-1)^k cos(m theta) - 2k, "
        "lambda = max(last, first / (1 + decay step))",
        _a_softmax,
        {
            "m": Number(4, 1, 9, whole=True),
            "first": Number(1000.0, idle=(("m", 1),)),
            "last": Number(5.0, idle=(("m", 1), ("decay", 0))),
            "decay": Number(0.12, idle=(("m", 1), ("first", "last"))),
        },
        takes=frozenset({"label_smoothing"}),
    ),
    "sphereface": Loss(
        "classification",
        "own class s psi(theta), psi = (-1)^k cos(m theta) - 2k",
        _margin_softmax,
        {"m": Number(1.35, 1.0, 8.0, "a factor")},
        takes=_MARGIN,
        margin={"m": "m1"},
    ),
    "cosface": Loss(
        "classification",
        "own class s (cos theta - m)",
        _margin_softmax,
        {"m": _cosine(0.35)} | _FILTER,
        takes=_GROWS,
        margin={"m": "m3"},
    ),
    "arcface": Loss(
        "classification",
        "own class s cos(theta + m)",
        _margin_softmax,
        {"m": _radians(0.5)} | _FILTER,
        takes=_MARGIN,
        margin={"m": "m2"},
    ),
    "combined": Loss(
        "classification",
        "own class s (cos(m1 theta + m2) - m3)",
        _margin_softmax,
        {
            "m1": Number(1.0, 0.1, 8.0, "a factor"),
            "m2": _radians(0.3, -math.pi),
            "m3": _cosine(0.2, -2.0),
        }
        | _FILTER,
        takes=_MARGIN,
        margin={"m1": "m1", "m2": "m2", "m3": "m3"},
    ),
    "subcenter": Loss(
        "classification",
        "arcface with K prototypes a class (--subcenters, 3 where not given), the nearest counts",
        _margin_softmax,
        {"m": _radians(0.5)} | _FILTER,
        takes=_MARGIN,
        margin={"m": "m2"},
    ),
    "adacos": Loss(
        "classification",
        "CE(s_t cos theta_j), s_t = log(mean sum exp(s cos theta_j)) / cos(min(pi/4, median theta_y))",
        _adacos,
        takes=frozenset({"subcenters", "label_smoothing"}),
        initial=lambda classes, dim: {"scale": jnp.asarray(adaptive.initial_adacos_scale(classes))},
    ),
    "curricularface": Loss(
        "classification",
        "own class s cos(theta + m), harder ones s cos theta_j (t + cos theta_j), t the running mean of cos theta_y",
        _curricularface,
        {"m": _radians(0.5), "rate": _share(0.01)},
        takes=_ANGULAR,
        initial=lambda classes, dim: {"t": jnp.zeros(())},
    ),
    "magface": Loss(
        "classification",
        "own class s cos(theta + m(a)), m from low to high as a = |x| goes from shortest to longest; "
        "+ weight (a / longest^2 + 1 / a)",
        _magface,
        {
            "low": _radians(0.45),
            "high": _radians(0.8),
            "shortest": Number(10.0, 1e-3),
            "longest": Number(110.0, 1e-3),
            "weight": Number(35.0),
        },
        takes=_ANGULAR,
    ),
    "adaface": Loss(
        "classification",
        "own class s (cos(theta - m z) - m z - m), z = clip(h (|x| - mean) / std, -1, 1)",
        _adaface,
        {
            "m": Number(0.4, high=1.0),
            "h": Number(0.333, idle=(("m", 0),)),
            "rate": _share(0.01, idle=(("m", 0), ("h", 0))),
        },
        takes=_GROWS,
        initial=lambda classes, dim: {"mean": jnp.asarray(20.0), "std": jnp.asarray(100.0)},
    ),
    "elasticface": Loss(
        "classification",
        "own class s cos(theta + m_i), m_i from N(m, std^2)",
        _elastic("m2"),
        {"m": _radians(0.5), "std": Number(0.0125, high=0.5)},
        takes=_ANGULAR,
    ),
    "elastic_cosface": Loss(
        "classification",
        "own class s (cos theta - m_i), m_i from N(m, std^2)",
        _elastic("m3"),
        {"m": _cosine(0.35), "std": Number(0.0125, high=0.5)},
        takes=_GROWS,
    ),
    "center": Loss(
        "regulariser",
        "1/2 mean |x - c_y|^2, c_y moved by -rate sum (c_y - x) / (1 + n_y)",
        _center,
        {"rate": _share(0.5)},
        weight=0.003,
        initial=lambda classes, dim: {"centers": jnp.zeros((classes, dim))},
    ),
    "center_learnt": Loss(
        "regulariser", "1/2 mean |x - c_y|^2, c_y moved by the optimiser", _center_learnt, weight=0.003
    ),
    "intra": Loss("regulariser", "mean theta_y / pi", _intra),
    "inter": Loss("regulariser", "-mean sum_j arccos(W_y . W_j) / (pi (C - 1))", _inter),
    "mhe": Loss("regulariser", "mean sum_j 1 / |W_y - W_j|^2 / (C - 1)", _mhe),
    "range": Loss(
        "regulariser",
        "alpha sum of harmonic means of the k largest |x_i - x_j|^2 within a class "
        "+ beta max(0, margin - smallest |mean - mean|^2)",
        _of_pairs(pairs.range_loss),
        {
            "k": Number(2, 1, whole=True, idle=(("alpha", 0),)),
            "alpha": Number(5e-5),
            "beta": Number(1e-4),
            "margin": Number(2e4, idle=(("beta", 0),)),
        },
    ),
    "marginal": Loss(
        "regulariser",
        "mean max(0, xi -+ (theta - |x_i - x_j|^2)), minus for a pair of one class",
        _of_pairs(pairs.marginal_loss),
        {"theta": Number(1.2, high=4.0), "xi": Number(0.3, high=4.0)},
    ),
    "contrastive": Loss(
        "pairs",
        "mean d^2 / 2 of pairs of one class + mean max(0, m - d)^2 / 2 of others",
        _of_pairs(pairs.contrastive_loss),
        {"m": Number(1.0, high=4.0), "distance": Choice(("l2", "angular"))},
    ),
    "triplet": Loss(
        "pairs",
        "mean max(0, d(a, p) + m - d(a, n))",
        _of_pairs(pairs.triplet_loss),
        {
            "m": Number(0.35, high=4.0),
            "distance": Choice(("angular", "l2")),
            "mining": Choice(("all", "hard", "semi_hard")),
        },
    ),
    "circle": Loss(
        "pairs",
        "mean log(1 + sum exp(gamma [c_n + m]_+ (c_n - m)) sum exp(-gamma [1 + m - c_p]_+ (c_p - 1 + m)))",
        _of_pairs(pairs.circle_loss),
        {"m": Number(0.25, high=1.0), "gamma": Number(256.0, 1e-3)},
    ),
    "multi_similarity": Loss(
        "pairs",
        "mean log(1 + sum exp(-alpha (c_p - base))) / alpha + log(1 + sum exp(beta (c_n - base))) / beta, "
        "mined by epsilon",
        _of_pairs(pairs.multi_similarity_loss),
        {
            "alpha": Number(2.0, 1e-3),
            "beta": Number(50.0, 1e-3),
            "base": Number(1.0, -1.0, 2.0),
            "epsilon": Number(0.1, high=2.0),
        },
    ),
    "supcon": Loss(
        "pairs",
        "mean -1/|P| sum_p log(exp(c_p / tau) / sum_a exp(c_a / tau))",
        _of_pairs(pairs.supcon_loss),
        {"tau": Number(0.1, 1e-3)},
    ),
}

# Names that are short for others.
ALIASES = {
    "cm1": "combined:m1=1,m2=0.3,m3=0.2",
    "cm2": "combined:m1=0.9,m2=0.4,m3=0.15",
    "sphereface_plus": "a_softmax+mhe",
}


# ---- the words of --loss


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the sum: a name of `LOSSES`, its weight, and a value for each of its options."""

    name: str
    weight: float
    options: Options

    @property
    def loss(self) -> Loss:
        """Its entry in the registry."""
        return LOSSES[self.name]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A sum of losses."""

    terms: tuple[Term, ...]

    @property
    def classifier(self) -> Term | None:
        """The classification loss; None where there are pair losses alone."""
        return next((term for term in self.terms if term.loss.kind == "classification"), None)

    @property
    def names(self) -> frozenset[str]:
        """The terms' names."""
        return frozenset(term.name for term in self.terms)

    @property
    def takes(self) -> frozenset[str]:
        """The flags that have an effect on it."""
        return self.classifier.loss.takes if self.classifier else frozenset()

    @property
    def needs_normal(self) -> bool:
        """Whether a step draws its margins."""
        return bool(self.names & {"elasticface", "elastic_cosface"})

    def margin(self, beyond_pi: str = "monotone", gradient: str = "exact") -> Margin | None:
        """The `Margin` of a margin softmax, None where the classification loss is none.

        >>> parse("cosface").margin()
        Margin(m1=1.0, m2=0.0, m3=0.35, beyond_pi='monotone', gradient='exact')
        """
        term = self.classifier
        if term is None or term.loss.margin is None:
            return None
        fields: dict[str, Any] = {field: term.options[option] for option, field in term.loss.margin.items()}
        if "gradient" in term.loss.takes:
            fields |= {"beyond_pi": beyond_pi, "gradient": gradient}
        return Margin(**fields)


def parse(text: str, margin: float | None = None) -> Objective:
    """The sum of losses that the words of `--loss` describe.

    Args:
      text: `NAME[:ITEM,...]` with `+` between; an item is a weight or `KEY=VALUE`.
      margin: `--margin`, the option m of the classification loss.

    Raises:
      UserError: an unknown name or option, a value out of range, or a sum that makes no sense.

    >>> [(term.name, term.weight) for term in parse("softmax+center:0.01").terms]
    [('softmax', 1.0), ('center', 0.01)]
    >>> parse("arcface:m=0.4").margin()
    Margin(m1=1.0, m2=0.4, m3=0.0, beyond_pi='monotone', gradient='exact')
    """
    words = "+".join(ALIASES.get(word, word) for word in text.split("+")).split("+")
    terms = [_term(word, text, margin) for word in words]
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--loss {text} has {twice} twice")
    kinds = [term.loss.kind for term in terms]
    if kinds.count("classification") > 1:
        owners = [term.name for term in terms if term.loss.kind == "classification"]
        raise UserError(f"--loss {text} has {len(owners)} classification losses, {' and '.join(owners)}; leave one")
    if "classification" not in kinds:
        if "regulariser" in kinds:
            alone = names[kinds.index("regulariser")]
            raise UserError(f"--loss {text}: {alone} needs a classification loss beside it, such as softmax+{alone}")
        if margin is not None:
            raise UserError(f"--margin has no effect on --loss {text}; its margin is an option, such as triplet:m=0.3")
    return Objective(tuple(terms))


def describe() -> str:
    """The losses with their equations, options and weights, a list of a line each, as `--help` shows them.

    The first of an option's words is its default.

    >>> describe().splitlines()[5]
    '- cosface: own class s (cos theta - m) [m=0.35, filter=none]'
    """
    lines = []
    for name, loss in LOSSES.items():
        options = ", ".join(f"{key}={_shown(option)}" for key, option in loss.options.items())
        weight = f"; weight {loss.weight:g}" if loss.weight != 1 else ""
        lines.append(f"- {name}: {loss.equation}{f' [{options}]' if options else ''}{weight}")
    return "\n".join([*lines, *(f"- {name}: short for {words}" for name, words in ALIASES.items())])


def _shown(option: Number | Choice) -> str:
    if isinstance(option, Choice):
        return "|".join(option.known)
    return "none" if option.default is None else str(option.default)


def _term(word: str, text: str, margin: float | None) -> Term:
    name, colon, items = word.partition(":")
    if name in ALIASES:
        raise UserError(f"--loss {text}: {name} is short for {ALIASES[name]} and takes no options")
    if name not in LOSSES:
        raise UserError(f"there is no --loss {name!r}: {nearest(name, (*LOSSES, *ALIASES))}")
    loss = LOSSES[name]
    weight: float | None = None
    given: dict[str, Any] = {}
    for item in items.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals:
            if weight is not None:
                raise UserError(f"--loss {text}: {name} has two weights, {weight:g} and {item}")
            weight = _read(item, Number(None, math.ulp(0.0)), f"--loss {text}: the weight of {name}")
        elif key not in loss.options:
            known = f"its options are {', '.join(loss.options)}" if loss.options else "it has none"
            raise UserError(f"--loss {text}: {name} has no option {key!r}; {known}")
        elif key in given:
            raise UserError(f"--loss {text}: {name} has {key} twice")
        else:
            given[key] = _read(value, loss.options[key], f"--loss {text}: {key} of {name}")
    if margin is not None and loss.kind == "classification":
        option = loss.options.get("m")
        if not isinstance(option, Number):
            raise UserError(f"--margin has no effect on --loss {text}, which has no margin m")
        if "m" in given:
            raise UserError(f"--loss {text} and --margin both give {name} its margin: leave one of them out")
        given["m"] = _checked(margin, option, "--margin", f"for --loss {text} ")
    options = {key: option.default for key, option in loss.options.items()} | given
    for low, high, is_right, below in (
        ("low", "high", operator.lt, "below"),
        ("shortest", "longest", operator.lt, "below"),
        ("last", "first", operator.le, "at most"),
    ):
        if low in options and not is_right(options[low], options[high]):
            raise UserError(
                f"--loss {text}: {low} of {name} is {options[low]:g}; it must be {below} {high}, {options[high]:g}"
            )
    for key in given:
        for other, value in getattr(loss.options[key], "idle", ()):
            if options[other] == options.get(value, value):
                raise UserError(f"--loss {text}: {key} of {name} has no effect where {other} = {value}")
    return Term(name, loss.weight if weight is None else weight, options)


def _read(text: str, option: Number | Choice, what: str) -> Any:
    if isinstance(option, Choice):
        if text not in option.known:
            raise UserError(f"{what} is {text!r}; it must be {' or '.join(option.known)}")
        return text
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{what} is {text!r}; it must be a number") from None
    return _checked(value, option, what)


def _checked(value: float, option: Number, what: str, where: str = "") -> float:
    low = "> 0" if option.low == math.ulp(0.0) else f"at least {option.low:g}"
    high = "finite" if option.high == math.inf else f"{'at most' if option.closed else 'below'} {option.high:.4g}"
    is_inside = option.low <= value < option.high or (option.closed and value == option.high)
    if not is_inside or (option.whole and value != round(value)):
        whole = "a whole number, " if option.whole else ""
        unit = f" ({option.unit})" if option.unit else ""
        raise UserError(f"{what} is {value:g}; {where}it must be {whole}{low} and {high}{unit}")
    return int(value) if option.whole else value


# ---- the sum


def initial_states(objective: Objective, num_classes: int, embedding_dim: int) -> dict[str, State]:
    """The terms' states before the first step, by name; those that have one.

    >>> {name: list(state) for name, state in initial_states(parse("softmax+center"), 10, 2).items()}
    {'center': ['centers']}
    """
    states = {term.name: term.loss.initial(num_classes, embedding_dim) for term in objective.terms}
    return {name: state for name, state in states.items() if state}


def total_loss(objective: Objective, inputs: Inputs, states: Mapping[str, State]) -> Outcome:
    """The sum of the terms, each times its weight, and their new states.

    >>> x, w = jnp.eye(3), jnp.eye(3)
    >>> loss, *_ = total_loss(parse("modified_softmax+intra"), Inputs(x, jnp.arange(3), w), {})
    >>> print(loss.round(4))  # log(1 + 2 / e) + 0
    0.5514
    """
    # once for all terms, so that their gradients are added up in float32
    inputs = inputs._replace(embeddings=vectors.upcast(inputs.embeddings))
    total: Array | float = 0.0
    new: dict[str, State] = {}
    correct: Array | None = None
    for term in objective.terms:
        loss, state, known = term.loss.apply(inputs, term.options, states.get(term.name, {}))
        total = total + term.weight * loss
        if state:
            new[term.name] = jax.tree.map(jax.lax.stop_gradient, state)
        correct = correct if known is None else known
        if term.name == "center_learnt":
            total = total + _center_pull(inputs)
    return Outcome(jnp.asarray(total), new, correct)
