"""What a number was measured on."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import version
from pathlib import Path

_PACKAGES = {"jax": "jax", "jaxlib": "jaxlib", "numpy": "numpy", "torch": "torch"} | {
    "pytorch_metric_learning": "pytorch-metric-learning"
}


def machine() -> str:
    """Processor, cores and versions, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counted = f"{cores} core" if cores == 1 else f"{cores} cores"
    return f"{processor()}, {counted}, Python {platform.python_version()}, jax {version('jax')}"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    return {name: version(name) for module, name in _PACKAGES.items() if importlib.util.find_spec(module)}
