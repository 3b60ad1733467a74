"""The program: its exit status, whatever happens."""

import signal
import subprocess
import sys

import pytest

from jax_arcface.__main__ import main


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_usage_names_the_commands(words, capsys):
    assert main(words) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in ("train",))


@pytest.mark.parametrize("words", [["trian"], ["--verbose"], ["train", "digits"], ["evaluate"], ["embed", "run"]])
def test_a_mistake_is_one_line_and_status_2(words, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "jax_arcface.cli.train":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.delitem(sys.modules, "jax_arcface.cli.train", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    try:
        assert main(["train", "--help"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("\n") == 1


def test_whoever_reads_help_may_stop():
    """As in `--help | head`: nothing on standard error."""
    command = [sys.executable, "-m", "jax_arcface", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # long before the program writes
        assert process.stderr.read() == ""
