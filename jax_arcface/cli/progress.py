"""What a training shows and writes while it runs: a bar or lines, the run directory, TensorBoard events."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jax_arcface.cli import runs
from jax_arcface.errors import UserError
from jax_arcface.training.fit import Metrics, Record, Reporter, TrainState


class Progress(Reporter):
    """Shows a bar on a terminal and a line an epoch; writes metrics, checkpoints and TensorBoard events.

    Args:
      run: the run directory.
      records: the epochs already trained.
      epochs: of the whole training.
      steps_per_epoch: steps in each.
      batch_size: images in a step.
      checkpoint_every: epochs between two checkpoints; 0 writes none.
      tensorboard: also writes TensorBoard events into the run directory (needs tensorboardX).
      start: steps done before.
    """

    def __init__(
        self,
        run: Path,
        records: list[dict[str, Any]],
        *,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        checkpoint_every: int,
        tensorboard: bool,
        start: int = 0,
    ):
        self.run, self.records, self.batch_size = run, records, batch_size
        self.epochs, self.steps_per_epoch, self.checkpoint_every = epochs, steps_per_epoch, checkpoint_every
        self.writer = event_writer()(str(run)) if tensorboard else None
        self.began, self.start = time.perf_counter(), start
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=start,
            disable=not sys.stderr.isatty(),
            unit="step",
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left",
        )
        self.first_step: tuple[float, int] | None = None  # when the first step was done, and which it was

    def on_step(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Moves the bar."""
        now, done = time.perf_counter(), epoch * self.steps_per_epoch + step
        if self.first_step is None:
            self.first_step, speed = (now, done), "compiled"
        else:
            began, before = self.first_step
            speed = f"{(done - before) * self.batch_size / (now - began):,.0f} images/s"
        self.bar.set_description_str(
            f"epoch {epoch + 1}/{self.epochs}  loss {metrics.loss:.4f}  "
            f"accuracy {100 * metrics.accuracy:.1f} %  {speed}",
            refresh=False,
        )
        self.bar.update(done - self.bar.n)

    def on_epoch(self, record: Record, state: TrainState) -> None:
        """Writes the epoch's record and prints its line."""
        self.records.append(record._asdict())
        runs.write_metrics(self.run, self.records)
        if self.checkpoint_every and (record.epoch % self.checkpoint_every == 0 or record.epoch == self.epochs):
            runs.write_checkpoint(self.run, state)
        if self.writer is not None:
            for name, value in record._asdict().items():
                if name not in ("epoch", "step") and value is not None:
                    self.writer.add_scalar(name, value, record.step)
            self.writer.flush()
        done = record.step - self.start
        left = (time.perf_counter() - self.began) / done * (self.epochs * self.steps_per_epoch - record.step)
        test = "" if record.test_accuracy is None else f"test {100 * record.test_accuracy:.2f} %  "
        self.bar.write(
            f"epoch {record.epoch:>{len(str(self.epochs))}}/{self.epochs}  loss {record.train_loss:.4f}  "
            f"train {100 * record.train_accuracy:.2f} %  {test}"
            f"{record.images_per_second:,.0f} images/s  {tqdm.format_interval(left)} left",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def event_writer() -> Any:
    """The class that writes TensorBoard events.

    Raises:
      UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs tensorboardX: pip install 'jax-arcface[tensorboard]'") from None
    return SummaryWriter
