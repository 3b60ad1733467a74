"""What a number was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "onednn-cpu-gomp", "numpy", "torch", "pytorch-metric-learning")


def machine() -> str:
    """Processor, cores and versions, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counted = f"{cores} core" if cores == 1 else f"{cores} cores"
    return f"{processor()}, {counted}, Python {platform.python_version()}, jax {version('jax')}"


def processor() -> str:
    """The processor's name, as the system reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions() -> dict[str, str]:
    """The versions of the installed packages that numbers depend on."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
