"""Writes the gallery: one page with all figures, their captions, numbers and the command that makes each.

    python -m experiments gallery             # figures/index.html, which opens from disk
    python -m experiments gallery .cache/quick/figures

The page is made of what stands beside it (`NAME.json`, `NAME.png`, and `NAME.webp` or `NAME.html` where a figure
moves), so it takes a moment; `python -m experiments all` ends with it. It loads nothing from elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from experiments._arguments import Parser, UserError, read_json
from experiments.report.contents import FIGURES
from experiments.runs import ROOT
from torch_reference.files import atomic_write

PAGE = Path(__file__).parent / "gallery.html"
LONGEST = 8  # numbers of a list that are shown; longer ones are in the JSON


def write(folder: Path) -> Path:
    """Writes `folder/index.html` from the figures in a folder, and returns its path.

    Raises:
      UserError: there is no figure.
    """
    held = [read_json(folder / f"{name}.json") for name in FIGURES if (folder / f"{name}.json").exists()]
    held = [one for one in held if (folder / f"{one['name']}.png").exists()]
    if not held:
        raise UserError(f"{folder} holds no figures; python -m experiments all makes them")
    contents = "\n".join(f'<li><a href="#{one["name"]}">{escape(one["title"])}</a></li>' for one in held)
    page = PAGE.read_text()
    for name, text in (
        ("contents", contents),
        ("figures", "\n".join(_section(one, folder) for one in held)),
        ("report", '<a href="report.pdf">Report (PDF)</a>' if (folder / "report.pdf").exists() else ""),
    ):
        page = page.replace(f"<!-- {name} -->", text)
    with atomic_write(folder / "index.html") as file:
        file.write_text(page)
    return folder / "index.html"


def _section(one: dict[str, Any], folder: Path) -> str:
    name, title = one["name"], escape(one["title"])
    alt = escape(one.get("alt") or one["title"])
    width, height = size_of(folder / f"{name}.png")
    kinds = [kind for kind in ("png", "svg", "webp", "gif", "html", "json") if (folder / f"{name}.{kind}").exists()]
    links = " ".join(f'<a href="{name}.{kind}">{kind.upper()}</a>' for kind in kinds)
    moving = ""
    if "webp" in kinds:
        moving = f"""<div class="wide"><picture><source media="(prefers-reduced-motion: reduce)" srcset="{name}.png">
<img src="{name}.webp" alt="As an animation: {alt}"></picture></div>"""
    if "html" in kinds:
        moving = f'<iframe src="{name}.html" title="{title}: drag to turn it"></iframe>'
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in flat(one["numbers"]) if value
    )  # fmt: skip
    made = ", ".join(x for x in (one.get("commit") and f"commit {one['commit']}", one.get("machine")) if x)
    return f"""<section id="{name}">
<h2>{title}</h2>
<figure>
{moving}
<div class="wide"><a href="{name}.png"><img src="{name}.png" width="{width}" height="{height}" alt="{alt}"></a></div>
<figcaption>{escape(one["caption"])}</figcaption>
</figure>
<p class="made"><code>{escape(one["command"])}</code> {links}</p>
<details><summary>Numbers</summary>
<p>{escape(made)}. What is too long for this table stands in <a href="{name}.json">{name}.json</a>.</p>
<div class="wide"><table>{rows}</table></div></details>
</section>"""


def size_of(png: Path) -> tuple[int, int]:
    """Width and height of a PNG file, in pixels."""
    with png.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width, height


def flat(numbers: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of the numbers in nested ones; of long lists, texts and lists of lists, nothing.

    >>> list(flat({"losses": {"arcface": {"eer": 0.01, "share": list(range(60))}}, "seeds": [0, 1]}))
    [('losses arcface eer', '0.01'), ('losses arcface share', ''), ('seeds', '0, 1')]
    """
    if isinstance(numbers, dict):
        for name, value in numbers.items():
            yield from flat(value, f"{key} {name}".strip())
    elif isinstance(numbers, list):
        short = len(numbers) <= LONGEST and not any(isinstance(value, list | dict) for value in numbers)
        yield key, ", ".join(_word(value) for value in numbers) if short else ""
    else:
        text = _word(numbers)
        yield key, text if len(text) <= 120 else ""


def _word(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main(words: list[str]) -> int:
    """Writes the page and prints its path."""
    parser = Parser("gallery", __doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "figures", help="of the figures (%(default)s)")
    print(write(parser.parse_args(words).folder))
    return 0
