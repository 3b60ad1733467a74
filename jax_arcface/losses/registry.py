"""Losses by name: what an entry of `terms.py` is, weighted sums of them, and the syntax of `--loss`.

A factory in `terms.py` is the one place where a loss is named: its signature is the list of options, with their ranges;
its docstring is the help. `arcface(m=0.4) + 0.01 * center()` and `parse("arcface:m=0.4+center:0.01")` are the same
`Objective`: a value that says what it owns, which state it has and which random draws it needs, and computes the loss.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jax_arcface.errors import UserError, nearest
from jax_arcface.losses.vectors import upcast

Kind = Literal["classification", "regulariser", "pairs"]
State = dict[str, Array]
P = ParamSpec("P")


# ---- what a loss takes and gives


class Inputs(NamedTuple):
    """What a training step hands to its losses.

    Args:
      embeddings: [B, D], any float dtype. labels: [B].
      owned: the parameters that the losses own, by name: `prototypes` [C, D] or [C, K, D], `bias` [C] and `centers`
        [C, D].
      step: steps done.
      normal: standard normal draws [B], for losses that draw (`Objective.draws`).
      weights: [B], of the examples; None weighs all alike.
    """

    embeddings: Array
    labels: Array
    owned: Mapping[str, Array]
    step: Array | int = 0
    normal: Array | None = None
    weights: Array | None = None

    @property
    def prototypes(self) -> Array:
        """The class prototypes, [C, D] or [C, K, D]."""
        return self.owned["prototypes"]


class Outcome(NamedTuple):
    """What a loss returns.

    Args:
      loss: a scalar.
      state: the state after this step; of a sum, all terms' by name.
      correct: bool [B], which embeddings have their largest cosine with their own class; None where the loss does not
        find that out on its way.
      unweighted: what is added to a sum as it is, whatever the term's weight.
    """

    loss: Array
    state: Any
    correct: Array | None = None
    unweighted: Array | float = 0.0


def _no_state(num_classes: int, embedding_dim: int) -> State:
    return {}


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the body of a factory returns.

    Args:
      apply: from (inputs, state) to the outcome.
      owns: the parameters it needs, among `prototypes`, `bias` and `centers`.
      init: from (number of classes, embedding dimension) to the state before the first step.
      draws: the random draws it needs, `normal` or none.
      subcenters: prototypes for each class.
    """

    apply: Callable[[Inputs, State], Outcome]
    owns: frozenset[str] = frozenset({"prototypes"})
    init: Callable[[int, int], State] = _no_state
    draws: frozenset[str] = frozenset()
    subcenters: int = 1


# ---- options: the parameters of a factory


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a numeric option: low <= value < high, or <= high where it is closed.

    Args:
      unit: for messages, such as "radians".
    """

    low: float = 0.0
    high: float = math.inf
    closed: bool = False
    unit: str = ""

    def check(self, value: Any, name: str, whole: bool = False) -> None:
        """Raises UserError where a number is out of range; arrays are not looked at."""
        if not isinstance(value, numbers.Real):
            return
        value = float(value)
        inside = self.low <= value < self.high or (self.closed and value == self.high)
        if not inside or (whole and value != round(value)):
            kind = "a whole number, " if whole else ""
            high = "finite" if self.high == math.inf else f"{'at most' if self.closed else 'below'} {self.high:.4g}"
            low = "> 0" if self.low == math.ulp(0.0) else f"at least {self.low:.4g}"
            unit = f" ({self.unit})" if self.unit else ""
            raise UserError(f"{name} is {value:g}; it must be {kind}{low} and {high}{unit}")


@dataclasses.dataclass(frozen=True)
class Grows:
    """Marks an option as a margin, which a training lets grow from `neutral`, where it has no effect, to its value."""

    neutral: float = 0.0


POSITIVE = Range(math.ulp(0.0))
Factor = Annotated[float, Range(1.0, 8.0, unit="a factor")]
Radians = Annotated[float, Range(0.0, math.pi, unit="radians")]
Cosine = Annotated[float, Range(0.0, 2.0, unit="a cosine")]
Share = Annotated[float, Range(0.0, 1.0, closed=True)]
Positive = Annotated[float, POSITIVE]
NonNegative = Annotated[float, Range()]


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a loss, as its factory's signature has it.

    Args:
      choices: the words it can be; empty for a number.
      range: of a number. whole: whether it must be a whole number.
      grows: whether it is a margin, and from where it grows.
    """

    name: str
    default: Any
    choices: tuple[str, ...] = ()
    range: Range = Range()
    whole: bool = False
    grows: Grows | None = None

    def check(self, value: Any, of: str) -> None:
        """Raises UserError for a value that the option cannot have."""
        if self.choices:
            if value not in self.choices:
                raise UserError(f"{self.name} of {of} is {value!r}; it must be {' or '.join(self.choices)}")
        elif value is None:
            if self.default is not None:
                raise UserError(f"{self.name} of {of} is None; it must be a number")
        elif isinstance(value, numbers.Real | Array | jax.core.Tracer) and not isinstance(value, bool):
            self.range.check(value, f"{self.name} of {of}", self.whole)
        else:
            raise UserError(f"{self.name} of {of} is {value!r}; it must be a number")

    def read(self, text: str, of: str) -> Any:
        """The value that a word of `--loss` stands for."""
        value = text if self.choices else _number(text, f"{self.name} of {of}")
        self.check(value, of)
        return int(value) if self.whole else value

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={'|'.join(sorted(self.choices, key=lambda word: word != self.default))}"
        return f"{self.name}={'none' if self.default is None else f'{self.default:g}'}"


def _option(parameter: inspect.Parameter, hint: Any) -> Option:
    base, *metadata = get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    while typing.get_origin(base) is Annotated:
        base, *inner = get_args(base)
        metadata = [*inner, *metadata]
    if isinstance(base, types.UnionType):  # a number or None
        base = next(arm for arm in get_args(base) if arm is not types.NoneType)
        if typing.get_origin(base) is Annotated:
            base, *inner = get_args(base)
            metadata = [*inner, *metadata]
    choices = get_args(base) if typing.get_origin(base) is Literal else ()
    found = {type(item): item for item in metadata}
    return Option(
        parameter.name,
        parameter.default,
        choices,
        found.get(Range, Range()),
        base is int,
        found.get(Grows),
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the registry.

    Args:
      name: of the factory, and in `--loss`.
      kind: `classification` losses own prototypes; a `regulariser` needs one beside it; `pairs` need neither.
      body: from options to a `Loss`.
      weight: its weight in `--loss` where none is given.
      options: by name.
      help: the first line of the factory's docstring.
    """

    name: str
    kind: Kind
    body: Callable[..., Loss]
    weight: float
    options: Mapping[str, Option]
    help: str


LOSSES: dict[str, Entry] = {}
# Names in --loss that are short for others.
ALIASES = {
    "cm1": "combined:m1=1,m2=0.3,m3=0.2",
    "cm2": "combined:m1=0.9,m2=0.4,m3=0.15",
    "sphereface_plus": "a_softmax+mhe",
}


def loss(
    kind: Kind, *, name: str | None = None, weight: float = 1.0
) -> Callable[[Callable[P, Loss]], Callable[P, Objective]]:
    """Registers a function from options to a `Loss`, and makes it one from options to an `Objective` of one term.

    Args:
      kind, weight: as in `Entry`.
      name: the function's own where None.
    """

    def register(body: Callable[P, Loss]) -> Callable[P, Objective]:
        signature, hints = inspect.signature(body), typing.get_type_hints(body, include_extras=True)
        options = {key: _option(parameter, hints[key]) for key, parameter in signature.parameters.items()}
        entry = Entry(
            name or body.__name__, kind, body, weight, options, inspect.cleandoc(body.__doc__ or "").split("\n")[0]
        )
        LOSSES[entry.name] = entry

        @functools.wraps(body)
        def factory(*args: P.args, **kwargs: P.kwargs) -> Objective:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return Objective((_term(entry, 1.0, bound.arguments),))

        factory.__annotations__ = {**body.__annotations__, "return": "Objective"}
        return factory

    return register


# ---- sums


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a sum: a loss by name, its weight, and the values of its options."""

    name: str
    weight: float
    options: tuple[tuple[str, Any], ...]

    @property
    def entry(self) -> Entry:
        """Its entry in the registry."""
        return LOSSES[self.name]

    @property
    def loss(self) -> Loss:
        """The loss with these options.

        Raises:
          UserError: options that do not fit each other.
        """
        return self.entry.body(**dict(self.options))


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses: `2 * arcface(m=0.4) + 0.01 * center()`.

    >>> from jax_arcface.losses.terms import arcface, center
    >>> objective = 2 * arcface(m=0.4) + 0.01 * center()
    >>> [(term.name, term.weight) for term in objective.terms], sorted(objective.owns), objective.margins
    ([('arcface', 2.0), ('center', 0.01)], ['prototypes'], {'arcface.m': 0.4})
    """

    terms: tuple[Term, ...]

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        names = [term.name for term in (*self.terms, *other.terms)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{twice[0]} appears twice in the sum")
        return Objective(self.terms + other.terms)

    def __mul__(self, weight: float) -> Objective:
        POSITIVE.check(weight, "the weight of a loss")
        return Objective(tuple(dataclasses.replace(term, weight=float(weight * term.weight)) for term in self.terms))

    __rmul__ = __mul__

    def checked(self) -> Objective:
        """Itself, if it is a loss that can be trained with.

        Raises:
          UserError: two classification losses, a regulariser without one, or sub-centres where they are not defined.
        """
        of = {
            kind: [term.name for term in self.terms if term.entry.kind == kind]
            for kind in ("classification", "regulariser")
        }
        if len(of["classification"]) > 1:
            raise UserError(f"{' and '.join(of['classification'])} are classification losses; a sum can have one")
        if of["regulariser"] and not of["classification"]:
            name = of["regulariser"][0]
            raise UserError(f"{name} needs a classification loss beside it, such as softmax+{name}")
        if self.subcenters > 1 and (flat := self.names & {"inter", "mhe"}):
            raise UserError(f"{min(flat)} is not defined with sub-centres; there are {self.subcenters}")
        return self

    @property
    def classifier(self) -> Term | None:
        """The classification loss; None where there are pair losses alone."""
        return next((term for term in self.terms if term.entry.kind == "classification"), None)

    @property
    def names(self) -> frozenset[str]:
        """The terms' names."""
        return frozenset(term.name for term in self.terms)

    @property
    def owns(self) -> frozenset[str]:
        """The parameters that the terms own, among `prototypes`, `bias` and `centers`."""
        return frozenset().union(*(term.loss.owns for term in self.terms))

    @property
    def draws(self) -> frozenset[str]:
        """The random draws that a step needs: `normal` or none."""
        return frozenset().union(*(term.loss.draws for term in self.terms))

    @property
    def subcenters(self) -> int:
        """Prototypes for each class."""
        return max(term.loss.subcenters for term in self.terms)

    @property
    def margins(self) -> dict[str, Any]:
        """The options that are margins, `TERM.OPTION`: numbers, or arrays that `jax.vmap` maps over."""
        return {
            f"{term.name}.{key}": value
            for term in self.terms
            for key, value in term.options
            if term.entry.options[key].grows
        }

    def with_margins(self, margins: Mapping[str, Any]) -> Objective:
        """The same with other margins, by the names of `margins`."""
        return Objective(
            tuple(
                dataclasses.replace(
                    term,
                    options=tuple((key, margins.get(f"{term.name}.{key}", value)) for key, value in term.options),
                )
                for term in self.terms
            )
        )

    def grown(self, share: Any) -> Objective:
        """The same with its margins grown to a share of their values, 0 to 1, from where they have no effect.

        >>> from jax_arcface.losses.terms import arcface
        >>> arcface(m=0.4).grown(0.5).margins
        {'arcface.m': 0.2}
        """
        return self.with_margins(
            {
                f"{term.name}.{key}": grows.neutral + share * (value - grows.neutral)
                for term in self.terms
                for key, value in term.options
                if (grows := term.entry.options[key].grows)
            }
        )

    def init(self, num_classes: int, embedding_dim: int) -> dict[str, State]:
        """The terms' states before the first step, by name; those that have one.

        >>> from jax_arcface.losses.terms import center, softmax
        >>> {name: list(state) for name, state in (softmax() + center()).init(10, 2).items()}
        {'center': ['centers']}
        """
        states = {term.name: term.loss.init(num_classes, embedding_dim) for term in self.terms}
        return {name: state for name, state in states.items() if state}

    def apply(self, inputs: Inputs, states: Mapping[str, State]) -> Outcome:
        """The sum of the terms, each times its weight, and their new states, constants for the gradient.

        >>> from jax_arcface.losses.terms import intra, modified_softmax
        >>> inputs = Inputs(jnp.eye(3), jnp.arange(3), {"prototypes": jnp.eye(3)})
        >>> print((modified_softmax() + intra()).apply(inputs, {}).loss.round(4))  # log(1 + 2 / e) + 0
        0.5514
        """
        # once for all terms, so that their gradients are added up in float32
        inputs = inputs._replace(embeddings=upcast(jnp.asarray(inputs.embeddings)))
        total: Array | float = 0.0
        new: dict[str, State] = {}
        correct: Array | None = None
        for term in self.terms:
            outcome = term.loss.apply(inputs, states.get(term.name, {}))
            total = total + term.weight * outcome.loss + outcome.unweighted
            if outcome.state:
                new[term.name] = jax.tree.map(jax.lax.stop_gradient, outcome.state)
            correct = outcome.correct if correct is None else correct
        return Outcome(jnp.asarray(total), new, correct)


def _term(entry: Entry, weight: float, options: Mapping[str, Any]) -> Term:
    for key, value in options.items():
        entry.options[key].check(value, entry.name)
    term = Term(entry.name, weight, tuple(options.items()))
    try:
        _ = term.loss
    except ValueError as error:  # options that do not fit each other
        raise UserError(str(error)) from None
    return term


# ---- the syntax of --loss


def parse(text: str, **options: Any) -> Objective:
    """The sum of losses that `--loss` describes.

    Args:
      text: `NAME[:ITEM,...]` with `+` between; an item is a weight or `KEY=VALUE`.
      options: of the classification loss, such as m, scale or subcenters; None gives none.

    Raises:
      UserError: an unknown name or option, a value out of range, or a sum that makes no sense.

    >>> [(term.name, term.weight) for term in parse("softmax+center:0.01").terms]
    [('softmax', 1.0), ('center', 0.01)]
    >>> parse("arcface:m=0.4", scale=32.0).margins
    {'arcface.m': 0.4}
    """
    words = "+".join(ALIASES.get(word, word) for word in text.split("+")).split("+")
    options = {key: value for key, value in options.items() if value is not None}
    terms = [_parse_term(word, len(words) == 1) for word in words]
    for entry, _, given in terms:
        if entry.kind == "classification":
            for key in list(options):
                if key not in entry.options:
                    raise UserError(f"{key} has no effect on the loss {entry.name}")
                if key in given and key == "m":
                    raise UserError(f"the margin of {entry.name} is given twice: leave one of them out")
                given.setdefault(key, options.pop(key))
    if options:
        raise UserError(f"{min(options)} has no effect on the loss {text}, which has no classification loss")
    total: Objective | None = None
    for entry, weight, given in terms:
        values = {key: given.get(key, option.default) for key, option in entry.options.items()}
        term = Objective((_term(entry, weight, values),))
        total = term if total is None else total + term
    assert total is not None
    return total.checked()


def _parse_term(word: str, alone: bool) -> tuple[Entry, float, dict[str, Any]]:
    name, colon, items = word.partition(":")
    if name in ALIASES:
        raise UserError(f"{name} is short for {ALIASES[name]} and takes no options")
    if name not in LOSSES:
        raise UserError(f"there is no loss {name!r}: {nearest(name, (*LOSSES, *ALIASES))}")
    entry = LOSSES[name]
    weight: float | None = None
    given: dict[str, Any] = {}
    for item in items.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals:
            if alone and entry.kind == "classification":
                hint = f"; did you mean {name}:m={item}?" if "m" in entry.options else ""
                raise UserError(f"{item} would be the weight of {name}, which has none beside it{hint}")
            if weight is not None:
                raise UserError(f"{name} has two weights, {weight:g} and {item}")
            weight = _number(item, f"the weight of {name}")
            POSITIVE.check(weight, f"the weight of {name}")
        elif key not in entry.options:
            known = f"its options are {', '.join(entry.options)}" if entry.options else "it has none"
            raise UserError(f"{name} has no option {key!r}; {known}")
        elif key in given:
            raise UserError(f"{name} has {key} twice")
        else:
            given[key] = entry.options[key].read(value, name)
    return entry, entry.weight if weight is None else weight, given


def _number(text: str, what: str) -> float:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan", text, re.ASCII):
        raise UserError(f"{what} is {text!r}; it must be a number")
    return float(text)


# Options that every classification loss has where they have an effect; the configuration has fields for them.
SHARED = ("scale", "subcenters", "label_smoothing", "beyond_pi", "gradient")


def describe() -> list[str]:
    """The losses with their equations, options and weights, a line each, as `--help-losses` prints them.

    >>> import jax_arcface.losses.terms
    >>> [line for line in describe() if line.startswith("cosface")]
    ['cosface: own class s (cos theta - m) [m=0.35, filter=none]']
    """
    lines = []
    for name, entry in LOSSES.items():
        options = ", ".join(str(option) for key, option in entry.options.items() if key not in SHARED)
        weight = f"; weight {entry.weight:g}" if entry.weight != 1 else ""
        lines.append(f"{name}: {entry.help.rstrip('.')}{f' [{options}]' if options else ''}{weight}")
    return [*lines, *(f"{name}: short for {words}" for name, words in ALIASES.items())]
