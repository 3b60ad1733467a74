"""What is public on one side is public on the other, takes the same parameters, and is compared somewhere."""

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
import typing
from pathlib import Path

import jax
import pytest
import torch

from parity_tests.cases import PAIRS, Case, all_cases, objective
from parity_tests.compare import difference

PACKAGES = ("jax_arcface", "torch_reference")

# Below, each reason stands with the names that it is a reason for; one that is none any more fails, too.

# Modules of one side.
MODULES = {
    "data is a package in jax_arcface, and a file in torch_reference": (
        ".data.cache .data.datasets .data.errors .data.folders .data.images .data.loading .data.prepared "
        ".data.published"
    ),
    "the same loss in less memory, compared with margin_softmax_loss by fused_test.py": ".fused .products",
    "what PyTorch has of its own; backbones_test.py compares it": ".convolution .layers .onednn .sums .xla_calls",
    "torchvision reads data sets for torch_reference alone": "._torchvision",
}

# Public names of one side, by module, and `Class.method`.
NAMES = {
    "": {
        "the same loss in less memory, compared with margin_softmax_loss by fused_test.py": "fused_margin_softmax_loss"
    },
    ".__main__": {"how XLA is to compile": "CPU_ENVIRONMENT cpu_environment set_up"},
    ".backbones": {
        "a table, or names and a function; backbones_test.py compares the names": "BACKBONES NAMES make_backbone",
        "in jax_arcface a file of its own, layers.py": "Backbone EmbeddingLayer",
        "a kind of nnx.Variable; in PyTorch a parameter without gradient": "WhiteningFilters",
        "a type": "ImageShape",
        "in jax_arcface entries of BACKBONES": "ResNet.resnet18 ResNet.resnet20",
        "what torch.nn has before its last layer": "AirNet.features LeNet.features ResNet.features",
    },
    ".commands": {
        "where to compute; JAX has an environment variable for that": "DEVICES",
        "its prototypes and bias as arguments": "Model.classes",
    },
    ".config": {
        "in torch_reference backbones.NAMES": "BACKBONE_NAMES",
        "what argparse needs, and tyro does not": "option",
    },
    ".data": {
        "torch_reference raises UserError, of which it is a kind": "DataError",
        "torchvision, not TFDS, is where torch_reference gets its data sets": "prepare_tfds",
    },
    ".evaluation.accuracy": {"a type": "Array"},
    ".heads": {
        "in jax_arcface the function cosines": "ArcFaceHead.cosines",
        "how torch.nn calls and prints a module": "ArcFaceHead.forward ArcFaceHead.extra_repr",
        "what a training owns, made from an Objective or from flags": "ClassHead Head",
        "a kind of nnx.Variable; in PyTorch a buffer": "ClassMeans",
    },
    ".objective": {"its loss without [B, C] finds more than a value": "Outcome"},
    ".losses": {
        "parts of the formulas that only one of them has": "add_margin check_shapes inner_products",
        "labels that cannot be looked at, and arrays of any kind": "checked_vectors one_or_nan saturated",
    },
    ".margins": {
        "the same words, as types or as tuples; margins_test.py compares them": "BEYOND_PI BeyondPi GRADIENTS Gradient",
        "in jax_arcface a function of training.py": "Margin.grown",
    },
    ".pairs": {"types": "Distance Mining"},
    ".runs": {
        "a type": "Arrays",
    },
    ".sampling": {
        "the same by another name; cases/sampling.py compares them": (
            "balanced_order class_batches normal_draws elastic_normal permutation epoch_order"
        ),
        "in torch_reference a function of training.py": "epoch_batches",
    },
    ".training": {
        "a pure step, made once and compiled": "Batch Step host_batches make_embed make_epoch make_step",
        "a step that changes a module in place": (
            "Classifier.forward clip_gradients embed_all epoch_batches network_precision train_step"
        ),
        "a model, or its structure and its arrays": "abstract_model initial_model initial_weights model_state",
        "replicas are one program in JAX": "fit_one_program stack",
        "where to compute": "Machine",
        "a state that is a pytree needs no names in a file": "TrainState.load_arrays TrainState.to_arrays",
        "the same by another name; cases/training.py and cases/trajectories.py compare them": (
            "grown learning_rate learning_rate_schedule margin_growth take_class_means warmed_up warmed_up_margin "
            "with_class_means"
        ),
        "private in jax_arcface": "first_of_each_class",
    },
    ".weights": {
        "the same by another name; cases/weights.py and cases/backbones.py compare them": (
            "draw from_neutral initialise load_arrays to_arrays to_neutral"
        ),
        "PyTorch's names are the neutral ones": "neutral_name neutral_shapes",
        "a type": "Weights",
    },
}

# Parameters of one side, and those with another place or default there, by module and by what takes them.
PARAMETERS = {
    ".backbones": {
        "AirNet LeNet ResNet": {"nnx makes weights at once, and casts layer by layer": "dtype rngs"},
        "ResNet": {"the same by another name": "project projection"},
    },
    ".commands": {
        "EmbedOptions EvaluateOptions TrainOptions load_model": {"JAX has an environment variable for that": "device"},
        "TrainOptions": {"of PyTorch": "channels_last compile deterministic"},
    },
    ".data": {"load": {"decoding is shown and kept, not in torch_reference": "cache_dir progress"}},
    ".heads": {"ArcFaceHead": {"nnx makes weights at once": "rngs"}},
    ".losses": {"widened": {"the same by another name": "x vectors"}},
    ".margins": {
        "Margin.arcface Margin.cosface Margin.softmax Margin.sphereface": {
            "jax_arcface leaves them to dataclasses.replace": "policies"
        },
    },
    ".progress": {
        "Progress": {"jax_arcface tells of several replicas at a time": "batch_size directories labels name run"},
        "Progress.on_epoch Progress.on_step": {"jax_arcface tells of several replicas at a time": "replica"},
    },
    ".runs": {
        "read_checkpoint": {"a pytree of a structure, or a state that takes its arrays itself": "load template"},
        "write_checkpoint": {"in jax_arcface a part of the state": "step"},
        "write_weights": {"the same by another name": "values weights"},
    },
    ".sampling": {
        "augment": {"what JAX compiles with comes last": "augmentation"},
        "draw_augmentation": {"the same by another name": "examples n", "where to compute": "device"},
        "dropout_mask": {"the same by another name": "dropout rate"},
    },
    ".training": {
        "Classifier": {"nnx makes weights at once": "rngs"},
        "Reporter.on_epoch Reporter.on_step": {"jax_arcface tells of several replicas at a time": "replica"},
        "TrainState": {"a pytree, or modules": "accuracy_sum loss_sum losses model params stats step totals"},
        "device_data": {"where to compute; JAX has defaults for both": "device dtype"},
        "fit": {
            "jax_arcface trains several replicas at a time": "config configs state states",
            "where to compute": "machine",
        },
        "initial_state": {"optax's state is part of it": "optimizer", "where to compute": "machine"},
        "make_optimizer": {"optax takes a schedule, torch.optim the parameters": "model steps_per_epoch"},
    },
}


def modules(package):
    """The names of a package's modules, without the package's own."""
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    names = (module.name.removeprefix(package) for module in found)
    return {name for name in names if not name.endswith(("_test", "conftest"))}


TWINS = sorted(set.intersection(*map(modules, PACKAGES)))


def public(module):
    """What a module makes public, by name: `__all__`, or what its text defines."""
    names = getattr(module, "__all__", None) or defined(ast.parse(inspect.getsource(module)).body)
    return {name: getattr(module, name) for name in names if not name.startswith("_")}


def defined(statements):
    """The names that statements define, other than by importing them."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


def methods(name, value):
    """The public methods and properties that a class defines itself, as `Class.method`."""
    own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
    kinds = (property, functools.cached_property)
    kept = [key for key, member in own.items() if inspect.isroutine(member) or isinstance(member, kinds)]
    return {f"{name}.{key}": getattr(value, key) for key in kept}


def both(twin):
    """What each side's module makes public, and the methods of those classes that both have."""
    here, there = (public(importlib.import_module(f"{package}{twin}")) for package in PACKAGES)
    if twin:  # what a package makes public is defined, and compared, in its modules
        for name in here.keys() & there.keys():
            if isinstance(here[name], type):
                here |= methods(name, here[name])
                there |= methods(name, there[name])
    return here, there


def listed(reasons):
    """The names that have a reason."""
    return [name for names in reasons.values() for name in names.split()]


def parameters(value, leave_out=()):
    """The names and defaults of what a function takes, or a class's constructor, in their order."""
    takes = value.__init__ if isinstance(value, type) and value.__init__ is not object.__init__ else value
    return [
        (name, "a function" if callable(p.default) and not isinstance(p.default, type) else repr(p.default))
        for name, p in inspect.signature(takes).parameters.items()
        if name not in leave_out
    ]


def test_modules_are_the_same():
    here, there = map(modules, PACKAGES)
    assert sorted(here ^ there) == sorted(listed(MODULES))


@pytest.mark.parametrize("twin", ["", *TWINS])
def test_public_names_are_the_same(twin):
    here, there = both(twin)
    assert sorted(here.keys() ^ there.keys()) == sorted(listed(NAMES.get(twin, {})))


@pytest.mark.parametrize("twin", TWINS)
def test_parameters_and_defaults_are_the_same(twin):
    here, there = both(twin)
    allowed = {name: [] for name in here.keys() & there.keys()}
    for names, reasons in PARAMETERS.get(twin, {}).items():
        for name in names.split():
            allowed[name] += listed(reasons)
    for name, exceptions in sorted(allowed.items()):
        if not callable(here[name]) or typing.get_origin(here[name]):
            assert not exceptions
            continue
        assert parameters(here[name], exceptions) == parameters(there[name], exceptions), name
        for exception in exceptions:
            others = [other for other in exceptions if other != exception]
            needless = parameters(here[name], others) == parameters(there[name], others)
            assert not needless, f"{name}: {exception} is the same on both sides"


def test_no_exception_is_of_a_module_that_is_gone():
    assert {*NAMES, *PARAMETERS} <= {"", *TWINS}


@pytest.mark.parametrize("twin", ["", ".evaluation", ".data"])
def test_every_exported_name_has_a_parity_case(twin):
    names = set(importlib.import_module(f"jax_arcface{twin}").__all__) - set(listed(NAMES.get(twin, {})))
    covered = {name for case in all_cases() for name in case.covers}
    # the tuple of names is compared by data_test.py
    assert names - {"DATASETS"} - covered == set()


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
    covered = {name for case in all_cases() for name in case.covers}
    for twin in (".losses", ".adaptive", ".pairs", ".regularizers"):
        for name in both(twin)[0].keys() & both(twin)[1].keys() - covered:
            function = inspect.unwrap(getattr(importlib.import_module(f"{package}{twin}"), name))
            if inspect.isfunction(function):
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
