"""What Partial FC gives up: all classes in each step, or a share of them, on numbers of four digits.

    python -m experiments partial_fc --json experiments/results/partial_fc.json

Partial FC (An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
Partial FC", CVPR 2022) takes the prototypes of the batch's own classes and, up to a share of all, others drawn anew in
each step; only these are moved. Sampling needs many classes: here they are the 10,000 numbers from 0000 to 9999, each
an image of four of scikit-learn's digits side by side, 8 x 32 pixels. Training images are composed of training digits,
test images, one for each number, of test digits. LeNet++ and ArcFace, in PyTorch; images, initial weights, order and
recipe are the same for every share.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments._arguments import Parser, check_can_be_written
from experiments._machine import machine, versions
from torch_reference import Margin, data, margin_softmax_loss
from torch_reference.data import sampling
from torch_reference.evaluation import accuracy
from torch_reference.models.backbones import make_backbone

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


def sampled_classes(labels: Tensor, classes: int, share: float) -> tuple[Tensor, Tensor]:
    """The classes of a step of Partial FC (An et al. 2022, section 3.2), drawn by torch's global generator.

    Args:
      labels: [B], integers in [0, C). classes: C. share: of the classes, 0 < share <= 1.

    Returns:
      The classes, ascending: all of the batch's, and others up to round(share C); and where in them each label is, [B].

    >>> chosen, place = sampled_classes(torch.tensor([7, 2, 7]), classes=10, share=0.4)
    >>> len(chosen), chosen[place].tolist()
    (4, [7, 2, 7])
    """
    priority = torch.rand(classes, device=labels.device)
    priority[labels] = 2.0  # the batch's own come first
    own = len(labels.unique())
    chosen = priority.topk(max(round(share * classes), own), sorted=False).indices.sort().values
    return chosen, torch.searchsorted(chosen, labels)


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
    """One training from top to bottom: `test_accuracy`, a share, and the `seconds` of the steps."""
    dataset, classes = data.load("digits"), 10**digits
    images, labels = (torch.from_numpy(a) for a in numbers(dataset.train, each, digits, seed))
    mean, scale = images.double().mean().float(), 1 / images.double().std().float()
    torch.manual_seed(seed)
    _, height, width, channels = images.shape
    network = make_backbone("lenet", (height, width, channels), DIMENSION, width=0.5)
    prototypes = torch.randn(classes, DIMENSION) * 0.1
    velocity = torch.zeros_like(prototypes)
    optimizer = torch.optim.SGD(network.parameters(), PEAK, MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = len(images) // BATCH
    warmup = steps  # of rate and margin: the first epoch
    seconds = 0.0
    for epoch in range(epochs):
        network.train()
        order = torch.from_numpy(sampling.epoch_order(seed, epoch, len(images)))
        started = time.perf_counter()
        for step, batch in enumerate(order[: steps * BATCH].reshape(steps, BATCH), epoch * steps):
            grown = min(1.0, (step + 1) / (warmup + 1))
            rate = PEAK * (grown if step < warmup else 1 - (step - warmup) / (epochs * steps - warmup))
            chosen, place = sampled_classes(labels[batch], classes, share)
            some = prototypes[chosen].requires_grad_()
            embeddings = network(sampling.normalise(images[batch], mean, scale))
            loss = margin_softmax_loss(embeddings, some, place, Margin.arcface(grown * MARGIN), SCALE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            assert some.grad is not None
            with torch.no_grad():  # the same step for the prototypes that took part
                gradient = some.grad + DECAY * some
                velocity[chosen] = MOMENTUM * velocity[chosen] + gradient
                prototypes[chosen] -= rate * (gradient + MOMENTUM * velocity[chosen])
        seconds += time.perf_counter() - started
    test_images, test_labels = (torch.from_numpy(a) for a in numbers(dataset.test, 1, digits, seed))
    network.eval()
    with torch.no_grad():
        parts = [network(sampling.normalise(part, mean, scale)) for part in test_images.split(1000)]
    return {"test_accuracy": accuracy(torch.cat(parts), prototypes, test_labels), "seconds": seconds}


def _parser() -> Parser:
    parser = Parser("partial_fc", __doc__)
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.1], help="of the classes (default: 1 0.1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each, seeds from 0 on (default: 3)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training images (default: 6)")
    parser.add_argument("--each", type=int, default=5, help="training images of each number (default: 5)")
    parser.add_argument("--digits", type=int, default=4, help="of a number (default: 4, for 10,000 classes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with hardware and versions")
    return parser
