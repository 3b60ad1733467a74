"""Initial weights by the recipe, and the weights that travel in `model.safetensors`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from torch_reference.models.heads import Head
from torch_reference.philox import generator


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Gives every parameter its initial value: each from a generator of its own, keyed by its name and the seed.

    Convolutions are uniform in +-sqrt(6 / (in * height * width)) (He et al. 2015), linear layers in +-sqrt(3 / in),
    prototypes in +-sqrt(3 / D); biases and centres are 0, norms 1 and 0, slopes 0.25. AirNet's whitening filters, which
    are not trained, are left alone.

    >>> layer = nn.Sequential(nn.Linear(3, 2))
    >>> initialise(layer, seed=0)
    >>> bool((layer[0].weight.abs() <= 1).all()), layer[0].bias.tolist()
    (True, [0.0, 0.0])
    """
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.PReLU):
            module.weight.fill_(0.25)
        elif isinstance(module, Head):
            _draw(module.prototypes, f"{prefix}prototypes", math.sqrt(3 / module.prototypes.shape[-1]), seed)
            for starts_at_zero in (module.bias, module.centers):
                if starts_at_zero is not None:
                    starts_at_zero.zero_()
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            gain = 6 if isinstance(module, nn.Conv2d) else 3
            _draw(module.weight, f"{prefix}weight", math.sqrt(gain / module.weight[0].numel()), seed)
            if module.bias is not None:
                module.bias.zero_()


def _draw(parameter: Tensor, name: str, bound: float, seed: int) -> None:
    values = (2 * generator(seed, "weights", name).random(tuple(parameter.shape)) - 1) * bound
    parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """A model's weights under their `state_dict` names, but for the batch counters, which nothing reads.

    >>> sorted(to_arrays(nn.BatchNorm1d(2)))
    ['bias', 'running_mean', 'running_var', 'weight']
    """
    return {
        name: value.detach().cpu().contiguous().numpy()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts weights into a model.

    Raises:
      ValueError: as `check_arrays`.

    >>> load_arrays(nn.Linear(2, 1), {"weight": np.zeros((1, 2))})
    Traceback (most recent call last):
    ...
    ValueError: it has no bias, which the model needs
    """
    check_arrays(model, arrays)
    model.load_state_dict(model.state_dict() | {name: torch.from_numpy(array) for name, array in arrays.items()})


def check_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for a name that is missing or not known, or a shape that does not fit; the message names it.

    The model may be on PyTorch's device `meta`, where it takes no memory.
    """
    expected = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if missing := expected.keys() - arrays.keys():
        raise ValueError(f"it has no {min(missing)}, which the model needs")
    if strange := arrays.keys() - expected.keys():
        raise ValueError(f"it has {min(strange)}, which the model does not know")
    for name, value in sorted(expected.items()):
        if arrays[name].shape != tuple(value.shape):
            raise ValueError(f"its {name} has shape {arrays[name].shape}; the model needs {tuple(value.shape)}")
