"""A trained model in files that other programs read: ONNX, PyTorch's own programs, safetensors."""
