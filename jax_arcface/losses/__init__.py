"""From embeddings, prototypes and labels to numbers: the losses, and the margins that they take.

What the losses share is in the modules `vectors`, `reduction`, `checks`.
"""

from jax_arcface.losses import terms as terms  # fills the registry
from jax_arcface.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from jax_arcface.losses.fused import fused_margin_softmax_loss, loss_and_correct, nearest_class
from jax_arcface.losses.margins import Margin, angles, target_cosine
from jax_arcface.losses.pairs import (
    circle_loss,
    contrastive_loss,
    marginal_loss,
    multi_similarity_loss,
    range_loss,
    supcon_loss,
    triplet_loss,
)
from jax_arcface.losses.regularizers import (
    center_displacements,
    center_loss,
    hyperspherical_energy,
    inter_loss,
    intra_loss,
)
from jax_arcface.losses.softmax import (
    a_softmax_loss,
    annealed_lambda,
    linear_logits,
    linear_softmax_loss,
    margin_logits,
    margin_softmax_loss,
    modified_softmax_loss,
    softmax_loss,
)
from jax_arcface.losses.vectors import cosines, lengths, normalize

__all__ = [
    "Margin",
    "a_softmax_loss",
    "adacos_loss",
    "adaface_loss",
    "angles",
    "annealed_lambda",
    "center_displacements",
    "center_loss",
    "circle_loss",
    "contrastive_loss",
    "cosines",
    "curricularface_loss",
    "fused_margin_softmax_loss",
    "hyperspherical_energy",
    "initial_adacos_scale",
    "inter_loss",
    "intra_loss",
    "lengths",
    "linear_logits",
    "linear_softmax_loss",
    "loss_and_correct",
    "magface_loss",
    "margin_logits",
    "margin_softmax_loss",
    "marginal_loss",
    "modified_softmax_loss",
    "multi_similarity_loss",
    "nearest_class",
    "normalize",
    "range_loss",
    "softmax_loss",
    "supcon_loss",
    "target_cosine",
    "triplet_loss",
]
