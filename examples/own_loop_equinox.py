"""ArcFace in Equinox: the prototypes are a field of your module; from jax_arcface only the loss.

python examples/own_loop_equinox.py    (needs: pip install equinox)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_arcface import Margin, margin_softmax_loss, nearest_class


class Network(eqx.Module):
    """Images [B, 64] to embeddings [B, 32]."""

    layers: eqx.nn.MLP
    prototypes: jax.Array

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.layers = eqx.nn.MLP(64, 32, 128, depth=1, key=one)
        self.prototypes = jax.random.normal(two, (10, 32))

    def __call__(self, images):
        return jax.vmap(self.layers)(images)


def main(epochs=10):
    images, labels = load_digits(return_X_y=True)
    images, rng = jnp.asarray(images / 16, jnp.float32), np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1400])
    network, optimizer = Network(jax.random.key(0)), optax.adam(2e-3)
    state = optimizer.init(eqx.filter(network, eqx.is_array))

    @eqx.filter_jit
    def step(network, state, images, labels):
        def loss_of(network):
            return margin_softmax_loss(network(images), network.prototypes, labels, Margin.arcface(0.3), 16.0)

        loss, gradients = eqx.filter_value_and_grad(loss_of)(network)
        updates, state = optimizer.update(gradients, state)
        return loss, eqx.apply_updates(network, updates), state

    for _ in range(epochs):
        for batch in rng.permutation(train).reshape(-1, 50):
            loss, network, state = step(network, state, images[batch], jnp.asarray(labels[batch]))
    accuracy = np.mean(nearest_class(network(images[test]), network.prototypes) == labels[test])
    print(f"loss {loss:.3f}, accuracy on {len(test)} test images {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
