"""`fit` with objects: your network, a sum of losses, an optax chain, your arrays.

python examples/own_network.py
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jax_arcface import ArraySource, Head, Reporter, arcface, center, fit


class Network(nnx.Module):
    """Images [B, 8, 8, 1] to embeddings [B, 32]; any nnx module will do."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.embedding = nnx.Linear(32 * 16, 32, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(nnx.relu(self.norm(self.conv(images))), (2, 2), (2, 2))
        return self.embedding(self.dropout(x.reshape(len(x), -1)))


class Print(Reporter):
    def on_epoch(self, record, state):
        self.accuracy = record.test_accuracy
        print(f"epoch {record.epoch}: loss {record.train_loss:.3f}, test accuracy {100 * record.test_accuracy:.1f} %")


def main(epochs=8):
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images.reshape(-1, 8, 8, 1) / 16)
    train, test = np.split(np.random.default_rng(0).permutation(len(labels)), [1400])
    rngs, report = nnx.Rngs(0), Print()
    network = Network(rngs)
    head = Head(arcface(m=0.3, scale=16.0) + 0.001 * center(), embedding_dim=32, num_classes=10, rngs=rngs)
    source = ArraySource(images[train], labels[train], batch_size=50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
    fit(network, head, optimizer, source, epochs=epochs, test=(images[test], labels[test]), reporter=report)
    return report.accuracy


if __name__ == "__main__":
    main()
