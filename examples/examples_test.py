"""Each example runs and learns."""

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
