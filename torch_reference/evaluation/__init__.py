"""What embeddings are worth: accuracy by the nearest prototype."""

from torch_reference.evaluation.accuracy import accuracy, mean_loss, predict

__all__ = ["accuracy", "mean_loss", "predict"]
