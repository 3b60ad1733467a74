"""A trained model in files that other programs read: ONNX, StableHLO, safetensors, PyTorch's own."""
