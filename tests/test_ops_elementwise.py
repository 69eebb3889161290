"""Elementwise operations and comparisons: dtypes, promotion, errors, special values, in place."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentTypeError, DtypeError, GradError, ShapeError

KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
         "float64", "complex64", "complex128")  # fmt: skip
SHAPES = (((3, 4), (4,)), ((3,), ()), ((), (3,)))
UNARY = """abs acos acosh angle asin asinh atan atanh bitwise_not ceil conj cos cosh deg2rad digamma
    erf erfc erfinv exp exp2 expm1 fix floor frac frexp imag isfinite isinf isnan isneginf isposinf
    isreal lgamma log log10 log1p log2 logical_not logit nan_to_num neg positive rad2deg real
    reciprocal round rsqrt sgn sigmoid sign signbit sin sinc sinh sqrt square tan tanh
    trunc""".split()  # noqa: SIM905
BINARY = """add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor
    copysign div eq float_power floor_divide fmax fmin fmod gcd ge gt heaviside hypot lcm le
    logical_and logical_or logical_xor lt maximum minimum mul ne nextafter pow remainder
    xlogy""".split()  # noqa: SIM905
# PyTorch has complex32 and logaddexp of complex numbers; it computes (1+2j) / bfloat16 in bfloat16.
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5, "complex64": 2e-5}


def drawn(torch, kind, shape, seed):
    """Return a tensor of torch with values in (0.1, 0.9), or integers from 1 to 4."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "bool":
        return x > 0.5
    if "int" in kind:
        return (x * 4 + 1).to(getattr(torch, kind))
    if "complex" in kind:
        return torch.complex(x, x * 0.5).to(getattr(torch, kind))
    return (x * 0.8 + 0.1).to(getattr(torch, kind))


def ours(x):
    """Return a tensor of torch as one of distgrad."""
    name = str(x.dtype).removeprefix("torch.")
    array = x.float().numpy() if name == "bfloat16" else x.numpy()
    return dg.tensor(array).to(getattr(dg, name))


def outcome(function, *operands):
    """Return the results of a call, or the builtin class of what it raised."""
    try:
        result = function(*operands)
    except Exception as error:
        kinds = (RuntimeError, TypeError, ValueError, IndexError)
        return next((k for k in kinds if isinstance(error, k)), type(error))
    return list(result) if isinstance(result, tuple) else [result]


def assert_same(got, want, what):
    """Assert equal results, dtypes and shapes, or equal kinds of error."""
    if isinstance(want, type) or isinstance(got, type):
        assert got is want, f"{what}: {got} instead of {want}"
        return
    for a, b in zip(got, want, strict=True):
        name = str(b.dtype).removeprefix("torch.")
        assert str(a.dtype).removeprefix("distgrad.") == name, f"{what}: {a.dtype} not {name}"
        assert tuple(a.shape) == tuple(b.shape), what
        wide = "complex128" if b.dtype.is_complex else "float64"
        x, y = a.to(getattr(dg, wide)).numpy(), b.to(getattr(type_module(b), wide)).resolve_conj()
        tolerance = TOLERANCE.get(name, 1e-9)
        np.testing.assert_allclose(x, y.numpy(), tolerance, tolerance, err_msg=what)


def type_module(_):
    """Return torch."""
    return pytest.importorskip("torch")


@pytest.mark.torch
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_operand_have_torchs_dtypes(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    for kind in KINDS:
        for shape in ((3, 4), ()):
            x = drawn(torch, kind, shape, 0)
            got = outcome(getattr(dg, name), ours(x))
            assert_same(got, outcome(getattr(torch, name), x), f"{name}({kind}{shape})")


@pytest.mark.torch
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_operands_promote_as_torch(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    for first in KINDS:
        for second in KINDS:
            for a, b in SHAPES:
                x, y = drawn(torch, first, a, 1), drawn(torch, second, b, 2)
                if "float16" in first + second and "complex" in first + second:
                    continue  # complex32
                got = outcome(getattr(dg, name), ours(x), ours(y))
                want = outcome(getattr(torch, name), x, y)
                assert_same(got, want, f"{name}({first}{a}, {second}{b})")


@pytest.mark.torch
@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "//", "%", "**", "==", "<"])
def test_operators_take_numbers_on_both_sides_as_torch(symbol):
    torch = pytest.importorskip("torch")
    for kind in KINDS[:6] + KINDS[8:10]:
        x = drawn(torch, kind, (3,), 1)
        for number in (2, 2.5, -1) if symbol != "**" else (2, 2.5):
            for text in (f"x {symbol} {number}", f"{number} {symbol} x"):
                if "bool" in kind and symbol == "-":
                    continue  # refused by torch for the number's sake
                got = outcome(lambda x, text=text: eval(text), ours(x))
                want = outcome(lambda x, text=text: eval(text), x)
                assert_same(got, want, f"{text} of {kind}")


# ---------------------------------------------------------------------- special values
@pytest.mark.torch
@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin", "xlogy", "logaddexp",
                                  "remainder", "fmod", "floor_divide", "pow", "atan2", "hypot",
                                  "copysign", "clamp_min"])  # fmt: skip
def test_special_values_and_ties_have_torchs_values_and_gradients(name):
    torch = pytest.importorskip("torch")
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -2.0, 2.0]
    a, b = (v.ravel().astype("float32") for v in np.meshgrid(values, values))
    x, y = (dg.tensor(v, requires_grad=True) for v in (a, b))
    s, t = (torch.tensor(v, requires_grad=True) for v in (a, b))
    got, want = getattr(dg, name)(x, y), getattr(torch, name)(s, t)
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), 1e-6)
    if name == "floor_divide":
        return
    got.sum().backward()
    want.sum().backward()
    if name in ("maximum", "minimum", "fmax", "fmin", "copysign", "clamp_min"):
        np.testing.assert_allclose(x.grad.numpy(), s.grad.numpy(), 1e-6)
        np.testing.assert_allclose(y.grad.numpy(), t.grad.numpy(), 1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 2.5, 0.0, 1.0])
def test_powers_of_special_values_have_torchs_values_and_gradients(exponent):
    torch = pytest.importorskip("torch")
    values = np.array([math.inf, -math.inf, 0.0, -0.0, 1.5, -2.0, 1e20, 1e-20], "float32")
    x, t = dg.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    got, want = x**exponent, t**exponent
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), 1e-6)
    got.sum().backward()
    want.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), 1e-6)


def test_number_to_the_power_of_a_tensor_has_the_gradient_of_the_exponential():
    x = dg.tensor([1.0, 2.0], requires_grad=True)
    (2**x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [2 * math.log(2), 4 * math.log(2)], 1e-6)


def test_power_of_zero_has_zero_gradient_for_its_exponent():
    x = dg.tensor([0.0, 0.0, 2.0], requires_grad=True)
    y = dg.tensor([2.0, 0.0, 0.0], requires_grad=True)
    (x**y).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.0, 0.0, 0.0])
    np.testing.assert_allclose(y.grad.numpy(), [0.0, 0.0, math.log(2)], 1e-6)


def test_second_derivative_of_a_square_is_two():
    x = dg.tensor(3.0, requires_grad=True)
    (first,) = dg.autograd.grad(x**2, x, create_graph=True)
    (second,) = dg.autograd.grad(first, x)
    assert (first.item(), second.item()) == (6.0, 2.0)


def test_rounding_has_zero_gradient_not_none():
    x = dg.tensor([1.4, -1.6], requires_grad=True)
    (x.round() + x.floor() + x.sign()).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]


def test_half_rounds_to_even():
    assert dg.tensor([0.5, 1.5, 2.5, -0.5]).round().tolist() == [0.0, 2.0, 2.0, -0.0]


def test_nan_to_num_uses_the_limits_of_the_dtype():
    x = dg.nan_to_num(dg.tensor([math.nan, math.inf, -math.inf]))
    assert x.tolist() == [0.0, dg.finfo(dg.float32).max, -dg.finfo(dg.float32).max]


def test_where_alone_gives_indices_of_true_elements():
    rows, columns = dg.where(dg.tensor([[True, False], [False, True]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize("kinds", [("float32", "float32"), ("float64", "float64"),
                                   ("int64", "float32"), ("float32", "bool")])  # fmt: skip
def test_where_of_many_elements_equals_numpys_for_nan_and_signed_zero(kinds):
    generator = np.random.default_rng(0)
    mask = generator.random((40, 50)) < 0.5
    a, b = (generator.integers(-2, 3, shape).astype(kind)
            for shape, kind in zip(((40, 1), (50,)), kinds, strict=True))  # fmt: skip
    if kinds[0].startswith("float"):
        a[0], a[1] = math.nan, -0.0
    got = dg.where(dg.tensor(mask), dg.tensor(a), dg.tensor(b)).numpy()
    np.testing.assert_array_equal(got, np.where(mask, a, b).astype(got.dtype))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(np.where(mask, a, b)))


def test_where_of_a_zero_dimensional_half_and_a_number_stays_half():
    x = dg.tensor(1.0, dtype=dg.float16)
    assert dg.where(x > 0, x, 0.0).dtype is dg.float16


def test_numbers_do_not_raise_the_dtype_of_tensors():
    x = dg.tensor([1, 2], dtype=dg.int8)
    assert (x + 1).dtype is dg.int8
    assert (x * 1.5).dtype is dg.float32
    assert (dg.tensor(1.0, dtype=dg.float16) * 2.5).dtype is dg.float16


@pytest.mark.torch
def test_complex_tensors_from_parts_and_back_with_gradients():
    torch = pytest.importorskip("torch")
    a, b = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    x, y = (dg.tensor(v, requires_grad=True) for v in (a, b))
    s, t = (torch.tensor(v, requires_grad=True) for v in (a, b))
    for lib, p, q in ((dg, x, y), (torch, s, t)):
        z = lib.complex(p, q)
        (z.real * 2 + z.imag * 3 + z.abs() + lib.angle(z)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), s.grad.numpy())
    np.testing.assert_allclose(y.grad.numpy(), t.grad.numpy())


# ---------------------------------------------------------------------- comparisons
def test_comparison_with_what_is_no_number_is_pythons():
    x = dg.ones(2)
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True
    with pytest.raises(TypeError):
        x < None  # noqa: B015


def test_tensors_are_keys_by_identity():
    x = dg.ones(2)
    assert {x: 1}[x] == 1


def test_isclose_and_allclose_treat_infinities_and_nan_as_torch():
    a = dg.tensor([math.inf, math.nan, 1.0, -math.inf])
    b = dg.tensor([math.inf, math.nan, 1.0 + 1e-6, math.inf])
    assert dg.isclose(a, b).tolist() == [True, False, True, False]
    assert dg.isclose(a, b, equal_nan=True).tolist() == [True, True, True, False]
    assert not dg.allclose(a, b)
    with pytest.raises(DtypeError, match="did not match"):
        dg.allclose(a, b.double())


def test_equal_needs_the_same_shape_and_values():
    assert dg.equal(dg.ones(2), dg.ones(2, dtype=dg.float64))
    assert not dg.equal(dg.ones(2), dg.ones(2, 1))


@pytest.mark.torch
@pytest.mark.parametrize("limits", [(0.5, None), (None, 1), (1, 2), (0.5, 1.5), (2, 1), (True, 3)])
@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "float64"])
def test_clamp_with_numbers_has_torchs_values_and_dtypes(kind, limits):
    torch = pytest.importorskip("torch")
    x = torch.tensor([0, 1, 2, 3]).to(getattr(torch, kind))
    assert_same([dg.clamp(ours(x), *limits)], [torch.clamp(x, *limits)], f"{kind} {limits}")


def test_clamp_needs_a_limit():
    with pytest.raises(ShapeError, match="At least one of 'min' or 'max'"):
        dg.clamp(dg.ones(2))


@pytest.mark.torch
def test_clamp_with_tensors_sends_the_gradient_to_the_limit_that_acts():
    torch = pytest.importorskip("torch")
    values = ([-1.0, 0.5, 3.0, 1.0], [0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    xs = [dg.tensor(v, requires_grad=True) for v in values]
    ts = [torch.tensor(v, requires_grad=True) for v in values]
    dg.clamp(*xs).sum().backward()
    torch.clamp(*ts).sum().backward()
    for x, t in zip(xs, ts, strict=True):
        assert x.grad.tolist() == t.grad.tolist()


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: dg.ones(2) & 1, DtypeError, "bitwise_and"),
        (lambda: ~dg.ones(2), ArgumentTypeError, "only implemented on integer"),
        (lambda: dg.tensor([True]) - dg.tensor([True]), DtypeError, "logical_xor"),
        (lambda: -dg.tensor([True]), DtypeError, "logical_not"),
        (lambda: dg.tensor([1]) // 0, DtypeError, "ZeroDivisionError"),
        (lambda: dg.tensor([1]) % 0, DtypeError, "ZeroDivisionError"),
        (lambda: dg.tensor([2]) ** -1, ShapeError, "negative integer powers"),
        (lambda: dg.add(dg.tensor([1]), 1, alpha=0.5), DtypeError, "alpha"),
        (lambda: dg.div(dg.ones(1), 2, rounding_mode="up"), ShapeError, "rounding_mode"),
        (lambda: dg.where(dg.ones(2), 1, 2), DtypeError, "boolean tensor"),
        (lambda: dg.lerp(dg.ones(1), dg.ones(1).double(), 0.5), DtypeError, "expected dtype"),
        (lambda: dg.ones(2) + dg.ones(3), ShapeError, r"tensor a \(2\).*tensor b \(3\)"),
        (lambda: dg.ones(2) + "a", TypeError, "str"),
        (lambda: dg.maximum(dg.ones(2), 1), ArgumentTypeError, "must be Tensor, not int"),
        (lambda: dg.polygamma(-1, dg.ones(1)), ShapeError, "negative n"),
        (lambda: dg.clamp(dg.tensor([1j]), 0, 1), DtypeError, "order"),
    ],
)
def test_what_torch_refuses_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# ---------------------------------------------------------------------- in place
@pytest.mark.torch
@pytest.mark.parametrize("name", ["sin_", "exp_", "log_", "sqrt_", "tanh_", "sigmoid_", "abs_",
                                  "reciprocal_", "square_", "neg_", "erf_", "lgamma_"])  # fmt: skip
def test_functions_in_place_keep_the_values_their_gradient_needs(name):
    torch = pytest.importorskip("torch")
    x = dg.tensor([0.3, 0.8], requires_grad=True)
    t = torch.tensor([0.3, 0.8], requires_grad=True)
    for leaf in (x, t):
        y = leaf * 1
        assert getattr(y, name)() is y
        y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), 1e-5)


@pytest.mark.parametrize("name", ["mul_", "pow_", "div_", "atan2_", "clamp_min_", "xlogy_"])
def test_operations_in_place_send_gradients_to_both_operands(name):
    a, b = dg.tensor([0.5, 2.0]), dg.tensor([1.5, 0.7])
    plain, written = [], []
    for grads, form in ((plain, name.rstrip("_")), (written, name)):
        x, w = a.clone().requires_grad_(), b.clone().requires_grad_()
        getattr(x * 1, form)(w).sum().backward()
        grads += [x.grad.tolist(), w.grad.tolist()]
    assert plain == written


def test_leaf_that_requires_grad_is_not_changed_in_place():
    with pytest.raises(GradError, match="leaf Variable"):
        dg.ones(2, requires_grad=True).mul_(2)


def test_result_in_place_must_fit_dtype_and_shape():
    with pytest.raises(DtypeError, match="can't be cast"):
        dg.tensor([1, 2]).mul_(2.5)
    with pytest.raises(ShapeError, match="broadcast shape"):
        dg.ones(2).add_(dg.ones(3, 2))


def test_infinities_and_nan_come_without_a_warning():
    x = dg.tensor([0.0, -1.0, 1e38])
    assert (1 / x)[0].item() == math.inf
    assert x.log().isnan().tolist() == [False, True, False]
    assert (x * 1e10).isinf().tolist() == [False, False, True]


def test_an_option_may_be_a_tensor_of_one_number():
    x = dg.tensor([1.0, 2.0])
    assert dg.add(x, x, alpha=dg.tensor(2.0)).tolist() == [3.0, 6.0]
    x.addcmul_(x, x, value=dg.tensor(-1.0))
    assert x.tolist() == [0.0, -2.0]
    with pytest.raises(ShapeError, match="alpha"):
        dg.add(x, x, alpha=dg.tensor([1.0, 2.0]))
    y = dg.ones(2, requires_grad=True)
    two = dg.tensor(2.0)
    (
        dg.add(x, y, alpha=two) - dg.sub(x, y, alpha=two) + dg.addcdiv(x, y, y, value=two)
    ).sum().backward()
    assert type(y.grad.array) is np.ndarray and y.grad.tolist() == [4.0, 4.0]
