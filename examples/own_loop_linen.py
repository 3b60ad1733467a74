"""ArcFace in Flax's older API, linen: the prototypes are a parameter of your module; from jax_arcface only the loss.

python examples/own_loop_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jax_arcface import Margin, margin_softmax_loss, nearest_class


class Network(nn.Module):
    """Images [B, 64] to embeddings [B, 32] and prototypes [10, 32]."""

    @nn.compact
    def __call__(self, images):
        prototypes = self.param("prototypes", nn.initializers.normal(1.0), (10, 32))
        return nn.Dense(32)(nn.relu(nn.Dense(128)(images))), prototypes


def main(epochs=10):
    images, labels = load_digits(return_X_y=True)
    images, rng = jnp.asarray(images / 16, jnp.float32), np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1400])
    network, optimizer = Network(), optax.adam(2e-3)
    params = network.init(jax.random.key(0), images[:1])
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss_of(params):
            return margin_softmax_loss(*network.apply(params, images), labels, Margin.arcface(0.3), 16.0)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state)
        return loss, optax.apply_updates(params, updates), state

    for _ in range(epochs):
        for batch in rng.permutation(train).reshape(-1, 50):
            loss, params, state = step(params, state, images[batch], jnp.asarray(labels[batch]))
    accuracy = np.mean(nearest_class(*network.apply(params, images[test])) == labels[test])
    print(f"loss {loss:.3f}, accuracy on {len(test)} test images {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
