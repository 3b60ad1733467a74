"""ONNX files in 8 bits, by onnxruntime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from jax_arcface.errors import UserError

_BATCH = 32


def to_int8(content: bytes, images: np.ndarray) -> bytes:
    """An ONNX file whose convolutions and matrix products are of 8-bit integers; its metadata stay.

    Weights are scaled channel by channel, and what the layers pass on by its smallest and largest value on the images.

    Args:
      content: an ONNX file with the input `images`.
      images: uint8 [N, H, W, C], some hundred that are like those it will see.

    Raises:
      UserError: onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError:
        raise UserError("int8 needs the package onnxruntime: pip install 'jax-arcface[export]'") from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(range(0, len(images), _BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.batches, None)
            return None if start is None else {"images": images[start : start + _BATCH]}

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(content)
        root, level = logging.getLogger(), logging.getLogger().level
        root.setLevel(logging.ERROR)  # it recommends steps that files of ours do not need
        try:
            quantize_static(
                before,
                after,
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            )
        finally:
            root.setLevel(level)
        return after.read_bytes()
