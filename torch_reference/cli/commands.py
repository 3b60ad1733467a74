"""What the commands do, as functions of their options."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_reference import data
from torch_reference.cli import runs
from torch_reference.cli.figures import draw_embeddings
from torch_reference.cli.progress import Progress, event_writer
from torch_reference.cli.threshold import calibrate, described
from torch_reference.data.pairs import read_pairs
from torch_reference.errors import UserError, nearest
from torch_reference.evaluation import PROTOCOLS, accuracy, metrics
from torch_reference.evaluation.image_pairs import FEWEST_LISTED, embed_images, score_pairs
from torch_reference.evaluation.protocols import verified
from torch_reference.export import card
from torch_reference.export.formats import FORMATS, Embed, difference, from_onnx
from torch_reference.export.quantise import to_int8
from torch_reference.files import atomic_write, read_npz
from torch_reference.models import weights
from torch_reference.models.trained import Model, load_model
from torch_reference.training.config import TrainConfig, option
from torch_reference.training.fit import Machine, check_fit, fit_config, initial_state
from torch_reference.training.state import TrainState
from torch_reference.training.step import learning_rate

DEVICES = ("cpu", "cuda", "mps")
DEVICE_HELP = "where to compute: cpu, cuda or mps; by default cuda where there is one, else cpu"
INTERRUPTED = 130  # the exit status


def argument(name: str, help: str, optional: bool = False) -> Any:
    """A field that is a positional argument."""
    default = None if optional else dataclasses.MISSING
    return dataclasses.field(default=default, metadata={"positional": name, "help": help})


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Trains a model and writes a run directory: config, metrics, checkpoints, weights, test embeddings."""

    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    config: Path | None = option(  # noqa: RUF009
        None, "run", "JSON file with configuration fields, such as an old run's config.json; flags override it"
    )
    out: Path | None = option(  # noqa: RUF009
        None, "run", "run directory; by default a new one, runs/DATE-TIME-DATASET-LOSS"
    )
    resume: bool = option(
        False, "run", "go on with the run in --out from its latest checkpoint; with --epochs N, to N epochs"
    )
    checkpoint_every: int = option(
        1, "run", "epochs between two checkpoints, of which the latest is kept; 0 writes none but at Ctrl-C"
    )
    tensorboard: bool = option(False, "run", "write TensorBoard events into the run directory")
    device: str | None = option(None, "run", DEVICE_HELP)
    channels_last: bool = option(False, "run", "lay images out channel by channel, which some convolutions like")
    compile: bool = option(False, "run", "compile the backbone (needs a C++ compiler on a CPU)")
    deterministic: bool = option(False, "run", "deterministic algorithms only: the same bits on a GPU too")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measures the embeddings of a run, or those in an .npz file, and writes the numbers as JSON beside them.

    The loss is that of the classification loss alone, with its whole margin, unless it remembers or draws something.
    The protocols compare embeddings with each other; where the run held classes out, those of the unseen classes.
    With --pairs, pairs of images in a file are compared instead.
    """

    run_or_npz: Path | None = argument(  # noqa: RUF009
        "RUN_OR_NPZ",
        "run directory, or .npz file with embeddings [N, D], labels [N] (and prototypes [C, D] and a bias [C])",
        optional=True,
    )
    model: Path | None = option(  # noqa: RUF009
        None, "options", "instead of RUN_OR_NPZ, and with --pairs: file of published weights, or run directory"
    )
    pairs: Path | None = option(  # noqa: RUF009
        None, "options", "file of image pairs: LFW's pairs.txt, CSV with file1, file2, same (and fold), or .bin"
    )
    images: Path | None = option(  # noqa: RUF009
        None, "options", "folder with the images that --pairs names; by default that of a CSV file"
    )
    flip: bool = option(False, "options", "with --pairs, sum the embeddings of an image and its mirror image")
    out: Path | None = option(  # noqa: RUF009
        None, "options", "folder for the JSON file; by default the run's or the .npz file's"
    )
    protocol: str = option(
        ",".join(PROTOCOLS), "options", "what to measure beside accuracy and loss, separated by commas, or none"
    )
    split: str | None = option(
        None,
        "options",
        "split of the run's data set: test, train or unseen (the classes held out); by default test, and for "
        "the protocols unseen where there is one",
    )
    data_dir: str | None = option(None, "options", "folder with the data set's files; by default that of the training")
    calibrate: float | None = option(
        None,
        "options",
        "write the threshold with this false accept rate into the run, for verify and identify; it is measured on what "
        "the protocols compare",
    )
    device: str | None = option(None, "options", DEVICE_HELP)


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Writes embeddings and predictions of a data set or of image files as an .npz file."""

    run: Path = argument("RUN", "run directory")  # noqa: RUF009
    input: str = argument("INPUT", "a data set's name, an image file, or a folder of images")
    out: Path | None = option(  # noqa: RUF009
        None,
        "options",
        ".npz file to write: embeddings [N, D], predictions [N], prototypes [C, D] (a bias [C] with softmax), "
        "class_names [C], and labels [N] or files [N]; by default RUN/embeddings-INPUT.npz",
    )
    split: str = option("test", "options", "split of a data set", choices=("test", "train"))
    data_dir: str | None = option(None, "options", "folder with the data set's files")
    device: str | None = option(None, "options", DEVICE_HELP)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Writes a trained model as one file for other programs, with a model card beside it.

    ONNX and torch.export's programs (pt2) take images, uint8 [N, H, W, C] in any number, normalise them and give unit
    embeddings, float32 [N, D]; they are compared with the program here. safetensors holds the weights.
    """

    run: Path = argument("RUN", "run directory, or a file of published weights")  # noqa: RUF009
    format: str | None = option(
        None, "options", "what to write; by default what the suffix of --out says, else onnx", choices=tuple(FORMATS)
    )
    out: Path | None = option(  # noqa: RUF009
        None,
        "options",
        "file to write, by default exported.SUFFIX in the run directory; the card's name ends in .md",
    )
    check: str | None = option(
        None, "options", "image file, or folder of images, to compare on; by default images of noise"
    )
    int8: str | None = option(
        None,
        "options",
        "data set, or folder of images, to scale 8-bit integers by: an ONNX file of a third of the size",
    )


# ---- train


def train(options: TrainOptions) -> int:
    """Trains a model and prints the result; returns the exit status."""
    config, out = options.training, options.out
    if options.checkpoint_every < 0:
        raise UserError(f"--checkpoint-every is {options.checkpoint_every}; it must be at least 0")
    if options.resume and out is None:
        raise UserError("--resume needs --out, the run directory")
    machine = Machine(find_device(options.device), options.channels_last, options.compile)
    out = out or _new_folder(config)
    resumes = options.resume and runs.is_run(out)
    if not resumes:
        runs.check_free(out)
    if options.tensorboard:
        event_writer()
    if machine.compile:
        _check_compiler(machine.device)
    dataset = runs.load_dataset(config)
    check_fit(config, dataset)  # before there is a run directory
    print(
        f"{config.loss} on {dataset.name}: {len(dataset.train.labels):,} training and "
        f"{len(dataset.test.labels):,} test images {'x'.join(map(str, dataset.image_shape))}, "
        f"{dataset.num_classes} classes; {config.backbone}, epochs: {config.epochs}, device: {machine.device}"
    )
    if not resumes:
        runs.create(out, config, dataset)
    with runs.locked(out), _interruptible() as stop, _deterministic(options.deterministic):
        return _train(config, out, dataset, options, machine, stop, resumes)


def _new_folder(config: TrainConfig) -> Path:
    loss = re.sub(r"[^\w.=+]+", "-", config.loss)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.dataset).name}-{loss}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def _train(
    config: TrainConfig,
    run: Path,
    dataset: data.Dataset,
    options: TrainOptions,
    machine: Machine,
    stop: Callable[[], bool],
    resumes: bool,
) -> int:
    """Trains in a run directory, from its checkpoint if there is one."""
    state = initial_state(config, dataset, machine)
    per_epoch = len(dataset.train.labels) // config.batch_size
    total = config.epochs * per_epoch
    records: list[dict[str, Any]] = []
    if resumes:
        runs.check_dataset(run, dataset)
        before = runs.read_config(run)
        runs.read_checkpoint(run, state.load_arrays, before.epochs * per_epoch)
        runs.remove_older_checkpoints(run)  # left by a kill just after the latest was written
        records = runs.read_metrics_until(run, state.step, per_epoch)
        whole = runs.is_finished(run) and (not state.step or runs.has_result(run, weights.to_arrays(state.model)))
        if whole and config.epochs == before.epochs:
            print(f"{run} is finished, after {config.epochs} epochs; give a larger --epochs to train it further")
            return 0
        if runs.is_finished(run) and before.epochs and not state.step:  # beginning anew would overwrite the model
            raise UserError(f"{run} cannot be trained further: it was trained with --checkpoint-every 0")
        if state.step > total:
            raise UserError(f"{run} has had {state.step / per_epoch:g} epochs: --epochs {config.epochs} is less")
        _say_how_it_goes_on(run, state, config, before, per_epoch)
        if config != before:
            runs.extend(run, config)
    _say_warmups(config)
    if options.tensorboard:
        print(f"TensorBoard: tensorboard --logdir {run}")
    progress = Progress(
        run,
        records,
        epochs=config.epochs,
        steps_per_epoch=per_epoch,
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
        start=state.step,
    )
    began = time.perf_counter()
    try:
        fit_config(config, dataset, state=state, reporter=progress, stop=stop, machine=machine)
    finally:
        progress.close()
    if state.step < total:
        runs.write_checkpoint(run, state.step, state.to_arrays())
        print(f"stopped after {state.step} of {total} steps; go on with: train --resume --out {run}")
        return INTERRUPTED
    _finish(run, config, state, dataset, machine, time.perf_counter() - began)
    return 0


def _say_how_it_goes_on(run: Path, state: TrainState, config: TrainConfig, before: TrainConfig, per_epoch: int) -> None:
    """Prints where a resumed run continues, and what more epochs mean for its learning rate."""
    total = config.epochs * per_epoch
    print(f"{run} goes on after step {state.step} of {total}" if state.step else f"{run} begins anew: no checkpoint")
    if config.epochs != before.epochs and state.step:
        was = learning_rate(before, state.step - 1, per_epoch)
        rate = learning_rate(config, state.step, per_epoch)
        print(
            f"the {config.schedule} schedule now spans {config.epochs} epochs instead of {before.epochs}: the learning "
            f"rate goes on at {rate:.3g}, after {was:.3g} in the last step"
        )


def _say_warmups(config: TrainConfig) -> None:
    """Prints a line where a warm-up does not end, or takes a good part of the training."""
    for field, what in (("warmup_epochs", "the learning rate"), ("margin_warmup_epochs", "the margin")):
        epochs = getattr(config, field)
        if epochs and config.epochs and epochs >= config.epochs / 4:
            rises = "rises over" if epochs < config.epochs else "does not reach its value, since it rises over"
            print(f"{what} {rises} {epochs:g} of {config.epochs} epochs")


def _finish(
    run: Path, config: TrainConfig, state: TrainState, dataset: data.Dataset, machine: Machine, seconds: float
) -> None:
    """Writes the results of a training, and prints where they are and the test accuracy."""
    runs.write_weights(run, weights.to_arrays(state.model))
    model = load_model(run, machine.device)
    embeddings, labels = model.embed(dataset.test.images), dataset.test.labels
    reached = accuracy(embeddings, labels=labels, **model.classes)
    print(f"test accuracy {100 * reached:.2f} %  ({len(labels):,} images; trained in {seconds:.1f} s)")
    print(f"run directory {run}")
    try:
        title = f"{dataset.name}, {config.loss}: test accuracy {100 * reached:.2f} %"
        draw_embeddings(run / "embeddings.png", embeddings, labels, dataset.class_names, title, **model.classes)
        print(f"picture       {run / 'embeddings.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install matplotlib)")
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
    pressed: list[int] = []

    def handler(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nending after this step (Ctrl-C again: at once) ...", flush=True)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within it PyTorch uses deterministic algorithms only, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first matrix product is made
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _check_compiler(device: str) -> None:
    """Raises UserError where `torch.compile` cannot compile as little as a sum."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # whatever torch or the compiler came up with
        raise UserError(
            f"--compile finds nothing to compile with ({str(error).splitlines()[0]}): install a C++ compiler, such as "
            "g++, or leave it out"
        ) from None


def find_device(name: str | None) -> str:
    """The device of that name, found to be there, with convolutions in float32 where float32 is asked for."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is None:
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise UserError(f"--device is {name!r}; it must be cpu, cuda (an NVIDIA GPU) or mps (an Apple one)")
    if not available[name]:
        there = ", ".join(device for device in DEVICES if available[device])
        raise UserError(f"--device {name} is not there: this PyTorch finds {there}")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds a convolution's inputs to 10 bits
    return name


# ---- evaluate and embed


def evaluate(options: EvaluateOptions) -> int:
    """What a run's embeddings, those in a file, or those of image pairs are worth."""
    path, threshold = _evaluated(options), None
    if options.pairs is not None:
        result, threshold = _evaluate_pairs(path, options.pairs, options)
        name = "evaluation.json" if path.is_file() else f"evaluation-{options.pairs.stem}.json"
        target = (options.out or path) / name
    elif path.suffix == ".npz":
        arrays = read_npz(path, ("embeddings", "labels"), optional=("prototypes", "bias"))
        _check_arrays(path, **arrays)
        embedded = metrics.Evaluated(arrays.pop("embeddings"), arrays.pop("labels"), arrays)
        classified = metrics.evaluate(embedded) if "prototypes" in arrays else {}
        result = {"examples": len(embedded.labels), **classified, **_measure(embedded, options)}
        target = (options.out or path.parent) / f"{path.stem}.evaluation.json"
    else:
        result, threshold = _evaluate_run(path, options)
        suffix = "" if options.split in (None, "test") else f"-{options.split}"
        target = (options.out or path) / f"evaluation{suffix}.json"
    runs.write_json(target, result)
    print(metrics.shown(result))
    print(f"written to {target}")
    if threshold is not None:
        runs.write_json(path / "threshold.json", threshold)
        print(f"threshold {described(threshold)}, written to {path / 'threshold.json'}")
    return 0


def _evaluated(options: EvaluateOptions) -> Path:
    """What is to be evaluated; UserError where that is not one thing, or where an option has no effect on it."""
    _protocols(options)
    given = [path for path in (options.run_or_npz, options.model) if path is not None]
    if len(given) != 1:
        raise UserError("evaluate needs one of: a run directory, an .npz file, --model")
    (path,) = given
    is_npz, is_weights = path.suffix == ".npz", path.suffix != ".npz" and path.is_file()
    with_pairs = options.pairs is not None
    default = EvaluateOptions()
    useless = {
        "--split": options.split is not None and (is_npz or with_pairs),
        "--data-dir": options.data_dir is not None and (is_npz or with_pairs),
        "--protocol": options.protocol != default.protocol and with_pairs,
        "--device": options.device is not None and is_npz,
        "--pairs": with_pairs and is_npz,
        "--images": options.images is not None and not with_pairs,
        "--flip": options.flip and not with_pairs,
        # a threshold is kept in a run, for images as they are
        "--calibrate": options.calibrate is not None and (is_npz or is_weights or options.flip),
    }
    for name, is_useless in useless.items():
        if is_useless:
            raise UserError(f"{name} has no effect here: {path}" + (" with --pairs" if with_pairs else ""))
    if is_weights and not with_pairs:
        raise UserError(f"{path} is no run, and has no examples: give --pairs")
    if is_weights and options.out is None:
        raise UserError(f"{path} is no run directory to write into: give --out")
    return path


def _evaluate_pairs(path: Path, pairs: Path, options: EvaluateOptions) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the pairs give, and the threshold if one is wanted."""
    fit = "crop" if path.is_file() else runs.read_config(path).image_fit
    listed = read_pairs(pairs, options.images)
    model = load_model(path, find_device(options.device))
    embeddings = embed_images(model, listed.images, fit, options.flip)
    try:
        t, folds = score_pairs(embeddings, listed)
    except ValueError as error:
        raise UserError(f"{pairs}: {error}") from None
    result = {"pairs": pairs.name, "images": len(listed.images), "folds": len(set(listed.fold.tolist()))}
    result |= {"flip": options.flip, "verification": verified(t, folds, FEWEST_LISTED)}
    return result, None if options.calibrate is None else calibrate(t, options.calibrate)


def _evaluate_run(run: Path, options: EvaluateOptions) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is evaluated, and the threshold if one is wanted."""
    config = runs.read_config(run)
    model = load_model(run, find_device(options.device))
    done = max((record["epoch"] for record in runs.read_metrics(run)), default=0)
    if done < config.epochs:
        print(f"{run} is unfinished, after {done} of {config.epochs} epochs; go on with: train --resume --out {run}")
    dataset = runs.load_dataset(config, options.data_dir)
    if (dataset.image_shape, dataset.class_names) != (model.image_shape, model.class_names):
        raise UserError(f"{config.dataset} has other classes or other images than those {run} was trained on")
    name = options.split or "test"
    split = _split(dataset, name)
    result: dict[str, Any] = {"dataset": config.dataset, "split": name, "examples": len(split.labels)}
    embedded = metrics.Evaluated(model.embed(split.images), split.labels, {})
    if name != "unseen":  # classes that the prototypes stand for
        step = config.epochs * (len(dataset.train.labels) // config.batch_size)
        embedded = dataclasses.replace(embedded, classes=model.classes, objective=config.objective, step=step)
        result |= metrics.evaluate(embedded)
    if options.split is None and dataset.unseen is not None:
        embedded = metrics.Evaluated(model.embed(dataset.unseen.images), dataset.unseen.labels, {})
        result |= {"protocol_split": "unseen", "unseen_classes": list(dataset.unseen_names)}
        result["unseen_examples"] = len(dataset.unseen.labels)
    threshold = None
    if options.calibrate is not None:
        try:
            threshold = calibrate(embedded.pairs, options.calibrate)
        except ValueError as error:
            raise UserError(f"no threshold: {error}") from None
    return result | _measure(embedded, options), threshold


def _protocols(options: EvaluateOptions) -> list[str]:
    names = [name.strip() for name in options.protocol.split(",")] if options.protocol != "none" else []
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise UserError(f"--protocol knows no {unknown[0]!r}: {nearest(unknown[0], (*PROTOCOLS, 'none'))}")
    return names


def _measure(embedded: metrics.Evaluated, options: EvaluateOptions) -> dict[str, Any]:
    """Each protocol's numbers. By default, one that is not defined is only said to be missing."""
    found = {}
    for name in _protocols(options):
        try:
            found[name] = PROTOCOLS[name](embedded)
        except ValueError as error:
            if options.protocol != ",".join(PROTOCOLS):
                raise UserError(f"--protocol {name}: {error}") from None
            print(f"no {name}: {error}", file=sys.stderr)
    return found


def embed(options: EmbedOptions) -> int:
    """Embeddings and predictions of a data set's split, or of image files."""
    model = load_model(options.run, find_device(options.device))
    if options.input in data.DATASETS:
        images, labels = _images_of(options, model)
        found = {"labels": labels}
        name = options.input if options.split == "test" else f"{options.input}-{options.split}"
    else:
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {options.input}: all its images are embedded")
        fit = runs.read_config(options.run).image_fit
        files, images = data.read_images(Path(options.input), model.image_shape, image_fit=fit)
        found = {"files": np.array(files)}
        name = Path(options.input).resolve().stem
    embeddings, predictions = model.embed(images), model.predict(images)
    if "files" in found:
        for file, prediction in zip(files, predictions, strict=True):
            print(f"{file}  {model.class_names[prediction]}")
    out = options.out or options.run / f"embeddings-{name}.npz"
    names = np.array(model.class_names)
    runs.write_npz(out, embeddings=embeddings, predictions=predictions, class_names=names, **model.classes, **found)
    print(f"{len(embeddings):,} embeddings of dimension {embeddings.shape[1]} written to {out}")
    return 0


def _images_of(options: EmbedOptions, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """A data set's images, in the model's size, and labels."""
    dataset = data.load(options.input, options.data_dir)
    height, width, channels = model.image_shape
    if dataset.image_shape[2] != channels or height != width:
        shape = "x".join(map(str, dataset.image_shape))
        raise UserError(f"{options.input} has images {shape}; the model takes {height}x{width}x{channels}")
    if dataset.image_shape != model.image_shape:
        dataset = data.load(options.input, options.data_dir, image_size=height)
    split = _split(dataset, options.split)
    return split.images, split.labels


def _check_arrays(
    path: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or len(labels) == 0:
        raise UserError(f"{path} holds embeddings {embeddings.shape} and labels {labels.shape}, not [N, D] and [N]")
    if prototypes is not None and (prototypes.ndim not in (2, 3) or prototypes.shape[-1] != embeddings.shape[1]):
        raise UserError(
            f"{path} holds prototypes {prototypes.shape} for embeddings {embeddings.shape}; they must be [C, D] or "
            "[C, K, D]"
        )
    if bias is not None and (prototypes is None or prototypes.ndim != 2 or bias.shape != prototypes.shape[:1]):
        raise UserError(f"{path} holds a bias {bias.shape}; it must be [C], beside prototypes [C, D]")
    for name, array in (("embeddings", embeddings), ("prototypes", prototypes), ("bias", bias)):
        if array is not None and (array.dtype.kind not in "fiu" or not np.isfinite(array).all()):
            raise UserError(f"{path} has {name} that are not finite numbers")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path} has labels that are no whole numbers")
    if prototypes is not None and (labels.min() < 0 or labels.max() >= len(prototypes)):
        raise UserError(f"{path} has labels other than the whole numbers from 0 to {len(prototypes) - 1}")


def _split(dataset: data.Dataset, which: str) -> data.Split:
    if which == "unseen":
        if dataset.unseen is None:
            raise UserError("--split unseen needs a run with --holdout-classes")
        return dataset.unseen
    if which not in ("train", "test"):
        raise UserError(f"--split is {which!r}; it must be train, test or unseen")
    return dataset.train if which == "train" else dataset.test


def export(options: ExportOptions) -> int:
    """A trained model as one file, and its card."""
    name, out = _target(options)
    chosen = FORMATS[name]
    if options.check is not None and chosen.read is None:
        raise UserError(f"--check has no effect on {name}, which holds weights and computes nothing")
    if options.int8 is not None and name != "onnx":
        raise UserError(f"--int8 has no effect on {name}: only ONNX files can have 8-bit integers")
    model = load_model(options.run)
    if options.check is None:
        images = np.random.default_rng(0).integers(0, 256, (3, *model.image_shape), np.uint8)
    else:
        _, images = data.read_images(Path(options.check), model.image_shape)
    facts = card.describe(model, options.run)
    content = chosen.write(model, card.metadata(facts))
    checked = _compared(model, chosen.read(content), images, options.check or "noise") if chosen.read else ""
    if options.int8 is not None:
        content, checked = _in_int8(model, content, options.int8)
    with atomic_write(out) as file:
        file.write_bytes(content)
    with atomic_write(out.with_suffix(".md")) as file:
        file.write_text(card.markdown(facts, out.name, name, checked), "utf-8")
    print(f"{checked}\n{len(content):,} bytes written to {out}, and its card to {out.with_suffix('.md')}".strip())
    return 0


def _target(options: ExportOptions) -> tuple[str, Path]:
    """The name of the format and the file."""
    if options.format is not None and options.format not in FORMATS:
        raise UserError(f"there is no format {options.format!r}: {nearest(options.format, tuple(FORMATS))}")
    if options.out is None:
        name = options.format or "onnx"
        return name, (options.run if options.run.is_dir() else Path()) / f"exported{FORMATS[name].suffix}"
    names = {known.suffix: name for name, known in FORMATS.items()}
    if options.out.is_dir() or options.out.suffix in ("", ".md"):
        raise UserError(f"--out {options.out} must be a file with a suffix such as {', '.join(names)}")
    if (said := options.format or names.get(options.out.suffix)) is None:
        raise UserError(f"--out {options.out} does not say what to write: give --format, one of {', '.join(FORMATS)}")
    return said, options.out


def _compared(model: Model, embed: Embed | None, images: np.ndarray, what: str) -> str:
    """A sentence on how far a file's embeddings are from the program's."""
    if embed is None:
        return "Not compared with the program: onnxruntime is not installed."
    apart = difference(model, embed, images)
    # a hundred times what rounding makes; in bfloat16, in which no file computes, several times
    if not apart < (1e-4 if model.precision == "float32" else 0.1):
        raise UserError(f"the file would give other embeddings than the program: they differ by up to {apart:.1e}")
    counted = "1 image" if len(images) == 1 else f"{len(images):,} images"
    return f"Embeddings differ from the program's by at most {apart:.1e}, on {counted} of {what}."


def _in_int8(model: Model, content: bytes, source: str) -> tuple[bytes, str]:
    """An ONNX file in 8 bits, and a sentence on how near its embeddings are to the program's."""
    if source in data.DATASETS:
        images = data.load(source, None).train.images
        if images.shape[1:] != model.image_shape:
            raise UserError(f"--int8 {source} has images {images.shape[1:]}; the model takes {model.image_shape}")
    else:
        _, images = data.read_images(Path(source), model.image_shape)
    images = np.ascontiguousarray(images[:256])
    content = to_int8(content, images)
    embed = from_onnx(content)
    assert embed is not None  # onnxruntime made the file
    wanted = model.embed(images)
    cosines = (embed(images) * wanted).sum(axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-12)
    return content, (
        f"In 8 bits: the cosine with the program's embeddings is {cosines.mean():.4f} on average and at least "
        f"{cosines.min():.4f}, on the {len(images):,} images that the integers are scaled by."
    )
