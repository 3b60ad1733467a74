"""What the tests compile is kept in `.cache` between runs, for all their processes; nothing else of them is kept."""

import os
import tempfile
from pathlib import Path

import pytest

# JAX reads these when it is imported, and the processes that tests start inherit them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture(autouse=True, scope="session")
def _temporary_folder(tmp_path_factory):
    """TFDS leaves files in the temporary folder: here they are removed with those of the tests."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
