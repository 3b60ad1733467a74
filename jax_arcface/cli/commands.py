"""What the commands `train`, `evaluate` and `embed` do, as functions of their options."""

from __future__ import annotations

import dataclasses
import itertools
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.figures import draw_embeddings
from jax_arcface.cli.progress import Progress, event_writer
from jax_arcface.errors import UserError
from jax_arcface.evaluation import accuracy, mean_loss, predict
from jax_arcface.models import weights
from jax_arcface.training import fit as training
from jax_arcface.training.config import TrainConfig, changed_field, flag


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Trains a model and writes a run directory: config, metrics, checkpoints, weights, test embeddings."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=TrainConfig)
    config: Path | None = None
    """JSON file with configuration fields, such as an old run's config.json; flags override it."""
    out: Path | None = None
    """Run directory; the default is a new one, runs/DATE-TIME-DATASET-LOSS."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints, of which the latest is kept; 0 writes none but at Ctrl-C."""
    resume: bool = False
    """Go on with the run in --out from its latest checkpoint; with --replicas or --margins, with all runs there."""
    replicas: int = 1
    """Trains this many seeds, from --seed on, and tells mean and standard deviation."""
    margins: str = ""
    """Trains one model for each of these margins, such as 0.3,0.4,0.5 (in the unit of --margin)."""
    tensorboard: bool = False
    """Writes TensorBoard events into the run directory."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Prints a run's accuracy, and its loss if that is a margin softmax alone, or the accuracy of an .npz file.

    Writes evaluation.json.
    """

    run_or_npz: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_OR_NPZ")]
    """A run directory, or an .npz file with embeddings [N, D], labels [N] and prototypes [C, D] (and a bias [C])."""
    out: Path | None = None
    """Folder for evaluation.json; the default is the run directory, or the .npz file's folder."""
    split: str = "test"
    """Which split of the run's data set: test or train."""
    data_dir: str | None = None
    """Folder with the data set's files; the default is that of the training."""


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Writes the embeddings of a data set or of image files as an .npz file."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INPUT")]
    """A data set's name, an image file, or a folder of images (of class folders too)."""
    out: Path = Path("embeddings.npz")
    """The .npz file to write: embeddings [N, D], predictions [N], prototypes [C, D] (a bias [C] with softmax),
    class_names [C], and labels [N] or files [N] where known."""
    split: str = "test"
    """Which split of a data set: test or train."""
    data_dir: str | None = None
    """Folder with the data set's files."""


# ---- train


def train(options: TrainOptions) -> None:
    """Trains one model, or several replicas, and says what came out."""
    config = options.training
    if options.checkpoint_every < 0:
        raise UserError(f"--checkpoint-every is {options.checkpoint_every}; it must be at least 0")
    begun = _begun(options)
    replicas = _replicas(options)
    out = options.out or _new_folder(config)
    _check_begun(out, begun, replicas)
    named = len(replicas) > 1 or bool(begun)
    directories = [out / name if named else out for name in replicas]
    for directory in directories:
        if not _resumes(options, directory):
            runs.check_free(directory)
    if not options.resume:
        runs.check_free(out)
    if options.tensorboard:
        event_writer()
    dataset = _load(config)
    # what `fit` would say too, but before there is a run directory
    training.check_fit(config, dataset)
    training.abstract_model(config, dataset.image_shape, dataset.num_classes)
    print(
        f"{config.loss} on {dataset.name}: {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} "
        f"test images {'x'.join(map(str, dataset.image_shape))}, {dataset.num_classes} classes; {config.backbone}, "
        f"{config.epochs} {'epoch' if config.epochs == 1 else 'epochs'} on {jax.default_backend()}"
    )
    # XLA runs the grouped convolutions of a vmapped network slower than one network after the other on a CPU, and what
    # was interrupted may have stopped at different steps
    together = [list(zip(replicas.values(), directories, strict=True))]
    apart = options.resume or jax.default_backend() == "cpu"
    if apart or not training.fit_one_program(list(replicas.values())):
        together = [[pair] for pair in together[0]]
    results: dict[Path, float] = {}
    with _interruptible() as stop:
        for group in together:
            trained = _train_group(group, dataset, options, stop, named)
            if stop():
                if named:
                    print(f"go on with: --resume --out {out} {_asked(options)}")
                return
            results |= trained
    if named:
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


def _asked(options: TrainOptions) -> str:
    """The flag that asks for several models."""
    return f"--margins {options.margins.replace(' ', '')}" if options.margins else f"--replicas {options.replicas}"


def _begun(options: TrainOptions) -> dict[str, TrainConfig]:
    """The replicas to go on with, by name; none in a new training and in a single run.

    Raises:
      UserError: where the flags and --out do not both mean a single run, or replicas of one kind.
    """
    if not options.resume:
        return {}
    if options.out is None:
        raise UserError("--resume needs --out, a run directory or a folder of replicas")
    begun = runs.read_replicas(options.out)
    kind = "margin" if options.margins else "seed" if options.replicas != 1 else "none"
    if not all(name.startswith(kind) for name in begun):
        raise UserError(_held(options.out, begun))
    if not begun and kind != "none":
        raise UserError(f"--out {options.out} is a single run: go on with it without {_asked(options)}")
    if not begun:
        runs.read_config(options.out)  # which says what is wrong where there is no run
    return begun


def _check_begun(out: Path, begun: dict[str, TrainConfig], replicas: dict[str, TrainConfig]) -> None:
    """Raises UserError where a replica that was begun is not asked for, or has another configuration."""
    if begun.keys() - replicas.keys():
        raise UserError(_held(out, begun))
    for name, config in begun.items():
        if (field := changed_field(config, replicas[name])) is not None:
            was, others = getattr(config, field), getattr(replicas[name], field)
            raise UserError(
                f"{out / name} was begun with {flag(field)} {was}, but what is to go on has {others}: move it away, or "
                "start anew in another folder"
            )


def _held(out: Path, begun: dict[str, TrainConfig]) -> str:
    """What replicas there are, and the flag that asks for them."""
    configs = list(begun.values())
    if next(iter(begun)).startswith("seed"):
        right = f"--replicas {max(2, configs[-1].seed - configs[0].seed + 1)}"
    else:
        right = f"--margins {','.join(str(config.margin) for config in configs)}"
    return f"--out {out} holds {', '.join(begun)}: give {right}, or more, to go on with them"


def _resumes(options: TrainOptions, run: Path) -> bool:
    """Whether a run goes on; replicas that were never begun are begun."""
    return options.resume and (run / "config.json").exists()


def _train_group(
    group: Sequence[tuple[TrainConfig, Path]],
    dataset: data.Dataset,
    options: TrainOptions,
    stop: Callable[[], bool],
    named: bool,
) -> dict[Path, float]:
    """Trains these configurations as one program; the test accuracy by run directory."""
    members, directories = [config for config, _ in group], [directory for _, directory in group]
    config, steps = members[0], len(dataset.train.labels) // members[0].batch_size
    mean, std = data.channel_statistics(dataset.train.images)
    states: list[training.TrainState] | None = None
    records: list[list[dict[str, Any]]] = [[] for _ in group]
    if _resumes(options, directories[0]):
        runs.check_dataset(directories[0], dataset, mean, std)
        optimizer = training.make_optimizer(config, steps)
        state = runs.read_checkpoint(directories[0], training.initial_state(config, dataset, optimizer))
        if state is not None:
            states = [state]
            records = [[r for r in runs.read_metrics(directories[0]) if r["step"] <= int(state.step)]]
        total = config.epochs * steps
        if state is None and (reached := _reached(directories[0], total)) is not None:
            print(f"{directories[0]} has ended")
            return {directories[0]: reached}
        begun = "has no checkpoint and begins anew" if state is None else f"goes on after step {state.step} of {total}"
        print(f"{directories[0]} {begun}")
    else:
        for member, directory in group:
            runs.create(directory, member)
            runs.write_dataset(directory, dataset, mean, std)
    labels = [f"{directory.name}  " if named else "" for directory in directories]
    progress = Progress(
        directories,
        labels,
        records,
        epochs=config.epochs,
        steps_per_epoch=steps,
        batch_size=config.batch_size,
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
        start=int(states[0].step) if states else 0,
    )
    start = time.perf_counter()
    try:
        states = training.fit(members, dataset, states, progress, stop)
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    return {
        directory: _finish(member, directory, state, dataset, seconds, steps, named)
        for (member, directory), state in zip(group, states, strict=True)
    }


def _reached(run: Path, total: int) -> float | None:
    """The test accuracy of a run whose training has ended, after `total` steps; else None."""
    records = runs.read_metrics(run)
    if not records or records[-1]["step"] != total or not (run / "embeddings.npz").exists():
        return None
    return accuracy(**runs.read_npz(run / "embeddings.npz", ("embeddings", "prototypes", "labels"), ("bias",)))


def _finish(
    config: TrainConfig,
    run: Path,
    state: training.TrainState,
    dataset: data.Dataset,
    seconds: float,
    steps: int,
    named: bool,
) -> float:
    """Writes what a training leaves behind, and says where and how good it is."""
    if int(state.step) < config.epochs * steps:
        runs.write_checkpoint(run, state)
        again = "" if named else f"; go on with: --resume --out {run}"
        print(f"stopped after {int(state.step)} of {config.epochs * steps} steps{again}")
    runs.write_weights(run, weights.to_pytorch(training.model_state(state)))
    model = load_model(run)
    embeddings = model.embed(dataset.test)
    labels = np.asarray(dataset.test.labels)
    path = run / "embeddings.npz"
    runs.write_npz(
        path,
        embeddings=embeddings,
        labels=labels,
        prototypes=model.prototypes,
        class_names=np.array(dataset.class_names),
        **({} if model.bias is None else {"bias": model.bias}),
    )
    result = accuracy(embeddings, model.prototypes, labels, model.bias)
    print(f"test accuracy {100 * result:.2f} %  ({len(labels):,} images; trained in {seconds:.1f} s)")
    print(f"run directory {run}")
    try:
        draw_embeddings(run / "embeddings.png", embeddings, labels, model.prototypes, dataset.class_names)
        print(f"picture       {run / 'embeddings.png'}")
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'jax-arcface[figures]')")
    return result


def _summarise(results: dict[Path, float], out: Path, seeds: bool) -> None:
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


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed; a second Ctrl-C ends the program at once."""
    pressed = []

    def handler(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)
        print("\nending after the steps under way (Ctrl-C again: at once) ...", flush=True)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


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


def load_model(run: Path) -> Model:
    """Loads the model of a run directory, whichever program trained it.

    Raises:
      UserError: no run directory, or one without a trained model.
    """
    config, described = runs.read_config(run), runs.read_dataset(run)
    values = runs.read_weights(run)
    shape = tuple(described["image_shape"])
    graphdef, abstract = training.abstract_model(config, shape, len(described["class_names"]))
    try:
        state = weights.from_pytorch(abstract, values)
    except ValueError as error:
        raise UserError(f"{run / 'model.safetensors'}: {error}") from None
    mean, std = np.array(described["mean"]), np.array(described["std"])
    embed_data = training.make_embed(graphdef)

    def embed(split: data.Split) -> np.ndarray:
        return embed_data(state, training.device_data(split, mean, std))

    prototypes, bias = values["head.prototypes"], values.get("head.bias")
    return Model(config, shape, tuple(described["class_names"]), prototypes, bias, embed)


def evaluate(options: EvaluateOptions) -> None:
    """Accuracy and loss of a run on a split, or the accuracy of embeddings from a file."""
    path = options.run_or_npz
    if path.suffix == ".npz":
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {path}, which holds its own examples")
        arrays = runs.read_npz(path, ("embeddings", "labels", "prototypes"), optional=("bias",))
        _check_arrays(path, **arrays)
        result: dict[str, Any] = {"examples": len(arrays["labels"]), "accuracy": accuracy(**arrays)}
        out = options.out or path.parent
    else:
        model = load_model(path)
        config = model.config
        dataset = _load(config, options.data_dir)
        if (dataset.image_shape, dataset.class_names) != (model.image_shape, model.class_names):
            raise UserError(f"{config.dataset} has other classes or other images than those {path} was trained on")
        split = _split(dataset, options.split)
        embeddings, labels = model.embed(split), np.asarray(split.labels)
        result = {
            "dataset": config.dataset,
            "split": options.split,
            "examples": len(labels),
            "accuracy": accuracy(embeddings, model.prototypes, labels, model.bias),
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
    model = load_model(options.run)
    if options.input in data.DATASETS:
        size, bar = model.image_shape[0], sys.stderr.isatty()
        dataset = data.load(options.input, options.data_dir, image_size=size, progress=bar)
        split = _split(dataset, options.split)
        if split.images.shape[1:] != model.image_shape:
            raise UserError(
                f"{options.input} has images {split.images.shape[1:]}; the model takes {model.image_shape} (H, W, C)"
            )
        extra = {"labels": np.asarray(split.labels)}
    else:
        if options.split != "test" or options.data_dir is not None:
            raise UserError(f"--split and --data-dir have no effect on {options.input}: all its images are embedded")
        files, images = data.read_images(Path(options.input), model.image_shape, image_fit=model.config.image_fit)
        split = data.Split(images, np.zeros(len(images), np.int32))
        extra = {"files": np.array(files)}
    embeddings = model.embed(split)
    predictions = predict(embeddings, model.prototypes, model.bias)
    if model.bias is not None:
        extra["bias"] = model.bias
    runs.write_npz(
        options.out,
        embeddings=embeddings,
        predictions=predictions,
        prototypes=model.prototypes,
        class_names=np.array(model.class_names),
        **extra,
    )
    print(f"{len(embeddings):,} embeddings of dimension {embeddings.shape[1]} written to {options.out}")


def _load(config: TrainConfig, data_dir: str | None = None) -> data.Dataset:
    folder = data_dir or config.data_dir
    return data.load(
        config.dataset, folder, image_size=config.image_size, image_fit=config.image_fit, progress=sys.stderr.isatty()
    )


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
