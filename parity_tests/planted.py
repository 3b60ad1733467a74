"""Errors planted on purpose, one at a time: a proof that the parity cases would see such errors.

Each is a change of a few words in a copy of both packages. The cases of the pairs named with it are then measured in
that copy, and each of these pairs must miss a bound.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from parity_tests.cases import Result
from parity_tests.report import describe_bound, make_folder, measured_with, write_json

ROOT = Path(__file__).parents[1]
_PACKAGES = ("jax_arcface", "torch_reference", "parity_tests")


@dataclasses.dataclass(frozen=True)
class Planted:
    """One error.

    Args:
      name: what is wrong, in a few words.
      file: where, from the root of the checkout.
      old, new: the text that occurs there once, and what takes its place.
      pairs: of cases, each of which is to miss a bound.
    """

    name: str
    file: str
    old: str
    new: str
    pairs: tuple[str, ...]


ERRORS = (
    # margins and losses
    Planted(
        "cosine margin added, not subtracted",
        "jax_arcface/losses/margins.py",
        "(psi - m3).astype",
        "(psi + m3).astype",
        ("margins", "losses"),
    ),
    Planted(
        "angular margin in degrees",
        "jax_arcface/losses/margins.py",
        "return sin, theta, m1 * theta + m2",
        "return sin, theta, m1 * theta + jnp.deg2rad(m2)",
        ("margins", "losses"),
    ),
    Planted(
        "cosine margin ignored beside an angular one",
        "jax_arcface/losses/margins.py",
        "(margin.m1, margin.m2, margin.m3))",
        "(margin.m1, margin.m2, jnp.where(margin.m2 == 0, margin.m3, 0.0)))",
        ("margins",),
    ),
    Planted(
        "multiplicative margin clipped at 2",
        "jax_arcface/losses/margins.py",
        "m1 * theta + m2",
        "jnp.minimum(m1, 2.0) * theta + m2",
        ("margins",),
    ),
    Planted(
        "straight-through gradient never taken",
        "torch_reference/losses/margins.py",
        'gradient == "straight_through":',
        'gradient == "straight-through":',
        ("margins",),
    ),
    Planted(
        "length of a vector detached from its gradient",
        "torch_reference/losses/vectors.py",
        "torch.where(is_zero, 1.0, squared).sqrt()",
        "torch.where(is_zero, 1.0, squared).sqrt().detach()",
        ("losses", "heads"),
    ),
    Planted(
        "second of two equal sub-centres takes the gradient",
        "torch_reference/losses/vectors.py",
        ".max(dim=2).values",
        ".flip(2).max(dim=2).values",
        ("losses",),
    ),
    Planted(
        "label smoothing spread over the other classes only",
        "jax_arcface/losses/softmax.py",
        "_spread(target, logits) - logits, axis=-1)) / shard.total",
        "_spread(target, logits) - logits, axis=-1)) / (shard.total - 1)",
        ("losses",),
    ),
    Planted(
        "centres moved away from their embeddings",
        "jax_arcface/losses/terms.py",
        "moved(centers, i.labels, -rate * moves)",
        "moved(centers, i.labels, rate * moves)",
        ("objective", "trajectories"),
    ),
    Planted(
        "head without labels forgets its scale",
        "torch_reference/models/heads.py",
        "return self.scale * cosine if labels is None",
        "return cosine if labels is None",
        ("heads",),
    ),
    # layers and backbones
    Planted(
        "biased variance in the running variance",
        "jax_arcface/models/layers.py",
        "unbiased = var * (count / max(count - 1, 1))",
        "unbiased = var",
        ("backbones", "trajectories"),
    ),
    Planted(
        "running statistics with the weights 0.1 and 0.9 exchanged",
        "torch_reference/models/layers.py",
        "self.bn1 = nn.BatchNorm2d(channels)",
        "self.bn1 = nn.BatchNorm2d(channels, momentum=0.9)",
        ("backbones",),
    ),
    Planted(
        "epsilon of batch norm 1.1e-5",
        "jax_arcface/models/layers.py",
        "_EPSILON = 1e-5",
        "_EPSILON = 1.1e-5",
        ("backbones",),
    ),
    Planted(
        "features flattened as row, column, channel",
        "jax_arcface/models/layers.py",
        "x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)",
        "x.reshape(x.shape[0], -1)",
        ("backbones",),
    ),
    Planted(
        "height and width of kernels exchanged",
        "jax_arcface/models/weights.py",
        "4: (3, 2, 0, 1)",
        "4: (3, 2, 1, 0)",
        ("backbones",),
    ),
    Planted(
        "kept features not divided by 1 - dropout",
        "torch_reference/models/layers.py",
        "return torch.where(keep, x / (1 - self.rate), 0.0)",
        "return torch.where(keep, x, 0.0)",
        ("backbones",),
    ),
    Planted(
        "GELU by its tanh approximation",
        "jax_arcface/models/airnet.py",
        "approximate=False",
        "approximate=True",
        ("backbones",),
    ),
    Planted(
        "last of equal pixels takes the gradient of max pooling",
        "jax_arcface/models/layers.py",
        "(first >= second)",
        "(first > second)",
        ("backbones",),
    ),
    # what is drawn
    Planted(
        "shifted window one row off",
        "torch_reference/data/sampling.py",
        "rows + window[:, :1] - pad",
        "rows + window[:, :1] - pad + 1",
        ("sampling",),
    ),
    Planted(
        "flips that do not alternate",
        "torch_reference/data/sampling.py",
        "coin if epoch % 2 == 0 else ~coin",
        "coin",
        ("sampling",),
    ),
    Planted(
        "cutout square centred half a side off",
        "jax_arcface/data/sampling.py",
        "centre - augmentation.cutout // 2",
        "centre - (augmentation.cutout - 1) // 2",
        ("sampling",),
    ),
    Planted(
        "initial convolutions without He's factor",
        "torch_reference/models/weights.py",
        "gain = 6 if",
        "gain = 3 if",
        ("weights",),
    ),
    Planted(
        "initial weights of every seed those of seed 0",
        "torch_reference/models/weights.py",
        'generator(seed, "weights", name)',
        'generator(0, "weights", name)',
        ("weights",),
    ),
    Planted(
        "images resized by the bicubic filter",
        "torch_reference/data/images.py",
        "Image.Resampling.BILINEAR",
        "Image.Resampling.BICUBIC",
        ("data",),
    ),
    # optimisers and the step
    Planted(
        "weight decay on biases and norms too",
        "torch_reference/training/state.py",
        '"weight_decay": 0.0}',
        '"weight_decay": config.weight_decay}',
        ("training", "trajectories"),
    ),
    Planted(
        "weight decay on learnt centres",
        "torch_reference/training/state.py",
        ' and name != "head.centers"',
        "",
        ("trajectories",),
    ),
    Planted(
        "plain momentum in place of Nesterov's",
        "torch_reference/training/state.py",
        "nesterov=nesterov)",
        "nesterov=False)",
        ("training",),
    ),
    Planted(
        "momentum as a moving average",
        "jax_arcface/training/optimizer.py",
        "sgd = optax.sgd(schedule,",
        "sgd = optax.sgd(lambda t: (1 - config.momentum) * schedule(t),",
        ("training",),
    ),
    Planted(
        "weight decay of AdamW coupled",
        "torch_reference/training/state.py",
        "torch.optim.AdamW(",
        "torch.optim.Adam(",
        ("training",),
    ),
    Planted(
        "gradient clipped after weight decay",
        "jax_arcface/training/optimizer.py",
        "optax.chain(clip, optax.add_decayed_weights(config.weight_decay, mask=_decayed), sgd)",
        "optax.chain(optax.add_decayed_weights(config.weight_decay, mask=_decayed), clip, sgd)",
        ("training",),
    ),
    Planted(
        "learning rate one step early",
        "jax_arcface/training/optimizer.py",
        "x = (step - warmup)",
        "x = (step + 1 - warmup)",
        ("training",),
    ),
    Planted(
        "margin's warm-up one step late",
        "jax_arcface/training/step.py",
        "(jnp.asarray(step, float) + 1) / (warmup + 1)",
        "jnp.asarray(step, float) / (warmup + 1)",
        ("training",),
    ),
    Planted(
        "prototypes detached from their gradient",
        "jax_arcface/losses/vectors.py",
        "normalize(embeddings), normalize(prototypes)",
        "normalize(embeddings), normalize(jax.lax.stop_gradient(prototypes))",
        ("losses", "heads"),
    ),
    Planted(
        "label smoothing forgotten in the step",
        "torch_reference/losses/terms.py",
        "label_smoothing,\n            filter,",
        "0.0,\n            filter,",
        ("trajectories",),
    ),
    Planted(
        "every epoch with the dropout masks of the first",
        "torch_reference/training/step.py",
        "dropout_mask(seed, state.step,",
        "dropout_mask(seed, state.step % 22,",
        ("trajectories",),
    ),
    # evaluation
    Planted(
        "test images embedded with the statistics of their batch",
        "torch_reference/models/trained.py",
        "backbone.eval()",
        "backbone.train()",
        ("evaluation",),
    ),
    Planted(
        "mean loss of blocks not weighted by their sizes",
        "torch_reference/evaluation/accuracy.py",
        "loss.item() * len(ys)\n",
        "loss.item() * len(y) / -(-len(y) // block_size)\n",
        ("evaluation",),
    ),
)
NOTHING = Planted("nothing", "", "", "", tuple(dict.fromkeys(pair for error in ERRORS for pair in error.pairs)))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the cases said of an error: how many were measured, and those that missed their bounds."""

    error: Planted
    measured: int
    missed: list[Result]

    @property
    def as_expected(self) -> bool:
        """Whether each of the error's pairs missed a bound; of no error, whether none did."""
        found = {result.pair for result in self.missed}
        return found == set() if self.error is NOTHING else found == set(self.error.pairs)

    def farthest(self) -> str:
        """The case that missed its bound by the largest factor, in words."""
        if not self.missed:
            return ""
        worst = max(self.missed, key=lambda r: r.error / r.bound if r.bound > 0 else float("inf"))
        return f"{worst.what}, {worst.dtype}: {worst.error:.2g} where {describe_bound(worst)} is allowed"


def planted_text(error: Planted) -> str:
    """The file with the error in it.

    Raises:
      ValueError: a text that does not occur exactly once.
    """
    text = (ROOT / error.file).read_text()
    if (count := text.count(error.old)) != 1:
        raise ValueError(f"{error.name!r}: {error.file} has {error.old!r} {count} times, not once")
    return text.replace(error.old, error.new)


def measured(errors: Sequence[Planted], *options: str) -> list[Result]:
    """Plants errors, all of them at once, in a copy of the packages and measures cases there.

    The published data sets are left out, so that the outcome is the same where they are not.

    Args:
      errors: in files of their own, or none.
      options: of `python -m parity_tests`: which cases.

    Raises:
      RuntimeError: errors with which the cases could not be measured.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        for package in _PACKAGES:
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*_test.py"))
        for error in errors:
            (copy / error.file).write_text(planted_text(error))
        environment = {k: v for k, v in os.environ.items() if k != "ARCFACE_DATA_DIR"} | {"PYTHONPATH": str(copy)}
        out = Path(temporary) / "out"
        command = [sys.executable, "-m", "parity_tests", "--out", str(out), *options]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if not (out / "parity.json").exists():
            raise RuntimeError(f"{[error.name for error in errors]} could not be measured:\n{done.stderr}")
        rows = json.loads((out / "parity.json").read_text())["results"]
    for row in rows:
        row |= {key: float(row[key]) for key in ("absolute", "relative", "ulp")}
    return [Result(**row) for row in rows]


def outcome(error: Planted) -> Outcome:
    """Plants an error and measures its pairs."""
    results = measured([] if error is NOTHING else [error], "--only", *error.pairs)
    return Outcome(error, len(results), [result for result in results if not result.passed])


def outcomes(errors: Sequence[Planted] = (NOTHING, *ERRORS)) -> Iterator[Outcome]:
    """The outcome of each error, and first of all of none; printed as they come."""
    width = max(len(error.name) for error in errors)
    for error in errors:
        found = outcome(error)
        verdict = "as expected" if found.as_expected else "NOT AS EXPECTED"
        print(
            f"{error.name:<{width}}  {len(found.missed)} of {found.measured} missed, {verdict}  {found.farthest()}",
            flush=True,
        )
        yield found


def markdown(found: Sequence[Outcome]) -> str:
    """The table of planted errors as Markdown."""
    lines = [
        "| planted | in | cases missed | worst case |",
        "|---|---|---|---|",
        *(
            f"| {o.error.name} | {o.error.file} | {len(o.missed)} of {o.measured} ({', '.join(o.error.pairs)})"
            f"{'' if o.as_expected else ', **not as expected**'} | {o.farthest()} |"
            for o in found
        ),
        "",
        measured_with(),
    ]
    return "\n".join(lines) + "\n"


def run(out: Path) -> int:
    """Plants every error, writes planted.md and planted.json; the exit status, 1 where one was not caught.

    Raises:
      UserError: as `make_folder`.
    """
    make_folder(out)
    found = list(outcomes())
    (out / "planted.md").write_text(markdown(found))
    rows = [
        dataclasses.asdict(o.error)
        | {"measured": o.measured, "missed": [vars(r) for r in o.missed], "as expected": o.as_expected}
        for o in found
    ]
    write_json(out / "planted.json", {"planted": rows})
    wrong = [o for o in found if not o.as_expected]
    print(f"\n{len(found) - len(wrong)} of {len(found)} as expected")
    print(f"written to {out / 'planted.md'} and {out / 'planted.json'}")
    return 1 if wrong else 0
