"""The documentation site: `make docs` writes it to `build/site`.

Its front page is the README, its pages are the files of this folder, and the reference comes from the docstrings.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "jax-arcface"
author = "the jax-arcface authors"
copyright = author
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing"]  # README's are checked by docs_test.py
default_role = "code"
autodoc_typehints = "none"  # the signature is in the text, which names shapes
autodoc_member_order = "bysource"
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "jax-arcface"
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "navbar_persistent": []}


def front_page(app, docname, source):
    """Puts the README, with links that fit this folder, before the front page's own text."""
    if docname == "index":
        text = (ROOT / "README.md").read_text("utf-8")
        for before, after in (("](docs/", "]("), ("](figures/", "](../figures/"), ("](examples/", "](../examples/")):
            text = text.replace(before, after)
        for name in ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Dockerfile"):
            text = text.replace(f"]({name})", f"](../{name})")
        source[0] = f"{text}\n{source[0]}"


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are plain text: |x| is a length and a * b a product, not reStructuredText's marks."""
    in_example = False
    for number, line in enumerate(lines):
        in_example = line.strip() != "" and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"([|*]|_\b)", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", front_page)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon
