"""Replicas: K trainings as one vmapped program, against K one after the other.

The configuration is that of the benchmark `step`; a sequence of K takes K times what one takes.
"""

from __future__ import annotations

import argparse

from experiments._arguments import Parser
from experiments.bench import step
from experiments.bench.floor import Work
from experiments.bench.turns import Contender, Step
from jax_arcface.cli.environment import cpu_environment

REFERENCE = "JAX, one after the other"


def headline(options: argparse.Namespace) -> str:
    """How many, of what."""
    return f"{options.replicas} replicas, {step.headline(options)}"


def least_work(options: argparse.Namespace) -> Work:
    """That of as many steps as there are replicas."""
    return Work("a step of each", options.replicas * step.least_work(options).flop)


def _sequence(options: argparse.Namespace) -> Step:
    """One training's steps, as often as there are replicas: the work of a sequence with one program compiled."""
    one = step.jax_step(options)
    return lambda: [one() for _ in range(options.replicas)][-1]


CONTENDERS = {
    REFERENCE: Contender(_sequence, cpu_environment),
    "JAX, one program": Contender(lambda options: step.jax_step(options, options.replicas), cpu_environment),
}


def parser() -> Parser:
    """What is trained, and how many."""
    parser = step.parser()
    parser.prog, parser.description = "python -m experiments bench replicas", __doc__
    parser.add_argument("--replicas", type=int, default=8, help="K (default: 8)")
    return parser
