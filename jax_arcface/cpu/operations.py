"""Operations that oneDNN computes where it can, and XLA elsewhere: one JAX primitive for all of them.

Which of the two is decided when a program is lowered, for only then is it known for which platform and how many devices
it is, and whether it is exported. Derivatives and `vmap` are those of the primitive, whoever computes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_arcface.cpu import onednn

Implementation: TypeAlias = Literal["auto", "xla", "onednn"]
Mapped: TypeAlias = tuple[tuple[bool, ...], ...]  # of each `vmap` around an operation: which arguments it maps, axis 0


class Transpose(NamedTuple):
    """How a cotangent goes back through an operation.

    Args:
      operation: the one that computes it.
      operands: its arguments: those of the first operation by their place, and its cotangents as -1, -2 and so on.
      targets: the place, among the arguments of the first operation, that each of its results is for.
    """

    operation: Operation
    operands: tuple[int, ...]
    targets: tuple[int, ...]


class Operation:
    """A function of arrays to a tuple of arrays. Subclasses are frozen dataclasses of what else it depends on."""

    xla_only: ClassVar[bool] = False  # whether it is no operation of oneDNN's, whatever is asked for

    def by_xla(self, *arrays: Array) -> tuple[Array, ...]:
        """The function, in JAX."""
        raise NotImplementedError

    def by_xla_on_cpu(self, *arrays: Array) -> tuple[Array, ...]:
        """The same, as XLA is fast at on a CPU."""
        return self.by_xla(*arrays)

    def for_onednn(self, *arrays: jax.ShapeDtypeStruct) -> tuple[int, ...] | None:
        """The same for the handler (`make_program` in onednn.cc); None where oneDNN has nothing for these arrays."""
        return None

    def maps_rows(self) -> bool:
        """Whether each row of the first argument gives a row of the result, so that more rows are as good as `vmap`."""
        return False

    def tangents(self, run: Run, primals: Sequence[Array], tangents: Sequence[Any]) -> Sequence[Any]:
        """The results' tangents; a tangent may be `ad.Zero`. By default, JAX's of `by_xla`."""
        known = [type(t) is ad.Zero for t in tangents]

        def function(*varied: Array) -> tuple[Array, ...]:
            rest = iter(varied)
            return run.by_xla(self)(*(p if fixed else next(rest) for p, fixed in zip(primals, known, strict=True)))

        moving = [i for i, fixed in enumerate(known) if not fixed]
        return jax.jvp(function, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving))[1]

    def transpose(self, unknown: Sequence[bool]) -> Transpose:
        """Of the arguments that are unknown, in which the operation is linear."""
        raise NotImplementedError(f"{self} is not linear in these arguments")


class Run(NamedTuple):
    """How operations are computed: by whom, and inside which `vmap`s."""

    implementation: Implementation
    mapped: Mapped

    def __call__(self, operation: Operation, *arrays: Array) -> list[Array]:
        """The results."""
        mapped = tuple(level[: len(arrays)] for level in self.mapped)
        return _operation_p.bind(
            *_equally_varying(arrays), operation=operation, implementation=self.implementation, mapped=mapped
        )

    def by_xla(self, operation: Operation, on_cpu: bool = False) -> Callable[..., tuple[Array, ...]]:
        """The operation as a function of arrays in JAX, mapped."""
        function = operation.by_xla_on_cpu if on_cpu else operation.by_xla
        for level in reversed(self.mapped):
            function = jax.vmap(function, [0 if mapped else None for mapped in level])
        return function

    def one_by_one(self, operation: Operation) -> Callable[..., list[Array]]:
        """The same in calls of the operation itself."""

        def function(*arrays: Array) -> list[Array]:
            return Run(self.implementation, ())(operation, *arrays)

        for level in reversed(self.mapped):
            function = _in_turn(function, level)
        return function


def compute(operation: Operation, *arrays: Array, implementation: Implementation = "auto") -> list[Array]:
    """The results of an operation.

    Args:
      operation: what to compute.
      arrays: its arguments.
      implementation: "onednn", "xla", or "auto", which takes oneDNN where it can.

    Raises:
      ValueError: an implementation of another name; "onednn" where that cannot compute it, when the program is lowered.
    """
    if implementation not in ("auto", "xla", "onednn"):
        raise ValueError(f"implementation is {implementation!r}; it must be 'auto', 'xla' or 'onednn'")
    return Run(implementation, ())(operation, *map(jnp.asarray, arrays))


def _in_turn(function: Callable[..., list[Array]], level: tuple[bool, ...]) -> Callable[..., list[Array]]:
    def mapped(*arrays: Array) -> list[Array]:
        def one(some: list[Array]) -> list[Array]:
            rest = iter(some)
            return function(*(next(rest) if is_mapped else a for a, is_mapped in zip(arrays, level, strict=True)))

        return jax.lax.map(one, [a for a, is_mapped in zip(arrays, level, strict=True) if is_mapped])

    return mapped


def _equally_varying(arrays: Sequence[Array]) -> list[Array]:
    """Inside `shard_map`, arrays that vary over the same axes of the mesh, as JAX's own operations have them."""
    types = [getattr(jax.typeof(array), "manual_axis_type", None) for array in arrays]
    varying = [frozenset() if known is None else known.varying for known in types]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


# ---- the primitive

_operation_p = Primitive("jax_arcface_operation")
_operation_p.multiple_results = True


@_operation_p.def_impl
@functools.partial(jax.jit, static_argnames=("operation", "implementation", "mapped"))
def _impl(*arrays: Array, **params: Any) -> list[Array]:
    return _operation_p.bind(*arrays, **params)


@_operation_p.def_abstract_eval
def _abstract_eval(*arrays: Any, operation: Operation, implementation: Implementation, mapped: Mapped) -> list[Any]:
    return jax.make_jaxpr(Run(implementation, mapped).by_xla(operation))(*arrays).out_avals


def _jvp(
    primals: Sequence[Array],
    tangents: Sequence[Any],
    *,
    operation: Operation,
    implementation: Implementation,
    mapped: Mapped,
) -> tuple[Sequence[Array], Sequence[Any]]:
    run = Run(implementation, mapped)
    return run(operation, *primals), operation.tangents(run, primals, tangents)


def _transpose(
    cotangents: Sequence[Any],
    *arrays: Any,
    operation: Operation,
    implementation: Implementation,
    mapped: Mapped,
) -> list[Any]:
    backward, operands, targets = operation.transpose([ad.is_undefined_primal(array) for array in arrays])
    known = [ad.instantiate_zeros(cotangents[-1 - i]) if i < 0 else arrays[i] for i in operands]
    levels = tuple(tuple(i < 0 or level[i] for i in operands) for level in mapped)
    results: list[Any] = [None] * len(arrays)
    for target, result in zip(targets, Run(implementation, levels)(backward, *known), strict=True):
        if ad.is_undefined_primal(arrays[target]):
            shared = [axis for axis, level in enumerate(mapped) if not level[target]]
            results[target] = result.sum(shared) if shared else result
    return results


def _batch(
    arrays: Sequence[Array],
    axes: Sequence[int | None],
    *,
    operation: Operation,
    implementation: Implementation,
    mapped: Mapped,
) -> tuple[Sequence[Array], list[int]]:
    level = tuple(axis is not None for axis in axes)
    arrays = [array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True)]
    first, *rest = arrays
    if not mapped and operation.maps_rows() and level == (True,) + (False,) * len(rest):
        count = first.shape[0]
        (result,) = Run(implementation, ())(operation, first.reshape(-1, *first.shape[2:]), *rest)
        return [result.reshape(count, -1, *result.shape[1:])], [0]
    if not any(level[:2]):  # only a bias is mapped, which some derivatives do without
        count = next(array.shape[0] for array, is_mapped in zip(arrays, level, strict=True) if is_mapped)
        arrays[0], level = jnp.broadcast_to(first, (count, *first.shape)), (True, *level[1:])
    results = Run(implementation, (level, *mapped))(operation, *arrays)
    return results, [0] * len(results)


def _lower(
    context: mlir.LoweringRuleContext,
    *values: Any,
    operation: Operation,
    implementation: Implementation,
    mapped: Mapped,
    obstacle: str = "",
) -> Any:
    run = Run(implementation, mapped)
    by_xla = mlir.lower_fun(run.by_xla(operation, on_cpu=not obstacle), multiple_results=True)
    if implementation == "xla" or operation.xla_only:
        return by_xla(context, *values)
    avals: Sequence[Any] = context.avals_in
    shapes = [
        jax.ShapeDtypeStruct(aval.shape[sum(level[i] for level in mapped) :], aval.dtype)
        for i, aval in enumerate(avals)
    ]
    numbers = operation.for_onednn(*shapes)
    obstacle = obstacle or _obstacle_in_program(context) or _obstacle_in_operation(numbers)
    if obstacle and implementation == "onednn":
        raise ValueError(f"oneDNN cannot compute {operation}: {obstacle}")
    if obstacle:
        return by_xla(context, *values)
    if mapped:
        return mlir.lower_fun(run.one_by_one(operation), multiple_results=True)(context, *values)
    return jax.ffi.ffi_lowering(onednn.TARGET)(context, *values, operation=np.array(numbers, np.int64))


def _lower_elsewhere(context: mlir.LoweringRuleContext, *values: Any, **params: Any) -> Any:
    return _lower(context, *values, **params, obstacle="the program is not for a CPU")


def _obstacle_in_program(context: mlir.LoweringRuleContext) -> str:
    """Why nothing in this program can be oneDNN's, or an empty string."""
    try:
        module = context.module_context
        around = module.axis_context
        devices = around.num_devices if hasattr(around, "num_devices") else around.mesh.size
        if module.lowering_parameters.for_export:
            return "the program is exported"
        if tuple(module.platforms) != ("cpu",):
            return "the program is not for a CPU alone"
    except AttributeError as error:
        return f"this version of JAX is unknown: {error}"
    if devices != 1:
        return f"the program is for {devices} devices"
    return onednn.library().missing


def _obstacle_in_operation(numbers: tuple[int, ...] | None) -> str:
    if numbers is None:
        return "it has nothing for these shapes and dtypes"
    if not all(isinstance(number, int) for number in numbers):
        return "a size is not known"
    return "" if onednn.supports(numbers) else "it has no implementation for these sizes"


ad.primitive_jvps[_operation_p] = _jvp
ad.primitive_transposes[_operation_p] = _transpose
batching.primitive_batchers[_operation_p] = _batch
mlir.register_lowering(_operation_p, _lower, platform="cpu")
mlir.register_lowering(_operation_p, _lower_elsewhere)


def describe() -> str:
    """Who computes convolutions, PReLU's gradients and large products on one CPU device of this process.

    It starts JAX's backend and loads oneDNN where it is installed.

    Returns:
      "oneDNN 3.2" or the like, else "XLA".
    """
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    version = onednn.library().version if alone else ""
    return f"oneDNN {version}" if version else "XLA"
