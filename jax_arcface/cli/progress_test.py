"""What is shown and written while a training runs."""

import io
import json
import os
import sys

import jax.numpy as jnp
import pytest

from jax_arcface.cli import progress as progresses
from jax_arcface.cli.progress import Progress
from jax_arcface.training.fit import Record
from jax_arcface.training.state import Metrics, TrainState


def record(epoch, step):
    return Record(epoch, step, 0.123456, 0.5, None, 0.75, 0.05, 12345.6, 2.0)


def state(step):
    return TrainState(jnp.int32(step), {"w": jnp.ones(2)}, {}, (), Metrics(jnp.zeros(()), jnp.zeros(())))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def make(run, records=(), **options):
    defaults = {"epochs": 12, "steps_per_epoch": 10, "batch_size": 8, "checkpoint_every": 0, "tensorboard": False}
    return Progress(run, list(records), **(defaults | options))


def checkpoints(run):
    return os.listdir(run / "checkpoints")


def test_not_a_terminal_gets_one_line_an_epoch(run, capsys):
    progress = make(run)
    for step in range(1, 11):
        progress.on_step(0, step, Metrics(jnp.float32(1), jnp.float32(0)))
    assert capsys.readouterr() == ("", "")
    progress.on_epoch(record(1, 10), state(10))
    progress.on_epoch(record(2, 20), state(20))
    progress.close()
    said = capsys.readouterr()
    assert said.err == ""
    first, second = said.out.splitlines()
    for part in ("epoch  1/12", "loss 0.1235", "train 50.00 %", "test 75.00 %", "12,346 images/s", "left"):
        assert part in first
    assert "epoch  2/12" in second


def test_time_left_is_that_of_the_steps_to_come(run, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progresses.time, "perf_counter", lambda: now[0])
    progress = make(run, start=20)  # resumed after two epochs
    now[0] += 5
    progress.on_epoch(record(3, 30), state(30))
    # 10 steps took 5 s, so that 90 steps take 45 s
    assert capsys.readouterr().out.rstrip().endswith("00:45 left")


def test_terminal_gets_a_bar(run, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    now = [1000.0]
    monkeypatch.setattr(progresses.time, "perf_counter", lambda: now[0])
    progress = make(run)
    progress.bar.mininterval = 0
    progress.on_step(1, 1, Metrics(jnp.float32(0.5), jnp.float32(0.75)))
    now[0] += 0.002
    progress.on_step(1, 2, Metrics(jnp.float32(0.25), jnp.float32(0.875)))
    assert progress.bar.n == 12
    progress.bar.refresh()
    shown = terminal.getvalue().rsplit("\r", 1)[-1]
    for part in ("epoch 2/12", " 10%", "loss 0.2500", "accuracy 87.5 %", "4,000 images/s", "left"):
        assert part in shown
    progress.close()


def test_each_epoch_is_written_at_once_behind_the_old_ones(run):
    old = {"epoch": 1, "step": 10}
    progress = make(run, records=[old], epochs=3, start=10)
    for epoch in (2, 3):
        progress.on_epoch(record(epoch, 10 * epoch), state(10 * epoch))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, epoch + 1))
    assert lines[0] == old
    assert lines[1] == record(2, 20)._asdict()


@pytest.mark.parametrize(
    ("every", "epochs_kept"), [(0, [None, None, None, None, None]), (1, [1, 2, 3, 4, 5]), (2, [None, 2, 2, 4, 5])]
)
def test_checkpoints_come_every_so_many_epochs_and_at_the_end(every, epochs_kept, run):
    progress = make(run, epochs=5, checkpoint_every=every)
    for epoch, kept in enumerate(epochs_kept, start=1):
        progress.on_epoch(record(epoch, 10 * epoch), state(10 * epoch))
        assert checkpoints(run) == ([] if kept is None else [f"step_{10 * kept:08d}.safetensors"])
