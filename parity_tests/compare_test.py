import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity_tests.cases import Case
from parity_tests.compare import Place, compare, difference, differences


def arrays():
    """A reference, and what differs from it: a little at [0, 1], much at [1, 0], most at [2, 1]."""
    reference = np.ones((3, 2))
    actual = reference.copy()
    actual[0, 1] += 1e-15
    actual[1, 0] += 1e-3
    actual[2, 1] += 1e-2
    return actual, reference


def test_the_first_place_beyond_the_bound_and_the_farthest():
    found = difference("x", *arrays(), bound=1e-12)
    assert found.first == Place((1, 0), 1.001, 1.0)
    assert found.farthest == Place((2, 1), 1.01, 1.0)
    assert difference("x", *arrays(), bound=0.1).first is None


def test_a_missed_case_names_the_farthest_place():
    case = Case("x", "margins", "float64", 1e-12, lambda: [difference("small", 0.0, 1e-16), difference("y", *arrays())])
    with pytest.raises(AssertionError, match=r"farthest: small"):
        case.check()
    case = Case("x", "margins", "float64", 1e-12, lambda: [difference("y", *arrays())])
    with pytest.raises(AssertionError, match=r"farthest: y at \[2, 1\]: 1\.01 and 1$"):
        case.check()


def test_a_report_names_the_first_place_beyond_its_bound():
    actual, reference = arrays()
    report = compare(
        lambda x: x * jnp.asarray(actual), lambda x: x * torch.tensor(reference), np.ones((3, 2)), bound=1e-12
    )
    assert not report.agrees
    assert str(report).startswith("They part in output at [1, 0]: 1.00")


def test_nothing_is_farthest_where_shapes_differ():
    found = difference("x", np.ones(2), np.ones(3))
    assert found.absolute == np.inf
    assert found.at(found.farthest) == "x (shapes [2] and [3])"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_on_both_sides_agrees_and_is_told(value):
    x = np.array([2.0, value, 3.0, value])
    report = compare(lambda x: x, lambda x: x, x, argnums=())
    assert report.agrees
    assert report.differences[0].nonfinite == 2
    assert str(report).endswith("agrees, NaN or infinite on both sides: 2")
    assert "NaN" not in str(compare(lambda x: x, lambda x: x, x[::2]))


@pytest.mark.parametrize(("here", "there"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf), (np.nan, np.inf)])
def test_what_is_not_finite_on_one_side_parts(here, there):
    found = difference("x", np.array([2.0, here]), np.array([2.0, there]))
    assert (found.absolute, found.first.index, found.nonfinite) == (np.inf, (1,), 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("unit", ["relative", "ulp", "exact"])
def test_a_case_whose_reference_is_not_finite_is_missed(value, unit):
    x = np.array([2.0, value, value])
    # beside another that agrees, before and after it
    arrays = (np.ones(2), x, np.ones(2))
    case = Case("x", "margins", "float64", 64.0, lambda: [difference("y", a, a) for a in arrays], unit)
    assert case.result.error == np.inf
    with pytest.raises(AssertionError, match=r"farthest: y \(2 values are NaN or infinite on both sides\)$"):
        case.check()


def test_errors_relative_to_all_arrays_are_not_hidden_by_a_nan():
    reference = {"a": np.array([np.nan, 4.0]), "b": np.array([0.0])}
    found = differences(reference | {"b": np.array([1.0])}, reference, together=True)
    assert [(d.relative, d.nonfinite) for d in found] == [(0, 1), (0.25, 0)]


def test_bfloat16_is_compared_as_bfloat16():
    x = np.linspace(-2, 2, 9).astype(jnp.bfloat16)
    report = compare(jax.nn.silu, torch.nn.functional.silu, x)
    assert [(d.name, d.dtype) for d in report.differences] == [("output", "bfloat16"), ("gradient 0", "bfloat16")]
    assert report.agrees
    # an input in float32 is an output in bfloat16, too
    mixed = compare(lambda x: x.astype(jnp.bfloat16), lambda x: x.bfloat16(), np.float32([1.0, 1.01]))
    assert [(d.dtype, d.absolute) for d in mixed.differences] == [("bfloat16", 0), ("float32", 0)]


def test_ulp_and_bound_of_bfloat16_are_its_own():
    x = np.float32([1.5, -0.5])
    steps = compare(lambda x: x.astype(jnp.bfloat16), lambda x: x.bfloat16() + 2 / 128, x, argnums=())
    assert (steps.differences[0].ulp, steps.differences[0].absolute) == (2, 2 / 128)
    assert steps.agrees
    assert not compare(lambda x: x.astype(jnp.bfloat16), lambda x: x.bfloat16() * 1.05, x, argnums=()).agrees


def test_float16_may_differ_by_four_of_its_units():
    x = np.float16([1.0, -0.5])
    for times, agrees in ((1 + 4 / 1024, True), (1 + 5 / 1024, False)):
        assert compare(lambda x, t=times: x * np.float16(t), lambda x: x * 1, x, argnums=()).agrees == agrees


def test_bfloat16_on_one_side_alone_is_told():
    report = compare(lambda x: x, lambda x: x.bfloat16(), np.float32([1.0]), argnums=())
    assert str(report).startswith("They part in output (dtypes float32 and bfloat16)")


X = np.linspace(-2, 2, 5)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_outputs_are_compared_by_both_parts(dtype):
    z = (X + 1j).astype(dtype)
    report = compare(lambda z: z, torch.conj, z)
    assert [(d.name, d.absolute) for d in report.differences] == [("output.real", 0), ("output.imag", 2)]
    assert compare(jnp.conj, torch.conj, z).agrees
    # with the gradient of a real input
    assert compare(jnp.fft.fft, torch.fft.fft, X).agrees
    parted = compare(lambda x: jnp.conj(jnp.fft.fft(x)), torch.fft.fft, X)
    assert [d.name for d in parted.differences if d.relative > 0.1] == ["output.imag", "gradient 0"]


def test_complex_arrays_are_no_difference():
    with pytest.raises(TypeError, match=r"^x is complex; compare its real and its imaginary part$"):
        difference("x", np.array([1 + 1j]), np.array([1 - 1j]))


class Times:
    """A callable with a state, and without a hash."""

    __hash__ = None

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def test_a_function_is_asked_anew_each_time():
    here = Times(1.0)
    assert compare(here, Times(1.0), X).agrees
    here.factor = 2.0
    assert compare(here, Times(2.0), X).agrees
    assert not compare(here, Times(1.0), X).agrees


def test_what_is_nested_is_named_by_its_path():
    parameters = {"layer": [X, {"bias": 2 * X}], "steps": np.arange(5)}

    def nested(p, x):
        a, b = p["layer"][0], p["layer"][1]["bias"]
        return {"sum": (a * b, [a + x, None]), "of": p["steps"]}

    report = compare(nested, nested, parameters, X)
    assert report.agrees
    outputs = ["output['sum'][0]", "output['sum'][1][0]", "output['of']"]
    gradients = ["gradient 0['layer'][0]", "gradient 0['layer'][1]['bias']", "gradient 1"]
    assert [d.name for d in report.differences] == outputs + gradients
    wrong = compare(nested, lambda p, x: nested(p | {"layer": [p["layer"][0], {"bias": x}]}, x), parameters, X)
    assert wrong.first.name == "output['sum'][0]"
    assert [d.name for d in wrong.differences if not d.relative < 1e-12][1:] == gradients


@pytest.mark.parametrize(
    ("argnums", "gradients"),
    [(None, [0, 1]), (0, [0]), (1, [1]), (-2, [1]), ((-3, 1), [0, 1]), ((1, 0), [1, 0]), ((), [])],
)
def test_argnums_are_those_of_jax(argnums, gradients):
    report = compare(lambda x, y, n: x * y * n, lambda x, y, n: x * y * n, X, X + 3, np.int64(2), argnums=argnums)
    assert report.agrees
    assert [d.name for d in report.differences] == ["output", *(f"gradient {n}" for n in gradients)]


@pytest.mark.parametrize(
    ("argnums", "said"),
    [(2, "there are 2 inputs"), ((0, -3), "there are 2 inputs"), (1, "without a floating-point array")],
)
def test_argnums_of_nothing_are_refused(argnums, said):
    with pytest.raises(ValueError, match=said):
        compare(lambda x, n: x * n, lambda x, n: x * n, X, np.int64(2), argnums=argnums)


@pytest.mark.parametrize("nothing", [lambda x: {}, lambda x: None, lambda x: (), lambda x: x[:0]])
def test_outputs_without_a_number_are_refused(nothing):
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(nothing, nothing, X)


@pytest.mark.parametrize(("here", "there", "side"), [("ab", "a", "PyTorch"), ("a", "ab", "JAX")])
def test_a_missing_output_is_told_before_the_gradients(here, there, side):
    report = compare(lambda x: dict.fromkeys(here, x), lambda x: dict.fromkeys(there, x), X)
    assert [d.name for d in report.differences] == ["output['a']", "output['b']", "gradient 0"]
    assert str(report).startswith(f"They part in output['b'] ({side} has none).")
