"""From embeddings, prototypes and labels to numbers: the margins, and the losses as pure functions."""

from torch_reference.losses import terms  # noqa: F401 (its factories are the entries of registry.LOSSES)
from torch_reference.losses.adaptive import (
    adacos_loss,
    adaface_loss,
    curricularface_loss,
    initial_adacos_scale,
    magface_loss,
)
from torch_reference.losses.margins import Margin, angles, target_cosine
from torch_reference.losses.pairs import (
    circle_loss,
    contrastive_loss,
    marginal_loss,
    multi_similarity_loss,
    range_loss,
    supcon_loss,
    triplet_loss,
)
from torch_reference.losses.regularizers import (
    center_displacements,
    center_loss,
    hyperspherical_energy,
    inter_loss,
    intra_loss,
)
from torch_reference.losses.softmax import (
    a_softmax_loss,
    annealed_lambda,
    linear_logits,
    linear_softmax_loss,
    margin_logits,
    margin_softmax_loss,
    modified_softmax_loss,
    softmax_loss,
)
from torch_reference.losses.vectors import cosines, lengths, normalize

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
    "hyperspherical_energy",
    "initial_adacos_scale",
    "inter_loss",
    "intra_loss",
    "lengths",
    "linear_logits",
    "linear_softmax_loss",
    "magface_loss",
    "margin_logits",
    "margin_softmax_loss",
    "marginal_loss",
    "modified_softmax_loss",
    "multi_similarity_loss",
    "normalize",
    "range_loss",
    "softmax_loss",
    "supcon_loss",
    "target_cosine",
    "triplet_loss",
]
