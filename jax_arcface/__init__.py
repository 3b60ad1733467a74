"""ArcFace and its family of angular-margin losses in JAX and Flax."""

from jax_arcface.losses.fused import fused_margin_softmax_loss
from jax_arcface.losses.margins import Margin
from jax_arcface.losses.softmax import margin_logits, margin_softmax_loss, softmax_loss
from jax_arcface.losses.vectors import cosines, normalize
from jax_arcface.models.heads import ArcFaceHead

__all__ = [
    "ArcFaceHead",
    "Margin",
    "cosines",
    "fused_margin_softmax_loss",
    "margin_logits",
    "margin_softmax_loss",
    "normalize",
    "softmax_loss",
]
