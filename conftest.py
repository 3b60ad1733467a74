"""What tests compile lies in a folder of their run, for all its processes; nothing enters the user's cache."""

import atexit
import os
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # in the first of the processes, whose environment the others have
    _folder = tempfile.mkdtemp(prefix="jax-arcface-tests-")
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _folder
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
