"""ArcFace and its family of angular-margin losses in JAX and Flax."""

from jax_arcface.fused import fused_margin_softmax_loss
from jax_arcface.heads import ArcFaceHead
from jax_arcface.losses import cosines, margin_logits, margin_softmax_loss, normalize, softmax_loss
from jax_arcface.margins import Margin

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
