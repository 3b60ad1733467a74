"""Kills trainings of both programs, resumes them, and compares the result with a training that was never killed.

    python -m experiments faults            # writes docs/reliability.md and experiments/results/faults.json
    python -m experiments faults --quick    # a few kills, written nowhere

Each training is a process of its own that SIGKILL ends: at a random moment; aimed, just before or just after one of its
changes of the run directory (where a file is about to take its place, half of it is cut off first); or aimed while a
finished run is extended by an epoch. The same command with `--resume` goes on; where nothing was left to resume, the
training begins anew. The result holds if weights, embeddings and prototypes have the same bits, metrics the same
numbers (but for the times), and no file is missing or left over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments._arguments import Parser
from experiments._machine import machine, versions

PROGRAMS = ("jax_arcface", "torch_reference")
FLAGS = ["--loss", "adaface+center:0.01", "--batch-size", "512", "--width", "0.1", "--embedding-dim", "8"]
MARKDOWN, RESULTS = Path("docs/reliability.md"), Path("experiments/results/faults.json")
ANEW = [*FLAGS, "--epochs", "2"]
RESUME, EXTEND = [*ANEW, "--resume"], ["--resume", "--epochs", "2"]
TIMES = {"seconds", "images_per_second"}  # of metrics.jsonl: no training has the same

_CHANGES = ("mkdir", "replace", "rename", "unlink")  # functions of `os` that change a folder


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed: after so many seconds, or before or after the change of that number."""

    kind: str
    seconds: float = 0.0
    change: int = 0
    after: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a killed training.

    Args:
      program, kind: which training, and how the moment was chosen.
      moment: in words.
      killed: whether SIGKILL came before its end.
      went_on: "resumed", "begun anew" where nothing could be resumed, or "neither".
      differences: what is not as it would have been without the kill; none is what is wanted.
    """

    program: str
    kind: str
    moment: str
    killed: bool
    went_on: str
    differences: list[str]


def main(words: Sequence[str]) -> int:
    """Runs the experiment; returns 0 if every result held, else 1."""
    parser = Parser("faults", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few kills, and no files")
    parser.add_argument("--random", type=int, default=20, metavar="N", help="random moments a program")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings of a program at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    given = parser.parse_args(list(words))
    if given.quick:
        given.random = 1
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    started = []
    for program in PROGRAMS:
        # a process for each program, since neither is to be loaded beside the other
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_send_outcomes, args=(sender, program, given.random, given.seed, given.jobs, given.quick)
        )
        process.start()
        sender.close()
        started.append((process, receiver))
    for process, receiver in started:
        with contextlib.suppress(EOFError):
            while True:
                outcomes.append(receiver.recv())
                print(_line(outcomes[-1]), flush=True)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"trials ended with status {process.exitcode}")
    table = markdown(outcomes)
    print(table)
    if not given.quick:
        command = " ".join(["python -m experiments faults", *words])
        found = {
            "command": command,
            "machine": machine(),
            "versions": versions(),
            "flags": FLAGS,
            "seconds": round(time.perf_counter() - began),
            "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        MARKDOWN.write_text(_page(table, command))
    return int(any(outcome.differences for outcome in outcomes))


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table with a line for each program and kind of moment.

    >>> one = Outcome("jax_arcface", "random", "after 0.5 s", True, "resumed", [])
    >>> print(markdown([one, dataclasses.replace(one, went_on="begun anew")]).splitlines()[-1])
    | jax_arcface | random | 2 | 2 | 1 | 1 | 2 of 2 |
    """
    lines = [
        "| program | moments | n | killed before the end | resumed | begun anew | same result |",
        "|---|---|---|---|---|---|---|",
    ]
    for program, kind in dict.fromkeys((outcome.program, outcome.kind) for outcome in outcomes):
        of = [outcome for outcome in outcomes if (outcome.program, outcome.kind) == (program, kind)]
        killed = sum(outcome.killed for outcome in of)
        resumed, anew = (sum(outcome.went_on == how for outcome in of) for how in ("resumed", "begun anew"))
        same = sum(not outcome.differences for outcome in of)
        lines.append(f"| {program} | {kind} | {len(of)} | {killed} | {resumed} | {anew} | {same} of {len(of)} |")
    return "\n".join(lines)


def _line(outcome: Outcome) -> str:
    return f"{outcome.program}  {outcome.moment}: {outcome.went_on}, {'; '.join(outcome.differences) or 'same result'}"


def _page(table: str, command: str) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    explained = (__doc__ or "").split("\n\n")[2]
    return f"""# Reliability: killed trainings

{explained}

{table}

*Aimed* moments lie between any two changes of the run directory, *aimed, extended* ones likewise while a finished run
of one epoch is trained to two. "Begun anew" are trainings that were killed before their run directory was there.

Measured with `{command}`: digits, two epochs, `{" ".join(FLAGS)}`; {machine()}; {packages}. Each moment and its
outcome is in [faults.json](../experiments/results/faults.json).
"""


# ---- trials


def _send_outcomes(sender: Any, program: str, moments: int, seed: int, jobs: int, quick: bool) -> None:
    for outcome in trials(program, moments, seed, jobs, quick):
        sender.send(outcome)
    sender.close()


def trials(program: str, moments: int, seed: int, jobs: int, quick: bool = False) -> Iterator[Outcome]:
    """Kills trainings of a program and goes on with them.

    Args:
      program: one of PROGRAMS; it is imported, but starts no device in this process.
      moments: random ones; aimed are all there are.
      seed: of the random ones.
      jobs: trainings at a time.
      quick: only every eighth of the aimed ones.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # before the programs' threads begin
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        os.environ |= {  # what takes the time is compiled once
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for module in (
            f"{program}.cli.train",
            f"{program}.cli.commands",
            "matplotlib.figure",
            "matplotlib.collections",
        ):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(module)
        pool = stack.enter_context(multiprocessing.get_context("fork").Pool(jobs))
        pool.apply(_whole, (program, folder / "compile", ANEW))
        # as many at a time as later, so that they take as long
        whole = [folder / f"whole{number}" for number in range(jobs)]
        found = pool.starmap(_whole, [(program, run, ANEW) for run in whole])
        changes, seconds = found[0][0], sum(took for _, took in found) / jobs
        base, longer = folder / "base", folder / "longer"
        one_epoch = [*FLAGS, "--epochs", "1", "--schedule", "constant", "--margin-warmup-epochs", "0"]
        pool.apply(_whole, (program, base, one_epoch))
        shutil.copytree(base, longer)
        changes_longer, _ = pool.apply(_whole, (program, longer, EXTEND))

        draw, step = random.Random(seed), 8 if quick else 1
        drawn = [Moment("random", draw.uniform(0, seconds)) for _ in range(moments)]
        plan: list[tuple[Moment, Path | None, Path, str]] = [
            (moment, None, whole[0], f"after {moment.seconds:.2f} of {seconds:.2f} s") for moment in drawn
        ]
        plan += [(moment, None, whole[0], what) for moment, what in _aimed("aimed", changes)[::step]]
        plan += [(moment, base, longer, what) for moment, what in _aimed("aimed, extended", changes_longer)[::step]]
        tasks = [(program, folder / f"run{number}", *task) for number, task in enumerate(plan)]
        yield from pool.imap(_trial, tasks)


def _trial(task: tuple[str, Path, Moment, Path | None, Path, str]) -> Outcome:
    """Kills one training, goes on with it, and compares it with one that was not killed."""
    program, run, moment, start, wanted, what = task
    if start is not None:
        shutil.copytree(start, run)
    status, _ = _train(program, run, ANEW if start is None else EXTEND, moment)
    again, _ = _train(program, run, RESUME if start is None else EXTEND)
    went_on = "resumed"
    if again == 2 and not run.exists():
        again, went_on = _train(program, run, ANEW)[0], "begun anew"
    differences = _differences(run, wanted) if again == 0 else [f"status {again}"]
    differences += [f"{path.name} is left over" for path in run.parent.glob(f".{run.name}.*")]
    shutil.rmtree(run, ignore_errors=True)
    killed = status == -signal.SIGKILL
    return Outcome(program, moment.kind, what, killed, went_on if again == 0 else "neither", differences)


def _aimed(kind: str, changes: Iterable[str]) -> list[tuple[Moment, str]]:
    return [
        (Moment(kind, change=number, after=after), f"{'after' if after else 'before'} {change}")
        for number, change in enumerate(changes)
        for after in (False, True)
    ]


def _whole(program: str, run: Path, words: list[str]) -> tuple[list[str], float]:
    """Trains without a kill; returns the changes of the run directory, and the seconds that it took."""
    began = time.perf_counter()
    status, changes = _train(program, run, words)
    if status != 0:
        raise RuntimeError(f"training in {run} ended with status {status}")
    return changes, time.perf_counter() - began


def _train(program: str, run: Path, words: list[str], moment: Moment | None = None) -> tuple[int, list[str]]:
    """Trains in a forked process; returns its exit status (negative: the signal) and its changes of the folder."""
    log, said = run.with_name(f"{run.name}.changes"), run.with_name(f"{run.name}.said")
    log.write_text("")
    child = os.fork()
    if child == 0:
        status = 70  # of an exception
        try:
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            _watch(run, log, moment)
            status = importlib.import_module(f"{program}.__main__").main(["train", *words, "--out", str(run)])
        finally:
            sys.stdout.flush()
            os._exit(status)
    if moment is not None and moment.kind == "random":
        deadline = time.monotonic() + moment.seconds
        while time.monotonic() < deadline:
            time.sleep(max(0.0, deadline - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), log.read_text().splitlines()


def _watch(run: Path, log: Path, moment: Moment | None) -> None:
    """Notes in `log` each change of a run directory that this process makes, and dies at the moment, if aimed."""
    count = 0
    aimed = moment is not None and moment.kind != "random"

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            path = Path(os.fsdecode(arguments[1] if name in ("replace", "rename") else arguments[0]))
            inside = run.name in path.parts or f".{run.name}.{os.getpid()}" in path.parts
            is_none = {"mkdir": path.exists() or not path.parent.exists(), "unlink": not path.exists()}.get(name, False)
            if not inside or is_none:
                return original(*arguments, **options)
            shown = str(path).partition(f"{run.parent}/")[2].replace(f".{run.name}.{os.getpid()}", ".RUN.PID")
            with log.open("a") as file:
                file.write(f"{name} {shown.replace(run.name, 'RUN', 1)}\n")
            dies = aimed and count == moment.change  # type: ignore[union-attr]
            count += 1
            if dies and not moment.after:  # type: ignore[union-attr]
                if name == "replace":
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in _CHANGES:
        setattr(os, name, watched(name, getattr(os, name)))


# ---- comparison


def _differences(run: Path, wanted: Path) -> list[str]:
    """In what a run is not as it should be."""
    found = []
    ours, theirs = (_files(folder) for folder in (run, wanted))
    found += [f"{name} is missing" for name in sorted(theirs - ours)]
    found += [f"{name} is left over" for name in sorted(ours - theirs)]
    for name, read in (
        ("config.json", Path.read_bytes),
        ("dataset.json", Path.read_bytes),
        ("model.safetensors", Path.read_bytes),
        ("embeddings.npz", _arrays),
        ("metrics.jsonl", _untimed),
    ):
        if name in ours & theirs and read(run / name) != read(wanted / name):
            found.append(f"{name} differs")
    return found


def _files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def _arrays(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with np.load(path) as arrays:
        return {name: (str(arrays[name].dtype), arrays[name].shape, arrays[name].tobytes()) for name in arrays}


def _untimed(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]
