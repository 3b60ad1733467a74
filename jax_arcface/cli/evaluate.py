"""`python -m jax_arcface evaluate`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_arcface import data
from jax_arcface.cli import runs
from jax_arcface.cli.arguments import Parser
from jax_arcface.cli.threshold import Threshold, calibrate, threshold_file
from jax_arcface.data.pairs import read_pairs
from jax_arcface.errors import UserError, nearest
from jax_arcface.evaluation import METRICS, PROTOCOLS, Embedded, evaluate
from jax_arcface.evaluation.image_pairs import embed_images, verify_pairs
from jax_arcface.evaluation.protocols import describe
from jax_arcface.files import read_npz
from jax_arcface.models.trained import load_model


@dataclasses.dataclass(frozen=True)
class Options:
    """Prints what a run's embeddings, or those in an .npz file, are worth, and writes it as JSON.

    Accuracy and loss are of the classifier. The protocols need no classifier: verification (same class or not?),
    identification (which class?), retrieval (are the nearest of its class?), angles (the paper's table 3) and health.
    They compare unseen classes where the run held out some. --pairs verifies pairs of images from a file instead.
    """

    run_or_npz: Path | None = dataclasses.field(default=None, metadata={"positional": True})
    """A run directory, or an .npz file with embeddings [N, D], labels [N] and, if wanted, prototypes [C, D] and a bias
    [C]."""
    model: Path | None = None
    """A run directory, or a file of published weights, for --pairs: instead of RUN_OR_NPZ."""
    pairs: Path | None = None
    """File of pairs of images: LFW's pairs.txt, CSV with file1, file2, same (and fold), or a .bin file."""
    images: Path | None = None
    """Folder with the images that --pairs names; the default is a CSV file's own folder."""
    flip: bool = False
    """With --pairs, sum the embeddings of each image and its mirror image."""
    protocol: str = ",".join(PROTOCOLS)
    """Protocols, separated by commas; none leaves all out."""
    split: str | None = None
    """Split of the run's data set: test, train, or unseen (test images of the classes held out). The default is test,
    and for the protocols unseen where there is one."""
    data_dir: str | None = None
    """Folder with the data set's files; the default is that of the training."""
    out: Path | None = None
    """Folder for the JSON file; the default is the run directory, or the .npz file's folder."""
    calibrate: float | None = None
    """Write the threshold for this false accept rate into the run, for verify and identify. It is measured on what the
    protocols compare."""


def main(words: Sequence[str]) -> int:
    """Evaluates what the words name; returns the exit status."""
    parser = Parser("evaluate RUN_OR_NPZ", str(Options.__doc__))
    parser.add_fields(Options)
    options = Options(**parser.parse(words))
    path = _checked(options)
    threshold = None
    if options.pairs is not None:
        result, threshold = _of_pairs(path, options.pairs, options)
        out = (options.out or path) / ("evaluation.json" if path.is_file() else f"evaluation-{options.pairs.stem}.json")
    elif path.suffix == ".npz":
        result, out = _of_arrays(path, options), (options.out or path.parent) / f"{path.stem}.evaluation.json"
    else:
        result, threshold = _of_run(path, options)
        name = "evaluation.json" if options.split in (None, "test") else f"evaluation-{options.split}.json"
        out = (options.out or path) / name
    runs.write_json(out, result)
    print(table(result))
    print(f"written to {out}")
    if threshold is not None:
        runs.write_json(threshold_file(path), dataclasses.asdict(threshold))
        print(f"threshold {threshold}, written to {threshold_file(path)}")
    return 0


def _checked(options: Options) -> Path:
    """What is evaluated.

    Raises:
      UserError: none or two of it, or a flag that has no effect on it.
    """
    _protocols(options)
    if (options.run_or_npz is None) == (options.model is None):
        raise UserError("evaluate needs a run directory, an .npz file or --model, and one of them only")
    path = options.run_or_npz or options.model
    assert path is not None
    kind = "arrays" if path.suffix == ".npz" else "weights" if path.is_file() else "run"
    if options.pairs is None:
        if options.images is not None or options.flip:
            raise UserError("--images and --flip have no effect without --pairs")
        if kind == "weights":
            raise UserError(f"{path} comes without a data set: give --pairs, or a run directory")
    else:
        if kind == "arrays":
            raise UserError(f"--pairs has no effect on {path}, which holds its own examples")
        if (options.split, options.data_dir, options.protocol) != (None, None, Options.protocol):
            raise UserError("--split, --data-dir and --protocol have no effect with --pairs")
        if kind == "weights" and options.out is None:
            raise UserError(f"{path} is no run directory: give --out, a folder for evaluation.json")
    if options.calibrate is not None:
        if kind != "run":
            raise UserError(f"--calibrate has no effect on {path}: a threshold is kept in a run directory")
        if options.flip:
            raise UserError("--calibrate has no effect with --flip: verify compares images without their mirror images")
    return path


def table(result: Mapping[str, Any]) -> str:
    """What `evaluation.json` holds, as it is printed: a line for each number, under the name of its protocol.

    >>> print(table({"examples": 9, "angles": {"intra": 0.5}, "verification": {"tar_at_far": {"1e-01": None}}}))
    examples                   9
    angles
      intra                    0.5000 (28.65 degrees)
    verification
      tar_at_far 1e-01         too few pairs
    """
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines.append(name)
            for key, number in value.items():
                parts = number.items() if isinstance(number, dict) else [("", number)]
                lines += [f"  {key} {part}".ljust(26) + f" {_shown(name, one)}" for part, one in parts]
        else:
            metric = METRICS.get(name)
            lines.append(f"{name:<26} " + (f"{metric.shown.format(value)}  ({metric.help})" if metric else str(value)))
    return "\n".join(lines)


def _shown(protocol: str, value: Any) -> str:
    if value is None:
        return "too few pairs" if protocol == "verification" else "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.4f} ({math.degrees(value):.2f} degrees)" if protocol == "angles" else f"{value:.4f}"


def _protocols(options: Options) -> list[str]:
    """The protocols asked for."""
    names = [] if options.protocol == "none" else [name.strip() for name in options.protocol.split(",")]
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"--protocol has {name!r}: {nearest(name, (*PROTOCOLS, 'none'))}")
    return names


def _run_protocols(embedded: Embedded, options: Options) -> dict[str, dict[str, Any]]:
    """Their results; of those asked for by name, one that is not defined is an error, else it is left out."""
    found: dict[str, dict[str, Any]] = {}
    for name in _protocols(options):
        try:
            found[name] = PROTOCOLS[name](embedded)
        except ValueError as error:
            if options.protocol != Options.protocol:
                raise UserError(f"--protocol {name}: {error}") from None
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def _of_run(run: Path, options: Options) -> tuple[dict[str, Any], Threshold | None]:
    """What is evaluated, and the threshold if one is wanted."""
    runs.check_trained(run)
    config, model = runs.read_config(run), load_model(run)
    if (done := runs.epochs_done(run)) < config.epochs:
        print(
            f"{run} is unfinished: {done} of {config.epochs} epochs are done; go on with: train --resume --out {run}",
            file=sys.stderr,
        )
    dataset = runs.load_dataset(config, options.data_dir)
    if (dataset.image_shape, tuple(dataset.class_names)) != (model.image_shape, tuple(model.class_names)):
        raise UserError(f"{config.dataset} has other classes or other images than those {run} was trained on")
    which = options.split or "test"
    result: dict[str, Any] = {"dataset": config.dataset, "split": which}
    split = data_split(dataset, which)
    embedded = Embedded(model.embed(split.images), np.asarray(split.labels), {})
    result["examples"] = len(embedded.labels)
    if which != "unseen":
        step = records[-1]["step"] if (records := runs.read_metrics(run)) else 0
        embedded = dataclasses.replace(embedded, owned=model.classes, objective=config.objective, step=step)
        result |= evaluate(embedded)
    if options.split is None and dataset.unseen is not None:
        result |= {"protocol_split": "unseen", "unseen_classes": list(dataset.unseen_names)}
        embedded = Embedded(model.embed(dataset.unseen.images), np.asarray(dataset.unseen.labels), {})
        result["unseen_examples"] = len(embedded.labels)
    threshold = None if options.calibrate is None else _calibrate(embedded, options.calibrate)
    return result | _run_protocols(embedded, options), threshold


def _calibrate(embedded: Embedded, far: float) -> Threshold:
    try:
        return calibrate(embedded.pairs, far)
    except ValueError as error:
        raise UserError(f"--calibrate: {error}") from None


def _of_pairs(path: Path, pairs: Path, options: Options) -> tuple[dict[str, Any], Threshold | None]:
    """What the listed pairs are worth, and the threshold if one is wanted."""
    fit = "crop"
    if not path.is_file():
        runs.check_trained(path)
        fit = runs.read_config(path).image_fit
    listed, model = read_pairs(pairs, options.images), load_model(path)
    embeddings = embed_images(model, listed.images, image_fit=fit, flip=options.flip, progress=sys.stderr.isatty())
    try:
        measured, scores = verify_pairs(embeddings, listed)
    except ValueError as error:
        raise UserError(f"{pairs}: {error}") from None
    folds = len(np.unique(listed.fold))
    result = {"pairs": pairs.name, "images": len(listed.images), "folds": folds, "flip": options.flip}
    threshold = None if options.calibrate is None else calibrate(scores, options.calibrate)
    return result | {"verification": describe(measured)}, threshold


def data_split(dataset: data.Dataset, which: str) -> data.Split:
    """The split of a data set that --split names."""
    if which == "unseen":
        if dataset.unseen is None:
            raise UserError(
                "--split unseen: the run was trained on all classes (train --holdout-classes leaves some out)"
            )
        return dataset.unseen
    if which not in ("train", "test"):
        raise UserError(f"--split is {which!r}; it must be train, test or unseen")
    return dataset.train if which == "train" else dataset.test


def _of_arrays(path: Path, options: Options) -> dict[str, Any]:
    if options.split is not None or options.data_dir is not None:
        raise UserError(f"--split and --data-dir have no effect on {path}, which holds its own examples")
    arrays = read_npz(path, ("embeddings", "labels"), optional=("prototypes", "bias"))
    _check_arrays(path, **arrays)
    embedded = Embedded(arrays.pop("embeddings"), arrays.pop("labels"), arrays)
    classified = evaluate(embedded) if "prototypes" in arrays else {}
    return {"examples": len(embedded.labels), **classified, **_run_protocols(embedded, options)}


def _check_arrays(
    path: Path,
    embeddings: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> None:
    of_prototypes = "" if prototypes is None else f", prototypes {prototypes.shape}"
    fit = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1] and len(labels) > 0
    if prototypes is not None and fit:
        fit = prototypes.ndim in (2, 3) and prototypes.shape[-1] == embeddings.shape[1]
    if not fit:
        raise UserError(
            f"{path} holds embeddings {embeddings.shape}, labels {labels.shape}{of_prototypes}; they must be [N, D], "
            "[N] and [C, D] or [C, K, D]"
        )
    if bias is not None and prototypes is None:
        raise UserError(f"{path} holds a bias, but no prototypes")
    if bias is not None and prototypes is not None and (prototypes.ndim != 2 or bias.shape != prototypes.shape[:1]):
        raise UserError(f"{path} holds a bias {bias.shape} with {of_prototypes[2:]}; it must be [C] for [C, D]")
    for name, array in (("embeddings", embeddings), ("prototypes", prototypes), ("bias", bias)):
        if array is not None and array.dtype.kind not in "fiu":
            raise UserError(f"{path} has {name} that are not numbers")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path} has labels that are not whole numbers")
    if prototypes is not None and (labels.min() < 0 or labels.max() >= len(prototypes)):
        raise UserError(f"{path} has labels other than the whole numbers from 0 to {len(prototypes) - 1}")
