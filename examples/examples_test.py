"""Each example runs and learns."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted(path.stem for path in Path(__file__).parent.glob("own_*.py"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "own_loop_equinox" else n for n in EXAMPLES]
)
def test_example(name):
    if name == "own_loop_equinox":
        pytest.importorskip("equinox", reason="needs equinox")
    main = runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))["main"]
    assert main() > 0.95


def test_an_example_fits_on_a_page():
    assert all(len(Path(__file__).with_name(f"{name}.py").read_text().splitlines()) <= 80 for name in EXAMPLES)


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(monkeypatch):
    """Its cells of code in turn, without the one that installs; its outputs are kept with it."""
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra figures")
    matplotlib.use("Agg")
    cells = json.loads(Path(__file__).with_name("five_minutes.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    space = {}
    for text in code:
        if not text.startswith("%"):
            exec(text, space)
    assert space["accepted"] > 0.1
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
