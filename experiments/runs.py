"""The trainings that figures and tables are made of: each is trained once and found again by its configuration.

    trained("torch_reference", dataset="mnist", loss="arcface", seed=1)      # the run directory

A run lies in `runs/experiments/`, named by its program, data set, loss, seed and a hash of all its fields. Beside its
own files it holds `experiment.json`: the commit that trained it and a hash of the code that a training depends on. A
run that was trained by other code is used again, and named on standard error; `retrain=True` trains it anew.

    python -m experiments runs             # trains what the figures and tables need, about an hour on 2 cores
    python -m experiments runs --quick     # on digits with few epochs, in minutes

The plan: on MNIST, `lenet` at a quarter of its width, 3 epochs, 3 seeds, PyTorch; once with all ten digits, and once
without 7, 8 and 9, whose test images then are people nobody has seen, as in face verification. JAX trains a few of
them beside it, and CIFAR-10's are a few losses with one seed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments._arguments import Parser, UserError, read_json
from experiments._machine import machine
from experiments.sweep import Cell, is_finished
from experiments.sweep import train as train_cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "experiments"
SEEDS = (0, 1, 2)
HELD_OUT = {"digits": "7,8,9", "mnist": "7,8,9", "cifar10": "horse,ship,truck"}
# What figures compare, and the losses of the paper's table 2 that classify alone.
MAIN = ("softmax", "norm_softmax", "sphereface", "cosface", "arcface", "triplet")
PAIRS = ("triplet",)
# The rooms of a package that decide what a training reaches.
ROOMS = ("losses", "models", "data", "training")


def trained(program: str, *, folder: Path = FOLDER, retrain: bool = False, **fields: Any) -> Path:
    """The run directory of a training, which is done now if it is not there yet.

    Args:
      program: jax_arcface or torch_reference.
      folder: where the run directories are.
      retrain: whether a run that other code has trained is trained anew.
      fields: of the program's `TrainConfig`; the others have the defaults of the data set and the loss.

    Raises:
      UserError: a training that diverges or is refused; its own message has been printed.
    """
    run = folder / name(program, fields)
    if is_finished(run):
        if not (stale := _is_of_other_code(program, run)):
            return run
        if not retrain:
            print(f"{run.name} was trained by {stale}, which is not today's code", file=sys.stderr)
            return run
        shutil.rmtree(run)
    words = {field: _word(value) for field, value in fields.items()}
    if status := train_cell(Cell(words, run), [], program):
        if status == 130:
            raise KeyboardInterrupt
        raise UserError(f"the training {run.name} failed")
    described = {"program": program, "fields": fields, "code": code(program), "commit": commit(), "machine": machine()}
    (run / "experiment.json").write_text(json.dumps(described, indent=2) + "\n")
    return run


def name(program: str, fields: Mapping[str, Any]) -> str:
    """The name of a run directory.

    >>> name("torch_reference", {"dataset": "mnist", "loss": "softmax+center:0.01", "seed": 2})
    'torch-mnist-softmax+center-0.01-seed2-9ebd8360'
    """
    key = hashlib.sha256(json.dumps([program, sorted(fields.items())]).encode()).hexdigest()[:8]
    loss = re.sub(r"[^\w.=+-]+", "-", str(fields.get("loss", "arcface")))
    parts = (program.split("_")[0], fields.get("dataset", "digits"), loss, f"seed{fields.get('seed', 0)}", key)
    return "-".join(map(str, parts))


@functools.cache
def code(program: str, rooms: tuple[str, ...] = ROOMS) -> str:
    """A hash of the code of a package that decides what a training reaches; comments and docstrings do not count."""
    digest = hashlib.sha256()
    for room in rooms:
        for file in sorted((ROOT / program / room).rglob("*.py")):
            if not file.name.endswith("_test.py"):
                digest.update(file.name.encode() + parsed(file.read_text()).encode())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit of the checkout, with `+` where tracked files have changed since; empty outside a checkout."""
    found = _git("rev-parse", "--short", "HEAD")
    return found + ("+" if found and _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _is_of_other_code(program: str, run: Path) -> str | None:
    """What trained a run, where that is not today's code."""
    held = read_json(run / "experiment.json") if (run / "experiment.json").exists() else {}
    return None if held.get("code") == code(program) else str(held.get("commit") or "an unknown commit")


def parsed(text: str) -> str:
    """A program's syntax tree, in words: without comments, docstrings and layout.

    >>> parsed("x = 2 * 3  # six") == parsed("x = (2 * 3)")
    True
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a docstring is an expression that is a constant, wherever it stands
            kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept  # type: ignore[attr-defined]
    return ast.dump(tree)


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def main(words: list[str]) -> int:
    """Trains the plan, or what of it is not there yet."""
    parser = Parser("runs", __doc__)
    parser.add_argument("--quick", action="store_true", help="digits, few epochs, one seed")
    parser.add_argument("--dataset", help="only the trainings on this data set")
    parser.add_argument("--retrain", action="store_true", help="train anew what other code has trained")
    options = parser.parse_args(words)
    wanted = [one for one in plan(quick=options.quick) if options.dataset in (None, one[1]["dataset"])]
    for number, (program, fields) in enumerate(wanted, start=1):
        print(f"[{number}/{len(wanted)}] {name(program, fields)}", flush=True)
        trained(program, retrain=options.retrain, **fields)
    return 0


def plan(quick: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Program and fields of each training, the most needed first."""
    seeds = SEEDS[:1] if quick else SEEDS
    dataset = "digits" if quick else "mnist"
    for seed in seeds:
        for held_out in ("", HELD_OUT[dataset]):
            for loss in MAIN:
                yield "torch_reference", settings(dataset, loss, seed, held_out=held_out)
    for loss in ("softmax", "arcface"):
        yield "jax_arcface", settings(dataset, loss, 0)
    if not quick:
        for held_out in ("", HELD_OUT["cifar10"]):
            for loss in MAIN:
                yield "torch_reference", settings("cifar10", loss, 0, held_out=held_out)


def settings(dataset: str, loss: str, seed: int = 0, *, held_out: str = "") -> dict[str, Any]:
    """The fields of a training of the plan.

    >>> settings("mnist", "arcface", 1)
    {'dataset': 'mnist', 'loss': 'arcface', 'seed': 1, 'epochs': 3, 'width': 0.25}
    """
    sizes = {"digits": (10, 0.5), "mnist": (3, 0.25), "cifar10": (5, 0.25)}
    epochs, width = sizes[dataset]
    fields: dict[str, Any] = {"dataset": dataset, "loss": loss, "seed": seed, "epochs": epochs, "width": width}
    if held_out:
        fields["holdout_classes"] = held_out
        if loss in PAIRS:
            fields["classes_per_batch"] = 4  # of the seven that are left, the default of eight would be too many
    return fields
