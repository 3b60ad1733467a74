"""From an ONNX file that computes in float32 to one with 8-bit integers, by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from torch_reference.errors import UserError


def to_int8(content: bytes, images: np.ndarray) -> bytes:
    """The file with its convolutions and linear layers in 8 bits.

    Each channel of a weight has a scale of its own; what the layers pass on is scaled by its range on the images.

    Args:
      content: an ONNX file with the input `images`.
      images: uint8 [N, H, W, C], a few hundred, like those to come.

    Raises:
      UserError: onnxruntime is not installed.
    """
    try:
        from onnxruntime import quantization
    except ImportError:
        raise UserError("int8 needs the package onnxruntime: pip install 'torch-reference[export]'") from None

    class Batches(quantization.CalibrationDataReader):
        batches: Iterator[np.ndarray] = iter(images[start : start + 32] for start in range(0, len(images), 32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "a.onnx", Path(name) / "b.onnx"
        source.write_bytes(content)
        logger.setLevel(logging.ERROR)
        try:
            quantization.quantize_static(
                source,
                target,
                Batches(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            )
        finally:
            logger.setLevel(level)
        return target.read_bytes()
