import numpy as np
import pytest

from jax_arcface.evaluation import METRICS, Embedded, evaluate
from jax_arcface.evaluation.metrics import metric
from jax_arcface.losses.terms import adacos, arcface, center, softmax


def test_a_new_metric_is_part_of_every_evaluation(monkeypatch):
    monkeypatch.setattr("jax_arcface.evaluation.metrics.METRICS", dict(METRICS))

    @metric("{:.0f}")
    def examples(e):
        """How many."""
        return len(e.labels)

    x = np.eye(3, dtype=np.float32)
    found = evaluate(Embedded(x, np.arange(3), {"prototypes": x}))
    assert (found["accuracy"], found["examples"]) == (1.0, 3)


@pytest.mark.parametrize(
    ("objective", "owned", "logits"),
    [
        (2 * arcface(m=0.3, scale=4.0, label_smoothing=0.5) + center(), {}, "angles"),
        (softmax(), {"bias": np.array([0.0, 0.5, -1.0], np.float32)}, "linear"),
        (adacos(), {}, None),
    ],
)
def test_the_loss_is_the_classification_losss_by_the_equation(objective, owned, logits):
    rng = np.random.default_rng(0)
    y, rows = np.arange(7) % 3, np.arange(7)
    w = rng.normal(size=(3, 2)).astype(np.float32)
    x = w[y] + 0.3 * rng.normal(size=(7, 2)).astype(np.float32)  # theta + m stays below pi
    found = evaluate(Embedded(x, y, {"prototypes": w, **owned}, objective)).get("loss")
    if logits is None:
        assert found is None  # its scale depends on the batch
        return
    z = x.astype(np.float64) @ w.T.astype(np.float64) + owned.get("bias", 0)
    if logits == "angles":
        z = z / np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(w, axis=1)
        theta = np.arccos(z[rows, y])
        z = 4 * z
        z[rows, y] = 4 * np.cos(theta + 0.3)
    weight = 2 if logits == "angles" else 1
    expected = weight * np.mean(np.log(np.exp(z).sum(axis=1)) - z[rows, y])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
