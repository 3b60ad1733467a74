"""What a training shows and writes while it runs: a bar or lines, the run directory, TensorBoard events."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jax_arcface import runs
from jax_arcface.errors import UserError
from jax_arcface.training import Metrics, Record, Reporter, TrainState


class Progress(Reporter):
    """Shows a bar on a terminal and a line an epoch; writes metrics, checkpoints and TensorBoard events.

    Args:
      directories: one run directory for each replica.
      records: the epochs that each has behind it.
      epochs: of the whole training.
      steps_per_epoch: of one replica.
      checkpoint_every: epochs between two checkpoints; 0 writes none.
      tensorboard: also writes TensorBoard events into the run directories (needs tensorboardX).
      start: steps done before.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        records: Sequence[list[dict[str, Any]]],
        *,
        epochs: int,
        steps_per_epoch: int,
        checkpoint_every: int,
        tensorboard: bool,
        start: int = 0,
    ):
        self.directories, self.records = directories, records
        self.epochs, self.steps_per_epoch, self.checkpoint_every = epochs, steps_per_epoch, checkpoint_every
        self.writers = [event_writer()(str(directory)) for directory in directories] if tensorboard else []
        self.began, self.start = time.perf_counter(), start
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=start,
            disable=not sys.stderr.isatty(),
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}|{postfix} {remaining} left",
        )
        self.speed = "compiling"

    def on_step(self, replica: int, epoch: int, step: int, metrics: Metrics) -> None:
        """Moves the bar; with several replicas it shows the first."""
        if replica == 0:
            self.bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
            text = f"loss {metrics.loss:.4f}  accuracy {100 * metrics.accuracy:.1f} %  {self.speed} "
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(epoch * self.steps_per_epoch + step - self.bar.n)

    def on_epoch(self, replica: int, record: Record, state: TrainState) -> None:
        """Writes what the epoch gave, and prints its line."""
        directory, records = self.directories[replica], self.records[replica]
        records.append(record._asdict())
        runs.write_metrics(directory, records)
        if self.checkpoint_every and (record.epoch % self.checkpoint_every == 0 or record.epoch == self.epochs):
            runs.write_checkpoint(directory, state)
        if self.writers:
            for name, value in record._asdict().items():
                if name not in ("epoch", "step"):
                    self.writers[replica].add_scalar(name, value, record.step)
            self.writers[replica].flush()
        self.speed = f"{record.images_per_second:,.0f} images/s"
        done = record.step - self.start
        left = (time.perf_counter() - self.began) / done * (self.epochs * self.steps_per_epoch - record.step)
        name = f"{directory.name}  " if len(self.directories) > 1 else ""
        self.bar.write(
            f"{name}epoch {record.epoch:>{len(str(self.epochs))}}/{self.epochs}  loss {record.train_loss:.4f}  "
            f"train {100 * record.train_accuracy:.2f} %  test {100 * record.test_accuracy:.2f} %  "
            f"{self.speed}  {tqdm.format_interval(left)} left",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self.bar.close()
        for writer in self.writers:
            writer.close()


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
