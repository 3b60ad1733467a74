"""What `pyproject.toml` cannot say: tests stand beside the source, but stay out of the wheel."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithoutTests(build_py):
    """Leaves out what only pytest reads."""

    def find_package_modules(self, package, package_dir):
        """The modules of a package, as (package, module, file)."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] not in ("conftest", "setup") and not entry[1].endswith("_test")]


setup(cmdclass={"build_py": BuildWithoutTests})
