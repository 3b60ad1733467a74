"""Both packages as a user gets them: what importing one brings along, their types, and what their wheels hold."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each package is built on; the rest is imported when it is used.
FOUNDATIONS = {"jax_arcface": "jax, flax.nnx", "torch_reference": "torch"}
PROGRAMS = {
    "jax_arcface": """
import jax
import jax.numpy as jnp
from flax import nnx

import jax_arcface
from jax_arcface import ArcFaceHead, Margin, margin_softmax_loss


def loss(embeddings: jax.Array, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
    return margin_softmax_loss(embeddings, prototypes, labels, Margin.arcface(0.5), 64.0)


head = ArcFaceHead(embedding_dim=8, num_classes=3, rngs=nnx.Rngs(0))
cosine: jax.Array = jax_arcface.cosines(jnp.ones((2, 8)), jnp.ones((3, 8)))
margin_softmax_loss(cosine, cosine, cosine, 0.5)  # type: ignore
Margin(m2="0.5")  # type: ignore
""",
    "torch_reference": """
import torch

import torch_reference
from torch_reference import ArcFaceHead, Margin, margin_softmax_loss


def loss(embeddings: torch.Tensor, prototypes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return margin_softmax_loss(embeddings, prototypes, labels, Margin.arcface(0.5), 64.0)


head: torch.nn.Module = ArcFaceHead(embedding_dim=8, num_classes=3)
cosine: torch.Tensor = torch_reference.cosines(torch.ones((2, 8)), torch.ones((3, 8)))
margin_softmax_loss(cosine, cosine, cosine, 0.5)  # type: ignore
Margin(m2="0.5")  # type: ignore
""",
}


@pytest.mark.parametrize("package", FOUNDATIONS)
def test_importing_a_package_imports_little_else(package):
    script = f"""
import sys
import {FOUNDATIONS[package]}
before = set(sys.modules)
import {package}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
files = {{name: getattr(sys.modules.get(name), "__file__", None) or "" for name in names}}
print(*sorted(name for name, file in files.items() if "site-packages" in file))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    # 12 ms together
    assert set(done.stdout.split()) - {package, "PIL", "safetensors"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("package", PROGRAMS)
def test_a_users_program_type_checks(package, checker, tmp_path):
    """As strictly as the checker can; what is wrong in it is found, or its `type: ignore` would be unused."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[package])
    if checker == "mypy":
        cache = ROOT / ".cache" / "mypy"
        options = ["--config-file=", "--strict", "--follow-imports=silent", f"--cache-dir={cache}"]
    else:
        settings = {
            "extraPaths": [str(ROOT)],
            "typeCheckingMode": "strict",
            "reportUnnecessaryTypeIgnoreComment": "error",
            "reportMissingTypeStubs": "none",
            "reportUnknownMemberType": "none",  # of jnp.ones
        }
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
        options = ["--pythonpath", sys.executable]
    done = subprocess.run(
        [sys.executable, "-m", checker, *options, program],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
