"""What the commands `train`, `evaluate` and `embed` do, as functions of their options."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_reference import data
from torch_reference.cli import runs
from torch_reference.cli.figures import draw_embeddings
from torch_reference.cli.progress import Progress, event_writer
from torch_reference.errors import UserError, nearest
from torch_reference.evaluation import accuracy, mean_loss, predict
from torch_reference.models import weights
from torch_reference.training import fit as training
from torch_reference.training.config import TrainConfig, changed_field, flag, option
from torch_reference.training.fit import Classifier, Machine

DEVICES = ("cpu", "cuda", "mps")
_DEVICE_HELP = "Where to compute: cpu, cuda or mps; the default is cuda where there is one, else cpu."


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Trains a model and writes a run directory: config, metrics, checkpoints, weights, test embeddings."""

    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    config: Path | None = dataclasses.field(
        default=None,
        metadata={"help": "JSON file with configuration fields, such as an old run's config.json; flags override it."},
    )
    out: Path | None = dataclasses.field(
        default=None, metadata={"help": "Run directory; the default is a new one, runs/DATE-TIME-DATASET-LOSS."}
    )
    checkpoint_every: int = option(
        1, "Epochs between two checkpoints, of which the latest is kept; 0 writes none but at Ctrl-C."
    )
    resume: bool = option(
        False,
        "Go on with the run in --out from its latest checkpoint; with --replicas or --margins, with all runs there.",
    )
    replicas: int = option(1, "Trains this many seeds, from --seed on, and tells mean and standard deviation.")
    margins: str = option(
        "", "Trains one model for each of these margins, such as 0.3,0.4,0.5 (in the unit of --margin)."
    )
    tensorboard: bool = option(False, "Writes TensorBoard events into the run directory.")
    device: str | None = option(None, _DEVICE_HELP)
    channels_last: bool = option(
        False, "Lays images out channel by channel within a pixel, which some convolutions are faster on."
    )
    compile: bool = option(False, "Compiles the backbone with torch.compile (needs a C++ compiler on a CPU).")
    deterministic: bool = option(
        False, "Uses deterministic algorithms only, so that a CUDA device too gives the same bits every time."
    )


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Prints a run's accuracy, and its loss if that is a margin softmax alone, or the accuracy of an .npz file.

    Writes evaluation.json.
    """

    run_or_npz: Path = dataclasses.field(
        metadata={
            "positional": "RUN_OR_NPZ",
            "help": "A run directory, or an .npz file with embeddings [N, D], labels [N] and prototypes [C, D] "
            "(and a bias [C]).",
        }
    )
    out: Path | None = dataclasses.field(
        default=None,
        metadata={"help": "Folder for evaluation.json; the default is the run directory, or the .npz file's folder."},
    )
    split: str = option("test", "Which split of the run's data set: test or train.")
    data_dir: str | None = option(None, "Folder with the data set's files; the default is that of the training.")
    device: str | None = option(None, _DEVICE_HELP)


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Writes the embeddings of a data set or of image files as an .npz file."""

    run: Path = dataclasses.field(metadata={"positional": "RUN", "help": "A run directory."})
    input: str = dataclasses.field(
        metadata={
            "positional": "INPUT",
            "help": "A data set's name, an image file, or a folder of images (of class folders too).",
        }
    )
    out: Path = dataclasses.field(
        default=Path("embeddings.npz"),
        metadata={
            "help": "The .npz file to write: embeddings [N, D], predictions [N], prototypes [C, D] (a bias [C] with "
            "softmax), class_names [C], and labels [N] or files [N] where known."
        },
    )
    split: str = option("test", "Which split of a data set: test or train.")
    data_dir: str | None = option(None, "Folder with the data set's files.")
    device: str | None = option(None, _DEVICE_HELP)


# ---- train


def train(options: TrainOptions) -> None:
    """Trains one model, or several replicas one after the other, and says what came out."""
    config = options.training
    if options.checkpoint_every < 0:
        raise UserError(f"--checkpoint-every is {options.checkpoint_every}; it must be at least 0")
    begun = _runs_to_resume(options)
    replicas = _replicas(options)
    machine = Machine(_device(options.device), options.channels_last, options.compile)
    out = options.out or _new_folder(config)
    is_set = len(replicas) > 1 or bool(begun.keys() - {out})
    members = {out / name if is_set else out: member for name, member in replicas.items()}
    _check_members(out, begun, members)
    for directory in members:
        if directory not in begun:
            runs.check_free(directory)
    if not begun:
        runs.check_free(out)
    if options.tensorboard:
        event_writer()
    if machine.compile:
        _check_compiler(machine.device)
    dataset = data.load(config.dataset, config.data_dir, image_size=config.image_size, image_fit=config.image_fit)
    # what `fit` would say too, but before there is a run directory
    training.check_fit(config, dataset)
    Classifier(config, dataset.image_shape, dataset.num_classes)
    print(
        f"{config.loss} on {dataset.name}: {len(dataset.train.labels):,} training and "
        f"{len(dataset.test.labels):,} test images {'x'.join(map(str, dataset.image_shape))}, "
        f"{dataset.num_classes} classes; {config.backbone}, "
        f"{config.epochs} {'epochs' if config.epochs > 1 else 'epoch'} on {machine.device}"
    )
    results: dict[Path, float] = {}
    with _interruptible() as stop, _deterministic(options.deterministic):
        for directory, member in members.items():
            name = f"{directory.name}  " if is_set else ""
            its_options = dataclasses.replace(options, resume=directory in begun)
            reached = _train_one(member, directory, dataset, its_options, machine, stop, name)
            if stop():
                if is_set:
                    print(f"go on with: --resume --out {out} {_flag_of_set(options)}")
                return
            results[directory] = reached
    if is_set:
        _summarise(results, out, seeds=not options.margins)


def _new_folder(config: TrainConfig) -> Path:
    loss = re.sub(r"[^\w.=+]+", "-", config.loss)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.dataset).name}-{loss}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def _replicas(options: TrainOptions) -> dict[str, TrainConfig]:
    config = options.training
    if options.margins and options.replicas != 1:
        raise UserError("--margins and --replicas cannot be given together")
    if options.margins and config.margin is not None:
        raise UserError(f"--margin {config.margin:g} has no effect with --margins: leave one of them out")
    if options.margins:
        try:
            margins = [float(word) for word in options.margins.split(",")]
        except ValueError:
            raise UserError(f"--margins is {options.margins!r}; it must be numbers with commas: 0.3,0.4,0.5") from None
        if len({f"{margin:g}" for margin in margins}) < len(margins):
            raise UserError(f"--margins is {options.margins!r}; each margin must be given once")
        try:
            return {f"margin-{margin:g}": dataclasses.replace(config, margin=margin) for margin in margins}
        except UserError as error:
            raise UserError(str(error).replace("--margin", "--margins")) from None
    if options.replicas < 1:
        raise UserError(f"--replicas is {options.replicas}; it must be at least 1")
    seeds = range(config.seed, config.seed + options.replicas)
    return {f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in seeds}


def _flag_of_set(options: TrainOptions) -> str:
    """How `options` ask for a set of runs."""
    if options.margins:
        return "--margins " + "".join(options.margins.split())
    return f"--replicas {options.replicas}"


def _runs_to_resume(options: TrainOptions) -> dict[Path, TrainConfig]:
    """What --resume finds in --out, by directory: a single run, or those of a set that were begun.

    Raises:
      UserError: a single run where a set is asked for, or a set that is asked for otherwise.
    """
    if not options.resume:
        return {}
    if options.out is None:
        raise UserError("--resume needs --out, a run directory or a folder of replicas")
    wanted = "margin" if options.margins else "seed" if options.replicas != 1 else None
    found = runs.read_replicas(options.out)
    if not found and wanted:
        raise UserError(f"--out {options.out} is a single run: go on with it without {_flag_of_set(options)}")
    if not found:
        return {options.out: runs.read_config(options.out)}
    directories = {options.out / name: config for name, config in found.items()}
    if {name.partition("-")[0] for name in found} != {wanted}:
        raise _of_another_set(options.out, directories)
    return directories


def _check_members(out: Path, begun: Mapping[Path, TrainConfig], members: Mapping[Path, TrainConfig]) -> None:
    """Raises UserError for a run that was begun and is no member of the set, or is configured otherwise."""
    for directory, config in begun.items():
        if directory not in members:
            raise _of_another_set(out, begun)
        if name := changed_field(config, members[directory]):
            was, asked = getattr(config, name), getattr(members[directory], name)
            raise UserError(
                f"{directory} was begun with {flag(name)} {was}, but what is to go on has {asked}: move it away, or "
                "start anew in another folder"
            )


def _of_another_set(out: Path, begun: Mapping[Path, TrainConfig]) -> UserError:
    """Names the runs of the set, and how to ask for them."""
    names = [directory.name for directory in begun]
    if names[0].startswith("margin-"):
        right = "--margins " + ",".join(str(config.margin) for config in begun.values())
    else:
        seeds = [config.seed for config in begun.values()]
        right = f"--replicas {max(2, 1 + max(seeds) - min(seeds))}"
    return UserError(f"--out {out} holds {', '.join(names)}: give {right}, or more, to go on with them")


def _train_one(
    config: TrainConfig,
    run: Path,
    dataset: data.Dataset,
    options: TrainOptions,
    machine: Machine,
    stop: Callable[[], bool],
    name: str,
) -> float:
    """Trains one model, and writes what it leaves behind; gives its test accuracy."""
    described = (dataset, *data.channel_statistics(dataset.train.images))
    if options.resume:
        runs.check_dataset(run, *described)
        state = training.initial_state(config, dataset, machine)
        runs.read_checkpoint(run, state.load_arrays)
        records = [record for record in runs.read_metrics(run) if record["step"] <= state.step]
    else:
        runs.create(run, config)
        runs.write_dataset(run, *described)
        state, records = training.initial_state(config, dataset, machine), []
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if options.resume:
        before = None if state.step else _accuracy_of_ended(run, config)
        if before is not None:
            print(f"{run} has ended")
            return before
        begun = f"goes on after step {state.step} of {config.epochs * steps_per_epoch}"
        print(f"{run} {begun if state.step else 'has no checkpoint and begins anew'}")
    progress = Progress(
        run,
        records,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
        start=state.step,
        name=name,
    )
    start = time.perf_counter()
    try:
        training.fit(config, dataset, state, progress, stop, machine)
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    if state.step < config.epochs * steps_per_epoch:
        runs.write_checkpoint(run, state.step, state.to_arrays())
        stopped = f"stopped after {state.step} of {config.epochs * steps_per_epoch} steps"
        print(stopped if name else f"{stopped}; go on with: --resume --out {run}")
    return _finish(run, state, dataset, machine, seconds)


def _accuracy_of_ended(run: Path, config: TrainConfig) -> float | None:
    """What a run reached on the test split in its last epoch, by its embeddings; None before that."""
    path = run / "embeddings.npz"
    if path.exists() and any(record.get("epoch") == config.epochs for record in runs.read_metrics(run)):
        return accuracy(**runs.read_npz(path, ("embeddings", "prototypes", "labels"), optional=("bias",)))
    return None


def _finish(run: Path, state: training.TrainState, dataset: data.Dataset, machine: Machine, seconds: float) -> float:
    """Writes what a training leaves behind, and says where and how good it is."""
    runs.write_weights(run, weights.to_arrays(state.model))
    model = load_model(run, machine.device)
    embeddings, labels = model.embed(dataset.test), dataset.test.labels
    names = np.array(dataset.class_names)
    runs.write_npz(
        run / "embeddings.npz",
        embeddings=embeddings,
        labels=labels,
        class_names=names,
        **model.classes,
    )
    result = accuracy(embeddings, labels=labels, **model.classes)
    print(f"test accuracy {100 * result:.2f} %  ({len(labels):,} images; trained in {seconds:.1f} s)")
    print(f"run directory {run}")
    try:
        draw_embeddings(run / "embeddings.png", embeddings, labels, model.prototypes, dataset.class_names)
        print(f"picture       {run / 'embeddings.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install matplotlib)")
    return result


def _summarise(results: Mapping[Path, float], out: Path, seeds: bool) -> None:
    print()
    if seeds and len(results) > 1:
        values = 100 * np.array(list(results.values()))
        print(
            f"test accuracy {values.mean():.2f} +- {values.std(ddof=1):.2f} % "
            f"(mean and standard deviation of {len(values)})"
        )
    for path, value in results.items():
        print(f"  {path.name:<12} {100 * value:.2f} %")
    runs.write_json(out / "replicas.json", {path.name: value for path, value in results.items()})


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed; a second Ctrl-C ends the program at once."""
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


def _device(name: str | None) -> str:
    """The device of that name, found to be there, with convolutions in float32 where float32 is asked for."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is None:
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        raise UserError(f"--device {name} is not known: {nearest(name, DEVICES)}")
    if not available[name]:
        there = ", ".join(device for device in DEVICES if available[device])
        raise UserError(f"--device {name} is not there: this PyTorch finds {there}")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds a convolution's inputs to 10 bits
    return name


# ---- evaluate and embed


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model.

    Args:
      config: how it was trained.
      image_shape: (H, W, C) of the images that it takes.
      class_names: [C].
      prototypes: [C, D], or [C, K, D] with sub-centres.
      bias: [C], of a linear classifier; None where the nearest prototype counts.
      embed: from a split to embeddings, float32 [N, D].
    """

    config: TrainConfig
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    prototypes: np.ndarray
    bias: np.ndarray | None
    embed: Callable[[data.Split], np.ndarray]

    @property
    def classes(self) -> dict[str, np.ndarray]:
        """What it classifies by: `prototypes`, and `bias` if there is one."""
        return {"prototypes": self.prototypes} | ({} if self.bias is None else {"bias": self.bias})


def load_model(run: Path, device: str = "cpu") -> Model:
    """Loads the model of a run directory, whichever program trained it.

    Raises:
      UserError: no run directory, or one without a trained model.
    """
    config, described = runs.read_config(run), runs.read_dataset(run)
    arrays = runs.read_weights(run)
    height, width, channels = described["image_shape"]
    class_names = tuple(described["class_names"])
    classifier = Classifier(config, (height, width, channels), len(class_names))
    try:
        weights.load_arrays(classifier, arrays)
    except ValueError as error:
        raise UserError(f"{run / 'model.safetensors'}: {error}") from None
    classifier.to(device)
    mean, std = np.array(described["mean"]), np.array(described["std"])

    def embed(split: data.Split) -> np.ndarray:
        return training.embed_all(classifier, config, training.device_data(split, mean, std, device)).numpy()

    prototypes, bias = arrays["head.prototypes"], arrays.get("head.bias")
    return Model(config, (height, width, channels), class_names, prototypes, bias, embed)


def evaluate(options: EvaluateOptions) -> None:
    """Accuracy and loss of a run on a split, or the accuracy of embeddings from a file."""
    path = options.run_or_npz
    result: dict[str, Any]
    if path.suffix == ".npz":
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {path}, which holds its own examples")
        if options.device is not None:
            raise UserError(f"--device has no effect on {path}, which holds its embeddings")
        arrays = runs.read_npz(path, ("embeddings", "labels", "prototypes"), optional=("bias",))
        _check_arrays(path, **arrays)
        result = {"examples": len(arrays["labels"]), "accuracy": accuracy(**arrays)}
        out = options.out or path.parent
    else:
        model = load_model(path, _device(options.device))
        config = model.config
        data_dir = options.data_dir or config.data_dir
        dataset = data.load(config.dataset, data_dir, image_size=config.image_size, image_fit=config.image_fit)
        if (dataset.image_shape, dataset.class_names) != (model.image_shape, model.class_names):
            raise UserError(f"{config.dataset} has other classes or other images than those {path} was trained on")
        split = _split(dataset, options.split)
        embeddings, labels = model.embed(split), split.labels
        result = {
            "dataset": config.dataset,
            "split": options.split,
            "examples": len(labels),
            "accuracy": accuracy(embeddings, labels=labels, **model.classes),
        }
        margin = config.objective.margin(config.beyond_pi, config.gradient)
        if margin is not None and len(config.objective.terms) == 1:
            (term,) = config.objective.terms
            loss = mean_loss(
                embeddings, model.prototypes, labels, margin, config.scale_value, term.options.get("filter")
            )
            result["loss"] = term.weight * loss
        out = options.out or path
    runs.write_json(out / "evaluation.json", result)
    for name, value in result.items():
        print(f"{name:<9} {100 * value:.2f} %" if name == "accuracy" else f"{name:<9} {value}")
    print(f"written to {out / 'evaluation.json'}")


def embed(options: EmbedOptions) -> None:
    """Embeddings of a data set's split, or of image files."""
    model = load_model(options.run, _device(options.device))
    if options.input in data.DATASETS:
        dataset = data.load(options.input, options.data_dir, image_size=model.image_shape[0])
        split = _split(dataset, options.split)
        if split.images.shape[1:] != model.image_shape:
            raise UserError(
                f"{options.input} has images {split.images.shape[1:]}; the model takes {model.image_shape} (H, W, C)"
            )
        extra = {"labels": split.labels}
    else:
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {options.input}: all its images are embedded")
        files, images = data.read_images(Path(options.input), model.image_shape, image_fit=model.config.image_fit)
        split = data.Split(images, np.zeros(len(images), np.int32))
        extra = {"files": np.array(files)}
    embeddings = model.embed(split)
    predictions = predict(embeddings, model.prototypes, model.bias).numpy()
    names = np.array(model.class_names)
    runs.write_npz(
        options.out, embeddings=embeddings, predictions=predictions, class_names=names, **model.classes, **extra
    )
    print(f"{len(embeddings):,} embeddings of dimension {embeddings.shape[1]} written to {options.out}")


def _check_arrays(
    path: Path, embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray, bias: np.ndarray | None = None
) -> None:
    shapes = f"embeddings {embeddings.shape}, labels {labels.shape}, prototypes {prototypes.shape}"
    fit = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1] and len(labels) > 0
    if not fit or prototypes.ndim not in (2, 3) or prototypes.shape[-1] != embeddings.shape[1]:
        raise UserError(f"{path} holds {shapes}; they must be [N, D], [N] and [C, D] or [C, K, D]")
    if bias is not None and (prototypes.ndim != 2 or bias.shape != prototypes.shape[:1]):
        raise UserError(
            f"{path} holds a bias {bias.shape} for prototypes {prototypes.shape}; it must be [C] for [C, D]"
        )
    for name, array in (("embeddings", embeddings), ("prototypes", prototypes), ("bias", bias)):
        if array is not None and (array.dtype.kind not in "fiu" or not np.isfinite(array).all()):
            raise UserError(f"{path} has {name} that are not finite numbers")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(prototypes):
        raise UserError(f"{path} has labels other than the whole numbers from 0 to {len(prototypes) - 1}")


def _split(dataset: data.Dataset, which: str) -> data.Split:
    if which not in ("train", "test"):
        raise UserError(f"--split is {which!r}; it must be train or test")
    return dataset.train if which == "train" else dataset.test
