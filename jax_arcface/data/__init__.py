"""From a data set's name to arrays in memory.

Images are uint8 [N, H, W, C] and labels int32 [N], the same in every run, from whichever source they come
(`docs/recipe.md`, section Data). What was decoded is kept as memory-mapped arrays in the user's cache folder.
"""

from jax_arcface.data.dataset import Dataset, Split, channel_statistics, hold_out
from jax_arcface.data.folders import read_images
from jax_arcface.data.prepared import prepare_tfds
from jax_arcface.data.records import write_records
from jax_arcface.data.registry import DATASETS, load
from jax_arcface.data.source import ArraySource, Source

__all__ = [
    "DATASETS",
    "ArraySource",
    "Dataset",
    "Source",
    "Split",
    "channel_statistics",
    "hold_out",
    "load",
    "prepare_tfds",
    "read_images",
    "write_records",
]
