"""The proof that `jax_arcface` and `torch_reference` are the same, and `compare` for a pair of your own."""

from parity_tests.compare import Difference, Report, compare, difference

__all__ = ["Difference", "Report", "compare", "difference"]
