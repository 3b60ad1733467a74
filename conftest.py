"""No test writes what it compiles into the user's cache."""

import os

os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
