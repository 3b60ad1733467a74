"""Losses by name: the registry, the words of `--loss`, and the sum that they describe.

`arcface+intra+center:0.01` is a sum of terms `NAME[:ITEM,ITEM...]`, where an item is the term's weight or an option,
`KEY=VALUE`. `docs/losses.md` says what each name means.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torch_reference.errors import UserError, nearest
from torch_reference.losses import adaptive, pairs, regularizers, softmax, vectors
from torch_reference.losses.margins import Margin

State = dict[str, Tensor]
Options = Mapping[str, Any]
Kind = Literal["classification", "regulariser", "pairs"]


class Inputs(NamedTuple):
    """What a step gives to its losses.

    Args:
      embeddings: [B, D], any float dtype. labels: [B].
      prototypes: [C, D] or [C, K, D]; pair losses alone do not look at them.
      bias: [C], for `softmax`. centers: [C, D], for `center_learnt`.
      margin: of the margin softmax losses, as far as it has grown.
      growth: the share of the margin that has grown, for the losses whose margin is no `Margin`.
      scale, label_smoothing, beyond_pi: as in the configuration.
      step: steps done before.
      normal: [B], standard normal draws, where `Objective.needs_normal`.
    """

    embeddings: Tensor
    labels: Tensor
    prototypes: Tensor
    bias: Tensor | None = None
    centers: Tensor | None = None
    margin: Margin = Margin()
    growth: float = 1.0
    scale: float = 64.0
    label_smoothing: float = 0.0
    beyond_pi: str = "monotone"
    step: int = 0
    normal: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Number:
    """An option that is a number, low <= number < high.

    Args:
      default: None where it is off unless given.
      unit: what its message says of it.
      whole: whether it must be a whole number.
      closed: whether `high` itself is allowed.
      idle: other options, each with the value, or the option whose value, with which this one does nothing.
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
    """An option that is one of a few words, of which the first is the default."""

    known: tuple[str, ...]

    @property
    def default(self) -> str:
        """The first."""
        return self.known[0]


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Args:
      kind: a `classification` loss owns the prototypes, a `regulariser` needs one beside it, `pairs` need neither.
      equation: what it is, in one line.
      apply: from (inputs, options, state) to (the loss, the new state).
      options: by name.
      weight: where none is given.
      takes: the flags beside --loss that have an effect on it.
      margin: of a margin softmax, which field of `Margin` each option sets; None for all others.
      initial: from (number of classes, embedding dimension) to its state before the first step.
    """

    kind: Kind
    equation: str
    apply: Callable[[Inputs, Options, State], tuple[Tensor, State]]
    options: Mapping[str, Number | Choice] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    takes: frozenset[str] = frozenset()
    margin: Mapping[str, str] | None = None
    initial: Callable[[int, int], State] = lambda classes, dim: {}


# ---- how each is computed


def _softmax(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    assert i.bias is not None
    return softmax.linear_softmax_loss(i.embeddings, i.prototypes, i.bias, i.labels, i.label_smoothing), state


def _modified_softmax(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return softmax.modified_softmax_loss(i.embeddings, i.prototypes, i.labels, i.label_smoothing), state


def _a_softmax(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    lam = softmax.annealed_lambda(i.step, o["first"], o["last"], o["decay"])
    return softmax.a_softmax_loss(i.embeddings, i.prototypes, i.labels, o["m"], lam, i.label_smoothing), state


def _margin_softmax(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    loss = softmax.margin_softmax_loss(
        i.embeddings, i.prototypes, i.labels, i.margin, i.scale, i.label_smoothing, o.get("filter")
    )
    return loss, state


def _adacos(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    loss, scale = adaptive.adacos_loss(i.embeddings, i.prototypes, i.labels, state["scale"], i.label_smoothing)
    return loss, {"scale": scale}


def _curricularface(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    margin = Margin.arcface(i.growth * o["m"], beyond_pi=i.beyond_pi)
    loss, t = adaptive.curricularface_loss(
        i.embeddings, i.prototypes, i.labels, state["t"], margin, i.scale, o["rate"], i.label_smoothing
    )
    return loss, {"t": t}


def _magface(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    loss = adaptive.magface_loss(
        i.embeddings,
        i.prototypes,
        i.labels,
        low=i.growth * o["low"],
        high=i.growth * o["high"],
        shortest=o["shortest"],
        longest=o["longest"],
        weight=o["weight"],
        scale=i.scale,
        beyond_pi=i.beyond_pi,
        label_smoothing=i.label_smoothing,
    )
    return loss, state


def _adaface(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    loss, mean, std = adaptive.adaface_loss(
        i.embeddings,
        i.prototypes,
        i.labels,
        state["mean"],
        state["std"],
        m=i.growth * o["m"],
        h=o["h"],
        rate=o["rate"],
        scale=i.scale,
        label_smoothing=i.label_smoothing,
    )
    return loss, {"mean": mean, "std": std}


def _elasticface(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return _elastic(i, Margin(m2=_drawn_margins(i, o), beyond_pi=i.beyond_pi)), state


def _elastic_cosface(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return _elastic(i, Margin(m3=_drawn_margins(i, o))), state


def _drawn_margins(i: Inputs, o: Options) -> Tensor:
    assert i.normal is not None
    margins: Tensor = i.growth * (o["m"] + o["std"] * i.normal.to(i.embeddings.dtype))
    return margins


def _elastic(i: Inputs, margin: Margin) -> Tensor:
    return softmax.margin_softmax_loss(i.embeddings, i.prototypes, i.labels, margin, i.scale, i.label_smoothing)


def _center(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    centers = state["centers"]
    loss = regularizers.center_loss(i.embeddings, centers, i.labels)
    moves = regularizers.center_displacements(i.embeddings.detach(), centers, i.labels)
    return loss, {"centers": centers.to(moves.dtype).index_add(0, i.labels, moves, alpha=-o["rate"])}


def _center_learnt(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    assert i.centers is not None
    return regularizers.center_loss(i.embeddings, i.centers.detach(), i.labels), state


def _pull_of_centers(i: Inputs) -> Tensor:
    """0, with the gradient that moves the learnt centres: the sum of their displacements."""
    assert i.centers is not None
    moves = regularizers.center_displacements(i.embeddings, i.centers, i.labels).detach()
    own = i.centers[i.labels]
    return (moves * (own - own.detach())).sum()


def _intra(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return regularizers.intra_loss(i.embeddings, i.prototypes, i.labels), state


def _inter(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return regularizers.inter_loss(i.prototypes, i.labels), state


def _mhe(i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return regularizers.hyperspherical_energy(i.prototypes, i.labels), state


def _of_pairs(function: Callable[..., Tensor], i: Inputs, o: Options, state: State) -> tuple[Tensor, State]:
    return function(i.embeddings, i.labels, **o), state


# ---- the registry

_PLAIN = frozenset({"label_smoothing"})
_SCALED = _PLAIN | {"scale", "subcenters"}
_GROWING = _SCALED | {"margin_warmup_epochs"}
_ANGULAR = _GROWING | {"beyond_pi"}
_EXACT_OR_NOT = _ANGULAR | {"gradient"}


def _radians(default: float) -> Number:
    return Number(default, 0.0, math.pi, "in radians")


def _cosine(default: float) -> Number:
    return Number(default, 0.0, 2.0, "in units of cosine")


_FILTER = Number(None, -1.0, 1.0, "a cosine")
_RATE = Number(0.01, 0.0, 1.0, closed=True)
_STD = Number(0.0125, 0.0, 0.5)

LOSSES: dict[str, Loss] = {
    "softmax": Loss("classification", "CE(W_j . x + b_j)", _softmax, takes=_PLAIN),
    "modified_softmax": Loss("classification", "CE(|x| cos theta_j)", _modified_softmax, takes=_PLAIN),
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
        takes=_PLAIN,
    ),
    "sphereface": Loss(
        "classification",
        "own class s psi(theta), psi = (-1)^k cos(m theta) - 2k",
        _margin_softmax,
        {"m": Number(1.35, 1.0, 8.0, "a factor")},
        takes=_EXACT_OR_NOT,
        margin={"m": "m1"},
    ),
    "cosface": Loss(
        "classification",
        "own class s (cos theta - m)",
        _margin_softmax,
        {"m": _cosine(0.35), "filter": _FILTER},
        takes=_GROWING,
        margin={"m": "m3"},
    ),
    "arcface": Loss(
        "classification",
        "own class s cos(theta + m)",
        _margin_softmax,
        {"m": _radians(0.5), "filter": _FILTER},
        takes=_EXACT_OR_NOT,
        margin={"m": "m2"},
    ),
    "combined": Loss(
        "classification",
        "own class s (cos(m1 theta + m2) - m3)",
        _margin_softmax,
        {
            "m1": Number(1.0, 0.1, 8.0, "a factor"),
            "m2": Number(0.3, -math.pi, math.pi, "in radians"),
            "m3": Number(0.2, -2.0, 2.0, "in units of cosine"),
            "filter": _FILTER,
        },
        takes=_EXACT_OR_NOT,
        margin={"m1": "m1", "m2": "m2", "m3": "m3"},
    ),
    "subcenter": Loss(
        "classification",
        "arcface with K prototypes a class (--subcenters, 3 where not given), the nearest counts",
        _margin_softmax,
        {"m": _radians(0.5), "filter": _FILTER},
        takes=_EXACT_OR_NOT,
        margin={"m": "m2"},
    ),
    "adacos": Loss(
        "classification",
        "CE(s_t cos theta_j), s_t = log(mean sum exp(s cos theta_j)) / cos(min(pi/4, median theta_y))",
        _adacos,
        takes=_PLAIN | {"subcenters"},
        initial=lambda classes, dim: {"scale": torch.tensor(adaptive.initial_adacos_scale(classes))},
    ),
    "curricularface": Loss(
        "classification",
        "own class s cos(theta + m), harder ones s cos theta_j (t + cos theta_j), t the running mean of cos theta_y",
        _curricularface,
        {"m": _radians(0.5), "rate": _RATE},
        takes=_ANGULAR,
        initial=lambda classes, dim: {"t": torch.tensor(0.0)},
    ),
    "magface": Loss(
        "classification",
        "own class s cos(theta + m(a)), m from low to high as a = |x| goes from shortest to longest; "
        "+ weight (a / longest^2 + 1 / a)",
        _magface,
        {
            "low": _radians(0.45),
            "high": _radians(0.8),
            "shortest": Number(10.0, 0.001),
            "longest": Number(110.0, 0.001),
            "weight": Number(35.0),
        },
        takes=_ANGULAR,
    ),
    "adaface": Loss(
        "classification",
        "own class s (cos(theta - m z) - m z - m), z = clip(h (|x| - mean) / std, -1, 1)",
        _adaface,
        {
            "m": Number(0.4, 0.0, 1.0),
            "h": Number(0.333, idle=(("m", 0),)),
            "rate": dataclasses.replace(_RATE, idle=(("m", 0), ("h", 0))),
        },
        takes=_GROWING,
        initial=lambda classes, dim: {"mean": torch.tensor(20.0), "std": torch.tensor(100.0)},
    ),
    "elasticface": Loss(
        "classification",
        "own class s cos(theta + m_i), m_i from N(m, std^2)",
        _elasticface,
        {"m": _radians(0.5), "std": _STD},
        takes=_ANGULAR,
    ),
    "elastic_cosface": Loss(
        "classification",
        "own class s (cos theta - m_i), m_i from N(m, std^2)",
        _elastic_cosface,
        {"m": _cosine(0.35), "std": _STD},
        takes=_GROWING,
    ),
    "center": Loss(
        "regulariser",
        "1/2 mean |x - c_y|^2, c_y moved by -rate sum (c_y - x) / (1 + n_y)",
        _center,
        {"rate": dataclasses.replace(_RATE, default=0.5)},
        weight=0.003,
        initial=lambda classes, dim: {"centers": torch.zeros(classes, dim)},
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
        functools.partial(_of_pairs, pairs.range_loss),
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
        functools.partial(_of_pairs, pairs.marginal_loss),
        {"theta": Number(1.2, 0.0, 4.0), "xi": Number(0.3, 0.0, 4.0)},
    ),
    "contrastive": Loss(
        "pairs",
        "mean d^2 / 2 of pairs of one class + mean max(0, m - d)^2 / 2 of others",
        functools.partial(_of_pairs, pairs.contrastive_loss),
        {"m": Number(1.0, 0.0, 4.0), "distance": Choice(("l2", "angular"))},
    ),
    "triplet": Loss(
        "pairs",
        "mean max(0, d(a, p) + m - d(a, n))",
        functools.partial(_of_pairs, pairs.triplet_loss),
        {
            "m": Number(0.35, 0.0, 4.0),
            "distance": Choice(("angular", "l2")),
            "mining": Choice(("all", "hard", "semi_hard")),
        },
    ),
    "circle": Loss(
        "pairs",
        "mean log(1 + sum exp(gamma [c_n + m]_+ (c_n - m)) sum exp(-gamma [1 + m - c_p]_+ (c_p - 1 + m)))",
        functools.partial(_of_pairs, pairs.circle_loss),
        {"m": Number(0.25, 0.0, 1.0), "gamma": Number(256.0, 0.001)},
    ),
    "multi_similarity": Loss(
        "pairs",
        "mean log(1 + sum exp(-alpha (c_p - base))) / alpha + log(1 + sum exp(beta (c_n - base))) / beta, "
        "mined by epsilon",
        functools.partial(_of_pairs, pairs.multi_similarity_loss),
        {
            "alpha": Number(2.0, 0.001),
            "beta": Number(50.0, 0.001),
            "base": Number(1.0, -1.0, 2.0),
            "epsilon": Number(0.1, 0.0, 2.0),
        },
    ),
    "supcon": Loss(
        "pairs",
        "mean -1/|P| sum_p log(exp(c_p / tau) / sum_a exp(c_a / tau))",
        functools.partial(_of_pairs, pairs.supcon_loss),
        {"tau": Number(0.1, 0.001)},
    ),
}

# Names that are short for others.
ALIASES = {
    "cm1": "combined:m1=1,m2=0.3,m3=0.2",
    "cm2": "combined:m1=0.9,m2=0.4,m3=0.15",
    "sphereface_plus": "a_softmax+mhe",
}


def describe() -> str:
    """Every loss with its equation, options and weight, a line each; `--help` shows it. An option's first word counts.

    >>> describe().splitlines()[5]
    '- cosface: own class s (cos theta - m) [m=0.35, filter=none]'
    """
    lines = []
    for name, loss in LOSSES.items():
        options = ", ".join(f"{key}={_written(option)}" for key, option in loss.options.items())
        brackets = f" [{options}]" if options else ""
        weight = f"; weight {loss.weight:g}" if loss.weight != 1 else ""
        lines.append(f"- {name}: {loss.equation}{brackets}{weight}")
    return "\n".join(lines + [f"- {name}: short for {words}" for name, words in ALIASES.items()])


def _written(option: Number | Choice) -> str:
    """The default, or all the words that there are."""
    if isinstance(option, Choice):
        return "|".join(option.known)
    return "none" if option.default is None else f"{option.default}"


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
        """The flags beside --loss that have an effect."""
        return self.classifier.loss.takes if self.classifier else frozenset()

    @property
    def needs_normal(self) -> bool:
        """Whether each step draws its margins."""
        return not self.names.isdisjoint({"elasticface", "elastic_cosface"})

    def margin(self, beyond_pi: str = "monotone", gradient: str = "exact") -> Margin | None:
        """The `Margin` of a margin softmax; None where the classification loss is another.

        >>> parse("cosface").margin()
        Margin(m1=1.0, m2=0.0, m3=0.35, beyond_pi='monotone', gradient='exact')
        """
        term = self.classifier
        if term is None or term.loss.margin is None:
            return None
        margin = Margin(**{field: term.options[option] for option, field in term.loss.margin.items()})
        # where no angle grows neither policy has an effect
        return (
            dataclasses.replace(margin, beyond_pi=beyond_pi, gradient=gradient) if "gradient" in self.takes else margin
        )


def parse(text: str, margin: float | None = None) -> Objective:
    """The sum of losses that the words of `--loss` describe.

    Args:
      text: `NAME[:ITEM,...]` with `+` between; an item is a weight or `KEY=VALUE`.
      margin: `--margin`, which is short for the option m of the classification loss.

    Raises:
      UserError: an unknown name or option, a value out of range, or a sum that makes no sense.

    >>> parse("triplet:0.5,mining=hard").terms
    (Term(name='triplet', weight=0.5, options={'m': 0.35, 'distance': 'angular', 'mining': 'hard'}),)
    >>> [term.name for term in parse("sphereface_plus+center").terms]
    ['a_softmax', 'mhe', 'center']
    """
    words = "+".join(ALIASES.get(word, word) for word in text.split("+")).split("+")
    terms = [_term(word, text, margin) for word in words]
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--loss {text} has {name} twice")
    owners = [term.name for term in terms if term.loss.kind == "classification"]
    if len(owners) > 1:
        raise UserError(f"--loss {text} has {len(owners)} classification losses, {' and '.join(owners)}; leave one")
    if not owners:
        for term in terms:
            if term.loss.kind == "regulariser":
                raise UserError(
                    f"--loss {text}: {term.name} needs a classification loss beside it, such as softmax+{term.name}"
                )
        if margin is not None:
            raise UserError(f"--margin has no effect on --loss {text}; its margin is an option, such as triplet:m=0.3")
    return Objective(tuple(terms))


def _term(word: str, text: str, margin: float | None) -> Term:
    """A term from its word, which stands in `text`."""
    name, colon, items = word.partition(":")
    if name in ALIASES:
        raise UserError(f"--loss {text}: {name} is short for {ALIASES[name]} and takes no options")
    if name not in LOSSES:
        raise UserError(f"there is no --loss {name!r}: {nearest(name, (*LOSSES, *ALIASES))}")
    loss, weight = LOSSES[name], None
    given: dict[str, Any] = {}
    for item in items.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not equals and weight is not None:
            raise UserError(f"--loss {text}: {name} has two weights, {weight:g} and {item}")
        if not equals:
            weight = _read(item, Number(None, _POSITIVE), f"--loss {text}: the weight of {name}")
            continue
        if key not in loss.options:
            known = f"its options are {', '.join(loss.options)}" if loss.options else "it has none"
            raise UserError(f"--loss {text}: {name} has no option {key!r}; {known}")
        if key in given:
            raise UserError(f"--loss {text}: {name} has {key} twice")
        given[key] = _read(value, loss.options[key], f"--loss {text}: {key} of {name}")
    if margin is not None and loss.kind == "classification":
        option = loss.options.get("m")
        if not isinstance(option, Number):
            raise UserError(f"--margin has no effect on --loss {text}, which has no margin m")
        if "m" in given:
            raise UserError(f"--loss {text} and --margin both give {name} its margin: leave one of them out")
        given["m"] = _in_range(margin, option, "--margin", f"for --loss {text} ")
    options = {key: option.default for key, option in loss.options.items()} | given
    for low, high, rule in (("low", "high", "below"), ("shortest", "longest", "below"), ("last", "first", "at most")):
        if low in options and (options[low] > options[high] or (rule == "below" and options[low] == options[high])):
            raise UserError(
                f"--loss {text}: {low} of {name} is {options[low]:g}; it must be {rule} {high}, {options[high]:g}"
            )
    for key in given:
        for other, value in getattr(loss.options[key], "idle", ()):
            if options[other] == (options[value] if isinstance(value, str) else value):
                raise UserError(f"--loss {text}: {key} of {name} has no effect where {other} = {value}")
    return Term(name, loss.weight if weight is None else weight, options)


_POSITIVE = math.ulp(0.0)  # the smallest number above 0


def _read(text: str, option: Number | Choice, what: str) -> Any:
    """An option's value; a message begins with `what`."""
    if isinstance(option, Choice):
        if text not in option.known:
            raise UserError(f"{what} is {text!r}; it must be {' or '.join(option.known)}")
        return text
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{what} is {text!r}; it must be a number") from None
    return _in_range(value, option, what)


def _in_range(value: float, option: Number, what: str, where: str = "") -> float:
    """The value, an int where the option must be whole."""
    is_inside = option.low <= value < option.high or (option.closed and value == option.high)
    if is_inside and not (option.whole and value != round(value)):
        return int(value) if option.whole else value
    whole = "a whole number, " if option.whole else ""
    low = "> 0" if option.low == _POSITIVE else f"at least {option.low:g}"
    high = "finite" if option.high == math.inf else f"{'at most' if option.closed else 'below'} {option.high:.4g}"
    unit = f" ({option.unit})" if option.unit else ""
    raise UserError(f"{what} is {value:g}; {where}it must be {whole}{low} and {high}{unit}")


# ---- the sum


def initial_states(objective: Objective, num_classes: int, embedding_dim: int) -> dict[str, State]:
    """The states before the first step, by name, of the terms that have one.

    >>> initial_states(parse("adaface+intra"), 10, 2)
    {'adaface': {'mean': tensor(20.), 'std': tensor(100.)}}
    """
    states = {term.name: term.loss.initial(num_classes, embedding_dim) for term in objective.terms}
    return {name: state for name, state in states.items() if state}


def total_loss(objective: Objective, inputs: Inputs, states: Mapping[str, State]) -> tuple[Tensor, dict[str, State]]:
    """The sum of the terms, each times its weight, and their new states.

    >>> x, w = torch.eye(3), torch.eye(3)
    >>> total_loss(parse("modified_softmax+intra:0.5"), Inputs(x, torch.arange(3), w), {})  # log(1 + 2 / e) + 0
    (tensor(0.5514), {})
    """
    # once for all terms, so that their gradients are added up in float32
    inputs = inputs._replace(embeddings=vectors.upcast(inputs.embeddings))
    total = torch.zeros((), device=inputs.embeddings.device)
    new: dict[str, State] = {}
    for term in objective.terms:
        loss, state = term.loss.apply(inputs, term.options, states.get(term.name, {}))
        total = total + term.weight * loss
        if state:
            new[term.name] = state
        if term.name == "center_learnt":
            # the optimiser moves the centres alike whatever the weight is
            total = total + _pull_of_centers(inputs)
    return total, new
