import argparse

import pytest

from experiments.bench import floor, head, replicas, step
from experiments.bench.turns import Row

NET = argparse.Namespace(dataset="mnist", backbone="lenet", width=0.5, batch_size=4, precision="float32", steps=3)


def test_the_floor_is_the_longer_of_computing_and_moving():
    seconds = {"a large matrix product": 2.0, "a large copy": 0.5}
    rows = {name: Row(1e3 * s / 8, 0, 0, 0, 0, 0, None) for name, s in seconds.items()}  # of one of 8 steps
    flop_rate, byte_rate = floor.SIDE**3, 16 * floor.NUMBERS
    work = floor.Work("it", flop=3 * flop_rate, bytes=byte_rate)
    assert floor.least_time(work, rows, per_run=8) == {
        "of": "it",
        "flop": work.flop,
        "bytes": work.bytes,
        "flop_per_second": flop_rate,
        "bytes_per_second": byte_rate,
        "milliseconds": 3000.0,
    }
    assert floor.least_time(floor.Work("it", flop_rate, 5 * byte_rate), rows, per_run=8)["milliseconds"] == 5000.0


def test_the_rates_are_of_a_product_and_a_copy(monkeypatch):
    monkeypatch.setattr(floor, "SIDE", 8)
    monkeypatch.setattr(floor, "NUMBERS", 16)
    product, copy = (contender.make(argparse.Namespace())() for contender in floor.CONTENDERS.values())
    assert (product, copy) == (8.0, 1.0)


def test_the_work_of_a_step_is_three_times_that_of_its_layers():
    """A convolution forward, to the images and to the kernel; but not to the images of the batch."""
    pixels, channels = (28**2, 14**2, 7**2), (16, 32, 64)
    pairs = zip(pixels, (1, *channels), channels, strict=False)
    first = 2 * 4 * 28**2 * 25 * 16
    convolutions = sum(2 * 4 * p * 25 * (i * o + o * o) for p, i, o in pairs)
    dense = 2 * 4 * (3 * 3 * 64 * 128 + 128 * 10)  # the embedding layer and the cosines
    assert step.least_work(NET).flop == pytest.approx(3 * (convolutions + dense) - first, rel=1e-3)
    assert replicas.least_work(argparse.Namespace(**vars(NET), replicas=5)).flop == 5 * step.least_work(NET).flop


def test_the_work_of_the_head_is_four_products():
    shape = argparse.Namespace(batch_size=2, classes=5, dimension=3)
    assert head.least_work(shape) == ("the fused loss", 4 * 2 * 2 * 5 * 3, 4 * (3 * 5 * 3 + 2 * 2 * 3))
