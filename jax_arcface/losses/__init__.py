"""From embeddings, prototypes and labels to numbers."""
