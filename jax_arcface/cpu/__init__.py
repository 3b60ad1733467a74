"""The only door to hand-made CPU operations: oneDNN's where it is installed and can, XLA's elsewhere."""

from jax_arcface.cpu.convolution import convolve
from jax_arcface.cpu.operations import Implementation, describe
from jax_arcface.cpu.prelu import prelu
from jax_arcface.cpu.products import product
from jax_arcface.cpu.sums import channel_sums

__all__ = ["Implementation", "channel_sums", "convolve", "describe", "prelu", "product"]
