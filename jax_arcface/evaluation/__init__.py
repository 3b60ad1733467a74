"""What embeddings are worth: metrics by name, and the functions that they are made of."""

from jax_arcface.evaluation.accuracy import accuracy, class_means, mean_loss, predict
from jax_arcface.evaluation.metrics import METRICS, Embedded, evaluate

__all__ = ["METRICS", "Embedded", "accuracy", "class_means", "evaluate", "mean_loss", "predict"]
