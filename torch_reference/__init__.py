"""ArcFace and its family of angular-margin losses in PyTorch: the twin of `jax_arcface`, written apart from it."""

from torch_reference.heads import ArcFaceHead
from torch_reference.losses import cosines, margin_logits, margin_softmax_loss, normalize, softmax_loss
from torch_reference.margins import Margin

__all__ = [
    "ArcFaceHead",
    "Margin",
    "cosines",
    "margin_logits",
    "margin_softmax_loss",
    "normalize",
    "softmax_loss",
]
