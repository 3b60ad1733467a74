"""What a training shows and writes while it runs: a line, the run directory, TensorBoard events."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from torch_reference.cli import runs
from torch_reference.errors import UserError
from torch_reference.training.fit import Record, Reporter
from torch_reference.training.state import TrainState
from torch_reference.training.step import Metrics


class Progress(Reporter):
    """Shows a running line on a terminal and a line an epoch; writes metrics, checkpoints and TensorBoard events.

    Args:
      run: the run directory.
      records: the epochs already trained.
      epochs: of the whole training.
      steps_per_epoch: of the training.
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
        checkpoint_every: int,
        tensorboard: bool,
        start: int = 0,
    ):
        self.run, self.records = run, records
        self.epochs, self.steps_per_epoch, self.checkpoint_every = epochs, steps_per_epoch, checkpoint_every
        self.writer = event_writer()(str(run)) if tensorboard else None
        self.began, self.start = time.perf_counter(), start
        self.shown = 0.0 if sys.stderr.isatty() else float("inf")  # when the running line was last shown

    def on_step(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Shows the running line, ten times a second at most."""
        if (now := time.perf_counter()) - self.shown > 0.1:
            self.shown = now
            print(
                f"\repoch {epoch + 1}/{self.epochs} {step / self.steps_per_epoch:4.0%}  "
                f"loss {metrics.loss:.4f}  accuracy {100 * metrics.accuracy:.1f} %  "
                f"{self._left(epoch * self.steps_per_epoch + step)} left\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def on_epoch(self, record: Record, state: TrainState) -> None:
        """Writes the epoch's record and prints its line."""
        self.records.append(record._asdict())
        runs.write_metrics(self.run, self.records)
        if self.checkpoint_every and (record.epoch % self.checkpoint_every == 0 or record.epoch == self.epochs):
            runs.write_checkpoint(self.run, state.step, state.to_arrays())
        if self.writer is not None:
            for name, value in record._asdict().items():
                if name not in ("epoch", "step") and value is not None:
                    self.writer.add_scalar(name, value, record.step)
            self.writer.flush()
        self._clear_line()
        print(
            f"epoch {record.epoch:>{len(str(self.epochs))}}/{self.epochs}  "
            f"train loss {record.train_loss:.4f}  {100 * record.train_accuracy:.2f} %  "
            f"test {'' if record.test_loss is None else f'loss {record.test_loss:.4f}  '}"
            f"{100 * (record.test_accuracy or 0):.2f} %  "
            f"{record.images_per_second:,.0f} images/s  {self._left(record.step)} left",
            flush=True,
        )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._clear_line()
        if self.writer is not None:
            self.writer.close()

    def _left(self, step: int) -> str:
        each = (time.perf_counter() - self.began) / (step - self.start)
        minutes, seconds = divmod(round(each * (self.epochs * self.steps_per_epoch - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"

    def _clear_line(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def event_writer() -> Any:
    """The class that writes TensorBoard events.

    Raises:
      UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs tensorboardX: pip install tensorboardX") from None
    return SummaryWriter
