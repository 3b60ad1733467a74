"""What the command line sets before JAX starts."""

import os
import subprocess
import sys

import jax
import jaxlib
import pytest

from jax_arcface.cli.environment import CPU_ENVIRONMENT, cpu_environment, set_up


@pytest.fixture
def nothing_set(monkeypatch, tmp_path):
    for name in (*CPU_ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "so that it is set back afterwards")
        monkeypatch.delenv(name)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, **_: str(tmp_path / name))
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("nothing_set")
def test_what_nobody_set(tmp_path):
    assert cpu_environment() == CPU_ENVIRONMENT
    set_up()
    assert {name: os.environ[name] for name in CPU_ENVIRONMENT} == CPU_ENVIRONMENT
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "jax-arcface" / "compiled")


@pytest.mark.usefixtures("nothing_set")
def test_what_the_user_set_is_kept(monkeypatch):
    for name in (*CPU_ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "mine")
    assert cpu_environment() == {}
    folder = jax.config.values["jax_compilation_cache_dir"]
    set_up()
    assert all(os.environ[name] == "mine" for name in CPU_ENVIRONMENT)
    assert jax.config.values["jax_compilation_cache_dir"] == folder  # JAX reads the variable itself


@pytest.mark.usefixtures("nothing_set")
def test_a_jaxlib_that_may_not_know_the_flag_does_not_get_it(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "99.0.0")
    set_up()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_start(tmp_path):
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    flags = ["--width", "0.05", "--embedding-dim", "4", "--epochs", "1", "--checkpoint-every", "0"]
    command = [sys.executable, "-m", "jax_arcface", "train", *flags, "--out", str(tmp_path / "run")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    names = [file.name for file in (tmp_path / "jax-arcface" / "compiled").iterdir()]
    assert any(name.startswith("jit_step-") for name in names)


KEPT = """
import resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from jax_arcface.cli.environment import keep_freed_memory

print(keep_freed_memory())
threads = ThreadPoolExecutor(1)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MiB
    threads.submit(np.ones, 2**24).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize("tuned", [None, "GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_freed_memory_is_kept_unless_the_user_has_tuned_it(tuned):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))}
    environment |= {} if tuned is None else {tuned: ""}
    said = subprocess.run(
        [sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True
    ).stdout
    kept, page_faults = said.split()
    if tuned is None and kept == "False":
        pytest.skip("this C library cannot be told")
    assert kept == str(tuned is None)
    assert (int(page_faults) < 32) == (tuned is None)  # there are 65,536 pages, or 128 large ones
