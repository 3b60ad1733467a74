"""Writes the zip that is handed in: all Python files, the figures as PNG, the report with your name on it, a README.

    python -m experiments submit --last mark --first philip --id 0123456     # mark_philip_0123456_Project1.zip

The zip holds one folder of its own name. What is in it runs without the rest of the repository.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from experiments import report
from experiments._arguments import Parser, UserError
from experiments.runs import ROOT

STYLES = ("Project1", "Project_1")
LARGEST = 50 * 2**20
_FOLDERS = ("torch_reference", "jax_arcface", "parity_tests", "experiments", "examples")
_SUFFIXES = (".py", ".cc", ".toml", ".typed", ".typ", ".html", ".json")
_BESIDE = ("pyproject.toml", "setup.py", "conftest.py", "constraints.txt", "LICENSE", "Makefile", "README.md")
# Letters that Unicode does not split into a plain one and an accent.
_PLAIN = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "ł": "l", "Ł": "L", "đ": "d"})
_GUIDE = """# {title}

`{pdf}` is the report, `figures/` holds all figures. The assignment's program is `torch_reference`, in PyTorch; it needs
Python 3.11 or later and no JAX. In this folder:

    python3 -m venv .venv && . .venv/bin/activate
    pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    pip install --constraint constraints.txt --editable "./torch_reference[figures]"

    python -m torch_reference train                        # digits, which come with scikit-learn: a minute
    python -m torch_reference train --dataset mnist        # downloads MNIST
    python -m torch_reference train --dataset cifar10      # downloads CIFAR-10

`--data-dir FOLDER` reads MNIST and CIFAR-10 in torchvision's layout instead. Each run writes its configuration, curves,
weights and a picture of its embeddings to a folder below `runs/`; `python -m torch_reference --help` lists
the commands.

`jax_arcface` is the same in JAX, `parity_tests` compares the two, `experiments` makes the figures and the report.
`README.md` describes them.
"""


def plain_name(name: str) -> str:
    """A name as it stands in the file's name: lower case, accents taken off, hyphens for spaces.

    Raises:
      UserError: no letters, or something else than letters, spaces, hyphens and apostrophes.

    >>> plain_name("Müller Núñez"), plain_name("O'Neil")
    ('muller-nunez', 'oneil')
    """
    split = unicodedata.normalize("NFKD", name.translate(_PLAIN))
    bare = "".join(c for c in split if not unicodedata.combining(c))
    joined = re.sub(r"[\s-]+", "-", re.sub("['\u2019]", "", bare).strip()).lower()
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*", joined):
        raise UserError(f"the name {name!r} cannot stand in a file's name; write it with the letters a to z")
    return joined


def title(last: str, first: str, student_id: str, style: str = "Project1") -> str:
    """The name of the zip, without its ending.

    >>> title("Mark", "Philip", "0123456")
    'mark_philip_0123456_Project1'
    """
    if not re.fullmatch(r"[0-9A-Za-z]{1,32}", student_id):
        raise UserError(f"the ID {student_id!r} is not made of up to 32 digits and letters")
    return f"{plain_name(last)}_{plain_name(first)}_{student_id}_{style}"


def pack(name: str, pdf: Path, out: Path, root: Path = ROOT) -> Path:
    """Writes `out/name.zip` and returns its path.

    Args:
      name: of the zip, and of the folder and the PDF in it.
      pdf: the report.
      out: a folder, made where it is missing.
      root: the repository.

    Raises:
      UserError: the zip has more than 50 MiB; it is not kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for source in _sources(root):
            zipped.write(source, f"{name}/{source.relative_to(root)}")
        zipped.write(pdf, f"{name}/{name}.pdf")
        zipped.writestr(f"{name}/HOW_TO_RUN.md", _GUIDE.format(title=name, pdf=f"{name}.pdf"))
    if (size := file.stat().st_size) > LARGEST:
        file.unlink()
        raise UserError(f"the zip would have {size / 2**20:.0f} MiB; at most 50 may be handed in")
    return file


def _sources(root: Path) -> Iterator[Path]:
    for folder in _FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            inside = file.relative_to(root).parts
            hidden = any(part.startswith(".") or part in ("build", "__pycache__") for part in inside)
            if file.is_file() and file.suffix in _SUFFIXES and not hidden:
                yield file
    yield from (root / one for one in _BESIDE if (root / one).exists())
    yield from sorted((root / "figures").glob("*.png"))


def main(words: list[str]) -> int:
    """Writes the report and the zip, and prints the zip's path and size."""
    parser = Parser("submit", __doc__)
    parser.add_argument("--last", required=True, help="family name")
    parser.add_argument("--first", required=True, help="given name")
    parser.add_argument("--id", required=True, help="student ID, digits and letters")
    parser.add_argument("--style", choices=STYLES, default=STYLES[0], help="how the name ends (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the zip (default: this one)")
    options = parser.parse_args(words)
    name = title(options.last, options.first, options.id, options.style)
    with tempfile.TemporaryDirectory() as folder:
        pdf = Path(folder) / "report.pdf"
        report.write(pdf, author=f"{options.first} {options.last}", student_id=options.id)
        file = pack(name, pdf, options.out)
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    return 0
