"""ArcFace in plain JAX: weights in a dictionary, a function, gradient descent; from jax_arcface only the loss.

python examples/own_loop_jax.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jax_arcface import Margin, margin_softmax_loss, nearest_class


def init(key):
    one, two, three = jax.random.split(key, 3)
    return {
        "hidden": jax.random.normal(one, (64, 128)) / 8,
        "embedding": jax.random.normal(two, (128, 32)) / 11,
        "prototypes": jax.random.normal(three, (10, 32)),
    }


def embed(weights, images):
    return jax.nn.relu(images @ weights["hidden"]) @ weights["embedding"]


@jax.jit
def step(weights, velocity, images, labels):
    def loss_of(weights):
        return margin_softmax_loss(embed(weights, images), weights["prototypes"], labels, Margin.arcface(0.3), 16.0)

    loss, gradients = jax.value_and_grad(loss_of)(weights)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradients)
    return loss, jax.tree.map(lambda w, v: w - 0.02 * v, weights, velocity), velocity


def main(epochs=10):
    images, labels = load_digits(return_X_y=True)
    images, rng = jnp.asarray(images / 16, jnp.float32), np.random.default_rng(0)
    train, test = np.split(rng.permutation(len(labels)), [1400])
    weights = init(jax.random.key(0))
    velocity = jax.tree.map(jnp.zeros_like, weights)
    for _ in range(epochs):
        for batch in rng.permutation(train).reshape(-1, 50):
            loss, weights, velocity = step(weights, velocity, images[batch], jnp.asarray(labels[batch]))
    accuracy = np.mean(nearest_class(embed(weights, images[test]), weights["prototypes"]) == labels[test])
    print(f"loss {loss:.3f}, accuracy on {len(test)} test images {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
