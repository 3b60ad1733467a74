import pytest

from experiments.__main__ import main


@pytest.mark.parametrize("words", [[], ["benhc"]])
def test_an_unknown_experiment_is_told_the_known_ones(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(name in said.partition("known: ")[2] for name in ("bench", "compare_losses", "mahalanobis"))
    assert "_test" not in said


def test_help_names_the_experiments(capsys):
    assert main(["--help"]) == 0
    known = "bench, compare_losses, faults, gallery, lfw_photos, mahalanobis, partial_fc, report, runs, submit, sweep"
    assert f"{known};" in capsys.readouterr().out
