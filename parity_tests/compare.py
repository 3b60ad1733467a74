"""Compares a JAX function with a PyTorch function: values, gradients, and the first place where they part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Place:
    """An index, and both values there: JAX's (or the one compared) and the reference's.

    >>> print(Place((2, 0), 1.5, 2.0))
    [2, 0]: 1.5 and 2
    """

    index: tuple[int, ...]
    actual: float
    reference: float

    def __str__(self) -> str:
        return f"{list(self.index)}: {self.actual:.17g} and {self.reference:.17g}"


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one array is from another.

    Args:
      name: which output or gradient.
      dtype: of the reference.
      absolute: the largest absolute difference; infinite where shapes or dtypes differ, or where one side alone is NaN
        or infinite.
      relative: `absolute` divided by the largest magnitude in the reference.
      ulp: `absolute` in units of the distance from that largest magnitude to the next number of its dtype.
      first: the first place, in row-major order, whose difference exceeds the bound; None where none does.
      farthest: the place of the largest difference; None where there is nothing to compare.
      note: what else is wrong, such as shapes that differ.
      nonfinite: at how many places both sides are NaN, or the same infinity. They agree there, and prove little.
    """

    name: str
    dtype: str
    absolute: float
    relative: float
    ulp: float
    first: Place | None = None
    farthest: Place | None = None
    note: str = ""
    nonfinite: int = 0

    def at(self, place: Place | None) -> str:
        """The name, the place and the note, for a message."""
        where = "" if place is None else f" at {place}"
        return f"{self.name}{where}{f' ({self.note})' if self.note else ''}"


def difference(name: str, actual: Any, reference: Any, bound: float = 0.0, largest: float | None = None) -> Difference:
    """How far an array is from a reference of the same shape and dtype.

    Integers may differ in width: JAX's are 32 bits wide by default, PyTorch's 64. For numpy bfloat16 is a
    dtype like another (`jnp.bfloat16`), with ulp of its own: 1 / 128 in [1, 2).

    Args:
      name: what the report calls it.
      actual, reference: arrays. Where both are NaN, or the same infinity, they are equal; `nonfinite` counts them.
      bound: the relative error up to which no place counts as parted.
      largest: what errors are relative to, in place of the largest magnitude in the reference; for an array that is
        zero but for rounding.

    Raises:
      TypeError: complex numbers, whose real and imaginary parts are two arrays.

    >>> difference("x", np.array([1.0, 2.0]), np.array([1.0, 4.0])).relative
    0.5
    """
    actual, reference = np.asarray(actual), np.asarray(reference)
    if np.iscomplexobj(actual) or np.iscomplexobj(reference):
        raise TypeError(f"{name} is complex; compare its real and its imaginary part")
    dtype = str(reference.dtype)
    infinite = functools.partial(Difference, name, dtype, np.inf, np.inf, np.inf)
    if actual.shape != reference.shape:
        return infinite(note=f"shapes {list(actual.shape)} and {list(reference.shape)}")
    floating = _is_floating(reference)
    if floating != _is_floating(actual) or (floating and actual.dtype != reference.dtype):
        return infinite(note=f"dtypes {actual.dtype} and {reference.dtype}")
    if reference.size == 0:
        return Difference(name, dtype, 0.0, 0.0, 0.0)
    a, b = actual.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(a - b))
    errors = np.where(np.isnan(errors), np.inf, errors)
    scale = _largest_magnitude(b) if largest is None else largest
    absolute = float(errors.max())
    spacing = float(np.spacing(reference.dtype.type(scale))) if floating else 1.0

    def place(flat: np.intp) -> Place:
        index = np.unravel_index(flat, errors.shape)
        return Place(tuple(int(i) for i in index), float(a[index]), float(b[index]))

    beyond = errors > bound * scale
    return Difference(
        name,
        dtype,
        absolute,
        absolute / scale if scale > 0 else (np.inf if absolute > 0 else 0.0),
        absolute / spacing,
        place(beyond.argmax()) if beyond.any() else None,
        place(errors.argmax()),
        nonfinite=int((same & ~np.isfinite(b)).sum()),
    )


def _is_floating(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))  # numpy's own does not know bfloat16


def _largest_magnitude(array: Any) -> float:
    values = np.asarray(array, np.float64)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def differences(
    actual: Mapping[str, Any],
    reference: Mapping[str, Any],
    bound: float | None = 0.0,
    vanishing: Sequence[str] = (),
    together: bool = False,
) -> list[Difference]:
    """The differences between arrays of the same names.

    Args:
      actual, reference: arrays by name.
      bound: as in `difference`; None is that of a `Report`.
      vanishing: ends of the names of arrays that are zero in exact arithmetic. What is left of them is rounding, so
        their errors are taken relative to the largest magnitude of all the arrays.
      together: whether the errors of every array are.
    """
    found = []
    whole = max(map(_largest_magnitude, reference.values()), default=0.0)
    for name in dict.fromkeys([*reference, *actual]):
        if name not in actual or name not in reference:
            missing = "JAX" if name not in actual else "PyTorch"
            found.append(Difference(name, "", np.inf, np.inf, np.inf, note=f"{missing} has none"))
            continue
        largest = whole if together or any(name.endswith(end) for end in vanishing) else None
        limit = _bound(str(np.asarray(reference[name]).dtype), bound)
        found.append(difference(name, actual[name], reference[name], limit, largest))
    return found


@dataclasses.dataclass(frozen=True)
class Report:
    """What `compare` found; `print` it.

    Args:
      differences: of each output, then of each gradient.
      bound: the largest relative error at which two arrays still agree; None is 64 times the rounding unit of each
        array's dtype, and 4 times that of bfloat16 and float16.
    """

    differences: tuple[Difference, ...]
    bound: float | None = None

    @property
    def first(self) -> Difference | None:
        """The first output or gradient that does not agree; its `first` is where it parts. None if all agree."""
        return next((d for d in self.differences if not d.relative <= _bound(d.dtype, self.bound)), None)

    @property
    def agrees(self) -> bool:
        """Whether all values and gradients agree."""
        return self.first is None

    @property
    def largest(self) -> Difference:
        """The difference with the largest relative error."""
        return max(self.differences, key=lambda d: d.relative)

    def __str__(self) -> str:
        parted = self.first
        lines = ["They agree." if parted is None else f"They part in {parted.at(parted.first)}."]
        width = max(len(d.name) for d in self.differences)
        for d in self.differences:
            bound = _bound(d.dtype, self.bound)
            verdict = "agrees" if d.relative <= bound else "PARTS"
            if d.nonfinite:
                verdict += f", NaN or infinite on both sides: {d.nonfinite}"
            lines.append(
                f"{d.name:<{width}}  {d.dtype:<8} absolute {d.absolute:<7.2g} relative {d.relative:<7.2g} "
                f"ulp {d.ulp:<7.2g} bound {bound:<7.2g} {verdict}"
            )
        return "\n".join(lines)


def _bound(dtype: str, bound: float | None) -> float:
    if bound is not None:
        return bound
    if "float" not in dtype:
        return 0.0
    numbers = jnp.finfo(dtype)
    return (4 if numbers.bits <= 16 else 64) * float(numbers.eps)  # 64 of bfloat16's are half of the number


def compare(
    jax_function: Callable[..., Any],
    torch_function: Callable[..., Any],
    *inputs: Any,
    argnums: int | Sequence[int] | None = None,
    bound: float | None = None,
    seed: int = 0,
) -> Report:
    """Compares a JAX function with a PyTorch function: values, and gradients with respect to the inputs.

    The gradients are those of the sum of all outputs, each times a random array of its shape, the same on both sides: a
    gradient that is wrong for any one element shows.

    Values that are NaN, or the same infinity, at the same place on both sides agree; the report says how many there
    are. NaN or an infinity on one side is an infinite error.

    bfloat16 is compared as it is, by the float32 number that each of its numbers is. Its ulp are coarse, 1 / 128 in
    [1, 2), and so is its bound: 4 of its rounding units of 1 / 128, since 64 would be half of the number. float16 has 4
    of its units, 1 / 1024, too.

    Args:
      jax_function: takes JAX arrays and gives one, or dicts, lists and tuples of them, nested or not; None stands for
        no array. It is jitted, anew in each call.
      torch_function: takes tensors and gives as many. Of a complex output the real and the imaginary part are compared.
      inputs: numpy arrays (or numbers), the same for both, or dicts, lists and tuples of them, such as parameters by
        name; `array.astype(jnp.bfloat16)` is bfloat16. In float64 where one of them is float64 or complex128: JAX's
        64-bit mode is on for this call alone.
      argnums: the inputs that gradients are taken of, as `jax.grad` counts them; all where None, none where empty. Of
        each, the floating-point arrays are meant: for complex ones the two frameworks' gradients are conjugates.
      bound: the largest relative error (relative to the reference's largest element) at which they still agree; where
        None, 64 times the rounding unit of the dtype (4 times for bfloat16 and float16).
      seed: of the random arrays.

    Returns:
      A `Report`: absolute, relative and ulp errors of each output, then of each gradient, PyTorch's being the
      reference, and the first place where they part. An array in a dict, list or tuple is named by its path,
      `output['w'][0]`.

    Raises:
      ValueError: `argnums` of no input, or of one without a floating-point array; or outputs without a number.

    >>> import jax, torch, numpy as np
    >>> x = np.linspace(-2, 2, 5)
    >>> report = compare(jax.nn.silu, torch.nn.functional.silu, x)
    >>> report.agrees
    True
    >>> print(compare(jax.nn.gelu, torch.nn.functional.gelu, x))  # by default one of them is an approximation
    They part in output at [0]: -0.0454... and -0.0455...
    output      float64  absolute 0.00015 relative 7.8e-05 ulp 6.9e+11 bound 1.4e-14 PARTS
    gradient 0  float64  absolute 0.00093 relative 0.00062 ulp 4.2e+12 bound 1.4e-14 PARTS
    """
    arrays = jax.tree.map(np.asarray, inputs)
    numbers = _argnums(argnums, arrays)
    here = _jax_arrays(_jax_values_and_gradients(jax_function, numbers, seed), arrays)
    there = torch_side(torch_function, arrays, numbers, seed)
    if not any(array.size for side in (here, there) for name, array in side.items() if not _is_gradient(name)):
        raise ValueError("neither function returns a number: there is nothing to compare")
    # what PyTorch has none of would come last
    found = sorted(differences(here, there, bound), key=lambda d: _is_gradient(d.name))
    return Report(tuple(found), bound)


def _argnums(argnums: int | Sequence[int] | None, arrays: Sequence[Any]) -> tuple[int, ...]:
    """Each input that gradients are taken of, counted from the first."""
    if argnums is None:
        return tuple(range(len(arrays)))
    found = []
    for given in [argnums] if isinstance(argnums, int) else argnums:
        if not -len(arrays) <= given < len(arrays):
            raise ValueError(f"argnums has {given}, but there are {len(arrays)} inputs")
        if not any(map(_is_floating, jax.tree.leaves(arrays[given]))):
            raise ValueError(f"argnums has {given}, an input without a floating-point array")
        found.append(given % len(arrays))
    return tuple(dict.fromkeys(found))


def _named(name: str, tree: Any) -> dict[str, Any]:
    """What is in nested dicts, lists and tuples, by its path."""
    if tree is None:
        return {}
    if not isinstance(tree, Mapping | list | tuple):
        return {name: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {path: leaf for key, part in items for path, leaf in _named(f"{name}[{key!r}]", part).items()}


def _outputs(outputs: Any, array: Callable[[Any], Any]) -> dict[str, Any]:
    """The outputs' arrays by name, a complex one as its real and its imaginary part."""
    found: dict[str, Any] = {}
    for name, leaf in _named("output", outputs).items():
        value = array(leaf)
        is_complex = "complex" in str(value.dtype)
        found |= {f"{name}.real": value.real, f"{name}.imag": value.imag} if is_complex else {name: value}
    return found


def _is_gradient(name: str) -> bool:
    return name.startswith("gradient")


def direction(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What an output is multiplied by before its gradient is taken; not all ones, which would hide errors that cancel.

    Drawn from each output's name, so that a missing output on one side does not change the others.
    """
    return np.random.default_rng([seed, *name.encode()]).uniform(0.5, 1.5, shape)


def _jax_values_and_gradients(function: Callable[..., Any], argnums: tuple[int, ...], seed: int) -> Callable[..., Any]:
    def weighted(*inputs: Any) -> tuple[Any, dict[str, Any]]:
        outputs = _outputs(function(*inputs), jnp.asarray)
        # integer outputs have values, but no gradients
        floating = {name: value for name, value in outputs.items() if _is_floating(value)}
        total = sum((jnp.sum(v * jnp.asarray(direction(n, v.shape, seed), v.dtype)) for n, v in floating.items()), 0.0)
        return total, outputs

    def both(*inputs: Any) -> dict[str, Any]:
        if not argnums:
            return weighted(*inputs)[1]
        gradients, results = jax.grad(weighted, argnums, has_aux=True, allow_int=True)(*inputs)
        for number, gradient in zip(argnums, gradients, strict=True):
            named = _named(f"gradient {number}", gradient)
            results |= {name: value for name, value in named.items() if _is_floating(value)}
        return results

    return jax.jit(both)


_compiled = functools.cache(_jax_values_and_gradients)


def _jax_arrays(compiled: Callable[..., Any], inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    wide = any(array.dtype in (np.float64, np.complex128) for array in jax.tree.leaves(inputs))
    with jax.enable_x64(wide):
        return {name: np.asarray(value) for name, value in compiled(*inputs).items()}


def jax_side(
    function: Callable[..., Any], inputs: Sequence[Any], argnums: Sequence[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """A JAX function's outputs and gradients by name, as `compare` takes them; compiled once: it must stay the same."""
    return _jax_arrays(_compiled(function, tuple(argnums), seed), inputs)


def torch_side(
    function: Callable[..., Any], inputs: Sequence[Any], argnums: Sequence[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """A PyTorch function's outputs and gradients by name, as `compare` takes them."""
    tensors = jax.tree.map(_tensor, tuple(inputs))
    chosen = {
        name: leaf.requires_grad_()
        for number in argnums
        for name, leaf in _named(f"gradient {number}", tensors[number]).items()
        if leaf.is_floating_point()
    }
    outputs = _outputs(function(*tensors), torch.as_tensor)
    results = {name: _array(value) for name, value in outputs.items()}
    floating = {name: value for name, value in outputs.items() if value.is_floating_point()}
    directions = {n: torch.tensor(direction(n, tuple(v.shape), seed), dtype=v.dtype) for n, v in floating.items()}
    terms = [(value * directions[name]).sum() for name, value in floating.items() if value.requires_grad]
    if chosen and terms:
        torch.stack(terms).sum().backward()
    for name, leaf in chosen.items():
        # an output that does not depend on an input has the gradient 0 there, as in JAX
        results[name] = _array(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    return results


_BFLOAT16 = np.dtype(jnp.bfloat16)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # PyTorch neither takes nor gives numpy arrays of bfloat16
    return torch.tensor(array.astype(np.float32)).bfloat16() if array.dtype == _BFLOAT16 else torch.tensor(array)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().resolve_neg()  # an imaginary part may be kept with the other sign
    return tensor.float().numpy().astype(_BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
