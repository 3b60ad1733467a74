"""ArcFace in your own training loop: your network, your optimiser, your arrays; from jax_arcface only the loss.

python examples/own_loop.py
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jax_arcface import ArcFaceHead, Margin


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.embedding = nnx.Linear(128, 32, rngs=rngs)
        self.head = ArcFaceHead(32, 10, margin=Margin.arcface(0.3), scale=16.0, rngs=rngs)

    def __call__(self, images):
        return self.embedding(nnx.relu(self.hidden(images)))


@nnx.jit
def step(network, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(lambda network: network.head.loss(network(images), labels))(network)
    optimizer.update(network, gradients)
    return loss


def main(epochs=10):
    images, labels = load_digits(return_X_y=True)
    images, rng = jnp.asarray(images / 16, jnp.float32), np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1400])
    network = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(2e-3), wrt=nnx.Param)
    for _ in range(epochs):
        for batch in rng.permutation(train)[: len(train) // 50 * 50].reshape(-1, 50):
            loss = step(network, optimizer, images[batch], jnp.asarray(labels[batch]))
    accuracy = np.mean(network.head.predict(network(images[test])) == labels[test])
    print(f"loss {loss:.3f}, accuracy on {len(test)} test images {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
