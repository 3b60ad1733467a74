"""A process that computes with oneDNN ends, however it ends: each way in a process of its own, all at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jax_arcface.cpu import onednn

STEPS = """
import multiprocessing, os, signal, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp
from jax_arcface.cpu import convolve, describe, onednn, product

warnings.simplefilter("ignore")  # JAX's, of a fork
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored

@jax.jit
def step(images, kernel):
    for _ in range(4):
        images = convolve(images, kernel, (1, 1), ((1, 1), (1, 1)), implementation="onednn")
        images = jnp.sort(jnp.tanh(images), axis=-1)
    rows = images.reshape(-1, 16)
    return images + product(rows, product(rows, rows, transposed=True)).reshape(images.shape)

def train(steps=3, wait=True):
    images, kernel = jnp.ones((16, 16, 16, 16)), jnp.ones((3, 3, 16, 16))
    for _ in range(steps):
        images = step(images, kernel)
    return jax.block_until_ready(images) if wait else images

def fork(leave):
    if not (child := os.fork()):
        assert onednn.supports((4, 3, 5, 6, 7, 0))
        leave(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

# What the process does, and its exit status; None where JAX alone aborts: below Python 3.14 a daemon thread at the end
# unwinds through its C++.
ENDINGS = {
    "a worker thread": ("ThreadPoolExecutor(1).submit(train, 30, wait=False).result()", 0),
    "fork, spawn, an exception": (
        """
train()
assert fork(os._exit) == 3
fork(sys.exit)  # ends; its status is the one that JAX alone leaves
child = multiprocessing.get_context("spawn").Process(target=describe)
child.start()
child.join()
train(30, wait=False)
raise RuntimeError(f"as it should be: {child.exitcode}")
""",
        1,
    ),
    "a daemon thread, and a fork amid its steps": (
        """
train()
threading.Thread(target=train, args=(10**6,), daemon=True).start()
assert [fork(os._exit) for _ in range(5)] == [3] * 5
""",
        None,
    ),
    "os._exit": ("train(30, wait=False); os._exit(4)", 4),
    # again and again: one that comes within a callback of XLA's, such as after a garbage collection, is lost
    "Ctrl-C": (
        """
def interrupt():
    for _ in range(100):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

train()
threading.Thread(target=interrupt, daemon=True).start()
train(10**6)
""",
        -signal.SIGINT,
    ),
}


def test_processes_end():
    if missing := onednn.library().missing:
        pytest.skip(missing)
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    processes = {
        name: subprocess.Popen([sys.executable, "-c", STEPS + program], env=environment, stderr=subprocess.PIPE)
        for name, (program, _) in ENDINGS.items()
    }
    limit = time.monotonic() + 120
    for name, process in processes.items():
        try:
            errors = process.communicate(timeout=max(limit - time.monotonic(), 0))[1].decode()
        except subprocess.TimeoutExpired:
            for unfinished in processes.values():
                unfinished.kill()
                unfinished.communicate()
            pytest.fail(f"{name}: it does not end")
        if (status := ENDINGS[name][1]) is not None:
            assert process.returncode == status, errors
        assert "AssertionError" not in errors, errors
        assert ("as it should be: 0" in errors) == (status == 1)
