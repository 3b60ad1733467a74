"""From a JAX function to an ONNX graph: what JAX traces, one rule for each primitive.

Networks compute in NHWC, ONNX in NCHW. So a value carries the order in which its axes lie in the graph: a transposition
only changes that order, element by element operations keep it, and a `Transpose` is written only where an operation
needs another one. A network of convolutions has one, of the images. What depends on weights alone is computed here.
"""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, Var
from onnx import TensorProto, helper, numpy_helper

from jax_arcface.cpu.operations import Run
from jax_arcface.errors import UserError

OPSET = 18
_IR_VERSION = 8  # the one that came with this opset

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Node:
    """A value that the graph computes: axis i of the tensor `name` is axis `order[i]` in JAX.

    `shape`, in JAX's order, may have 1 where JAX has more: it is broadcast where it is used.
    """

    name: str
    order: Axes
    shape: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Known:
    """A value that does not depend on the graph's input, in JAX's order; `name` where it is a weight."""

    array: np.ndarray
    name: str = ""


_Value = _Node | _Known


def to_onnx(
    function: Callable[[dict[str, Any], Array], Array],
    weights: Mapping[str, np.ndarray],
    image_shape: Sequence[int],
    *,
    input_name: str = "images",
    output_name: str = "embeddings",
    dtype: np.dtype | type = np.uint8,
) -> onnx.ModelProto:
    """The ONNX model of a function of images, in opset 18, for any number of images.

    What the function computes in bfloat16 the model computes in float32.

    Args:
      function: from weights by name and images [N, *image_shape] to results [N, ...].
      weights: its weights, which keep their names in the model; a kernel [H, W, in, out] comes as [out, in, H, W].
      image_shape: of one image.
      input_name, output_name: the names of images and results in the model.
      dtype: of the images.

    Raises:
      UserError: an operation that is not known here.

    >>> model = to_onnx(lambda weights, x: x @ weights["w"], {"w": np.eye(3, dtype=np.float32)}, (3,), dtype=np.float32)
    >>> [node.op_type for node in model.graph.node], [weight.name for weight in model.graph.initializer]
    (['MatMul'], ['w'])
    """
    (batch,) = jax.export.symbolic_shape("N")
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    traced = jax.make_jaxpr(function)(shapes, images)
    names = [*sorted(weights)]  # as JAX flattens a dictionary
    graph = _Graph(input_name, batch)
    (result,) = graph.run(
        traced,
        [
            *(_Known(np.asarray(weights[name]), name) for name in names),
            _Node(input_name, tuple(range(images.ndim)), images.shape),
        ],
    )
    (aval,) = traced.out_avals
    last = graph.physical(graph.full(result, aval.shape), tuple(range(aval.ndim)))
    graph.rename(last, output_name)
    described = helper.make_graph(
        graph.nodes,
        "model",
        [helper.make_tensor_value_info(input_name, _element(dtype), ["N", *image_shape])],
        [helper.make_tensor_value_info(output_name, _element(aval.dtype), ["N", *map(int, aval.shape[1:])])],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    return helper.make_model(described, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


class _Graph:
    """The nodes and the constants written so far."""

    def __init__(self, input_name: str, batch: Any):
        self.input_name, self.batch = input_name, batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._named: dict[Any, str] = {}

    def run(self, closed: ClosedJaxpr, values: Sequence[_Value]) -> list[_Value]:
        """The results of a traced function for these arguments."""
        found: dict[Var, _Value] = dict(zip(closed.jaxpr.invars, values, strict=True))
        found |= {var: _Known(np.asarray(c)) for var, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}

        def read(atom: Any) -> _Value:
            if isinstance(atom, Literal):
                return _Known(np.asarray(atom.val, atom.aval.dtype))  # type: ignore[attr-defined]
            return found[atom]

        for equation in closed.jaxpr.eqns:
            arguments = [read(atom) for atom in equation.invars]
            for var, value in zip(equation.outvars, self.apply(equation, arguments), strict=True):
                found[var] = value
        return [read(atom) for atom in closed.jaxpr.outvars]

    def apply(self, equation: Any, values: list[_Value]) -> list[_Value]:
        """The results of one operation."""
        name, params = equation.primitive.name, equation.params
        if name == "dim_as_value":
            raise UserError("the network computes with the number of images, which is not known in a file")
        if name == "platform_index":
            return [_Known(np.zeros((), np.int32))]
        if all(isinstance(value, _Known) for value in values) and _is_static(equation):
            with jax.ensure_compile_time_eval():
                results = equation.primitive.bind(*(value.array for value in values), **params)  # type: ignore[union-attr]
            return [_Known(np.asarray(r)) for r in (results if equation.primitive.multiple_results else [results])]
        if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"):
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])
            rule = _FUNCTIONS.get(_defined(inner.jaxpr.debug_info)) if name == "custom_jvp_call" else None
            return [rule(self, equation, *values)] if rule else self.run(inner, values)
        if name == "cond" and (platforms := params.get("branches_platforms")):
            return self.run(params["branches"][platforms.index(None)], values[1:])  # the one for every other platform
        if name == "jax_arcface_operation":
            function = Run("xla", params["mapped"]).by_xla(params["operation"])
            return self.run(jax.make_jaxpr(function)(*(atom.aval for atom in equation.invars)), values)
        if name not in _RULES:
            raise UserError(f"the network computes {name}, which cannot be written as ONNX yet")
        return [_RULES[name](self, equation, *values)]

    # ---- writing

    def write(self, kind: str, inputs: Sequence[str], order: Axes, shape: Sequence[Any], **attributes: Any) -> _Node:
        """Writes a node, and gives its value: the order of its axes, and its shape in JAX's order."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return _Node(name, order, tuple(shape))

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """The name of a constant, which is written once."""
        array = np.asarray(array, np.float32 if array.dtype.name == "bfloat16" else None, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._named:
            while not name or name in self.constants:
                name = f"constant_{len(self.constants)}" if not name else f"{name}_"
            self.constants[name], self._named[key] = array, name
        return self._named[key]

    def integers(self, *numbers: int) -> str:
        """The name of a list of integers."""
        return self.constant(np.array(numbers, np.int64))

    def physical(self, value: _Value, order: Axes) -> str:
        """The name of a tensor with a value's axes in this order."""
        if isinstance(value, _Known):
            return self.constant(value.array.transpose(order), value.name)
        if value.order == order:
            return value.name
        axes = [value.order.index(axis) for axis in order]
        return self.write("Transpose", [value.name], order, value.shape, perm=axes).name

    def full(self, value: _Value, shape: Sequence[Any]) -> _Value:
        """A value that has its whole shape in the graph."""
        if _shape_of(value) == tuple(shape):
            return value
        if isinstance(value, _Known) and _static(shape):
            return _Known(np.broadcast_to(value.array, shape))
        return self._expanded(value, shape)

    def _expanded(self, value: _Value, shape: Sequence[Any]) -> _Node:
        order = value.order if isinstance(value, _Node) else tuple(range(value.array.ndim))
        sizes = [shape[axis] for axis in order]
        if any(not isinstance(size, int) and size is not self.batch and size != self.batch for size in sizes):
            raise UserError("the network has an array whose size depends on the number of images in another way")
        whole = self.write("Shape", [self.input_name], (0,), (1,), start=0, end=1).name
        parts = [self.integers(size) if isinstance(size, int) else whole for size in sizes]
        target = self.write("Concat", parts, (0,), (len(parts),), axis=0).name
        return self.write("Expand", [self.physical(value, order), target], order, shape)

    def rename(self, name: str, new: str) -> None:
        """Gives what the graph computes last another name."""
        if not any(name in node.output for node in self.nodes):
            name = self.write("Identity", [name], (), ()).name
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if old == name else old for old in names]


def _static(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _is_static(equation: Any) -> bool:
    return all(_static(var.aval.shape) for var in (*equation.invars, *equation.outvars))


def _element(dtype: Any) -> int:
    name = np.dtype(dtype).name
    return TensorProto.FLOAT if name == "bfloat16" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# ---- the rules: from the graph, the operation and its arguments to its result

_Rule = Callable[..., _Value]


def _common_order(values: Sequence[_Value], rank: int) -> Axes:
    """The order of the first value of this rank that the graph computes."""
    found = [v.order for v in values if isinstance(v, _Node) and len(v.order) == rank]
    return found[0] if found else tuple(range(rank))


def _shape_of(value: _Value) -> tuple[Any, ...]:
    return value.shape if isinstance(value, _Node) else value.array.shape


def _broadcast(values: Sequence[_Value], rank: int) -> tuple[Any, ...]:
    """The shape that values of one rank, or scalars, have together."""
    shapes = [(1,) * (rank - len(_shape_of(value))) + _shape_of(value) for value in values]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True))


def _each(kind: str) -> _Rule:
    """An operation element by element that ONNX has under this name."""

    def rule(graph: _Graph, equation: Any, *values: _Value) -> _Node:
        return _elementwise(graph, kind, values, equation.outvars[0].aval.ndim)

    return rule


def _elementwise(graph: _Graph, kind: str, values: Sequence[_Value], rank: int, **attributes: Any) -> _Node:
    order = _common_order(values, rank)
    names = [graph.physical(value, order if len(_shape_of(value)) == rank else ()) for value in values]
    return graph.write(kind, names, order, _broadcast(values, rank), **attributes)


def _chain(*steps: tuple[str, float | None]) -> _Rule:
    """Several element by element operations: each takes the last result, and a number where there is one."""

    def rule(graph: _Graph, equation: Any, value: _Value) -> _Value:
        rank = equation.outvars[0].aval.ndim
        for kind, number in steps:
            arguments = [value] if number is None else [value, _Known(np.array(number, equation.invars[0].aval.dtype))]
            value = _elementwise(graph, kind, arguments, rank)
        return value

    return rule


def _logical(kind: str) -> _Rule:
    """An operation on truth values; ONNX has none of that name on the bits of numbers."""

    def rule(graph: _Graph, equation: Any, *values: _Value) -> _Node:
        if equation.invars[0].aval.dtype != np.bool_:
            raise UserError("the network computes with the bits of numbers, which cannot be written as ONNX yet")
        return _elementwise(graph, kind, values, equation.outvars[0].aval.ndim)

    return rule


def _subtract(graph: _Graph, equation: Any, a: _Value, b: _Value) -> _Value:
    # runtimes merge a sum into the convolution before it, but not a difference
    is_known = isinstance(b, _Known) and b.array.dtype.kind == "f"
    kind, b = ("Add", _Known(-b.array)) if is_known else ("Sub", b)  # type: ignore[union-attr]
    return _elementwise(graph, kind, [a, b], equation.outvars[0].aval.ndim)


def _erfc(graph: _Graph, equation: Any, value: _Value) -> _Value:
    rank, one = equation.outvars[0].aval.ndim, _Known(np.ones((), equation.invars[0].aval.dtype))
    return _elementwise(graph, "Sub", [one, _elementwise(graph, "Erf", [value], rank)], rank)


def _not_equal(graph: _Graph, equation: Any, a: _Value, b: _Value) -> _Value:
    rank = equation.outvars[0].aval.ndim
    return _elementwise(graph, "Not", [_elementwise(graph, "Equal", [a, b], rank)], rank)


def _power(graph: _Graph, equation: Any, value: _Value) -> _Value:
    exponent = _Known(np.array(equation.params["y"], equation.invars[0].aval.dtype))
    return _elementwise(graph, "Pow", [value, exponent], equation.outvars[0].aval.ndim)


def _square(graph: _Graph, equation: Any, value: _Value) -> _Value:
    return _elementwise(graph, "Mul", [value, value], equation.outvars[0].aval.ndim)


def _bound(kind: str, place: int) -> _Rule:
    """A maximum or minimum; with a number it is a `Relu` or a `Clip`, which runtimes merge into a convolution."""

    def rule(graph: _Graph, equation: Any, a: _Value, b: _Value) -> _Value:
        rank = equation.outvars[0].aval.ndim
        is_number = isinstance(b, _Known) and b.array.ndim == 0 and isinstance(a, _Node)
        if is_number and equation.invars[0].aval.dtype == np.float32:
            if kind == "Max" and b.array == 0:  # type: ignore[union-attr]
                return _elementwise(graph, "Relu", [a], rank)
            names = [graph.physical(a, a.order), *[""] * place, graph.physical(b, ())]  # type: ignore[union-attr]
            return graph.write("Clip", names, a.order, a.shape)  # type: ignore[union-attr]
        return _elementwise(graph, kind, [a, b], rank)

    return rule


def _clamp(graph: _Graph, equation: Any, low: _Value, value: _Value, high: _Value) -> _Value:
    rank = equation.outvars[0].aval.ndim
    return _elementwise(graph, "Min", [_elementwise(graph, "Max", [value, low], rank), high], rank)


def _select(graph: _Graph, equation: Any, chosen: _Value, *cases: _Value) -> _Value:
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise UserError("the network selects among more than two values, which cannot be written as ONNX yet")
    return _elementwise(graph, "Where", [chosen, cases[1], cases[0]], equation.outvars[0].aval.ndim)


def _convert(graph: _Graph, equation: Any, value: _Value) -> _Value:
    before, after = (_element(dtype) for dtype in (equation.invars[0].aval.dtype, equation.params["new_dtype"]))
    if before == after:
        return value
    return _elementwise(graph, "Cast", [value], equation.outvars[0].aval.ndim, to=after)


def _same(graph: _Graph, equation: Any, value: _Value) -> _Value:
    return value


def _transpose(graph: _Graph, equation: Any, value: _Value) -> _Value:
    axes = equation.params["permutation"]
    assert isinstance(value, _Node)
    return _Node(value.name, tuple(axes.index(axis) for axis in value.order), tuple(value.shape[a] for a in axes))


def _reshape(graph: _Graph, equation: Any, value: _Value) -> _Value:
    value, shape = graph.full(value, equation.invars[0].aval.shape), equation.outvars[0].aval.shape
    return _reshaped(graph, value, shape)


def _reshaped(graph: _Graph, value: _Value, shape: Sequence[Any]) -> _Node:
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        raise UserError("the network has an array with two sizes that depend on the number of images")
    name = graph.physical(value, tuple(range(len(_shape_of(value)))))
    return graph.write("Reshape", [name, graph.integers(*sizes)], tuple(range(len(shape))), shape)


def _broadcast_in_dim(graph: _Graph, equation: Any, value: _Value, *_: _Value) -> _Value:
    """Its axes are put in place, and the new ones have size 1 until a whole array is needed."""
    axes, shape = equation.params["broadcast_dimensions"], equation.outvars[0].aval.shape
    sizes = [1] * len(shape)
    for axis, size in zip(axes, _shape_of(value), strict=True):
        sizes[axis] = size
    if isinstance(value, _Known):
        return _Known(value.array.reshape(sizes), value.name)
    if len(axes) == len(shape):
        return value
    return _reshaped(graph, value, sizes)


def _squeeze(graph: _Graph, equation: Any, value: _Value) -> _Value:
    return _reshape(graph, equation, value)


def _reduce(kind: str) -> _Rule:
    def rule(graph: _Graph, equation: Any, value: _Value) -> _Value:
        axes = equation.params["axes"]
        value = graph.full(value, equation.invars[0].aval.shape)
        assert isinstance(value, _Node)
        left = [axis for axis in value.order if axis not in axes]
        order = tuple(sorted(left).index(axis) for axis in left)
        places = graph.integers(*(place for place, axis in enumerate(value.order) if axis in axes))
        return graph.write(kind, [value.name, places], order, equation.outvars[0].aval.shape, keepdims=0)

    return rule


def _argmax(graph: _Graph, equation: Any, value: _Value) -> _Value:
    (axis,) = equation.params["axes"]
    value = graph.full(value, equation.invars[0].aval.shape)
    name = graph.physical(value, tuple(range(len(_shape_of(value)))))
    shape = equation.outvars[0].aval.shape
    found = graph.write("ArgMax", [name], tuple(range(len(shape))), shape, axis=axis, keepdims=0)
    to = _element(equation.params["index_dtype"])
    return graph.write("Cast", [found.name], found.order, shape, to=to)


def _concatenate(graph: _Graph, equation: Any, *values: _Value) -> _Value:
    values = tuple(graph.full(v, atom.aval.shape) for v, atom in zip(values, equation.invars, strict=True))
    aval, axis = equation.outvars[0].aval, equation.params["dimension"]
    order = _common_order(values, aval.ndim)
    names = [graph.physical(value, order) for value in values]
    return graph.write("Concat", names, order, aval.shape, axis=order.index(axis))


def _pad(graph: _Graph, equation: Any, value: _Value, filled: _Value) -> _Value:
    value = graph.full(value, equation.invars[0].aval.shape)
    config = equation.params["padding_config"]
    assert isinstance(value, _Node)
    if any(inside != 0 or before < 0 or after < 0 for before, after, inside in config):
        raise UserError("the network pads inside an array or by less than nothing, which cannot be written as ONNX yet")
    pads = [config[axis][side] for side in (0, 1) for axis in value.order]
    names = [value.name, graph.integers(*pads), graph.physical(filled, ())]
    return graph.write("Pad", names, value.order, equation.outvars[0].aval.shape)


def _slice(graph: _Graph, equation: Any, value: _Value) -> _Value:
    params, before, after = equation.params, equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    value, steps = graph.full(value, before), params["strides"] or (1,) * len(before)
    for axis, (start, limit, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    ):
        if before[axis] != after[axis]:
            value = _sliced(graph, value, axis, start, limit, step, after[axis])
    return value


def _sliced(graph: _Graph, value: _Value, axis: int, start: int, limit: int, step: int, size: int) -> _Node:
    assert isinstance(value, _Node)
    shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
    bounds = [graph.integers(number) for number in (start, limit, value.order.index(axis), step)]
    return graph.write("Slice", [value.name, *bounds], value.order, shape)


def _gather(graph: _Graph, equation: Any, value: _Value, index: _Value) -> _Value:
    """Known places along some axes: one place or a range, as `x[:, 0, :3]` has them; a grid, as `x[:, ::2, ::2]`."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    aval, result = equation.invars[0].aval, equation.outvars[0].aval
    axes, collapsed = tuple(numbers.start_index_map), tuple(numbers.collapsed_slice_dims)
    others = [axis for axis in range(aval.ndim) if axis not in axes]
    whole = not numbers.operand_batching_dims and all(sizes[axis] == aval.shape[axis] for axis in others)
    value = graph.full(value, aval.shape)
    if whole and isinstance(index, _Known) and index.array.ndim == 1:
        for start, axis in zip(index.array.tolist(), axes, strict=True):
            value = _sliced(graph, value, axis, start, start + sizes[axis], 1, sizes[axis])
        return _reshaped(graph, value, result.shape) if collapsed else value
    is_grid = collapsed == axes and [*numbers.offset_dims] == others
    if whole and isinstance(index, _Known) and is_grid and index.array.ndim == len(axes) + 1:
        for number, axis in enumerate(axes):
            places = np.moveaxis(index.array[..., number], number, 0).reshape(index.array.shape[number], -1)
            is_grid &= bool((places == places[:, :1]).all())
            value = _taken(graph, value, axis, places[:, 0].astype(np.int64))
        if is_grid:
            return value
    raise UserError("the network takes elements of an array by numbers, which cannot be written as ONNX yet")


def _taken(graph: _Graph, value: _Value, axis: int, places: np.ndarray) -> _Node:
    """The elements at these places along an axis."""
    assert isinstance(value, _Node)
    steps = np.diff(places)
    if len(places) > 1 and steps[0] > 0 and (steps == steps[0]).all():
        return _sliced(graph, value, axis, int(places[0]), int(places[-1]) + 1, int(steps[0]), len(places))
    shape = (*value.shape[:axis], len(places), *value.shape[axis + 1 :])
    return graph.write("Gather", [value.name, graph.constant(places)], value.order, shape, axis=value.order.index(axis))


def _dot(graph: _Graph, equation: Any, a: _Value, b: _Value) -> _Value:
    (inner_a, inner_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    avals, result = [atom.aval for atom in equation.invars], equation.outvars[0].aval
    a, b = (graph.full(value, aval.shape) for value, aval in zip((a, b), avals, strict=True))
    order = tuple(range(result.ndim))
    if avals[0].ndim == avals[1].ndim == 2 and len(inner_a) == 1 and not batch_a:
        names = [graph.physical(a, (1 - inner_a[0], inner_a[0])), graph.physical(b, (inner_b[0], 1 - inner_b[0]))]
        return graph.write("MatMul", names, order, result.shape)
    letters = iter(string.ascii_lowercase)
    of_a, of_b = [""] * avals[0].ndim, [""] * avals[1].ndim
    for axis_a, axis_b in [*zip(batch_a, batch_b, strict=True), *zip(inner_a, inner_b, strict=True)]:
        of_a[axis_a] = of_b[axis_b] = next(letters)
    of_a, of_b = ([letter or next(letters) for letter in of] for of in (of_a, of_b))
    free_a = [of_a[axis] for axis in range(len(of_a)) if axis not in (*inner_a, *batch_a)]
    free_b = [of_b[axis] for axis in range(len(of_b)) if axis not in (*inner_b, *batch_b)]
    of_result = [of_a[axis] for axis in batch_a] + free_a + free_b
    names = [graph.physical(value, tuple(range(aval.ndim))) for value, aval in zip((a, b), avals, strict=True)]
    letters_of = f"{''.join(of_a)},{''.join(of_b)}->{''.join(of_result)}"
    return graph.write("Einsum", names, order, result.shape, equation=letters_of)


def _convolution(graph: _Graph, equation: Any, images: _Value, kernel: _Value) -> _Value:
    params = equation.params
    if {*params["lhs_dilation"]} != {1} or params["batch_group_count"] != 1:
        raise UserError("the network has a transposed convolution, which cannot be written as ONNX yet")
    numbers, padding = params["dimension_numbers"], params["padding"]
    images = graph.full(images, equation.invars[0].aval.shape)
    names = [graph.physical(images, tuple(numbers.lhs_spec)), graph.physical(kernel, tuple(numbers.rhs_spec))]
    return graph.write(
        "Conv",
        names,
        tuple(numbers.out_spec),
        equation.outvars[0].aval.shape,
        kernel_shape=[equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        pads=[pair[side] for side in (0, 1) for pair in padding],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )


def _window(kind: str) -> _Rule:
    """The maximum or the sum of windows, as Flax's `max_pool` and `avg_pool` have them."""

    def rule(graph: _Graph, equation: Any, value: _Value) -> _Value:
        params, shape = equation.params, equation.outvars[0].aval.shape
        window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
        inside = [axis for axis, size in enumerate(window) if size != 1 or strides[axis] != 1]
        outside = [axis for axis in range(len(window)) if axis not in inside]
        dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
        if len(inside) != len(window) - 2 or any(padding[axis] != (0, 0) for axis in outside) or dilated:
            raise UserError("the network has windows over other axes than rows and columns")
        order = (*outside, *inside)
        attributes: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
        name = graph.physical(graph.full(value, equation.invars[0].aval.shape), order)
        found: _Value = graph.write(
            kind,
            [name],
            order,
            shape,
            kernel_shape=[window[axis] for axis in inside],
            strides=[strides[axis] for axis in inside],
            pads=[padding[axis][side] for side in (0, 1) for axis in inside],
            **attributes,
        )
        if kind == "AveragePool":
            size = _Known(np.array(math.prod(window), equation.invars[0].aval.dtype))
            found = _elementwise(graph, "Mul", [found, size], len(shape))
        return found

    return rule


_RULES: dict[str, _Rule] = {
    "abs": _each("Abs"),
    "add": _each("Add"),
    "add_any": _each("Add"),
    "and": _logical("And"),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "ceil": _each("Ceil"),
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "copy": _same,
    "cos": _each("Cos"),
    "div": _each("Div"),
    "dot_general": _dot,
    "eq": _each("Equal"),
    "erf": _each("Erf"),
    "erfc": _erfc,
    "exp": _each("Exp"),
    "expm1": _chain(("Exp", None), ("Sub", 1.0)),
    "floor": _each("Floor"),
    "gather": _gather,
    "ge": _each("GreaterOrEqual"),
    "gt": _each("Greater"),
    "integer_pow": _power,
    "le": _each("LessOrEqual"),
    "log": _each("Log"),
    "log1p": _chain(("Add", 1.0), ("Log", None)),
    "logistic": _each("Sigmoid"),
    "lt": _each("Less"),
    "max": _bound("Max", 0),
    "min": _bound("Min", 1),
    "mul": _each("Mul"),
    "ne": _not_equal,
    "neg": _each("Neg"),
    "not": _logical("Not"),
    "optimization_barrier": _same,
    "or": _logical("Or"),
    "pad": _pad,
    "pow": _each("Pow"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_precision": _same,
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _window("MaxPool"),
    "reduce_window_sum": _window("AveragePool"),
    "reshape": _reshape,
    "rsqrt": _chain(("Sqrt", None), ("Reciprocal", None)),
    "select_n": _select,
    "sign": _each("Sign"),
    "sin": _each("Sin"),
    "slice": _slice,
    "sqrt": _each("Sqrt"),
    "square": _square,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "sub": _subtract,
    "tanh": _each("Tanh"),
    "transpose": _transpose,
}


# ---- functions with a derivative of their own, which stand in the trace by name: one node instead of their equations


def _prelu(graph: _Graph, equation: Any, x: _Value, slope: _Value) -> _Value:
    rank = equation.outvars[0].aval.ndim
    assert isinstance(slope, _Known)
    return _elementwise(graph, "PRelu", [x, _Known(slope.array.reshape((1,) * (rank - 1) + (-1,)))], rank)


def _max_pool(graph: _Graph, equation: Any, x: _Value) -> _Value:
    order, shape = (0, 3, 1, 2), equation.outvars[0].aval.shape
    name = graph.physical(graph.full(x, equation.invars[0].aval.shape), order)
    return graph.write("MaxPool", [name], order, shape, kernel_shape=[2, 2], strides=[2, 2])


def _relu(graph: _Graph, equation: Any, x: _Value) -> _Value:
    return _elementwise(graph, "Relu", [x], equation.outvars[0].aval.ndim)


# By name and file, since others may have a function of the same name.
_FUNCTIONS: dict[tuple[str, str], _Rule] = {
    ("_prelu", "jax_arcface/cpu/prelu.py"): _prelu,
    ("max_pool", "jax_arcface/models/layers.py"): _max_pool,
    ("relu", "jax/_src/nn/functions.py"): _relu,
}


def _defined(info: Any) -> tuple[str, str]:
    """A traced function's name, and the file of `_FUNCTIONS` that it is defined in, if it is one."""
    path = str(info.func_filename).replace("\\", "/")
    return info.func_name, next((file for _, file in _FUNCTIONS if path.endswith(f"/{file}")), "")
