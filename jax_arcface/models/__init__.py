"""From images to embeddings: backbones, heads, weights, trained models."""
