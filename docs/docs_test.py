"""The documentation: every public name is in the reference and has a docstring, links lead somewhere, it builds."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_reference import Margin, margin_softmax_loss

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("package", ["jax_arcface", "torch_reference"])
def test_every_public_name_is_in_the_reference(package):
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    listed = re.findall(r"^\.\. (?:auto|py:)\w+:: (\w+)$", page, re.MULTILINE)
    module = importlib.import_module(package)
    assert sorted(listed) == sorted(module.__all__)
    undocumented = [name for name in module.__all__ if not getattr(module, name).__doc__]
    assert undocumented == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), target


def test_pytorch_metric_learnings_arcface_is_ours_with_its_rule():
    """docs/migration.md; at angles on both sides of pi - m."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 2, generator=generator, dtype=torch.float64), torch.arange(256) % 10
    theirs = losses.ArcFaceLoss(10, 2, margin=float(np.degrees(0.5)), scale=64).double()
    ours = margin_softmax_loss(x, theirs.W.T, y, Margin.arcface(0.5, beyond_pi="linear"), 64.0)
    assert float((theirs(x, y) - ours).detach().abs()) < 1e-9


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "sphinx_book_theme"):
        pytest.importorskip(name, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "index.html").read_text()
    assert "margin_softmax_loss" in front
    assert 'id="jax_arcface.margin_softmax_loss"' in (tmp_path / "api" / "jax_arcface.html").read_text()
