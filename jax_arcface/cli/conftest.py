"""Command lines of the tests: a small run of digits, and none of the user's folders."""

import shutil
import sys

import pytest

from jax_arcface.__main__ import main

# 1,438 training images in batches of 128: 11 steps an epoch
LITTLE = ["--width", "0.125", "--embedding-dim", "16", "--batch-size", "128", "--epochs", "3"]


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch, tmp_path):
    """No test reads the user's folders, writes into them or downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARCFACE_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


@pytest.fixture(scope="session")
def little():
    """The flags of a training of 33 steps."""
    return LITTLE


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run that was trained without an interruption; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *LITTLE, "--out", str(run)]) == 0
    return run


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture
def refused(capsys):
    """Runs a command line that is a mistake: one line on standard error, status 2."""

    def refused(*words):
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("jax_arcface: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return refused
