"""From a data set's name to arrays in memory.

Images are uint8 [N, H, W, C] and labels int32 [N], the same in every run (`docs/recipe.md`, section Data).
"""

from torch_reference.data.dataset import Dataset, Split, channel_statistics, hold_out
from torch_reference.data.folders import read_images
from torch_reference.data.registry import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Split", "channel_statistics", "hold_out", "load", "read_images"]
