"""Both packages as a user gets them: what their wheels hold."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "packages"), [(".", ["jax_arcface", "parity_tests"]), ("torch_reference", ["torch_reference"])]
)
def test_a_wheel_holds_the_modules_and_no_tests(project, packages, tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("jax_arcface", "parity_tests", "torch_reference"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, checkout)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*command, checkout / project], check=True, capture_output=True, timeout=300)

    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".py", "py.typed"))}
    modules = {path for name in packages for path in (ROOT / name).rglob("*.py") if "build" not in path.parts}
    tests = {path for path in modules if path.name in ("conftest.py", "setup.py") or path.stem.endswith("_test")}
    typed = {f"{name}/py.typed" for name in packages if (ROOT / name / "py.typed").exists()}
    assert held == {str(path.relative_to(ROOT)) for path in modules - tests} | typed
