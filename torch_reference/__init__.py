"""ArcFace and its family of angular-margin losses in PyTorch: the twin of `jax_arcface`, written apart from it."""

from torch_reference.losses.margins import Margin
from torch_reference.losses.softmax import margin_logits, margin_softmax_loss, softmax_loss
from torch_reference.losses.vectors import cosines, normalize
from torch_reference.models.heads import ArcFaceHead

__all__ = [
    "ArcFaceHead",
    "Margin",
    "cosines",
    "margin_logits",
    "margin_softmax_loss",
    "normalize",
    "softmax_loss",
]
