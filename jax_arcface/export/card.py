"""The model card: what a file with a model is, for people (Markdown) and for programs (metadata)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from jax_arcface import files
from jax_arcface.models.trained import Model

_SHOWN_CLASSES = 20


def describe(model: Model, source: Path) -> dict[str, Any]:
    """What is known about a model: its input and output, and what its run directory holds about it.

    Args:
      model: loaded from `source`.
      source: a run directory, or a file of weights, of which only the name is known.

    Raises:
      UserError: a damaged file in the run directory.
    """
    height, width, channels = model.image_shape
    found: dict[str, Any] = {
        "model": source.resolve().name,
        "backbone": type(model.backbone).__name__,
        "input": f"images: uint8 [N, {height}, {width}, {channels}], {'RGB' if channels == 3 else 'grey levels'}",
        "output": f"embeddings: float32 [N, {model.embedding_dim}], of length 1",
        "mean": [float(value) for value in model.mean],
        "std": [float(value) for value in model.std],
        "classes": list(model.class_names),
        "versions": {name: packages.version(name) for name in ("jax-arcface", "jax", "flax")},
    }
    for name in ("config", "dataset", "evaluation", "threshold"):
        if (path := source / f"{name}.json").is_file():
            found[name] = files.read_json(path)
    # no folders of the machine that trained it
    found.get("evaluation", {}).pop("run", None)
    found.get("config", {}).pop("data_dir", None)
    if "dataset" in found:
        found["dataset"] = Path(str(found["dataset"].get("name"))).name
        found.get("config", {})["dataset"] = found["dataset"]
    if (path := source / "metrics.jsonl").is_file() and (records := files.read_json_lines(path)):
        found["metrics"] = records[-1]
    return found


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as text: what is not text as JSON.

    >>> metadata({"model": "mine", "mean": [0.5]})
    {'model': 'mine', 'mean': '[0.5]'}
    """
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def markdown(facts: Mapping[str, Any], file: str, file_format: str, checked: str = "") -> str:
    """The card of a file.

    Args:
      facts: as `describe` gives them.
      file: its name.
      file_format: one of FORMATS.
      checked: a sentence on what was compared.
    """
    config, classes = facts.get("config", {}), facts["classes"]
    rows = {
        "file": f"`{file}`, {file_format}",
        "input": facts["input"],
        "output": facts["output"],
        "network": f"{facts['backbone']}, normalised inside with mean {_numbers(facts['mean'])} and "
        f"standard deviation {_numbers(facts['std'])} (grey levels)",
        "loss": config.get("loss"),
        "trained on": facts.get("dataset"),
        "classes": _classes(classes) if classes else None,
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    lines = [f"# {facts['model']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    for title, key in (("Training, last epoch", "metrics"), ("Evaluation", "evaluation"), ("Threshold", "threshold")):
        if key in facts:
            lines += ["", f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in _flat(facts[key])]
    lines += ["", "## Limits", "", *_limits(facts)]
    if config:
        lines += ["", "## Configuration", "", "```json", json.dumps(config, indent=2), "```"]
    if checked:
        lines += ["", checked]
    return "\n".join(lines) + "\n"


def _limits(facts: Mapping[str, Any]) -> list[str]:
    lines = ["- It takes images of one size only, prepared as those of its training were."]
    if "threshold" not in facts:
        lines.append("- No threshold was calibrated: whether two images show the same class is left to its user.")
    if "evaluation" not in facts:
        known = "it was not evaluated beyond its training" if "metrics" in facts else "nothing is known of its training"
        lines.append(f"- How good it is has to be measured: {known}.")
    lines.append("- It gives an embedding to every image, also to one of a kind that it has never seen.")
    return lines


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _classes(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_CLASSES:,} more" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names):,}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|").replace("\n", " ")
