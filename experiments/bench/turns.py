"""Contenders that do the same work in turns, each in a process of its own.

A turn is one run of each contender, so that a change in the machine's speed meets all alike; what counts is the median,
over the turns, of a contender's time over that of the reference in the same turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

# What changes the speed of a contender.
VARIABLES = ("GLIBC_TUNABLES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "XLA_FLAGS")
Step = Callable[[], float]  # runs once, waits for all results; returns a number that contenders are compared by, or NaN


class Contender(NamedTuple):
    """One of the programs compared.

    Args:
      make: from a benchmark's options to the step that is timed, with its inputs made and its program compiled.
      environment: gives the variables of its process, of `VARIABLES`. (A function, since what JAX's should be takes
        importing it.)
    """

    make: Callable[[argparse.Namespace], Step]
    environment: Callable[[], Mapping[str, str]] = dict


class Row(NamedTuple):
    """What was measured of a contender.

    Args:
      milliseconds, smallest, largest: of a run: the median over the turns, and the extremes.
      ratio: the median, over the turns, of its time over the reference's.
      first_seconds: until the end of the first run: importing JAX or PyTorch, making inputs, compiling.
      mebibytes: the peak of its resident memory while it runs: the interpreter, JAX or PyTorch, inputs and all.
      value: what its step returned first, None for NaN.
      environment: the variables set in its process that change its speed.
    """

    milliseconds: float
    smallest: float
    largest: float
    ratio: float
    first_seconds: float
    mebibytes: float
    value: float | None
    environment: Mapping[str, str] = {}


def measure(
    command: Sequence[str], contenders: Mapping[str, Contender], reference: str, turns: int, per_run: int = 1
) -> dict[str, Row]:
    """Runs the contenders in turns.

    Args:
      command: the words after `python -m experiments bench`, to which `--worker NAME` is added; such a process must
        call `work`.
      contenders: by name.
      reference: the name of the one that ratios are over.
      turns: how many times each runs, after a first time that does not count.
      per_run: steps in a run, by which its time is divided.
    """
    workers = {name: _Worker([*command, "--worker", name], one.environment()) for name, one in contenders.items()}
    try:
        for worker in workers.values():
            worker.start()
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(turns):
            for name, worker in workers.items():
                times[name].append(worker.run() / per_run)
        peaks = {name: worker.end() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
    return {
        name: Row(
            statistics.median(t),
            min(t),
            max(t),
            statistics.median(a / b for a, b in zip(t, times[reference], strict=True)),
            workers[name].first["first_seconds"],
            peaks[name],
            workers[name].first["value"],
            workers[name].first["environment"],
        )
        for name, t in times.items()
    }


class _Worker:
    """A contender's process; it starts to work with `start`, so that only one at a time compiles."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]):
        self.words, self.environment = words, environment
        self.process: subprocess.Popen[str] | None = None
        self.first: dict[str, Any] = {}

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments", "bench", *self.words],
            env=os.environ | dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self._answer()

    def run(self) -> float:
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer shows
            print("go", file=self.process.stdin, flush=True)
        return self._answer()["milliseconds"]

    def end(self) -> float:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        mebibytes = self._answer()["mebibytes"]
        self.process.wait()
        return mebibytes

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            if self.process.wait() == 2:  # a user's mistake, which it has reported
                sys.exit(2)
            sys.exit(f"bench {' '.join(self.words)} ended with status {self.process.wait()}")
        return json.loads(line)


def work(contender: Contender, options: argparse.Namespace, stdin: IO[str] | None = None) -> None:
    """What a contender's process does: a first run, then one for each line on standard input; answers in JSON lines."""
    start = time.perf_counter()
    step = contender.make(options)
    value = step()
    first_seconds = time.perf_counter() - start
    step()  # JAX lets go of the numpy arrays that its inputs were made from in a later call
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # how much was needed on the way here
    _say(
        first_seconds=first_seconds,
        value=value if math.isfinite(value) else None,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )
    for _ in sys.stdin if stdin is None else stdin:
        start = time.perf_counter()
        step()
        _say(milliseconds=1e3 * (time.perf_counter() - start))
    _say(mebibytes=_peak_mebibytes())


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _peak_mebibytes() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` reports the parent's peak if that was higher, and never forgets it
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
