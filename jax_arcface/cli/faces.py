"""`python -m jax_arcface faces align|embed|verify|identify`: from photos to names."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jax_arcface.cli.arguments import Parser
from jax_arcface.cli.threshold import Threshold, degrees, read_threshold
from jax_arcface.data.folders import list_images
from jax_arcface.data.images import bar
from jax_arcface.errors import UserError, nearest
from jax_arcface.faces.detection import CHOICES
from jax_arcface.faces.drawing import draw
from jax_arcface.faces.gallery import Gallery, crop_size, embed_crops, probe_of
from jax_arcface.faces.mtcnn import MTCNN
from jax_arcface.faces.photos import ONLY, Finder, Portraits, SeveralFaces, read_landmarks
from jax_arcface.files import atomic_write, read_json, shown
from jax_arcface.models.trained import Model, load_model

_CHUNK = 512
_INDEX = "faces.npz"  # in a gallery's folder
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Finding:
    """How faces are found."""

    detector: str = "mtcnn"
    """What finds faces: mtcnn; none takes photos for crops that are aligned already."""
    landmarks: Path | None = None
    """A file of lines PATH x y x y x y x y x y, the five points of known faces, in place of a detector."""
    choose: str = ONLY
    """Which face of a photo: only (photos with several are refused), largest, central or all."""
    min_face: float = 20.0
    """The shortest longer side of a face's box, in pixels."""

    def finder(self, size: int, which: str | None = None) -> Finder:
        """The finder that the flags describe, for crops of a size."""
        which = which or self.choose
        if which not in (ONLY, *CHOICES):
            raise UserError(f"--choose is {which!r}; it must be {ONLY}, {', '.join(CHOICES)}")
        if self.detector not in ("mtcnn", "none"):
            raise UserError(f"there is no detector {self.detector!r}: {nearest(self.detector, ('mtcnn', 'none'))}")
        if not self.min_face > 0:
            raise UserError(f"--min-face is {self.min_face:g}; it must be above 0")
        if self.landmarks is not None:
            return Finder(None, read_landmarks(self.landmarks), which, self.min_face, size)
        detector = MTCNN(min_face=max(self.min_face, 12.0)) if self.detector == "mtcnn" else None
        return Finder(detector, None, which, self.min_face, size)


@dataclasses.dataclass(frozen=True)
class Align:
    """Writes the aligned crop of the face in each photo of a folder as a PNG file of the same name.

    The five points of each face are written to landmarks.txt beside them, as --landmarks reads them. Photos without a
    face that can be taken are listed and left out.
    """

    folder: Path = dataclasses.field(metadata={"positional": True})
    """A folder of photos, of people's folders too, or one photo."""
    out: Path = dataclasses.field(metadata={"positional": True})
    """The folder to write to."""
    size: int = 112
    """The side of the crops, in pixels: a multiple of 112 or of 128."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What embeds a face."""

    model: Path | None = None
    """A run directory, or a file of published weights."""
    flip: bool = False
    """Add the embedding of the mirror image."""

    def load(self) -> Model:
        """The model that the flags name."""
        if self.model is None:
            raise UserError("--model is missing: give a run directory or a file of published weights")
        return load_model(self.model)


@dataclasses.dataclass(frozen=True)
class Embed:
    """Builds a gallery, or adds to it: the embedding, name and file of the face in each photo of a folder.

    A person's photos are in a folder with the person's name; a photo beside such folders has its own name. Photos that
    are known already are not read again, and those that are gone are taken out. Photos without a face that can be taken
    are listed and left out.
    """

    folder: Path = dataclasses.field(metadata={"positional": True})
    """A folder of photos."""
    out: Path | None = None
    """The gallery's file; the default is faces.npz in the folder."""


@dataclasses.dataclass(frozen=True)
class Judging:
    """From where on two faces are one person's."""

    threshold: float | None = None
    """The largest angle between two faces of one person, in degrees."""
    calibration: Path | None = None
    """A threshold.json that `evaluate --calibrate FAR` wrote; the default is that of the run."""

    def rule(self, model: Path | None) -> tuple[Callable[[float], bool], str]:
        """Whether faces with a cosine are one person's, and what is said of where that ends."""
        if self.threshold is not None and self.calibration is not None:
            raise UserError("--threshold and --calibration both say where one person ends: give one of them")
        if self.threshold is not None:
            if not 0 <= self.threshold <= 180:
                raise UserError(f"--threshold is {self.threshold:g}; an angle is 0 to 180 degrees")
            limit = math.cos(math.radians(self.threshold))
            return lambda cosine: cosine >= limit, f"{self.threshold:.1f} degrees, as given"
        found = None
        if self.calibration is not None:
            try:
                found = Threshold(**read_json(self.calibration))
            except (TypeError, ValueError) as error:
                raise UserError(f"{shown(self.calibration)} is not what evaluate --calibrate writes: {error}") from None
        elif model is not None and model.is_dir():
            found = read_threshold(model)
        if found is None:
            raise UserError(
                "where one person ends is not known: give --threshold DEGREES, or --calibration with the "
                "threshold.json of evaluate --calibrate FAR"
            )
        return found.accepts, f"{found} ({found.negatives:,} pairs)"


@dataclasses.dataclass(frozen=True)
class Verify:
    """Says whether the faces in two photos are of one person, with the angle between their embeddings."""

    first: Path = dataclasses.field(metadata={"positional": True})
    """A photo."""
    second: Path = dataclasses.field(metadata={"positional": True})
    """A photo."""


@dataclasses.dataclass(frozen=True)
class Identify:
    """Names each face in a photo, or says unknown, and draws boxes and names into a PNG file.

    A gallery's folder is indexed first (see `faces embed`), and photos added to it since.
    """

    gallery: Path = dataclasses.field(metadata={"positional": True})
    """A folder of people's photos, or the file that `faces embed` wrote."""
    photo: Path = dataclasses.field(metadata={"positional": True})
    """The photo."""
    out: Path | None = None
    """The PNG file to write; the default is PHOTO-named.png in the current folder."""


def main(words: Sequence[str]) -> int:
    """Runs the command that the words name; returns the exit status."""
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m jax_arcface faces {{{','.join(_COMMANDS)}}} ...\n")
        for name, (options, _, _) in _COMMANDS.items():
            print(f"  {name:<9} {str(options.__doc__).splitlines()[0]}")
        print("\npython -m jax_arcface faces COMMAND --help lists a command's flags.")
        return 0
    if words[0] not in _COMMANDS:
        raise UserError(f"there is no command faces {words[0]!r}: {nearest(words[0], tuple(_COMMANDS))}")
    options, shared, run = _COMMANDS[words[0]]
    positional = [field.name.upper() for field in dataclasses.fields(options) if field.metadata.get("positional")]
    parser = Parser(" ".join(["faces", words[0], *positional]), str(options.__doc__))
    for kind in (options, *shared):
        parser.add_fields(kind)
    values = parser.parse(words[1:])
    return run(*(kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}) for kind in (options, *shared)))


def _align(options: Align, finding: Finding) -> int:
    finder = finding.finder(options.size)
    folder, names = list_images(options.folder)
    lines, written = [], 0
    for name, found in _portraits(folder, names, finder):
        for number, crop in enumerate(found.crops):
            extra = f"-{number + 1}" if finder.which == "all" else ""
            target = options.out / Path(name).parent / f"{Path(name).stem}{extra}.png"
            with atomic_write(target) as temporary:
                Image.fromarray(crop).save(temporary, "PNG")
            written += 1
        lines += [f"{name} {' '.join(f'{v:.2f}' for v in points.ravel())}" for points in found.faces.points]
    if not written:
        raise UserError(f"no face was found in the {len(names):,} photos of {shown(options.folder)}")
    if lines:
        with atomic_write(options.out / "landmarks.txt") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    print(f"{written:,} crops written to {options.out} (photos read: {len(names):,})")
    return 0


def _embed(options: Embed, network: Network, finding: Finding) -> int:
    if options.folder.exists() and not options.folder.is_dir():
        raise UserError(f"{shown(options.folder)} is a file; a gallery is made of a folder of photos")
    index = options.out or options.folder / _INDEX
    gallery, added, gone = _indexed(options.folder, index, network.load(), network.flip, finding)
    people = len(set(gallery.names))
    changes = f"{added:,} added" + (f", {gone:,} gone" if gone else "")
    print(f"{len(gallery.names):,} faces of {people:,} people in {index} ({changes})")
    return 0


def _verify(options: Verify, network: Network, judging: Judging, finding: Finding) -> int:
    is_same, said = judging.rule(network.model)
    if finding.choose == "all":
        raise UserError("--choose all has no meaning here: two faces are compared")
    model = network.load()
    finder = finding.finder(crop_size(model))
    both = [finder.read(file) for file in (options.first, options.second)]
    first, second = embed_crops(model, np.concatenate([found.crops for found in both]), network.flip)
    cosine = float(first @ second)
    print("same" if is_same(cosine) else "different")
    print(f"angle      {degrees(cosine)}")
    print(f"threshold  {said}")
    for file, found in zip((options.first, options.second), both, strict=True):
        _print_doubts(str(file), found)
    return 0


def _identify(options: Identify, network: Network, judging: Judging, finding: Finding) -> int:
    is_same, said = judging.rule(network.model)
    model = network.load()
    if options.gallery.is_dir():
        gallery, _, _ = _indexed(options.gallery, options.gallery / _INDEX, model, network.flip, finding)
    else:
        gallery = Gallery.read(options.gallery)
        gallery.check_model(probe_of(model, network.flip))
    # "only" is for photos of a gallery
    which = "all" if finding.choose == ONLY else finding.choose
    found = finding.finder(crop_size(model), which).read(options.photo)
    rows = []
    for number, ranked in enumerate(gallery.nearest(embed_crops(model, found.crops, network.flip)), start=1):
        best = ranked[0]
        name = best.name if is_same(best.cosine) else UNKNOWN
        rows.append((str(number), name, degrees(best.cosine), f"nearest: {best.name}, {best.file}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]]))
    print(f"threshold  {said}")
    _print_doubts(str(options.photo), found)
    out = options.out or Path(f"{options.photo.stem}-named.png")
    with atomic_write(out) as temporary:
        draw(found.photo, found.faces.boxes, [" ".join(row[:2]) for row in rows]).save(temporary, "PNG")
    print(f"drawn in {out}")
    return 0


def _indexed(folder: Path, index: Path, model: Model, flip: bool, finding: Finding) -> tuple[Gallery, int, int]:
    """The gallery of a folder, brought up to date, and how many photos came and went."""
    finder, probe = finding.finder(crop_size(model)), probe_of(model, flip)
    if finder.which == "all":
        finder = dataclasses.replace(finder, which=ONLY)
    gallery = Gallery.read(index) if index.exists() else Gallery.empty(probe)
    gallery.check_model(probe)
    _, names = list_images(folder)
    gone = {name for name in gallery.files if name not in set(names)}
    known = set(gallery.files)
    gallery, added = gallery.without(gone), 0
    portraits = _portraits(folder, [name for name in names if name not in known], finder)
    while some := list(itertools.islice(portraits, _CHUNK)):  # so that neither memory nor Ctrl-C ends a long row
        embeddings = embed_crops(model, np.concatenate([found.crops for _, found in some]), flip)
        gallery = gallery.added(embeddings, [person(name) for name, _ in some], [name for name, _ in some])
        gallery.write(index)
        added += len(some)
    if not gallery.names:
        raise UserError(f"no photo of {shown(folder)} has a face that can be taken")
    if gone and not added:
        gallery.write(index)
    return gallery, added, len(gone)


def person(name: str) -> str:
    """Whose a photo is, by its name in the gallery's folder.

    >>> person("Ann/1.jpg"), person("Bo.jpg")
    ('Ann', 'Bo')
    """
    return name.partition("/")[0] if "/" in name else Path(name).stem


def _portraits(folder: Path, names: Sequence[str], finder: Finder) -> Iterator[tuple[str, Portraits]]:
    """Each photo's name and faces; those that have none to take are listed on standard error."""
    several = 0
    for name in bar(names, "photos", sys.stderr.isatty()):
        try:
            yield name, finder.read(folder / name)
        except SeveralFaces as error:
            several += 1
            print(f"left out: {error}", file=sys.stderr)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    if several:
        print(f"of several faces, --choose largest or central takes one ({several:,} photos)", file=sys.stderr)


def _print_doubts(file: str, found: Portraits) -> None:
    for number, quality in enumerate(found.quality, start=1):
        if quality.doubts:
            which = f", face {number}" if len(found.quality) > 1 else ""
            print(f"less sure: {file}{which}: {', '.join(quality.doubts)}")


_Command = tuple[type, tuple[type, ...], Callable[..., int]]
_COMMANDS: dict[str, _Command] = {
    "align": (Align, (Finding,), _align),
    "embed": (Embed, (Network, Finding), _embed),
    "verify": (Verify, (Network, Judging, Finding), _verify),
    "identify": (Identify, (Network, Judging, Finding), _identify),
}
