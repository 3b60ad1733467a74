"""The floor of some work on a CPU: the time of its operations, or of its bytes, at rates that were measured there.

The rates are those of a large matrix product in JAX and of a large copy in PyTorch, both float32 and on all cores, run
in turns with a benchmark's contenders. It is a yardstick, not a bound: a convolution that skips zeros can take less.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.bench.turns import Contender, Row, Step

SIDE = 2048  # of the product's matrices
NUMBERS = 2**26  # in the copy


class Work(NamedTuple):
    """What has to be done.

    Args:
      of: what does it, in words.
      flop: floating-point operations, a multiplication and an addition being two.
      bytes: read from and written to memory; 0 where nobody has counted them.
    """

    of: str
    flop: float
    bytes: float = 0.0


def least_time(work: Work, rows: Mapping[str, Row], per_run: int = 1) -> dict[str, Any]:
    """The work, the rates and the floor in milliseconds, as a result holds them.

    Args:
      work: the work.
      rows: the measurements of `CONTENDERS`.
      per_run: what their times were divided by.

    >>> row = Row(100.0, 90.0, 110.0, 1.0, 1.0, 1.0, None)
    >>> least_time(Work("half of it", flop=SIDE**3), dict.fromkeys(CONTENDERS, row))["milliseconds"]
    50.0
    """
    product, copy = (rows[name].milliseconds * per_run / 1e3 for name in CONTENDERS)
    flop_rate, byte_rate = 2 * SIDE**3 / product, 2 * 4 * NUMBERS / copy
    return {
        "of": work.of,
        "flop": work.flop,
        "bytes": work.bytes,
        "flop_per_second": flop_rate,
        "bytes_per_second": byte_rate,
        "milliseconds": 1e3 * max(work.flop / flop_rate, work.bytes / byte_rate),
    }


def described(floor: Mapping[str, Any]) -> str:
    """A floor for the terminal, in a line.

    >>> described({"of": "a step", "flop": 2e9, "bytes": 0.0, "flop_per_second": 2e11, "milliseconds": 10.0})
    'floor of a step: 10.0 ms (2 GFLOP at 200 GFLOP/s)'
    """
    parts = [f"{floor['flop'] / 1e9:.3g} GFLOP at {floor['flop_per_second'] / 1e9:.3g} GFLOP/s"]
    if floor["bytes"]:
        parts.append(f"{floor['bytes'] / 1e9:.3g} GB at {floor['bytes_per_second'] / 1e9:.3g} GB/s")
    return f"floor of {floor['of']}: {floor['milliseconds']:.1f} ms ({', '.join(parts)})"


def _product(options: argparse.Namespace) -> Step:
    import jax
    import jax.numpy as jnp

    x, product = jnp.ones((SIDE, SIDE)), jax.jit(jnp.matmul)
    return lambda: float(product(x, x)[0, 0])


def _copy(options: argparse.Namespace) -> Step:
    import torch

    source, target = torch.ones(NUMBERS), torch.zeros(NUMBERS)
    return lambda: target.copy_(source)[0].item()


CONTENDERS = {"a large matrix product": Contender(_product), "a large copy": Contender(_copy)}
