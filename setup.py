"""What `pyproject.toml` cannot say: which modules stay out of the wheel, and the one part that is compiled."""

import sys

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


class BuildWithoutTests(build_py):
    """Leaves out what only pytest reads: tests stand beside the source."""

    def find_package_modules(self, package, package_dir):
        """The modules of a package, as (package, module, file)."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] not in ("conftest", "setup") and not entry[1].endswith("_test")]


# oneDNN's handler for XLA. It needs a C++ compiler and nothing else; without one it is left out, and XLA computes all.
ONEDNN = Extension(
    "jax_arcface.cpu._onednn",
    ["jax_arcface/cpu/onednn.cc"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread", "-ldl"],
    optional=True,
)

setup(cmdclass={"build_py": BuildWithoutTests}, ext_modules=[ONEDNN] if sys.platform == "linux" else [])
