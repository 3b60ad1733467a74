"""The formats by name: from a trained model to the bytes of a file, and back to a function of images.

What computes (ONNX, StableHLO) takes uint8 images [N, H, W, C] in any number, as `Model.embed` does, normalises them
itself, and gives unit embeddings, float32 [N, D]. What only holds weights has them under PyTorch names.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax import Array

from jax_arcface.errors import UserError
from jax_arcface.models import weights
from jax_arcface.models.images import normalise
from jax_arcface.models.trained import Model

Embed = Callable[[np.ndarray], np.ndarray]


def program(model: Model) -> tuple[Callable[[Mapping[str, Any], Array], Array], dict[str, np.ndarray]]:
    """A model as a pure function of its weights by name and images [N, H, W, C] to unit embeddings [N, D], and them.

    The kernels are Flax's, [H, W, in, out], whatever their names are.
    """
    parts: Any = nnx.split(model.backbone, nnx.Not(nnx.RngState), nnx.RngState)
    graphdef, state, streams = parts
    leaves = {weights.pytorch_name(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    constants = [jnp.asarray(c, jnp.float32) for c in (model.mean, 1 / model.std)]

    def embed(values: Mapping[str, Any], images: Array) -> Array:
        filled = nnx.from_flat_state([(path, leaf.replace(values[name])) for name, (path, leaf) in leaves.items()])
        backbone = nnx.merge(graphdef, filled, streams)
        backbone.eval()
        x = backbone(normalise(images, *constants)).astype(jnp.float32)
        return x / jnp.maximum(jnp.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-12)

    return embed, {name: np.asarray(leaf[...]) for name, (_, leaf) in leaves.items()}


# ---- ONNX


def to_onnx(model: Model, metadata: Mapping[str, str]) -> bytes:
    """An ONNX file; it computes in float32 whatever the model does."""
    try:
        from jax_arcface.export import graph
    except ImportError:
        raise UserError("the format onnx needs the package onnx: pip install 'jax-arcface[export]'") from None
    made = graph.to_onnx(*program(model), model.image_shape)
    made.producer_name = "jax_arcface"
    for key, value in metadata.items():
        made.metadata_props.add(key=key, value=value)
    return bytes(made.SerializeToString())


def from_onnx(content: bytes) -> Embed | None:
    """The function in an ONNX file; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


# ---- StableHLO


def to_stablehlo(model: Model, metadata: Mapping[str, str]) -> bytes:
    """StableHLO as `jax.export` writes it, for CPU, CUDA and TPU; it has no place for metadata.

    Whoever loads it needs JAX and nothing else: `jax.export.deserialize(content).call(images)`.
    """
    embed, values = program(model)
    (batch,) = jax.export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    exported = jax.export.export(jax.jit(lambda images: embed(values, images)), platforms=("cpu", "cuda", "tpu"))
    return bytes(exported(images).serialize())


def from_stablehlo(content: bytes) -> Embed:
    """The function in a StableHLO file."""
    call = jax.jit(jax.export.deserialize(bytearray(content)).call)
    return lambda images: np.asarray(call(images))


# ---- weights


def arrays(model: Model) -> dict[str, np.ndarray]:
    """Weights, running statistics and prototypes under the names and in the layout of a run's `model.safetensors`."""
    state: Any = nnx.filter_state(nnx.state(model.backbone), nnx.Not(nnx.RngState))
    found = {f"backbone.{name}": array for name, array in weights.to_pytorch(state).items()}
    head = {"head.prototypes": model.prototypes, "head.bias": model.bias}
    return found | {name: array for name, array in head.items() if array is not None}


def to_safetensors(model: Model, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with the metadata in its header."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays(model).items()}
    return safetensors.numpy.save(contiguous, dict(metadata))


def to_pytorch(model: Model, metadata: Mapping[str, str]) -> bytes:
    """A state dict as `torch.save` writes it, read by `torch.load(file, weights_only=True)`; no metadata.

    Written without PyTorch: a zip file of the arrays' bytes and a pickle that names them, which is written here
    instruction by instruction.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        pickled = [b"\x80\x02}"]  # protocol 2, an empty dictionary
        for number, (name, array) in enumerate(arrays(model).items()):
            array = np.asarray(array, "<f4", order="C")
            pickled.append(_text(name) + _tensor(str(number), array.shape) + b"s")
            archive.writestr(f"model/data/{number}", array.tobytes())
        archive.writestr("model/data.pkl", b"".join([*pickled, b"."]))
        archive.writestr("model/byteorder", "little")
        archive.writestr("model/version", "3\n")
    return content.getvalue()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integers(values: tuple[int, ...]) -> bytes:
    """A tuple."""
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def _tensor(key: str, shape: tuple[int, ...]) -> bytes:
    """A float32 tensor whose bytes are under this key: a call of PyTorch's `_rebuild_tensor_v2`."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    size = b"J" + struct.pack("<i", math.prod(shape))
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu") + size + b"tQ"
    no_hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + b"K\0" + _integers(shape) + _integers(strides) + b"\x89" + no_hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


# ---- the registry


@dataclasses.dataclass(frozen=True)
class Format:
    """A format: the suffix of its files, what writes one and, where it computes, what reads one."""

    suffix: str
    write: Callable[[Model, Mapping[str, str]], bytes]
    read: Callable[[bytes], Embed | None] | None = None


FORMATS = {
    "onnx": Format(".onnx", to_onnx, from_onnx),
    "stablehlo": Format(".stablehlo", to_stablehlo, from_stablehlo),
    "safetensors": Format(".safetensors", to_safetensors),
    "pytorch": Format(".pt", to_pytorch),
}


def difference(model: Model, embed: Embed, images: np.ndarray) -> float:
    """The largest difference between a file's embeddings of images, uint8 [N, H, W, C], and the model's."""
    wanted = model.embed(images)
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    return float(np.abs(embed(images) - wanted).max())
