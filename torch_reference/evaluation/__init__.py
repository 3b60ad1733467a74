"""What embeddings are worth: metrics and protocols by name, and the functions that they are made of."""

from torch_reference.evaluation.accuracy import accuracy, class_means, mean_loss, predict
from torch_reference.evaluation.angles import angle_statistics, health
from torch_reference.evaluation.metrics import METRICS, Evaluated, evaluate
from torch_reference.evaluation.pairs import all_pairs, draw_pairs, pair_scores
from torch_reference.evaluation.protocols import PROTOCOLS
from torch_reference.evaluation.search import clusters, identify, retrieval
from torch_reference.evaluation.verification import auc, cross_validated, eer, tally, tar_at_far

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Evaluated",
    "accuracy",
    "all_pairs",
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
    "tally",
    "tar_at_far",
]
