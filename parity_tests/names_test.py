"""What is public on one side is public on the other, takes the same parameters, and is compared somewhere."""

import importlib
import inspect
import sys
from pathlib import Path

import jax
import pytest
import torch

from jax_arcface.losses.registry import LOSSES
from parity_tests.cases import PAIRS, Case, all_cases, objective
from parity_tests.compare import difference

PACKAGES = ("jax_arcface", "torch_reference")

# Public names of one side, and why.
ONE_SIDE_ONLY = {
    "fused_margin_softmax_loss": "the same loss in less memory, compared with margin_softmax_loss by fused_test.py",
    "nearest_class": "of the fused loss",
    "fit_replicas": "vmap has no like in PyTorch",
    "ArraySource": "PyTorch's batches come from a generator",
    "Source": "as ArraySource",
    "Classifier": "backbone and head as one nn.Module",
}
# Public names of both that no case compares, and why.
NOT_COMPARED: dict[str, str] = {
    **{name: "cases/backbones.py compares it by its name" for name in ("AirNet", "BACKBONES", "LeNet", "ResNet")},
    **{
        name: "cases/trajectories.py compares trainings"
        for name in ("fit", "fit_config", "Record", "Reporter", "Diverged", "UserError")
    },
    **{name: "cases/evaluation.py loads models" for name in ("Model", "load_model", "Classifier")},
    **{name: "cases/objective.py and cases/heads.py compare losses" for name in ("Head", "Objective", "parse")},
    **{name: "config_test.py compares it" for name in ("TrainConfig", "recipe")},
    **{
        name: "the losses that cases/objective.py compares call it"
        for name in ("annealed_lambda", "initial_adacos_scale", "lengths", "linear_logits")
    },
    **{
        name: "the losses that cases/objective.py compares call it"
        for name in ("center_displacements", "hyperspherical_energy", "angles", "target_cosine")
    },
}
# Parameters of one side, and why.
PARAMETERS = {
    "rngs": "nnx makes weights at once",
    "memory": "of JAX's pair losses alone",
    "device": "JAX takes its device from JAX_PLATFORMS",
}


def exported(package):
    """What a package exports, by name."""
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def parameters(value):
    """The names and defaults of what a function takes, or a class's constructor, in their order."""
    takes = value.__init__ if isinstance(value, type) and value.__init__ is not object.__init__ else value
    kept = {name: p for name, p in inspect.signature(takes).parameters.items() if name not in PARAMETERS}
    return [(name, repr(p.default)) for name, p in kept.items()]


def test_the_packages_export_the_same_names():
    here, there = map(exported, PACKAGES)
    assert here.keys() ^ there.keys() == ONE_SIDE_ONLY.keys()


def test_losses_margins_and_heads_take_the_same_parameters():
    here, there = map(exported, PACKAGES)
    factories = {factory for factory in here if factory.strip("_") in LOSSES}
    functions = {name for name in here.keys() & there.keys() if name.endswith("_loss") and name != "mean_loss"}
    for name in {"Margin", "ArcFaceHead", "Head", "load_model", *factories, *functions}:
        assert parameters(here[name]) == parameters(there[name]), name


def test_every_exported_name_has_a_parity_case():
    covered = {name for case in all_cases() for name in case.covers} | NOT_COMPARED.keys()
    left = {name for name in exported("torch_reference") if name.strip("_") not in covered}
    # the next test is for loss functions
    left = {name for name in left if not name.endswith("_loss")}
    assert left == set()


def called(function):
    """The code that runs while a function does, by its file and name."""
    seen = set()
    sys.setprofile(lambda frame, event, argument: seen.add((frame.f_code.co_filename, frame.f_code.co_qualname)))
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("package", PACKAGES)
def test_every_loss_function_is_called_by_a_case(package):
    inputs = objective.example("float64")

    def run():
        for text in {*objective.words(), *objective.changed_words()}:
            if package == "jax_arcface":
                with jax.enable_x64(True), jax.disable_jit():  # or what was traced before is not called again
                    jax.eval_shape(objective.jax_steps(text), *inputs)
            else:
                objective.torch_steps(text)(*map(torch.tensor, inputs))

    seen = called(run)
    for twin in ("softmax", "adaptive", "pairs", "regularizers"):
        module, other = (importlib.import_module(f"{p}.losses.{twin}") for p in (package, *{*PACKAGES} - {package}))
        names = {n for n in vars(module) if n.endswith("_loss")} & vars(other).keys()
        for name in names - {"softmax_loss"}:  # cases/losses.py compares it
            function = inspect.unwrap(getattr(module, name))
            assert (function.__code__.co_filename, function.__code__.co_qualname) in seen, name


def test_every_file_of_cases_is_in_the_table():
    files = {path.stem for path in (Path(__file__).parent / "cases").glob("*.py")}
    assert files - {"__init__"} == set(PAIRS)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_case_is_run_by_its_test_file(pair):
    test = importlib.import_module(f"parity_tests.{pair}_test").test_parity
    (mark,) = test.pytestmark  # and none that skips it
    assert (mark.name, mark.args) == ("parametrize", ("case", all_cases([pair])))
    # run, and not only taken: a case that misses its bound fails it
    missed = Case("planted", pair, "float64", 0.0, lambda: [difference("x", 1.0, 2.0)])
    with pytest.raises((AssertionError, pytest.skip.Exception), match="planted") as raised:
        test(case=missed)
    assert raised.type is AssertionError
