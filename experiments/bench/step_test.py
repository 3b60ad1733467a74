import argparse
import importlib

import pytest

from experiments.bench import replicas, step

TINY = argparse.Namespace(
    dataset="digits", backbone="lenet", width=0.05, batch_size=4, precision="float32", steps=2, replicas=2
)


def test_both_programs_take_the_same_steps():
    jax_step, torch_step = step.jax_step(TINY), step.torch_step(TINY)
    assert jax_step() == pytest.approx(torch_step(), rel=1e-4)
    assert jax_step() == pytest.approx(torch_step(), rel=1e-2)  # both went on from where they were


def test_replicas_take_the_steps_of_one():
    together, one = (contender.make(TINY)() for contender in reversed(replicas.CONTENDERS.values()))
    assert together > 0
    assert one > 0
    assert replicas.headline(TINY).startswith("2 replicas, training step, lenet")


@pytest.fixture
def read_anew():
    """What reads the modules again, as they are in another environment; afterwards they are as before."""
    yield lambda: [importlib.reload(module) for module in (step, replicas)]
    for module in (step, replicas):
        importlib.reload(module)


def test_contenders_have_the_variables_that_the_user_has_set(read_anew, monkeypatch):
    with monkeypatch.context() as user:
        user.setenv("XLA_FLAGS", "--xla_mine")
        user.delenv("OMP_WAIT_POLICY", raising=False)
        read_anew()
        contenders = step.CONTENDERS["JAX"], *replicas.CONTENDERS.values()
        assert [one.environment for one in contenders] == [{"OMP_WAIT_POLICY": "passive"}] * 3
