"""Both packages accept the same files of others, and refuse the same."""

import numpy as np
import pytest

from jax_arcface import files as jax_files
from jax_arcface import fuzz_test as jax_fuzz
from jax_arcface.errors import UserError as JaxUserError
from jax_arcface.training import config as jax_config
from torch_reference import files as torch_files
from torch_reference import fuzz_test as torch_fuzz
from torch_reference.errors import UserError as TorchUserError
from torch_reference.training import config as torch_config


def outcome(read, path):
    """What was read, or None where it was refused."""
    try:
        return read(path)
    except (JaxUserError, TorchUserError):
        return None


READERS = {
    "json": ("JSON", jax_files.read_json, torch_files.read_json),
    "safetensors": ("safetensors", jax_files.read_safetensors, torch_files.read_safetensors),
    "config": ("configuration", jax_config.read, torch_config.read),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_the_same_files_are_read(name, tmp_path):
    path = tmp_path / "file"
    other_name, *readers = READERS[name]
    for number in range(300):
        if number % 2:
            path.write_bytes(jax_fuzz.READERS[name][0](np.random.default_rng((3, number))))
        else:
            path.write_bytes(torch_fuzz.READERS[other_name][0](torch_fuzz.random.Random(number)))
        here, there = (outcome(read, path) for read in readers)
        assert (here is None) == (there is None), (number, path.read_bytes()[:500])
