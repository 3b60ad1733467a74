"""Both packages as a user gets them: what importing one brings along, their types, and what their wheels hold."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
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


def test_one_version():
    """Of both distributions, of what is cited and of the changelog's first entry."""
    described = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for folder in DISTRIBUTIONS.values()]
    versions = {each["project"]["version"] for each in described}
    versions |= {*re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)}
    versions |= {*re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:1]}
    assert len(versions) == 1


# A package, and where its pyproject.toml lies.
DISTRIBUTIONS = {"jax_arcface": ".", "torch_reference": "torch_reference"}


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def built(request, tmp_path_factory):
    """A package's name, and a folder with the source distribution and the wheel that was built from it."""
    pytest.importorskip("build", reason="needs the package build")
    folder = tmp_path_factory.mktemp("built")
    checkout, project = folder / "checkout", DISTRIBUTIONS[request.param]
    for name in ("jax_arcface", "parity_tests", "torch_reference"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, checkout)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout / project]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return request.param, folder


@pytest.mark.slow
def test_a_wheel_holds_the_modules_and_nothing_else(built):
    package, folder = built
    (wheel,) = folder.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compiled = {name for name in held if name.startswith("jax_arcface/cpu/_onednn.")}
    names = ["jax_arcface", "parity_tests"] if package == "jax_arcface" else [package]
    modules = {path for name in names for path in (ROOT / name).rglob("*.py") if "build" not in path.parts}
    tests = {path for path in modules if path.name in ("conftest.py", "setup.py") or path.stem.endswith("_test")}
    typed = {f"{name}/py.typed" for name in names if (ROOT / name / "py.typed").exists()}
    assert held - compiled == {str(path.relative_to(ROOT)) for path in modules - tests} | typed
    assert wheel.stat().st_size < 2**20


@pytest.mark.slow
def test_a_wheel_works_where_the_checkout_is_not(built, tmp_path):
    """In an environment of its own, which sees what else is installed here, but not the editable packages."""
    package, folder = built
    (wheel,) = folder.glob("*.whl")
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    (site,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, timeout=120)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        done = subprocess.run(
            [python, "-m", *words], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("pydoc", package)  # the last section says where the module lies
    run(package, "train", "--epochs", "1", "--width", "0.1", "--embedding-dim", "8", "--out", "run")
    assert "accuracy" in run(package, "evaluate", "run", "--protocol", "none")
    run(package, "export", "run", "--format", "safetensors")
    assert (tmp_path / "run" / "exported.safetensors").is_file()
