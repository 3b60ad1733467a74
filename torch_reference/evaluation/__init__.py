"""What embeddings are worth: metrics by name, and the functions that they are made of."""

from torch_reference.evaluation.accuracy import accuracy, class_means, mean_loss, predict
from torch_reference.evaluation.metrics import METRICS, Evaluated, evaluate

__all__ = ["METRICS", "Evaluated", "accuracy", "class_means", "evaluate", "mean_loss", "predict"]
