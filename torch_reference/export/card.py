"""The model card: what a file with a model is, for people (Markdown) and for programs (metadata)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from torch_reference.files import read_json, read_json_lines
from torch_reference.models.trained import Model


def describe(model: Model, source: Path) -> dict[str, Any]:
    """What is known about a model: its input and output, and what its run directory holds about it.

    Args:
      model: loaded from `source`.
      source: a run directory, or a file of weights, of which only the name is known.

    Raises:
      UserError: a damaged file in the run directory.
    """
    height, width, channels = model.image_shape
    facts: dict[str, Any] = {
        "model": source.resolve().name,
        "backbone": type(model.backbone).__name__,
        "input": f"images: uint8 [N, {height}, {width}, {channels}], {'RGB' if channels == 3 else 'grey levels'}",
        "output": f"embeddings: float32 [N, {model.embedding_dim}], of length 1",
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "classes": list(model.class_names),
        "versions": {name: packages.version(name) for name in ("torch-reference", "torch")},
    }
    for name in ("config", "dataset", "evaluation", "threshold"):
        if (path := source / f"{name}.json").is_file():
            facts[name] = read_json(path)
    # without the folders of the machine that trained it
    facts.get("config", {}).pop("data_dir", None)
    facts.get("evaluation", {}).pop("run", None)
    if "dataset" in facts:
        name = Path(str(facts["dataset"].get("name"))).name
        facts["dataset"] = facts.get("config", {})["dataset"] = name
    if (path := source / "metrics.jsonl").is_file() and (records := read_json_lines(path)):
        facts["metrics"] = records[-1]
    return facts


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as text: what is not text as JSON.

    >>> metadata({"model": "mine", "mean": [0.5]})
    {'model': 'mine', 'mean': '[0.5]'}
    """
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def markdown(facts: Mapping[str, Any], file: str, file_format: str, checked: str = "") -> str:
    """The card of a file of this format; `checked` is a sentence on what was compared."""
    config = facts.get("config", {})
    text = [
        f"# {facts['model']}",
        _table(
            {
                "file": f"`{file}`, {file_format}",
                "input": facts["input"],
                "output": facts["output"],
                "network": f"{facts['backbone']}; inside, images are normalised with mean {_numbers(facts['mean'])} "
                f"and standard deviation {_numbers(facts['std'])} (grey levels)",
                "loss": config.get("loss"),
                "trained on": facts.get("dataset"),
                "classes": _classes(facts["classes"]),
                "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
            }
        ),
    ]
    for title, name in (("Training, last epoch", "metrics"), ("Evaluation", "evaluation"), ("Threshold", "threshold")):
        if name in facts:
            text += [f"## {title}", _table(dict(_flat(facts[name])))]
    text += ["## Limits", "\n".join(f"- {limit}" for limit in _limits(facts))]
    if config:
        text += ["## Configuration", f"```json\n{json.dumps(config, indent=2)}\n```"]
    return "\n\n".join([*text, *filter(None, [checked])]) + "\n"


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "It takes images of one size only, prepared as those of its training were."
    if "threshold" not in facts:
        yield "No threshold was calibrated: whether two images show the same class is left to its user."
    if "evaluation" not in facts:
        known = "it was not evaluated beyond its training" if "metrics" in facts else "nothing is known of its training"
        yield f"How good it is has to be measured: {known}."
    yield "It gives an embedding to every image, also to one of a kind that it has never seen."


def _table(rows: Mapping[str, Any]) -> str:
    rows = {name: value for name, value in rows.items() if value not in (None, "")}
    cells = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    lines = [f"| {name} | {cell.replace('|', chr(92) + '|')} |" for name, cell in cells.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _classes(names: Sequence[str], shown: int = 20) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{len(names):,}: {', '.join(names[:shown])}{more}"
