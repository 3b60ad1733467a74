"""What the command line sets before JAX starts, where the user has set nothing."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import jax
import jaxlib
import platformdirs

# Less time on a CPU (docs/performance.md): XLA's own convolutions, and threads of oneDNN that do not keep a core busy
# while they wait. XLA refuses to start with a flag that it does not know, so that is for the versions known to know it.
CPU_ENVIRONMENT = {
    "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT",
    "OMP_WAIT_POLICY": "passive",
}
_KNOWN_BY = ("0.10.", "0.11.", "0.12.")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def set_up() -> None:
    """Sets the variables of `cpu_environment`, has glibc keep freed memory, and names a folder for what JAX compiles.

    Later starts find it there, in the user's cache folder.
    """
    os.environ.update(cpu_environment())  # read when JAX first uses a device
    keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("jax-arcface", appauthor=False)) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def keep_freed_memory() -> bool:
    """Has glibc take arrays below a GiB from one heap, and return the heap's free end to the system only from a GiB on.

    XLA allocates the same large arrays in each step. glibc would give them back to the system in between, which would
    then clear each of their pages anew. The heap is one for all threads, since no array of more than 64 MiB fits into
    those that glibc gives to others than the first. Nothing changes where the user has set GLIBC_TUNABLES or a MALLOC_
    variable.

    Returns:
      Whether glibc took all three settings.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not mallopt(_M_MMAP_THRESHOLD, 2**30):  # an older glibc refuses, and goes on as before
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, 2**30) and mallopt(_M_ARENA_MAX, 1))


def cpu_environment() -> dict[str, str]:
    """What of `CPU_ENVIRONMENT` the user has not set, and this jaxlib is known to know."""
    flags_known = jaxlib.__version__.startswith(_KNOWN_BY)
    return {
        name: value
        for name, value in CPU_ENVIRONMENT.items()
        if name not in os.environ and (name != "XLA_FLAGS" or flags_known)
    }
