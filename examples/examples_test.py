"""Each example runs and learns."""

import runpy
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["own_loop", "own_network", "own_loop_pytorch"])
def test_example(name):
    main = runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))["main"]
    assert main() > 0.95
