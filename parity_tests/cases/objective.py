"""Every loss of the registry, by name: values, gradients and states over two steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_arcface.losses.terms  # noqa: F401
from jax_arcface.losses.registry import ALIASES, LOSSES, SHARED, Entry, Inputs, Option, parse
from parity_tests.cases import Case, bound_of
from parity_tests.cases.losses import CLASSES, DIM, SCALE, batch
from parity_tests.compare import Difference, compare
from torch_reference.losses import registry as torch_objective

# the second is late, so that a lambda that is annealed has come to its last value
STEPS = (1, 10_000)
GROWN = 0.75  # the share of the margin that has grown


def words() -> list[str]:
    """Each name of the registry (regularisers beside `softmax`), and each word that an option can be."""
    found = []
    for name, entry in LOSSES.items():
        alone = _alone(name)
        found.append(alone)
        for option in _own(entry):
            if option.choices:
                found += [f"{alone}:{option.name}={word}" for word in option.choices if word != option.default]
            elif option.default is None:
                found.append(f"{alone}:{option.name}={_changed(option)}")
    return [*found, *ALIASES, "arcface:0.5,m=0.4+intra:2+inter+triplet:0.25,mining=hard"]


def changed_words() -> list[str]:
    """Each name of the registry that has options which are numbers, with other ones than the defaults."""
    found = []
    for name, entry in LOSSES.items():
        if changed := [f"{o.name}={_changed(o)}" for o in _own(entry) if not o.choices]:
            found.append(f"{_alone(name)}:{','.join(changed)}")
    return found


def _alone(name: str) -> str:
    return f"softmax+{name}" if LOSSES[name].kind == "regulariser" else name


def _own(entry: Entry) -> list[Option]:
    """The options that other losses do not share."""
    return [option for key, option in entry.options.items() if key not in SHARED]


def _changed(option: Option) -> str:
    """A value that an option does not have by default: a third of the way to its lowest, or the next whole number."""
    if option.default is None:
        return "0.2"
    low = max(option.range.low, -4.0)
    value = option.default + 1 if option.whole else (low + 2 * option.default) / 3
    return f"{float(f'{value:.3g}'):g}"  # no exponent with a plus, which would begin another term


def example(dtype: str, subcenters: int = 1) -> list[np.ndarray]:
    """Embeddings, prototypes, biases, centres, normal draws and labels."""
    x, w, labels = batch(dtype, subcenters)
    x, labels = x[:18], labels[:18]  # of all 24 the mean cosine is 0 but for rounding
    # lengths on both sides of MagFace's shortest
    rng = np.random.default_rng(5)
    extra = [rng.normal(size=(CLASSES,)), rng.normal(size=(CLASSES, DIM)), rng.normal(size=len(x))]
    return [2 * x, w, *(array.astype(dtype) for array in extra), labels]


def _settings(text: str, policy: str, subcenters: int) -> dict[str, Any]:
    """The options of the classification loss that the configuration would give, where it has them."""
    classifier = parse(text).classifier
    wanted = {"scale": SCALE, "label_smoothing": 0.1, "beyond_pi": policy, "subcenters": subcenters}
    return {name: v for name, v in wanted.items() if classifier and name in classifier.entry.options}


def _subcenters(w: Any) -> int:
    return w.shape[1] if w.ndim == 3 else 1


def jax_steps(text: str, policy: str = "wrap") -> Callable[..., dict[str, Any]]:
    """What `jax_arcface` makes of an `example` by the words of --loss: two steps' losses, and the states after them."""

    def steps(x, w, bias, centers, normal, labels):
        objective = parse(text, **_settings(text, policy, _subcenters(w))).grown(GROWN)
        inputs = Inputs(x, labels, {"prototypes": w, "bias": bias, "centers": centers}, normal=normal)
        # the initial states are float32 numbers in both programs; the arithmetic is to be that of the inputs
        states = jax.tree.map(lambda value: value.astype(np.float32).astype(x.dtype), objective.init(CLASSES, DIM))
        outputs = {}
        for number, step in enumerate(STEPS):
            inputs = inputs._replace(embeddings=x * (1 + 0.5 * number), step=step)
            outputs[f"loss {number}"], states, *_ = objective.apply(inputs, states)
        return outputs | {f"{name}.{key}": jnp.asarray(v) for name, s in states.items() for key, v in s.items()}

    return steps


def torch_steps(text: str, policy: str = "wrap") -> Callable[..., dict[str, Any]]:
    """What `torch_reference` makes of it."""
    beside = {"scale": SCALE, "label_smoothing": 0.1, "beyond_pi": policy}

    def steps(x, w, bias, centers, normal, labels):
        objective = torch_objective.parse(text, defaults=beside)
        objective.build(CLASSES, DIM)
        objective.to(x.dtype)
        batch = torch_objective.Batch(x, labels, w, bias, centers, normal=normal)
        outputs = {}
        for number, step in enumerate(STEPS):
            batch = batch._replace(embeddings=x * (1 + 0.5 * number), step=step)
            outputs[f"loss {number}"] = objective(batch, GROWN)
        states = {f"{term.name}.{key}": value for _, term in objective for key, value in term.named_buffers()}
        return outputs | states

    return steps


def _measured(text: str, subcenters: int, dtype: str, policy: str = "wrap") -> Iterator[Difference]:
    here, there = jax_steps(text, policy), torch_steps(text, policy)
    yield from compare(here, there, *example(dtype, subcenters), argnums=(0, 1, 2, 3)).differences


CASES = [
    # each loss and each word of its options in float64 in every run; the rest takes a minute and a half
    *(
        Case(
            f"loss {text}",
            "objective",
            dtype,
            **bound_of(dtype),
            measure=functools.partial(_measured, text, 1, dtype),
            slow=dtype == "float32",
            covers=tuple(torch_objective.parse(text).names),
        )
        for dtype in ("float64", "float32")
        for text in words()
        if text != "subcenter"
    ),
    *(
        Case(
            f"loss {text}, 3 sub-centres",
            "objective",
            "float64",
            1e-12,
            functools.partial(_measured, text, 3, "float64"),
            slow=True,
        )
        for text, entry in LOSSES.items()
        if "subcenters" in entry.options
    ),
    *(
        Case(f"loss {text}", "objective", "float64", 1e-12, functools.partial(_measured, text, 1, "float64"), slow=True)
        for text in changed_words()
    ),
    # those of a margin softmax are in `cases/losses.py`
    *(
        Case(
            f"loss {name}, {policy} past pi",
            "objective",
            "float64",
            1e-12,
            functools.partial(_measured, name, 1, "float64", policy),
            slow=True,
        )
        for name, entry in LOSSES.items()
        if "beyond_pi" in entry.options and "gradient" not in entry.options
        for policy in ("monotone", "linear")
    ),
]
