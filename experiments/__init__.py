"""Figures, tables and measurements; run from the checkout as `python -m experiments NAME`."""

import importlib
import pkgutil


def modules(package: str) -> list[str]:
    """The names of a package's modules, without those of tests and those that start with an underscore.

    >>> "sweep" in modules("experiments"), "sweep_test" in modules("experiments")
    (True, False)
    """
    found = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return [name for name in found if not name.startswith("_") and not name.endswith("_test")]
