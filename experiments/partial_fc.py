"""What Partial FC gives up: all classes in each step, or a share of them, on numbers of four digits.

    python -m experiments partial_fc --json experiments/results/partial_fc.json

Partial FC (An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
Partial FC", CVPR 2022) takes the prototypes of the batch's own classes and, up to a share of all, others drawn anew in
each step; only these are moved. Sampling needs many classes: here they are the 10,000 numbers from 0000 to 9999, each
an image of four of scikit-learn's digits side by side, 8 x 32 pixels. Training images are composed of training digits,
test images, one for each number, of test digits. LeNet++ and ArcFace; images, initial weights, order and recipe are the
same for every share.

It is also an example of `fit`: a head and an optimiser of one's own. A loop of one's own would use
`jax_arcface.losses.partial.update_rows`, which leaves the other rows unread.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments._arguments import Parser, check_can_be_written
from experiments._machine import machine, versions
from jax_arcface import data
from jax_arcface.losses.partial import sample_classes, take_rows
from jax_arcface.losses.registry import Inputs, Outcome
from jax_arcface.losses.terms import arcface
from jax_arcface.models.heads import Head
from jax_arcface.models.lenet import LeNet
from jax_arcface.training.config import TrainConfig
from jax_arcface.training.fit import Record, Reporter, fit
from jax_arcface.training.optimizer import learning_rate_schedule

MARGIN, SCALE, DIMENSION, BATCH = 0.5, 32.0, 128, 128
PEAK, MOMENTUM, DECAY = 0.1, 0.9, 5e-4  # of Nesterov's SGD; the rate falls linearly


def main(words: list[str]) -> None:
    """Trains with each share and seed, and prints accuracies and times."""
    parser = _parser()
    options = parser.parse_args(words)
    for share in options.shares:
        if not 0 < share <= 1:
            parser.error(f"--shares has {share:g}; a share must be above 0 and at most 1")
    check_can_be_written(json=options.json)
    rows = []
    for share in options.shares:
        runs = [train(share, seed, options.epochs, options.each, options.digits) for seed in range(options.seeds)]
        found = [run["test_accuracy"] for run in runs]
        rows.append({"share": share, "test_accuracy": found, "seconds": [run["seconds"] for run in runs]})
        spread = f" +- {100 * statistics.stdev(found):.2f}" if len(found) > 1 else ""
        seconds = statistics.median(rows[-1]["seconds"])
        print(f"share {share:<5g} {100 * statistics.mean(found):.2f}{spread} %, {seconds:.0f} s", flush=True)
    if options.json:
        asked = {"digits": options.digits, "each": options.each, "epochs": options.epochs}
        result = {"machine": machine(), "versions": versions(), **asked, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


class PartialHead(Head):
    """A head whose loss sees the batch's classes and a share of the others, drawn anew in each step."""

    def __init__(self, *args: Any, share: float, seed: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.share, self.seed = share, seed

    def outcome(self, embeddings, labels, *, step=0, objective=None, **others) -> Outcome:
        """As `Head.outcome`, of the sampled classes."""
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        sample = sample_classes(key, labels, self.prototypes[...], self.share)
        owned = take_rows(self.owned, sample)
        return (objective or self.objective).apply(Inputs(embeddings, sample.labels, owned, step), {})


def only_sampled_rows(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that leaves prototypes without a gradient, and their momentum, as they are.

    All other parameters move in every step. Momenta are arrays of the parameters' shapes.
    """

    def update(updates, state, params):
        has_gradient = jax.tree_util.tree_map_with_path(
            lambda path, g: jnp.any(g != 0, axis=-1, keepdims=True) if "prototypes" in str(path) else True, updates
        )
        new, after = optimizer.update(updates, state, params)
        new = jax.tree.map(lambda moved, has: jnp.where(has, moved, 0), new, has_gradient)
        structure: Any = jax.tree.structure(params)

        def kept(after, before):
            return jax.tree.map(jnp.where, has_gradient, after, before)

        is_momentum = lambda tree: jax.tree.structure(tree) == structure  # noqa: E731
        return new, jax.tree.map(lambda a, b: kept(a, b) if is_momentum(a) else a, after, state, is_leaf=is_momentum)

    return optax.GradientTransformation(optimizer.init, update)


def numbers(split: data.Split, each: int, digits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of all numbers of so many digits, `each` of every one, composed of images of a split.

    Args:
      split: of digits, uint8 [N, H, W, 1]. each: images of a number. digits: P, of which there are C = 10^P numbers.
      seed: of the draw.

    Returns:
      Images uint8 [C each, H, P W, 1] and labels [C each], the numbers in turn.

    >>> images, labels = numbers(data.load("digits").train, each=2, digits=2, seed=0)
    >>> images.shape, labels[[0, 99, 100]].tolist()
    ((200, 8, 16, 1), [0, 99, 0])
    """
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(10**digits), each)
    places = labels[:, None] // 10 ** np.arange(digits)[::-1] % 10  # [C each, P], the first digit first
    height, width = split.images.shape[1:3]
    images = np.empty((len(labels), height, width * digits, 1), np.uint8)
    for place in range(digits):
        for digit in range(10):
            rows = places[:, place] == digit
            candidates = np.flatnonzero(split.labels == digit)
            images[rows, :, width * place : width * (place + 1)] = split.images[rng.choice(candidates, rows.sum())]
    return images, labels


def train(share: float, seed: int, epochs: int, each: int, digits: int) -> dict[str, Any]:
    """One training: `test_accuracy`, a share, and the `seconds` of the steps."""
    dataset, classes, rngs = data.load("digits"), 10**digits, nnx.Rngs(seed)
    images, labels = numbers(dataset.train, each, digits, seed)
    source = data.ArraySource(images, labels, BATCH, seed=seed)
    config = TrainConfig(epochs=epochs, learning_rate=PEAK, schedule="linear", warmup_epochs=min(1.0, epochs / 2))
    rate = learning_rate_schedule(config, source.steps_per_epoch)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, MOMENTUM, nesterov=True))
    backbone = LeNet(source.image_shape, DIMENSION, width=0.5, rngs=rngs)
    objective = arcface(m=MARGIN, scale=SCALE)
    head = PartialHead(objective, DIMENSION, classes, share=share, seed=seed, rngs=rngs)
    records: list[Record] = []

    class Keep(Reporter):
        def on_epoch(self, record: Record, state: Any) -> None:
            records.append(record)

    fit(
        backbone,
        head,
        only_sampled_rows(optimizer),
        source,
        epochs=epochs,
        test=numbers(dataset.test, 1, digits, seed),
        margin_warmup_epochs=config.warmup_epochs,
        reporter=Keep(),
    )
    return {"test_accuracy": records[-1].test_accuracy, "seconds": sum(record.seconds for record in records)}


def _parser() -> Parser:
    parser = Parser("partial_fc", __doc__)
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.1], help="of the classes (default: 1 0.1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each, seeds from 0 on (default: 3)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training images (default: 6)")
    parser.add_argument("--each", type=int, default=5, help="training images of each number (default: 5)")
    parser.add_argument("--digits", type=int, default=4, help="of a number (default: 4, for 10,000 classes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with hardware and versions")
    return parser
