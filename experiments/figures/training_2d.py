"""The trainings of `toy_2d` from their beginning: eight classes that part in the plane, as an animation.

Shows 400 test embeddings and the prototypes' directions at 49 moments of each training; the picture shows four of them.
Costs half a minute for the animation, besides the trainings of `toy_2d`. Reached on MNIST: the classes have parted
after a quarter of the training and are rays by its end, narrow ones with ArcFace's margin.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.figures import _style
from experiments.figures._framework import Figure, Numbers, Study
from experiments.figures._watched import watch
from experiments.figures.toy_2d import LOSSES, MOMENTS, directions, fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

SHOWN = (0, 3, 12, 48)  # the moments of the picture
POINTS = 400
MILLISECONDS, LAST = 130, 2500  # that a moment of the animation stands, and its last one


def numbers(study: Study) -> Numbers:
    """Points [moments, points, 2] by loss, as bytes in base64, and the prototypes' directions in degrees."""
    found: Numbers = {"dataset": study.dataset, "losses": {}}
    for loss in LOSSES:
        seen = watch(fields(study, loss), MOMENTS, study.folder)
        points = seen.embeddings[:, :POINTS]
        extent = float(np.percentile(np.linalg.norm(points, axis=-1), 99.5))
        found |= {"class_names": seen.class_names.tolist(), "epochs": seen.epoch.astype(float).round(3).tolist()}
        found["losses"][loss] = {
            "accuracy": float(seen.accuracy[-1]),
            "extent": round(extent, 3),
            "labels": seen.labels[:POINTS].tolist(),
            "points": packed(points / extent),
            "prototypes": [directions(at).round(1).astype(float).tolist() for at in seen.prototypes],
        }
    return found


def packed(points: np.ndarray) -> str:
    """Numbers within -1.2 and 1.2 as bytes in base64; those beyond stand at the edge.

    >>> unpacked(packed(np.array([[0.0, 1.2]]))).tolist()
    [[0.0, 1.2]]
    """
    return base64.b64encode(np.rint(np.clip(points, -1.2, 1.2) * 100 + 128).astype(np.uint8).tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """The numbers of such a text, [..., 2]."""
    return (np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 2) - 128.0) / 100


def draw(found: Numbers) -> Picture:
    """A row for each of four moments, a column for each loss."""
    figure = _style.figure(8.6, 7.0)
    rows = figure.subplots(len(SHOWN), len(found["losses"]))
    for row, moment in zip(rows, SHOWN, strict=True):
        for axes, loss in zip(row, found["losses"], strict=True):
            _plane(axes, found, loss, moment)
        epoch = found["epochs"][moment]
        row[0].set_ylabel("before the first step" if epoch == 0 else f"epoch {epoch:g}")
    for axes, loss in zip(rows[0], found["losses"], strict=True):
        axes.set_title(_style.TITLES[loss], color=_style.LOSSES[loss])
    return figure


def _plane(axes: Any, found: Numbers, loss: str, moment: int) -> None:
    kept = found["losses"][loss]
    labels = np.array(kept["labels"], int)
    points = unpacked(kept["points"]).reshape(-1, len(labels), 2)[moment]
    for number, degrees in enumerate(kept["prototypes"][moment]):
        at = np.radians(degrees)
        x, y = np.cos(at), np.sin(at)
        axes.plot([0, 1.05 * x], [0, 1.05 * y], color=_style.CLASSES[number], linewidth=1)
        axes.text(1.17 * x, 1.17 * y, found["class_names"][number], color=_style.CLASSES[number], fontsize=7,
                  weight="bold", ha="center", va="center")  # fmt: skip
    colours = np.array(_style.CLASSES)[labels]
    axes.scatter(*points.T, c=colours, s=5, alpha=0.6, linewidths=0, rasterized=True, zorder=2)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.spines[:].set(visible=True, color="#BBBBBB")


def animated(found: Numbers) -> dict[str, bytes]:
    """All moments one after the other, as WebP and as GIF."""
    from PIL import Image

    frames = []
    for moment, epoch in enumerate(found["epochs"]):
        figure = _style.figure(9.6, 2.35)
        for axes, loss in zip(figure.subplots(1, len(found["losses"])), found["losses"], strict=True):
            _plane(axes, found, loss, moment)
            axes.set_title(_style.TITLES[loss], color=_style.LOSSES[loss])
        figure.supxlabel(f"epoch {epoch:.2f}", fontsize=9)
        figure.savefig(held := io.BytesIO(), format="png", dpi=100)
        frames.append(Image.open(held).convert("RGB"))
    times = [MILLISECONDS] * (len(frames) - 1) + [LAST]
    files = {}
    for kind, how in (("webp", {"quality": 70, "method": 4}), ("gif", {"optimize": True})):
        first, *rest = frames if kind == "webp" else [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
        look: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": times, "loop": 0, **how}
        first.save(held := io.BytesIO(), kind, **look)
        files[kind] = held.getvalue()
    return files


def caption(found: Numbers) -> str:
    """The caption."""
    times = [f"{found['epochs'][moment]:g}" for moment in SHOWN]
    return (
        f"The trainings of the previous figure on {_style.DATASETS[found['dataset']]}: {POINTS} test images of eight "
        f"classes in two dimensions, and the prototypes' directions, after {', '.join(times[:-1])} and {times[-1]} "
        "epochs. The scale of a column is that of its longest embeddings. The margin grows over the first quarter of "
        "the training."
    )


FIGURE = Figure(
    "Eight classes in two dimensions, in training",
    caption,
    "half a minute, and the trainings of toy_2d",
    numbers,
    draw,
    alt="Five columns, one for each loss: the points of eight classes in the plane, which lie in a heap at first and "
    "part into rays along their prototypes' directions.",
    moving=animated,
)
