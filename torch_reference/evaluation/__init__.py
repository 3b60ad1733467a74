"""What embeddings are worth: accuracy by the nearest prototype."""

from torch_reference.evaluation.accuracy import accuracy, class_means, mean_loss, predict

__all__ = ["accuracy", "class_means", "mean_loss", "predict"]
