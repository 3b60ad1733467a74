"""`threshold.json` of a run: the cosine from which two images count as of one class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from torch_reference.errors import UserError
from torch_reference.evaluation import tar_at_far
from torch_reference.evaluation.pairs import STEPS
from torch_reference.evaluation.verification import Tally
from torch_reference.files import one_line, read_json


def calibrate(t: Tally, far: float) -> dict[str, Any]:
    """The fields of `threshold.json`: the lowest threshold with at most this false accept rate.

    Raises:
      UserError: a rate outside (0, 1), one that needs more negative pairs, or one that no threshold reaches.

    >>> import torch
    >>> t = Tally(torch.tensor([0.25, 0.5]), torch.tensor([0, 3]), torch.tensor([99, 0]))
    >>> calibrate(t, 0.2)
    {'threshold': 0.5, 'far': 0.0, 'tar': 1.0, 'negatives': 99}
    """
    if not 0 < far < 1:
        raise UserError(f"--calibrate is {far:g}; it must be a false accept rate between 0 and 1")
    negatives = int(t.negatives.sum())
    (point,) = tar_at_far(t, (far,))
    if point.threshold is None:
        raise UserError(
            f"--calibrate {far:g} needs {math.ceil(10 / far):,} pairs of different classes; there are {negatives:,}"
        )
    if not math.isfinite(point.threshold):
        raise UserError(f"--calibrate {far:g} is reached by no threshold: too many pairs have the highest score")
    return {"threshold": point.threshold, "far": point.far, "tar": point.tar, "negatives": negatives}


def read_threshold(run: Path) -> dict[str, Any] | None:
    """The fields of a run's `threshold.json`, or None where it has none.

    Raises:
      UserError: a damaged file.
    """
    if not (path := run / "threshold.json").exists():
        return None
    found = read_json(path)
    ranges = {"threshold": (-1, 1), "far": (0, 1), "tar": (0, 1), "negatives": (1, 2**63)}
    for name, (low, high) in ranges.items():
        value = found.get(name)
        if value is None or type(value) not in (int, float) or not low <= value <= high:
            raise UserError(
                f"{one_line(path)} is damaged: its {name} is {value!r}; run evaluate {run} --calibrate 1e-3"
            )
    return {name: found[name] for name in ranges}


def accepts(threshold: dict[str, Any], cosine: float) -> bool:
    """Whether a cosine, rounded as scores are, is at the threshold or above."""
    return round(cosine * STEPS) / STEPS >= threshold["threshold"]


def degrees(cosine: float) -> str:
    """The angle with this cosine, in words.

    >>> degrees(0.0)
    '90.0 degrees'
    """
    return f"{np.degrees(np.arccos(np.clip(cosine, -1, 1))):.1f} degrees"


def described(threshold: dict[str, Any]) -> str:
    """The threshold and its false accept rate, as they are printed."""
    return f"{degrees(threshold['threshold'])}, with a false accept rate of {threshold['far']:.2g}"
