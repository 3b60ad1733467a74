"""Flags: from words to values, and what is likely meant by one that there is not."""

import dataclasses

import pytest

from jax_arcface.cli import embed, evaluate, train
from jax_arcface.cli.arguments import docs
from jax_arcface.errors import UserError, near
from jax_arcface.training.config import TrainConfig, recipe


def test_short_names_and_underscores():
    config, options = train.parse(["--lr", "0.3", "--bs=32", "--wd", "0", "--embedding_dim", "8", "--epochs", "2"])
    assert config == dataclasses.replace(
        recipe("digits", epochs=2), learning_rate=0.3, batch_size=32, weight_decay=0.0, embedding_dim=8
    )
    assert options == train.RunOptions()


def test_defaults_follow_from_data_set_loss_and_epochs():
    assert train.parse(["--dataset", "cifar10", "--loss", "triplet", "--epochs", "4"])[0] == recipe(
        "cifar10", "triplet", 4
    )
    assert train.parse(["--margin", "0.3", "--no-flip"])[0] == dataclasses.replace(recipe("digits"), margin=0.3)
    assert train.parse(["--margin", "none"])[0].margin is None


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--learningrate", "--learning-rate"),
        ("--batch-sise", "--batch-size"),
        ("--epoch", "--epochs"),
        ("--epohcs", "--epochs"),
        ("--seeed", "--seed"),
        ("--m", None),
        ("--device", None),
        ("--augment", None),
        ("--lr-decay", None),
        ("--xyz", None),
    ],
)
def test_only_a_flag_that_is_near_is_suggested(word, meant):
    with pytest.raises(UserError) as caught:
        train.parse([word, "1"])
    assert (f"did you mean {meant}?" in str(caught.value)) == (meant is not None)
    assert ("did you mean" in str(caught.value)) == (meant is not None)


@pytest.mark.parametrize("word", ["gpu", "lr", "aug", "augment"])
def test_nothing_far_is_near(word):
    assert near(word, ["cpu", "loss", "momentum", "margin", "zoom"]) is None


@pytest.mark.parametrize("options", [TrainConfig, train.RunOptions, evaluate.Options, embed.Options])
def test_every_flag_has_its_help(options):
    assert docs(options).keys() == {field.name for field in dataclasses.fields(options)}


def test_help_is_grouped_and_lists_the_losses_apart(capsys):
    for words in (["--help"], ["--help-losses"]):
        with pytest.raises(SystemExit) as end:
            train.parse(words)
        assert end.value.code in (0, None)
    helped = capsys.readouterr().out
    places = [helped.index(f"\n{group}:") for group in ("data", "model", "loss", "optimiser", "augmentation", "run")]
    assert places == sorted(places)
    assert helped.index("--wd") < helped.index("\naugmentation:") < helped.index("\nmulti_similarity: ")
