"""Every backbone: embeddings in training and evaluation, gradients of all parameters, updated running statistics.

In float32 the errors of gradients are relative to the largest element of the whole gradient, all parameters together.
An array of its own would be no measure: a bias before a batch norm, or a batch norm's own weight, has a gradient that
nearly cancels. That of lenet's stages.2.conv2.bias is 93 times smaller than the sum of the magnitudes it is a sum of,
and what is left of it can be no more exact than their rounding (docs/parity.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jax_arcface.models import backbones as jax_backbones
from jax_arcface.models import layers as jax_layers
from jax_arcface.models import weights as jax_weights
from jax_arcface.models.airnet import whitening_filters
from parity_tests.cases import Case, renamed
from parity_tests.compare import Difference, compare, difference, differences
from torch_reference.models import airnet as torch_airnet
from torch_reference.models import backbones as torch_backbones
from torch_reference.models import layers as torch_layers
from torch_reference.models import weights as torch_weights

# Not square and of odd sides where that is allowed, so that a swapped axis or a shifted stride shows.
SHAPES: dict[str, tuple[tuple[int, int, int], float]] = {
    "lenet": ((17, 24, 2), 0.125),
    "resnet20": ((9, 6, 3), 0.25),
    "resnet18": ((9, 10, 3), 1 / 16),
    "airnet": ((9, 13, 3), 1 / 16),
    "iresnet18": ((17, 33, 3), 1 / 16),
    "mobilefacenet": ((17, 33, 3), 1 / 16),
    "mobilefacenet_relu6": ((17, 33, 3), 1 / 16),
}
ALIKE = ("iresnet34", "iresnet50", "iresnet100", "iresnet200")  # more of iresnet18's blocks
DEEP = ("resnet18", "iresnet18", "mobilefacenet", "mobilefacenet_relu6")  # they take long to compile
# In ulp; 64 of the others. Rounding grows from layer to layer, and these have about fifty.
FLOAT32_BOUNDS = {"mobilefacenet": 256.0, "mobilefacenet_relu6": 256.0}
DIM, DROPOUT = 5, 0.3
# Of so many examples that the batch norms do not magnify rounding: with 6, float32 gradients of airnet were 61 ulp from
# float64 in PyTorch, and twice that with oneDNN's convolutions in JAX.
BATCH = 24

# Their gradient is zero in exact arithmetic: a constant that is added before the last linear layer is taken out again
# by the batch norm behind it. Dropout, which comes in between, gives it a gradient, but not to the layer's own bias.
VANISHING = ("embedding.bn1.bias", "gdconv.bn.bias")
# Nor do the biases at the end of a block without an activation, whose sum goes into 1x1 convolutions with batch norms.
ALWAYS_VANISHING = ("conv3.bias", "conv.3.bias", "fc.bias", "bn3.bias", "downsample.1.bias", "layers.2.layers.1.bias")


def shared_weights(name: str) -> dict[str, np.ndarray]:
    """Weights for a backbone under PyTorch names, float64, none of them at its initial value."""
    shape, width = SHAPES[name]
    model = torch_backbones.make_backbone(name, shape, DIM, width, DROPOUT)
    rng = np.random.default_rng(5)
    values = {}
    for key, array in torch_weights.to_arrays(model).items():
        if array.ndim >= 2:
            values[key] = rng.normal(size=array.shape) / np.sqrt(array[0].size)
        else:
            # variances, scales and slopes about 1; biases and means about 0
            centre = 0.0 if key.endswith(("bias", "running_mean")) else 1.0
            values[key] = centre + 0.3 * rng.uniform(-1, 1, array.shape)
    return values


def _inputs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape, _ = SHAPES[name]
    rng = np.random.default_rng(7)
    model = torch_backbones.make_backbone(name, shape, DIM, SHAPES[name][1], DROPOUT)
    assert isinstance(model, torch_layers.Backbone)
    keep = rng.random((BATCH, torch_layers.dropout_of(model).features)) >= DROPOUT
    return rng.normal(size=(BATCH, *shape)), keep, rng.normal(size=(BATCH, DIM))


def jax_backbone(name: str, dtype: str, dropout: float) -> dict[str, dict[str, Any]]:
    """What `jax_arcface` makes of the shared weights: embeddings, gradients, statistics."""
    shape, width = SHAPES[name]
    images, keep, weight = _inputs(name)
    with jax.enable_x64(dtype == "float64"):
        # the stream of its own dropout, which takes no part, has no weights
        model = nnx.eval_shape(lambda: jax_backbones.BACKBONES[name](shape, DIM, width, dropout, rngs=nnx.Rngs(0)))
        if dropout:
            jax_layers.dropout_of(model).rngs = nnx.data(None)
        graphdef, abstract = nnx.split(model)
        values = {key: value.astype(dtype) for key, value in shared_weights(name).items()}
        params, stats = nnx.split_state(jax_weights.from_pytorch(abstract, values), nnx.Param, ...)

        def total(params, stats, images):
            model = nnx.merge(graphdef, params, stats, copy=True)
            model.train()
            embeddings = model(images, dropout_mask=jnp.asarray(keep))
            after = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
            return jnp.sum(embeddings * weight.astype(dtype)), (embeddings, after)

        @jax.jit
        def both(params, stats, images):
            model = nnx.merge(graphdef, params, stats)
            model.eval()
            evaluated = model(images)
            gradients, (embeddings, after) = jax.grad(total, has_aux=True)(params, stats, images)
            return evaluated, embeddings, gradients, after

        evaluated, embeddings, gradients, after = both(params, stats, images.astype(dtype))
        return {
            "embeddings": {"evaluation": np.asarray(evaluated), "training": np.asarray(embeddings)},
            "gradients": jax_weights.to_pytorch(gradients),
            "statistics": jax_weights.to_pytorch(after),
        }


def torch_backbone(name: str, dtype: str, dropout: float) -> dict[str, dict[str, Any]]:
    """What `torch_reference` makes of the same."""
    shape, width = SHAPES[name]
    images, keep, weight = _inputs(name)
    model = torch_backbones.make_backbone(name, shape, DIM, width, dropout)
    model = model.to(getattr(torch, dtype))
    torch_weights.load_arrays(model, {key: value.astype(dtype) for key, value in shared_weights(name).items()})
    x = torch.tensor(images.astype(dtype)).permute(0, 3, 1, 2)
    with torch.no_grad():
        evaluated = model.eval()(x)
    embeddings = model.train()(x, torch.tensor(keep))
    (embeddings * torch.tensor(weight.astype(dtype))).sum().backward()
    gradients = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    return {
        "embeddings": {"evaluation": evaluated.numpy(), "training": embeddings.detach().numpy()},
        "gradients": gradients,
        "statistics": {k: v for k, v in torch_weights.to_arrays(model).items() if k not in trained},
    }


@functools.cache
def _sides(name: str, dtype: str, dropout: float) -> tuple[dict[str, Any], dict[str, Any]]:
    return jax_backbone(name, dtype, dropout), torch_backbone(name, dtype, dropout)


def _compared(name: str, dtype: str, part: str, dropout: float) -> Iterator[Difference]:
    here, there = _sides(name, dtype, dropout)
    vanishing = ALWAYS_VANISHING + (() if dropout > 0 else VANISHING)
    together = dtype == "float32" and part == "gradients"
    found = differences(here[part], there[part], vanishing=vanishing, together=together)
    yield from renamed(f"{part} of {name}:", found)


def _whitening() -> Iterator[Difference]:
    images = np.random.default_rng(0).uniform(-2, 2, (1200, 7, 6, 3)) ** 3
    images[:, 1:] += images[:, :-1]
    here, there = (
        whitening_filters(images),
        torch_airnet.whitening_filters(images.transpose(0, 3, 1, 2)),
    )
    yield difference("filters", here, there)


def _ties() -> Iterator[Difference]:
    """Poolings of pixels that are equal, and PReLU at 0: who takes the gradient."""
    images = np.random.default_rng(0).integers(-1, 2, (3, 7, 9, 4)).astype(np.float64)

    def there(x):
        x = x.permute(0, 3, 1, 2)
        return {
            "max_pool": torch.nn.functional.max_pool2d(x, 2).permute(0, 2, 3, 1),
            "global_max_pool": x.flatten(2).max(dim=2).values,
        }

    def here(x):
        return {"max_pool": jax_layers.max_pool(x), "global_max_pool": jax_layers.global_max_pool(x)}

    yield from renamed("ties:", compare(here, there, images).differences)
    prelu = jax_layers.PReLU(4)
    slope = np.linspace(0.1, 0.4, 4)
    graphdef, state = nnx.split(prelu)

    def activated(x, slope):
        model = nnx.merge(graphdef, state, copy=True)
        model.slope = nnx.Param(slope)
        return model(x)

    def twin(x, slope):
        return torch.nn.functional.prelu(x.permute(0, 3, 1, 2), slope).permute(0, 2, 3, 1)

    yield from renamed("PReLU:", compare(activated, twin, images, slope).differences)


_PARTS = (
    ("embeddings", "embeddings, training and evaluation"),
    ("gradients", "gradients of all parameters"),
    ("statistics", "updated running statistics"),
)

CASES = [
    *(
        Case(
            f"{name}: {what}",
            "backbones",
            dtype,
            **({"bound": 1e-10} if dtype == "float64" else {"bound": FLOAT32_BOUNDS.get(name, 64.0), "unit": "ulp"}),
            measure=functools.partial(_compared, name, dtype, part, DROPOUT),
            covers=(name,),
            slow=dtype == "float32" or name in DEEP,
        )
        for dtype in ("float64", "float32")
        for name in SHAPES
        for part, what in _PARTS
    ),
    Case("equal pixels under max pooling, PReLU at 0", "backbones", "float64", 1e-10, _ties),
    Case("airnet: whitening filters of 2x2 patches", "backbones", "float32", 64.0, _whitening, unit="ulp"),
]
