"""The head on a mesh: a training step of prototypes that lie over many devices, its memory and what the devices send.

    python -m experiments bench mesh --mesh data=1,classes=8 --classes 262144 --dimension 512
    python -m experiments bench mesh --device gpu --mesh data=1,classes=8 --classes 10000000 --dimension 512

A step is the fused ArcFace loss, its gradients by embeddings and prototypes, and SGD with momentum, in float32. Memory
and bytes are those of the compiled program, a device's own, beside the formulas of docs/scale.md. `--device cpu` makes
as many devices of this machine's cores: their time says nothing about real ones, their memory and bytes do.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any

from experiments._arguments import Parser, UserError, check_at_least, check_can_be_written
from experiments.bench import circumstances

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def main(words: list[str]) -> None:
    """Measures one mesh."""
    parser = Parser("bench mesh", __doc__)
    parser.add_argument("--mesh", default="data=1,classes=8", help="devices on either axis (default: data=1,classes=8)")
    parser.add_argument("--batch-size", type=int, default=256, help="of all devices (default: 256)")
    parser.add_argument("--classes", type=int, default=65_536, help="of all devices (default: 65536)")
    parser.add_argument("--dimension", type=int, default=512, help="of the embeddings (default: 512)")
    parser.add_argument("--steps", type=int, default=5, help="of which the median is taken (default: 5)")
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="what to run on (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the result with hardware and versions")
    options = parser.parse_args(words)
    sizes = {name: int(n) for name, n in re.findall(r"(data|classes)=(\d+)", options.mesh)}
    if set(sizes) != {"data", "classes"} or not all(sizes.values()):
        raise UserError(f"--mesh is {options.mesh!r}; it must be like data=2,classes=4")
    check_at_least(1, classes=options.classes, dimension=options.dimension, steps=options.steps)
    for what, count, axis in (("batch-size", options.batch_size, "data"), ("classes", options.classes, "classes")):
        if count % sizes[axis]:
            raise UserError(f"--{what} is {count}; it must divide by the {sizes[axis]} devices of {axis}")
    check_can_be_written(json=options.json)
    result = run(
        sizes["data"],
        sizes["classes"],
        options.batch_size,
        options.classes,
        options.dimension,
        options.steps,
        options.device,
    )
    mib = 2**20
    print(
        f"head on {options.mesh} ({options.device}), B = {options.batch_size}, C = {options.classes}, "
        f"D = {options.dimension}\n"
        f"  memory of a device: {result['memory'] / mib:.1f} MiB, of which by formula "
        f"{result['memory_by_formula'] / mib:.1f} MiB\n"
        f"  bytes of collectives, a device and step: {result['bytes']:,}, by formula {result['bytes_by_formula']:,}\n"
        f"  step: {result['milliseconds']:.1f} ms"
    )
    if options.json:
        options.json.write_text(
            json.dumps({**circumstances(["mesh", *words], options.steps), **result}, indent=2) + "\n"
        )


def memory_by_formula(data: int, parts: int, batch: int, classes: int, dimension: int) -> int:
    """Bytes of a device: prototypes, momentum, the gradient and the loop's, and embeddings with theirs, float32."""
    return 4 * dimension * (4 * classes // parts + 2 * batch // data)


def bytes_by_formula(data: int, parts: int, batch: int, classes: int, dimension: int) -> int:
    """Bytes that the collectives of a step give a device: what they reduce, float32."""
    b = batch // data
    over_classes = 4 * b * (dimension + 3) if parts > 1 else 0  # d embeddings; the largest, the sum, the own cosine
    over_data = 4 * dimension * classes // parts + 4 if data > 1 else 0  # d prototypes, and the mean loss
    return over_classes + over_data


def run(data: int, parts: int, batch: int, classes: int, dimension: int, steps: int, device: str) -> dict[str, Any]:
    """One mesh: memory and bytes of a device, and the step's time."""
    import jax

    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    if device == "cpu":
        jax.config.update("jax_num_cpu_devices", data * parts)
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from jax_arcface import Margin, fused_margin_softmax_loss

    if jax.device_count() < data * parts:
        raise UserError(f"there are {jax.device_count()} devices; the mesh has {data * parts}")
    mesh = jax.make_mesh((data, parts), ("data", "classes"))

    def drawn(seed: int, shape: tuple[int, ...], axis: str) -> jax.Array:
        with jax.set_mesh(mesh):  # drawn where they lie
            return jax.jit(lambda: jax.random.normal(jax.random.key(seed), shape, out_sharding=P(axis)))()

    x, w = drawn(0, (batch, dimension), "data"), drawn(1, (classes, dimension), "classes")
    momentum = jnp.zeros_like(w)
    labels = jax.device_put(jnp.arange(batch) % classes, NamedSharding(mesh, P("data")))

    def step(w: Any, momentum: Any, x: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
        def loss_of(x: Any, w: Any) -> Any:
            return fused_margin_softmax_loss(x, w, labels, Margin.arcface())

        loss, (dx, dw) = jax.value_and_grad(loss_of, (0, 1))(x, w)
        momentum = 0.9 * momentum + dw
        return w - 0.1 * momentum, momentum, dx, loss

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(w, momentum, x, labels).compile()
    used: Any = compiled.memory_analysis()
    memory = (
        used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    )
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        w, momentum, _, loss = compiled(w, momentum, x, labels)
        loss.block_until_ready()
        seconds.append(time.perf_counter() - started)
    shape = data, parts, batch, classes, dimension
    return {
        "memory": memory,
        "memory_by_formula": memory_by_formula(*shape),
        "bytes": collective_bytes(compiled.as_text() or ""),
        "bytes_by_formula": bytes_by_formula(*shape),
        "milliseconds": 1e3 * statistics.median(seconds[1:]),
        "loss": float(loss),
    }


def collective_bytes(program: str) -> int:
    """Bytes that the collectives of a compiled program give a device.

    >>> collective_bytes("x = (f32[8]{0}, f32[2,8]{1,0}) all-reduce(a, b), replica_groups={{0,1}}")
    96
    """
    total = 0
    for line in program.splitlines():
        found = re.search(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", line)
        # a group of one device sends nothing
        if found and not re.search(r"replica_groups=\{(\{\d+\},?)+\}", line):
            for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                total += _BYTES.get(kind, 8) * math.prod(int(n) for n in sizes.split(",") if n)
    return total
