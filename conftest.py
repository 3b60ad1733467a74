"""What the tests compile is kept in `.cache` between runs, for all their processes; nothing enters the user's cache."""

import os
from pathlib import Path

# JAX reads these when it is imported, and the processes that tests start inherit them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
