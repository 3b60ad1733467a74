"""What embeddings are worth: metrics and protocols by name, and the functions that they are made of."""

from jax_arcface.evaluation.accuracy import accuracy, class_means, mean_loss, predict
from jax_arcface.evaluation.angles import angle_statistics, target_angles
from jax_arcface.evaluation.health import health
from jax_arcface.evaluation.identification import identify
from jax_arcface.evaluation.metrics import METRICS, Embedded, evaluate
from jax_arcface.evaluation.pairs import all_pairs, angle_histogram, draw_pairs, pair_scores
from jax_arcface.evaluation.protocols import PROTOCOLS
from jax_arcface.evaluation.retrieval import clusters, retrieval
from jax_arcface.evaluation.verification import auc, cross_validated, eer, roc, tally, tar_at_far, verify

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Embedded",
    "accuracy",
    "all_pairs",
    "angle_histogram",
    "angle_statistics",
    "auc",
    "class_means",
    "clusters",
    "cross_validated",
    "draw_pairs",
    "eer",
    "evaluate",
    "health",
    "identify",
    "mean_loss",
    "pair_scores",
    "predict",
    "retrieval",
    "roc",
    "tally",
    "tar_at_far",
    "target_angles",
    "verify",
]
