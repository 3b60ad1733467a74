"""What a figure is, where its runs come from, and what is written of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import modules, runs
from experiments._arguments import Parser, UserError, read_json
from experiments._machine import machine, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

Numbers = dict[str, Any]
QUICK = runs.ROOT / ".cache" / "quick"
LARGE = 400_000  # bytes of a PNG, above which it gets a palette


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Args:
      title: in a few words.
      caption: a paragraph, or a function that writes one from the numbers.
      cost: what it takes, in words, when its runs are there.
      numbers: from a study to what JSON can hold.
      draw: from these numbers to a matplotlib figure.
      runs: from a study to the program and the fields of each run that it needs.
      alt: what the picture shows, for those who do not see it.
      moving: from the numbers to more files of the figure by their endings, `webp` or `html`.
    """

    title: str
    caption: str | Callable[[Numbers], str]
    cost: str
    numbers: Callable[[Study], Numbers]
    draw: Callable[[Numbers], Picture]
    runs: Callable[[Study], list[tuple[str, dict[str, Any]]]] = lambda study: []
    _: dataclasses.KW_ONLY
    alt: str
    moving: Callable[[Numbers], dict[str, bytes]] = lambda numbers: {}

    def caption_of(self, numbers: Numbers) -> str:
        """The caption."""
        return self.caption if isinstance(self.caption, str) else self.caption(numbers)


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings [N, D] of a split, their labels [N] and the classes' names.

    Prototypes [C, D] and a bias [C] are there if the run has them and was trained on these classes.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    prototypes: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def predictions(self) -> np.ndarray:
        """The class with the largest logit, where there is a bias, or with the nearest prototype: [N]."""
        if self.prototypes is None:
            raise ValueError("there are no prototypes to predict classes with")
        from torch_reference import predict

        return predict(self.embeddings, self.prototypes, self.bias).numpy()


@dataclasses.dataclass(frozen=True)
class Study:
    """Where numbers come from: the quick study trains on digits, the full one on MNIST.

    Args:
      quick: which of the two.
      folder: with the run directories.
    """

    quick: bool = False
    folder: Path = runs.FOLDER

    @property
    def dataset(self) -> str:
        """The data set of the study."""
        return "digits" if self.quick else "mnist"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the study."""
        return runs.SEEDS[:1] if self.quick else runs.SEEDS

    def settings(self, loss: str, seed: int = 0, *, held_out: bool = False) -> dict[str, Any]:
        """The fields of a training of the study's data set; `held_out` leaves three classes out of it."""
        return runs.settings(self.dataset, loss, seed, held_out=runs.HELD_OUT[self.dataset] if held_out else "")

    def run(self, loss: str, seed: int = 0, *, held_out: bool = False, program: str = "torch_reference") -> Path:
        """The run directory of such a training, which is done now if it is not there."""
        return runs.trained(program, folder=self.folder, **self.settings(loss, seed, held_out=held_out))


def embedded(run: Path, split: str = "test", most: int | None = None) -> Embedded:
    """The embeddings of a run: of the `test` split as it wrote them, or of `train` or `unseen`, computed now.

    `most` limits the latter to the first so many images.
    """
    with np.load(run / "embeddings.npz") as kept:
        classes = {key: kept[key] for key in ("prototypes", "bias") if key in kept}
        if split == "test":
            return Embedded(kept["embeddings"], kept["labels"], tuple(map(str, kept["class_names"])), **classes)
    from torch_reference import load_model

    held = dataset_of(run)
    part = getattr(held, split)
    names = held.unseen_names if split == "unseen" else held.class_names
    x = load_model(run).embed(part.images[:most])
    return Embedded(x, part.labels[:most], names, **({} if split == "unseen" else classes))


def dataset_of(run: Path) -> Any:
    """The data set of a run, as it was split for it."""
    config = json.loads((run / "config.json").read_text())
    return dataset(config["dataset"], config.get("holdout_classes", ""))


@functools.cache
def dataset(name: str, held_out: str = "") -> Any:
    """A data set, with some of its classes held out where they are named."""
    from torch_reference import data

    found = data.load(name)
    return data.hold_out(found, held_out.split(",")) if held_out else found


def find(name: str) -> Figure:
    """The figure of a name."""
    figure: Figure = importlib.import_module(f"experiments.figures.{name}").FIGURE
    return figure


def make(name: str, study: Study, folder: Path) -> Numbers:
    """Computes and draws a figure, writes NAME.json, NAME.png and NAME.svg into a folder, and returns the JSON.

    What has been made of the same code and the same runs stays as it is.
    """
    from experiments.figures import _style
    from torch_reference.files import atomic_write

    figure, now = find(name), key(name, study)
    if (held := _held(folder / f"{name}.json")).get("key") == now and all(
        (folder / f"{name}.{kind}").exists() for kind in held["files"]
    ):
        return held
    # as JSON gives them back, so that the picture is the same when it is drawn from the file
    numbers = json.loads(json.dumps(figure.numbers(study), allow_nan=False))
    with _style.style():
        files = _pictures(figure.draw(numbers)) | figure.moving(numbers)
    described = {
        "name": name,
        "title": figure.title,
        "caption": figure.caption_of(numbers),
        "alt": figure.alt,
        "command": f"python -m experiments {name}" + (" --quick" if study.quick else ""),
        "commit": runs.commit(),
        "machine": machine(),
        "versions": versions(),
        "files": list(files),
        "key": key(name, study),  # the runs are there by now
        "numbers": numbers,
    }
    for kind, content in (files | {"json": (_json(described) + "\n").encode()}).items():
        with atomic_write(folder / f"{name}.{kind}") as file:
            file.write_bytes(content)
    return described


def key(name: str, study: Study) -> str:
    """A hash of what a figure is made of: its code, PyTorch's, and the code that trained its runs."""
    shared = ("_framework", "_images", "_paper", "_style", "_watched", name)
    parts: list[Any] = [study.quick, runs.code("torch_reference", (*runs.ROOMS, "evaluation"))]
    parts += [runs.parsed((Path(__file__).parent / f"{module}.py").read_text()) for module in shared]
    for program, fields in find(name).runs(study):
        run = runs.name(program, fields)
        parts += [run, _held(study.folder / run / "experiment.json").get("code")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _held(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _pictures(picture: Picture) -> dict[str, bytes]:
    """A picture as PNG and SVG; a large PNG with 256 colours."""
    from PIL import Image

    pictures = {}
    for kind in ("png", "svg"):
        held = io.BytesIO()
        picture.savefig(held, format=kind, metadata={"Date": None} if kind == "svg" else {})
        pictures[kind] = held.getvalue()
    if len(pictures["png"]) > LARGE:
        held = io.BytesIO()
        full = Image.open(io.BytesIO(pictures["png"]))
        few = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(held, "PNG", optimize=True, dpi=full.info["dpi"])
        pictures["png"] = held.getvalue()
    return pictures


def _json(described: Mapping[str, Any]) -> str:
    """JSON with the numbers last, each of them on a line."""
    head = json.dumps({key: value for key, value in described.items() if key != "numbers"}, indent=2)
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in described["numbers"].items()]
    return head.removesuffix("\n}") + ',\n  "numbers": {\n' + ",\n".join(lines) + "\n  }\n}"


def main(name: str, words: list[str]) -> int:
    """Makes the figure `name`, or `all`."""
    wanted = modules("experiments.figures") if name == "all" else [name]
    module = importlib.import_module(f"experiments.figures.{name}" if name != "all" else "experiments.figures")
    parser = Parser(name, module.__doc__)
    parser.add_argument("--quick", action="store_true", help="on digits, with few epochs and one seed")
    parser.add_argument(
        "--out", type=Path, help="folder in which `figures` is written; by default the checkout, or .cache/quick"
    )
    options = parser.parse_args(words)
    out = options.out or (QUICK if options.quick else runs.ROOT)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {out}; it must be a folder")
    study = Study(options.quick)
    began = time.perf_counter()
    for one in wanted:
        start = time.perf_counter()
        make(one, study, out / "figures")
        print(f"{out / 'figures' / one}.png  {time.perf_counter() - start:.1f} s", flush=True)
    if name == "all":
        from experiments import gallery

        print(gallery.write(out / "figures"))
        print(f"{len(wanted)} figures in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def listed() -> Iterator[str]:
    """A line for each figure: name, title, cost and how many runs its full study needs."""
    for name in modules("experiments.figures"):
        figure = find(name)
        count = len(figure.runs(Study()))
        needs = f"; {count} run{'s' if count > 1 else ''}" if count else ""
        yield f"{name:<20} {figure.title} ({figure.cost}{needs})"
