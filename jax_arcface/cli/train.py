"""`python -m jax_arcface train`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_arcface import cpu, data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser, flag
from jax_arcface.cli.figures import draw_embeddings
from jax_arcface.cli.progress import Progress, event_writer
from jax_arcface.errors import UserError
from jax_arcface.evaluation import accuracy
from jax_arcface.losses.registry import describe
from jax_arcface.models.backbones import import_own
from jax_arcface.models.trained import load_model
from jax_arcface.training import config as configs
from jax_arcface.training import fit as training
from jax_arcface.training.config import TrainConfig, changed_field
from jax_arcface.training.optimizer import learning_rate_schedule
from jax_arcface.training.state import TrainState

# The heading in --help above a field, and above those that follow it in `TrainConfig`.
_GROUPS = {
    "dataset": "data",
    "backbone": "model",
    "loss": "loss",
    "epochs": "optimiser",
    "rotate": "augmentation",
    "seed": "run",
}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Flags of `train` beside those of the configuration."""

    out: Path | None = None
    """Run directory; the default is a new one, runs/DATE-TIME-DATASET-LOSS."""
    config: Path | None = None
    """JSON file with configuration fields, such as an old run's config.json; flags override it."""
    resume: bool = False
    """Go on with the run in --out from its latest checkpoint; with another --epochs, up to that many."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints, of which the latest is kept; 0 writes one at Ctrl-C only."""
    tensorboard: bool = False
    """Write TensorBoard events into the run directory."""


def main(words: Sequence[str]) -> int:
    """Trains a model as the words say; returns the exit status."""
    try:
        return train(*parse(words))
    except UserError as error:
        raise UserError(in_flags(str(error))) from None
    except training.Diverged as error:
        print(f"jax_arcface: {error} (--learning-rate, --warmup-epochs, --clip-norm)", file=sys.stderr)
        return 1


def in_flags(message: str) -> str:
    """A message of the library, with the flag in place of the field or the option that it begins with.

    >>> in_flags("the batch size is 1439, but there are only 1438 training images")
    '--batch-size is 1439, but there are only 1438 training images'
    >>> in_flags("m of arcface is 4; it must be below 3.142")
    '--margin of arcface is 4; it must be below 3.142'
    """
    names = {"m": "margin"} | {field.name: field.name for field in dataclasses.fields(TrainConfig)}
    for words, field in sorted(names.items(), reverse=True):  # margin_warmup_epochs before margin
        found = re.match(rf"(the )?({words}|{words.replace('_', ' ')}) (?=is |has |of )", message)
        if found:
            return f"{flag(field)} {message[found.end() :]}"
    return message


def parse(words: Sequence[str]) -> tuple[TrainConfig, RunOptions]:
    """What the words ask for, on top of the resumed run's configuration, the file's, or the data set's recipe."""
    defaults = _defaults(words)
    description = "Trains a model and writes a run directory: configuration, metrics, checkpoint, weights, embeddings."
    parser = Parser("train", description)
    parser.add_listing(
        "--help-losses", lambda: "\n".join(describe()), "list the losses, their equations and options, and exit"
    )
    parser.add_fields(TrainConfig, _GROUPS, defaults, configs.CHOICES | {"dataset": data.DATASETS})
    parser.add_fields(RunOptions, {"out": "run"})
    values = parser.parse(words)
    own = {field.name: values.pop(field.name) for field in dataclasses.fields(RunOptions)}
    if "--backbone" in {word.partition("=")[0] for word in words}:
        import_own(values["backbone"])  # a file's word would not do
    config, options = TrainConfig(**values), RunOptions(**own)
    if options.resume:
        if options.out is None:
            raise UserError("--resume needs --out, a run directory")
        if options.config is not None:
            raise UserError("--config has no effect with --resume, which takes the run's own configuration")
        if (options.out / "config.json").exists():
            _check_resumed(config, defaults)
        elif not options.out.is_dir() or next(options.out.iterdir(), None) is None:
            runs.read_config(options.out)  # raises for what is missing
    return config, options


def _defaults(words: Sequence[str]) -> TrainConfig:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--loss")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--embedding-dim", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(words))
    except argparse.ArgumentError:
        return TrainConfig()  # a flag without its value: the real parser refuses it
    if given.resume and given.out is not None and (given.out / "config.json").exists():
        return runs.read_config(given.out)
    if given.config is not None:
        return configs.read(given.config, given.dataset, given.loss, given.epochs, given.embedding_dim)
    return configs.recipe(given.dataset or "digits", given.loss or "arcface", given.epochs, given.embedding_dim)


def _check_resumed(given: TrainConfig, run: TrainConfig) -> None:
    if (name := changed_field(dataclasses.replace(given, epochs=run.epochs), run)) is not None:
        asked, was = getattr(given, name), getattr(run, name)
        raise UserError(f"{flag(name)} is {asked}, but the run to resume has {was}: leave it out, or start a new run")


def train(config: TrainConfig, options: RunOptions) -> int:
    """Trains a new model or resumes a run, and prints the result; returns the exit status."""
    if options.checkpoint_every < 0:
        raise UserError(f"--checkpoint-every is {options.checkpoint_every}; it must be at least 0")
    out = options.out or _new_folder(config)
    resumes = options.resume and runs.holds_run(out)
    if not resumes:
        runs.check_free(out)
    if options.tensorboard:
        event_writer()  # raises for a missing package before there is a run directory
    dataset = runs.load_dataset(config)
    # what `fit_config` would refuse, too, but before there is a run directory
    source = data.ArraySource.of_dataset(dataset, config.batch_size, classes_per_batch=config.classes_per_batch)
    training.abstract_model(config, dataset.image_shape, dataset.num_classes)
    steps = config.epochs * source.steps_per_epoch
    print(_headline(config, dataset))
    mean, std = data.channel_statistics(dataset.train.images)
    with contextlib.ExitStack() as stack:
        if resumes:
            stack.enter_context(runs.locked(out))
            runs.check_dataset(out, dataset, mean, std)
            state, records = _reached(out, config, dataset, source.steps_per_epoch)
            if state is None and records:
                print(f"{out} has ended: test accuracy {100 * records[-1]['test_accuracy']:.2f} %")
                return 0
        else:
            if options.resume:
                print(f"{out} was ended before its first step and begins anew")
            stack.enter_context(runs.begin(out, config, dataset, mean, std))
            state, records = None, []
        if options.tensorboard:
            missing = "" if importlib.util.find_spec("tensorboard") else "  (pip install tensorboard)"
            print(f"look at it with: tensorboard --logdir {out}{missing}")
        progress = Progress(
            out,
            records,
            epochs=config.epochs,
            steps_per_epoch=source.steps_per_epoch,
            batch_size=config.batch_size,
            checkpoint_every=options.checkpoint_every,
            tensorboard=options.tensorboard,
            start=int(state.step) if state else 0,
        )
        stop = stack.enter_context(_interruptible())
        began = time.perf_counter()
        try:
            state = training.fit_config(config, dataset, state=state, reporter=progress, stop=stop)
        finally:
            progress.close()
        if int(state.step) < steps:
            runs.write_checkpoint(out, state)
            print(f"stopped after {int(state.step)} of {steps} steps; go on with: --resume --out {out}")
            return 130
        _finish(out, config, dataset, state, time.perf_counter() - began)
    return 0


def _new_folder(config: TrainConfig) -> Path:
    loss = re.sub(r"[^\w.=+]+", "-", config.loss)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.dataset).name}-{loss}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def _headline(config: TrainConfig, dataset: data.Dataset) -> str:
    size = "x".join(map(str, dataset.image_shape))
    grows = [("learning rate", config.warmup_epochs), ("margin", config.margin_warmup_epochs)]
    warmups = ", ".join(f"{what} {epochs:g}" for what, epochs in grows if epochs)
    epochs = f"{config.epochs} {'epoch' if config.epochs == 1 else 'epochs'}"
    return (
        f"{config.loss} on {dataset.name}: {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} "
        f"test images {size}, {dataset.num_classes} classes\n"
        f"{config.backbone} on {jax.default_backend()}, by {cpu.describe()}; {epochs}, of which warm-up: "
        f"{warmups or 'none'}"
    )


def _reached(
    run: Path, config: TrainConfig, dataset: data.Dataset, steps: int
) -> tuple[TrainState | None, list[dict[str, Any]]]:
    """Where a run goes on: its latest state and the records up to there.

    Records without a state mean that nothing is left to do; neither means that training starts anew.
    """
    was = runs.read_config(run)
    state = runs.read_checkpoint(run, training.initial_state(was, dataset), was.epochs * steps)
    records = runs.read_metrics(run)
    if state is None:
        ended = (run / "model.safetensors").exists() and (run / "embeddings.npz").exists()
        if ended and config.epochs != was.epochs:
            raise UserError(f"{run} has no checkpoint to go on from: it was trained with --checkpoint-every 0")
        if ended:
            _check_records(run, records, was.epochs, steps)
            return None, records
        print(f"{run} has no checkpoint and begins anew")
        return None, []
    done = int(state.step)
    records = [record for record in records if record["step"] <= done]
    _check_records(run, records, done // steps, steps)
    runs.remove_older_checkpoints(run)  # left by a kill just after the latest was written
    if config.epochs == was.epochs and done == was.epochs * steps and runs.has_result(run, state.weights):
        return None, records
    if config.epochs != was.epochs:
        if config.epochs * steps < done:
            raise UserError(f"--epochs is {config.epochs}, but {run} has already had {done / steps:g} epochs")
        before, after = learning_rate_schedule(was, steps), learning_rate_schedule(config, steps)
        print(
            f"{run} is trained to {config.epochs} epochs in place of {was.epochs}. Its learning rate goes on as in a "
            f"training of {config.epochs} from the start ({config.schedule}): it was {float(before(done - 1)):.3g} in "
            f"step {done}, and is {float(after(done)):.3g} in the next"
        )
        runs.extend(run, config)
    print(f"{run} goes on after step {done} of {config.epochs * steps}")
    return state, records


def _check_records(run: Path, records: Sequence[dict[str, Any]], epochs: int, steps: int) -> None:
    if [(r["epoch"], r["step"]) for r in records] != [(n, n * steps) for n in range(1, epochs + 1)]:
        raise UserError(
            f"{run / 'metrics.jsonl'} does not match the training: it must have a line for each of the {epochs} "
            f"epochs of {steps} steps; put it back, or train anew in another folder"
        )


def _finish(run: Path, config: TrainConfig, dataset: data.Dataset, state: TrainState, seconds: float) -> None:
    """Writes the results of a training, and prints where they are and the test accuracy."""
    runs.write_weights(run, state.weights)
    model = load_model(run)
    embeddings, labels = model.embed(dataset.test.images), np.asarray(dataset.test.labels)
    reached = f"test accuracy {100 * accuracy(embeddings, model.classes['prototypes'], labels, model.bias):.2f} %"
    print(f"{reached}  ({len(labels):,} images; trained in {seconds:.1f} s)")
    print(f"run directory {run}")
    margin = "" if config.margin is None else f", margin {config.margin:g}"
    try:
        draw_embeddings(
            run / "embeddings.png",
            embeddings,
            labels,
            model.classes["prototypes"],
            dataset.class_names,
            title=f"{dataset.name}, {config.loss}{margin}: {reached}",
            true_length=model.bias is not None,
        )
        print(f"picture       {run / 'embeddings.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'jax-arcface[figures]')")
    runs.write_npz(  # last: with it the run has its result
        run / "embeddings.npz",
        embeddings=embeddings,
        labels=labels,
        class_names=np.array(dataset.class_names),
        **model.classes,
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C was pressed; a second Ctrl-C ends the program at once."""
    pressed = []

    def handler(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nending after the step under way (Ctrl-C again: at once) ...", flush=True)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
