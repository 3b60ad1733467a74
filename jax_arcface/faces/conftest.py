"""What the tests of faces share: real faces, looked for in ARCFACE_DATA_DIR/faces, then in ../shared/data/faces."""

import importlib.util
import os
from pathlib import Path

import pytest

FACES = next(
    (
        Path(folder) / "faces"
        for folder in (os.environ.get("ARCFACE_DATA_DIR"), Path(__file__).parents[3] / "shared" / "data")
        if folder and (Path(folder) / "faces").is_dir()
    ),
    Path("faces"),
)
needs_faces = pytest.mark.skipif(
    not FACES.is_dir(), reason="real faces are neither in ARCFACE_DATA_DIR/faces nor in ../shared/data/faces"
)
needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mtcnn", "lz4")),
    reason="the weights of MTCNN are those of the package mtcnn (pip install 'jax-arcface[faces]')",
)
