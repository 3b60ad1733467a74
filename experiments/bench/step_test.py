import argparse

import pytest

from experiments.bench import head, replicas, step, turns

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


def test_contenders_have_the_variables_that_the_user_has_not_set(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    contenders = step.CONTENDERS["JAX"], head.CONTENDERS["JAX, fused"], *replicas.CONTENDERS.values()
    assert [one.environment() for one in contenders] == [{"OMP_WAIT_POLICY": "passive"}] * 4
    every = {**step.CONTENDERS, **head.CONTENDERS, **replicas.CONTENDERS}
    assert {name for one in every.values() for name in one.environment()} <= {*turns.VARIABLES}
