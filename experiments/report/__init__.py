"""Writes the report as a PDF from the results at hand; what has not been run is marked so.

    python -m experiments report --author "Philip Mark" --id 0123456         # figures/report.pdf

Typesetting takes the package `typst` (extra `report`), which brings its compiler and fonts. All numbers come from JSON:
the figures' (`figures/*.json`), the run directories' (`runs/experiments`), the benches' (`experiments/bench/results`)
and, for parity, the README's table.
"""

from __future__ import annotations

import datetime
import json
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from experiments._arguments import Parser, UserError, check_can_be_written
from experiments.report.contents import gather
from experiments.runs import ROOT

HERE = Path(__file__).parent


def write(out: Path, *, author: str = "", student_id: str = "", date: str = "", quick: bool = False) -> None:
    """Writes the report.

    Args:
      out: the file: PDF, or PNG, one for each page, where it ends in `{n}.png`.
      author, student_id: on the first page, where given.
      date: on the first page; today's where empty.
      quick: reads the runs on digits instead of those on MNIST and CIFAR-10.

    Raises:
      UserError: typst is not installed.
    """
    try:
        import typst
    except ImportError:
        raise UserError('the report needs typst: pip install --editable ".[report]"') from None
    found = gather(quick)
    found |= {"author": author, "student_id": student_id, "date": date or datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in HERE.glob("*.typ"):
            shutil.copy(file, folder)
        pictures = [figure["name"] for figure in found["figures"]] + ["parity_trajectory"] * found["trajectory"]
        for picture in pictures:
            shutil.copy(ROOT / "figures" / f"{picture}.png", folder)
        (folder / "data.json").write_text(json.dumps(found))
        kind: Literal["pdf", "png"] = "png" if out.suffix == ".png" else "pdf"
        typst.compile(str(folder / "report.typ"), output=str(out), format=kind, root=name, ppi=110)


def main(words: list[str]) -> int:
    """Writes the report and prints its path."""
    parser = Parser("report", __doc__)
    parser.add_argument("--author", default="", help="your name")
    parser.add_argument("--id", default="", help="your student ID")
    parser.add_argument("--date", default="", help="the date on it (default: today)")
    parser.add_argument("--quick", action="store_true", help="from the runs on digits")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "report.pdf", help="the file (%(default)s)")
    options = parser.parse_args(words)
    check_can_be_written(out=options.out)
    write(options.out, author=options.author, student_id=options.id, date=options.date, quick=options.quick)
    print(options.out)
    return 0
