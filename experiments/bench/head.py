"""The margin softmax loss with its gradients: fused, dense, in PyTorch, sampled, and the products alone.

Every contender computes ArcFace's loss (m = 0.5, s = 64) and its gradients to embeddings [B, D] and prototypes [C, D]
from the same float32 numbers. "Matrix products in blocks" are those of the fused loss alone, in its blocks: x w^T twice
(it computes it again backwards) and the two gradients, with nothing in between.

Memory is the C library's as it is, where the system clears each large array anew when it is made, or with
`--keep-freed-memory` as in both command lines: contenders that make large arrays gain by it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments._arguments import Parser, UserError
from experiments.bench.floor import Work
from experiments.bench.turns import Contender, Step

REFERENCE = "PyTorch, dense"
MARGIN, SCALE = 0.5, 64.0


def headline(options: argparse.Namespace) -> str:
    """The shape."""
    kept = ", freed memory kept" if options.keep_freed_memory else ""
    return f"head, B = {options.batch_size}, C = {options.classes}, D = {options.dimension}{kept}"


def least_work(options: argparse.Namespace) -> Work:
    """That of a loss that keeps no [B, C]: four products, prototypes read twice, their gradient written.

    One that keeps them needs three.
    """
    b, c, d = options.batch_size, options.classes, options.dimension
    return Work("the fused loss", flop=4 * 2 * b * c * d, bytes=4 * (3 * c * d + 2 * b * d))


def inputs(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, prototypes and labels: noise, each embedding drawn towards its prototype."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((options.classes, options.dimension), np.float32)
    labels = rng.integers(options.classes, size=options.batch_size)
    return w[labels] + rng.standard_normal((options.batch_size, options.dimension), np.float32), w, labels


def _products(options: argparse.Namespace) -> Step:
    import jax
    import jax.numpy as jnp

    from jax_arcface.cpu import product
    from jax_arcface.losses.fused import default_block_size

    x, w, _ = map(jnp.asarray, inputs(options))
    size = min(options.block_size or default_block_size(x, w), len(w))
    blocks = len(w) // size

    @jax.jit
    def products(x: Any, w: Any) -> tuple:
        x_t = x.T

        def block(k: Any) -> Any:
            return jax.lax.dynamic_slice_in_dim(w, k * size, size)

        def forwards(k: Any, total: Any) -> Any:
            return total + product(block(k), x_t).max(axis=0)

        def backwards(k: Any, so_far: tuple) -> tuple:
            d_x_t, d_w = so_far
            c = product(block(k), x_t)
            d_w = jax.lax.dynamic_update_slice_in_dim(d_w, product(c, x), k * size, axis=0)
            return d_x_t + product(block(k), c, transposed=True), d_w

        total = jax.lax.fori_loop(0, blocks, forwards, jnp.zeros(len(x)))
        return total, *jax.lax.fori_loop(0, blocks, backwards, (jnp.zeros_like(x_t), jnp.zeros_like(w)))

    compiled = products.lower(x, w).compile()

    def step() -> float:
        jax.block_until_ready(compiled(x, w))
        return math.nan

    return step


def _fused(options: argparse.Namespace, matmul_dtype: str | None = None) -> Step:
    from jax_arcface import fused_margin_softmax_loss

    return _jax_step(options, fused_margin_softmax_loss, block_size=options.block_size, matmul_dtype=matmul_dtype)


def _dense(options: argparse.Namespace) -> Step:
    from jax_arcface import margin_softmax_loss

    return _jax_step(options, margin_softmax_loss)


def _jax_step(options: argparse.Namespace, loss: Callable, **keywords: Any) -> Step:
    import jax
    import jax.numpy as jnp

    from jax_arcface import Margin

    x, w, labels = map(jnp.asarray, inputs(options))

    def of_vectors(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(x, w, labels, Margin.arcface(MARGIN), SCALE, **keywords)

    compiled = jax.jit(jax.value_and_grad(of_vectors, argnums=(0, 1))).lower(x, w, labels).compile()
    return lambda: float(jax.block_until_ready(compiled(x, w, labels))[0])


def _torch(options: argparse.Namespace, compile: bool = False) -> Step:
    import torch

    from torch_reference import Margin, margin_softmax_loss

    x, w, labels = map(torch.from_numpy, inputs(options))
    x.requires_grad_()
    w.requires_grad_()

    def of_vectors(x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return margin_softmax_loss(x, w, labels, Margin.arcface(MARGIN), SCALE)

    loss_of = torch.compile(of_vectors) if compile else of_vectors

    def step() -> float:
        loss = loss_of(x, w, labels)
        loss.backward()
        x.grad = w.grad = None
        return loss.item()

    return step


def _metric_learning(options: argparse.Namespace) -> Step:
    import torch

    losses = importlib.import_module("pytorch_metric_learning.losses")
    x, w, labels = map(torch.from_numpy, inputs(options))
    x.requires_grad_()
    head = losses.ArcFaceLoss(len(w), w.shape[1], margin=math.degrees(MARGIN), scale=SCALE)
    head.W.data = w.T.contiguous()

    def step() -> float:
        loss = head(x, labels)
        loss.backward()
        x.grad = head.W.grad = None
        return loss.item()

    return step


def _partial_fc(options: argparse.Namespace, share: float = 0.1) -> Step:
    """A tenth of the classes: the batch's own, the others drawn anew in each step (An et al. 2022, "Partial FC")."""
    import torch

    from torch_reference import Margin, margin_softmax_loss

    x, w, labels = map(torch.from_numpy, inputs(options))
    x.requires_grad_()

    def step() -> float:
        x.grad = None
        priority = torch.rand(len(w))
        priority[labels] = 2.0  # the batch's own come first
        chosen = priority.topk(round(share * len(w)), sorted=False).indices.sort().values
        some = w[chosen].requires_grad_()
        loss = margin_softmax_loss(x, some, torch.searchsorted(chosen, labels), Margin.arcface(MARGIN), SCALE)
        loss.backward()
        assert some.grad is not None
        return loss.item()

    return step


def _jax_environment() -> Mapping[str, str]:
    from jax_arcface.cli.environment import cpu_environment  # not where PyTorch's memory is measured

    return cpu_environment()


def _contender(make: Callable[[argparse.Namespace], Step], program: str = "torch_reference") -> Contender:
    """With the variables of a program's command line, and, where asked for, its way to keep freed memory."""

    def made(options: argparse.Namespace) -> Step:
        module = "jax_arcface.cli.environment" if program == "jax_arcface" else "torch_reference.__main__"
        if options.keep_freed_memory and not importlib.import_module(module).keep_freed_memory():
            raise UserError("--keep-freed-memory needs glibc 2.35, and neither GLIBC_TUNABLES nor a MALLOC_ variable")
        return make(options)

    return Contender(made, _jax_environment if program == "jax_arcface" else dict)


CONTENDERS = {
    "matrix products in blocks": _contender(_products, "jax_arcface"),
    "JAX, fused": _contender(_fused, "jax_arcface"),
    "JAX, fused, bfloat16 products": _contender(lambda options: _fused(options, "bfloat16"), "jax_arcface"),
    "JAX, dense": _contender(_dense, "jax_arcface"),
    "PyTorch, dense": _contender(_torch),
    "PyTorch, dense, compiled": _contender(lambda options: _torch(options, compile=True)),
    "PyTorch, a tenth of the classes": _contender(_partial_fc),
} | (
    {"pytorch-metric-learning": _contender(_metric_learning)}
    if importlib.util.find_spec("pytorch_metric_learning")
    else {}
)


def parser() -> Parser:
    """The shape."""
    parser = Parser("bench head", __doc__)
    parser.add_argument("--batch-size", type=int, default=256, help="B (default: 256)")
    parser.add_argument("--classes", type=int, default=102_400, help="C (default: 102400)")
    parser.add_argument("--dimension", type=int, default=128, help="D (default: 128)")
    parser.add_argument("--block-size", type=int, help="classes a block of the fused loss (default: its own choice)")
    parser.add_argument("--keep-freed-memory", action="store_true", help="for the next run, as the command lines do")
    return parser
