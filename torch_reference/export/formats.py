"""The formats by name: from a trained model to the bytes of a file, and back to a function of images.

What computes (ONNX, `torch.export`) takes uint8 images [N, H, W, C] in any number, as `Model.embed` does, normalises
them itself, and gives unit embeddings, float32 [N, D]. safetensors holds the weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_reference.errors import UserError
from torch_reference.models.layers import normalise
from torch_reference.models.trained import Model

OPSET = 18

Embed = Callable[[np.ndarray], np.ndarray]


class UnitEmbeddings(nn.Module):
    """From images, uint8 [N, H, W, C], to embeddings [N, D] of length 1.

    Args:
      backbone: from normalised images to embeddings.
      mean, std: of each channel, [C], in grey levels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, mean: np.ndarray, std: np.ndarray):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(np.float32(mean)))
        self.register_buffer("scale", torch.tensor(np.float32(1 / std)))

    def forward(self, images: Tensor) -> Tensor:
        """The embeddings."""
        return F.normalize(self.backbone(normalise(images, self.mean, self.scale)), eps=1e-12)


def to_onnx(model: Model, metadata: Mapping[str, str]) -> bytes:
    """An ONNX file; it computes in float32 whatever the model does."""
    module, dynamic = _module(model)
    try:
        with _quiet():
            made = torch.onnx.export(
                module,
                (_example(model),),
                dynamo=True,
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                verbose=False,
            )
    except ImportError:
        raise UserError(
            "the format onnx needs the packages onnx and onnxscript: pip install 'torch-reference[export]'"
        ) from None
    assert made is not None
    proto = made.model_proto
    proto.producer_name = "torch_reference"
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def from_onnx(content: bytes) -> Embed | None:
    """The function in an ONNX file; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def to_pt2(model: Model, metadata: Mapping[str, str]) -> bytes:
    """A program as `torch.export.save` writes it, whose extra files are the metadata."""
    module, dynamic = _module(model)
    content = io.BytesIO()
    with _quiet():
        made = torch.export.export(module, (_example(model),), dynamic_shapes=dynamic)
        torch.export.save(made, content, extra_files=dict(metadata))
    return content.getvalue()


def from_pt2(content: bytes) -> Embed:
    """The function in such a file."""
    call = torch.export.load(io.BytesIO(content)).module()
    return lambda images: call(torch.tensor(images)).detach().numpy()


def to_safetensors(model: Model, metadata: Mapping[str, str]) -> bytes:
    """Weights and classes under the names of a run's `model.safetensors`, with the metadata in the header."""
    arrays = {f"backbone.{name}": tensor.cpu().numpy() for name, tensor in model.backbone.state_dict().items()}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    if model.prototypes is not None:
        arrays |= {f"head.{name}": array for name, array in model.classes.items()}
    return safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, dict(metadata))


class Format(NamedTuple):
    """A format: the suffix of its files, what writes one and, where it computes, what reads one."""

    suffix: str
    write: Callable[[Model, Mapping[str, str]], bytes]
    read: Callable[[bytes], Embed | None] | None = None


FORMATS = {
    "onnx": Format(".onnx", to_onnx, from_onnx),
    "pt2": Format(".pt2", to_pt2, from_pt2),
    "safetensors": Format(".safetensors", to_safetensors),
}


def difference(model: Model, embed: Embed, images: np.ndarray) -> float:
    """The largest difference between a file's embeddings of images, uint8 [N, H, W, C], and the model's."""
    wanted = F.normalize(torch.from_numpy(model.embed(images)), eps=1e-12).numpy()
    return float(np.abs(embed(images) - wanted).max())


def _module(model: Model) -> tuple[nn.Module, dict[str, dict[int, object]]]:
    """What is exported, and which of its sizes are not fixed."""
    module = UnitEmbeddings(model.backbone, model.mean, model.std).to("cpu").eval()
    return module.requires_grad_(False), {"images": {0: torch.export.Dim("N")}}


def _example(model: Model) -> Tensor:
    return torch.zeros((2, *model.image_shape), dtype=torch.uint8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own progress."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
