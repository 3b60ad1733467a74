"""How losses get their names, options and weights: `arcface(m=0.5) + 0.01 * center()`, and the syntax of `--loss`.

A loss is one factory in `terms.py`. Its signature lists the options, its annotations their ranges, its docstring its
equation; `loss` makes an entry of `LOSSES` from it. What it returns is an `Objective`, a weighted sum of terms.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec

import torch
from torch import Tensor, nn

from torch_reference.errors import UserError, nearest
from torch_reference.losses.margins import Margin
from torch_reference.losses.vectors import upcast
from torch_reference.ranges import Range

Kind = Literal["classification", "regulariser", "pairs"]
P = ParamSpec("P")


class Batch(NamedTuple):
    """What a loss sees of a training step.

    Args:
      embeddings: [B, D], any float dtype. labels: [B], integers in [0, C).
      prototypes: [C, D] or [C, K, D]; pair losses do not look at them.
      bias: [C], where the objective has `softmax`. centers: [C, D], where it has `center_learnt`.
      step: optimiser steps done before.
      normal: standard normal draws [B], where `Objective.draws`.
      weights: [B], >= 0, the examples' weights; None weighs them alike.
      state: what the loss remembers from the step before.
    """

    embeddings: Tensor
    labels: Tensor
    prototypes: Tensor
    bias: Tensor | None = None
    centers: Tensor | None = None
    step: int = 0
    normal: Tensor | None = None
    weights: Tensor | None = None
    state: Mapping[str, Tensor] = types.MappingProxyType({})


class Result(NamedTuple):
    """What a loss returns that is more than a scalar.

    Args:
      loss: a scalar, which is multiplied by the term's weight.
      state: what the loss remembers for the next step.
      unweighted: a scalar that is added whatever the weight is.
    """

    loss: Tensor
    state: Mapping[str, Tensor] = types.MappingProxyType({})
    unweighted: Tensor | float = 0.0


Compute = Callable[[Batch], Tensor | Result]


@dataclasses.dataclass(frozen=True)
class Grows:
    """Marks an option that is a margin: during the margin's warm-up it grows from `neutral`, at which it does nothing.

    A `Margin` grows by itself.
    """

    neutral: float = 0.0


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a loss, read from a parameter of its factory.

    Args:
      default: of the parameter.
      kind: int, float or str (for other types, which `parse` cannot read, `object`).
      range: of a number.
      choices: of a string.
      grows: what it grows from in the margin's warm-up; None where it does not grow.
    """

    default: Any
    kind: type
    range: Range | None = None
    choices: tuple[str, ...] = ()
    grows: Grows | None = None

    @classmethod
    def of(cls, default: Any, annotation: Any) -> Option:
        """The option that a parameter's default and annotation describe."""
        marks: tuple[Any, ...] = ()
        if typing.get_origin(annotation) is Annotated:
            annotation, *rest = typing.get_args(annotation)
            marks = tuple(rest)
        if typing.get_origin(annotation) is Literal:
            return cls(default, str, choices=typing.get_args(annotation))
        kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not types.NoneType]
        return cls(
            default,
            kinds[0] if kinds[0] in (int, float) else object,
            range=next((mark for mark in marks if isinstance(mark, Range)), None),
            grows=next((mark for mark in marks if isinstance(mark, Grows)), None),
        )

    def read(self, text: str, name: str) -> Any:
        """The value that a text stands for; `name` begins the message of a UserError."""
        if self.choices:
            return self.check(text, name)
        # `float` would also take 1_0, spaces and other scripts' digits
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan", text, re.ASCII):
            raise UserError(f"{name} is {text!r}; it must be a number")
        return self.check(float(text), name)

    def check(self, value: Any, name: str) -> Any:
        """The value, an int where it must be one, found to be allowed; UserError where it is not."""
        if self.choices:
            if value not in self.choices:
                raise UserError(f"{name} is {value!r}; it must be {' or '.join(self.choices)}")
        elif self.kind is not object and value is not None:
            if self.kind is int and not (math.isfinite(value) and value == round(value)):
                raise UserError(f"{name} is {value:g}; it must be a whole number, {self.range}")
            if self.range is not None:
                self.range.check(value, name)
            return int(value) if self.kind is int else value
        return value

    def at(self, value: Any, growth: float) -> Any:
        """The value after the share `growth` of the margin's warm-up."""
        if self.grows is None or growth == 1:
            return value
        if isinstance(value, Margin):
            return value.grown(growth)
        return self.grows.neutral + growth * (value - self.grows.neutral)


@dataclasses.dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Args:
      name: of the factory, and in `--loss`.
      make: the factory as it is written, from options to a function of a `Batch`.
      kind: a `classification` loss owns the prototypes, a `regulariser` needs one beside it, `pairs` need neither.
      weight: the weight in `--loss` where none is given.
      owns: the parameters beside the prototypes that a head makes for it: `bias`, `centers`.
      draws: whether each step needs normal draws.
      one_prototype: whether it is undefined for several prototypes a class.
      state: from (number of classes, embedding dimension) to its state before the first step.
    """

    name: str
    make: Callable[..., Compute]
    kind: Kind
    weight: float = 1.0
    owns: frozenset[str] = frozenset()
    draws: bool = False
    one_prototype: bool = False
    state: Callable[[int, int], dict[str, Tensor]] = lambda classes, dim: {}

    @property
    def equation(self) -> str:
        """What the loss is, in one line: the first paragraph of its docstring."""
        paragraph, _, _ = inspect.cleandoc(self.make.__doc__ or "").partition("\n\n")
        return " ".join(paragraph.split()).removesuffix(".")

    @functools.cached_property
    def options(self) -> dict[str, Option]:
        """The options by name."""
        hints = typing.get_type_hints(self.make, include_extras=True)
        parameters = inspect.signature(self.make).parameters.values()
        return {parameter.name: Option.of(parameter.default, hints[parameter.name]) for parameter in parameters}

    @property
    def remembers(self) -> bool:
        """Whether it has a state."""
        return bool(self.state(3, 2))

    @property
    def has_margin(self) -> bool:
        """Whether a margin grows during the margin's warm-up."""
        return any(option.grows for option in self.options.values())


LOSSES: dict[str, Loss] = {}


def loss(
    kind: Kind,
    *,
    weight: float = 1.0,
    owns: Iterable[str] = (),
    draws: bool = False,
    one_prototype: bool = False,
    state: Callable[[int, int], dict[str, Tensor]] = lambda classes, dim: {},
    listed: bool = True,
) -> Callable[[Callable[P, Compute]], Callable[P, Objective]]:
    """Makes a factory of objectives from a function of options; the arguments are those of `Loss`.

    Args:
      listed: whether `--loss` knows it.
    """

    def register(make: Callable[P, Compute]) -> Callable[P, Objective]:
        entry = Loss(make.__name__, make, kind, weight, frozenset(owns), draws, one_prototype, state)
        if listed:
            LOSSES[entry.name] = entry

        @functools.wraps(make)
        def factory(*args: P.args, **kwargs: P.kwargs) -> Objective:
            bound = inspect.signature(make).bind(*args, **kwargs)
            bound.apply_defaults()
            return Objective([(1.0, Term(entry, bound.arguments))])

        factory.__annotations__ = make.__annotations__ | {"return": Objective}
        return factory

    return register


class Term(nn.Module):
    """A loss with its options. What it remembers from step to step are buffers, which `build` makes.

    In evaluation mode they stay as they are, and labels are not smoothed.

    Raises:
      UserError: an option out of range.
    """

    def __init__(self, loss: Loss, options: Mapping[str, Any]):
        super().__init__()
        self.loss = loss
        self.options = {key: loss.options[key].check(value, f"{key} of {loss.name}") for key, value in options.items()}
        loss.make(**self.options)  # raises where options do not fit each other

    @property
    def name(self) -> str:
        """The loss's name."""
        return self.loss.name

    def build(self, num_classes: int, embedding_dim: int) -> None:
        """Makes the state before the first step."""
        for name, value in self.loss.state(num_classes, embedding_dim).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Batch, growth: float = 1.0) -> Result:
        """The loss of a batch, with the margin as far as it has grown, and moves the state."""
        options = {key: self.loss.options[key].at(value, growth) for key, value in self.options.items()}
        if not self.training and "label_smoothing" in options:
            options["label_smoothing"] = 0.0
        result = self.loss.make(**options)(batch._replace(state=dict(self.named_buffers())))
        if isinstance(result, Tensor):
            return Result(result)
        if self.training:
            for name, value in result.state.items():
                setattr(self, name, value.detach())
        return result

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.name}, {', '.join(f'{key}={value}' for key, value in self.options.items())}"


class Objective(nn.Module):
    """A weighted sum of losses: `arcface(m=0.4) + 0.01 * center()`. A `Head` owns what it needs.

    Args:
      terms: pairs of a weight and a term.

    Raises:
      ValueError: a weight that is not > 0 and finite.
      UserError: a loss that is there twice, or two classification losses.
    """

    def __init__(self, terms: Iterable[tuple[float, Term]]):
        super().__init__()
        pairs = list(terms)
        self.weights = tuple(weight for weight, _ in pairs)
        self.terms = nn.ModuleList(copy.deepcopy(term) for _, term in pairs)
        for weight in self.weights:
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of a loss is {weight:g}; it must be > 0 and finite")
        names = [term.name for _, term in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{name} is there twice")
        owners = [term.name for _, term in pairs if term.loss.kind == "classification"]
        if len(owners) > 1:
            raise UserError(f"there are {len(owners)} classification losses, {' and '.join(owners)}; leave one")

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective([*self, *other])

    def __mul__(self, weight: float) -> Objective:
        return Objective([(weight * own, term) for own, term in self])

    __rmul__ = __mul__

    def __iter__(self) -> typing.Iterator[tuple[float, Term]]:
        for weight, term in zip(self.weights, self.terms, strict=True):
            yield weight, typing.cast(Term, term)

    @property
    def classifier(self) -> Term | None:
        """The classification loss; None where there are pair losses alone."""
        return next((term for _, term in self if term.loss.kind == "classification"), None)

    @property
    def names(self) -> frozenset[str]:
        """The names of the losses."""
        return frozenset(term.name for _, term in self)

    @property
    def owns(self) -> frozenset[str]:
        """The parameters beside the prototypes that it needs: `bias`, `centers`."""
        return frozenset().union(*(term.loss.owns for _, term in self))

    @property
    def draws(self) -> bool:
        """Whether each step needs normal draws."""
        return any(term.loss.draws for _, term in self)

    def check(self) -> None:
        """Raises UserError where the sum cannot be trained: a regulariser without a classification loss, for one."""
        classifier = self.classifier
        for _, term in self:
            if classifier is None and term.loss.kind == "regulariser":
                raise UserError(f"{term.name} needs a classification loss beside it, such as softmax+{term.name}")
            if classifier is not None and term.loss.one_prototype and classifier.options.get("subcenters", 1) > 1:
                raise UserError(f"{term.name} is defined for one prototype a class only, not for sub-centres")

    def extra_repr(self) -> str:
        """What `print` shows beside the terms."""
        return f"weights={self.weights}"

    def build(self, num_classes: int, embedding_dim: int) -> None:
        """Makes the losses' states before the first step."""
        for _, term in self:
            term.build(num_classes, embedding_dim)

    def forward(self, batch: Batch, growth: float = 1.0) -> Tensor:
        """The sum of the losses, each times its weight: a scalar.

        Args:
          growth: the share of the margins that has grown, in (0, 1].
        """
        # once for all terms, so that their gradients are added up in float32
        batch = batch._replace(embeddings=upcast(batch.embeddings))
        if batch.weights is not None:  # an example that does not count may have any label
            batch = batch._replace(labels=batch.labels.where(batch.weights > 0, 0))
        total = torch.zeros((), device=batch.embeddings.device)
        for weight, term in self:
            result = term(batch, growth)
            total = total + weight * result.loss + result.unweighted
        return total


# ---- the syntax of --loss

# Names that are short for others.
ALIASES = {
    "cm1": "combined:m1=1,m2=0.3,m3=0.2",
    "cm2": "combined:m1=0.9,m2=0.4,m3=0.15",
    "sphereface_plus": "a_softmax+mhe",
}
# Options that many classification losses share, and that the configuration has fields for.
SHARED = ("scale", "subcenters", "label_smoothing", "beyond_pi", "gradient")


def describe() -> str:
    """Every loss with its equation, its own options and its weight, a line each; the first choice is the default.

    >>> describe().splitlines()[5]
    '- cosface: own class s (cos theta - m) [m=0.35, filter=none]'
    """
    lines = []
    for name, entry in LOSSES.items():
        own = ", ".join(f"{key}={_written(option)}" for key, option in entry.options.items() if key not in SHARED)
        weight = f"; weight {entry.weight:g}" if entry.weight != 1 else ""
        lines.append(f"- {name}: {entry.equation}{f' [{own}]' if own else ''}{weight}")
    return "\n".join(lines + [f"- {name}: short for {text}" for name, text in ALIASES.items()])


def _written(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    return "none" if option.default is None else f"{option.default}"


def parse(text: str, given: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None) -> Objective:
    """The objective that a text in the syntax of `--loss` describes: `arcface:m=0.4+center:0.01,rate=0.3`.

    Terms `NAME[:ITEM,ITEM...]` stand with `+` between them; an item is the term's weight, or an option `KEY=VALUE`.

    Args:
      given: options of the classification loss that are given beside the text.
      defaults: options that the classification loss takes, if it has them, where the text gives none.

    Raises:
      UserError: an unknown name or option, a value out of range, or a sum that makes no sense.

    >>> [(weight, term.name, term.options) for weight, term in parse("triplet:0.5,mining=hard")]
    [(0.5, 'triplet', {'m': 0.35, 'distance': 'angular', 'mining': 'hard'})]
    >>> sorted(parse("sphereface_plus+center").names)
    ['a_softmax', 'center', 'mhe']
    """
    words = "+".join(ALIASES.get(word, word) for word in text.split("+")).split("+")
    given, defaults = dict(given or {}), dict(defaults or {})
    try:
        objective = Objective(_term(word, given, defaults, alone=len(words) == 1) for word in words)
        objective.check()
    except ValueError as error:
        raise UserError(f"the loss {text!r}: {error}") from None
    if objective.classifier is None and given:
        name = next(iter(given))
        example = "; write it as an option, such as triplet:m=0.3" if name == "m" else ""
        raise UserError(f"the loss {text!r}: {_said(name)} has no effect without a classification loss{example}")
    return objective


def _term(word: str, given: Mapping[str, Any], defaults: Mapping[str, Any], alone: bool) -> tuple[float, Term]:
    """A weight and a term from its text."""
    name, colon, items = word.partition(":")
    if name in ALIASES:
        raise UserError(f"{name} is short for {ALIASES[name]} and takes no options")
    if name not in LOSSES:
        raise UserError(f"no loss is called {name!r}: {nearest(name, (*LOSSES, *ALIASES))}")
    entry = LOSSES[name]
    weight: float | None = None
    options: dict[str, Any] = {}
    for item in items.split(",") if colon else []:
        key, equals, value = item.partition("=")
        if not equals:
            if weight is not None:
                raise UserError(f"{name} has two weights, {weight:g} and {item}")
            weight = Option(1.0, float, Range(open_low=True)).read(item, f"the weight of {name}")
            if alone and entry.kind == "classification":
                meant = f"did you mean {name}:m={item}?" if "m" in entry.options else "leave it out"
                raise UserError(f"{item} is the weight of {name}, which alone has no use for one; {meant}")
        elif key not in entry.options:
            raise UserError(f"{name} has no option {key!r}; it has {', '.join(entry.options) or 'none'}")
        elif key in options:
            raise UserError(f"{name} has {key} twice")
        else:
            options[key] = entry.options[key].read(value, f"{key} of {name}")
    if entry.kind == "classification":
        for key, value in given.items():
            if key not in entry.options:
                raise UserError(f"{_said(key)} has no effect on {name}")
            if options.setdefault(key, value) != value:
                raise UserError(f"{_said(key)} is given twice, as {options[key]} and as {value}")
        for key in defaults.keys() & entry.options.keys():
            options.setdefault(key, defaults[key])
    every = {key: option.default for key, option in entry.options.items()}
    return entry.weight if weight is None else weight, Term(entry, every | options)


def _said(option: str) -> str:
    """How a message calls an option."""
    return "the margin" if option == "m" else f"the {option.replace('_', ' ')}"
