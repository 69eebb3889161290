"""Elementwise operations: what is refused, forms in place, complex and higher derivatives."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import forward_ad
from distgrad.nn import functional as F

_NOT_FOR = [
    (lambda x: dg.floor(x), "complex64"), (lambda x: dg.sign(x), "complex64"),
    (lambda x: dg.lt(x, x), "complex64"), (lambda x: F.gelu(x), "complex64"),
    (lambda x: F.gelu(x), "int64"), (lambda x: F.threshold(x, 0.0, 1.0), "bool"),
    (lambda x: dg.abs(x), "bool"), (lambda x: dg.gcd(x, x), "bool"),
    (lambda x: dg.igamma(x, x), "int64"), (lambda x: dg.bitwise_and(x, x), "float32"),
    (lambda x: dg.hypot(x, x), "int64"), (lambda x: dg.pow(x, x), "bool"),
    (lambda x: dg.clamp(x, True), "bool"), (lambda x: dg.addcmul(x, x, x), "bool"),
    (lambda x: dg.copysign(x, x), "complex64"), (lambda x: dg.floor_divide(x, x), "bool"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "dtype"), _NOT_FOR)
def test_a_dtype_without_a_kernel_is_not_implemented(call, dtype):
    with pytest.raises(NotImplementedError, match=dtype if dtype != "complex64" else "complex"):
        call(dg.ones(3, dtype=getattr(dg, dtype)))


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "rsub", "clamp_min", "igamma",
                                  "ldexp", "polar"])  # fmt: skip
def test_the_first_operand_of_some_functions_is_no_number(name):
    with pytest.raises(TypeError):
        getattr(dg, name)(2, dg.ones(3))


@pytest.mark.parametrize("name", ["pow", "remainder", "bitwise_or", "bitwise_left_shift", "xlogy"])
def test_numbers_alone_are_refused(name):
    with pytest.raises(TypeError, match="must be Tensor, not int"):
        getattr(dg, name)(2, 3)


def test_arithmetic_takes_numbers_alone():
    assert dg.add(2, 3).item() == 5 and dg.div(3, 2).item() == 1.5
    assert dg.where(dg.tensor([True, False]), 1.0, 2.0).tolist() == [1.0, 2.0]


def test_reflected_methods_belong_to_tensors():
    with pytest.raises(TypeError, match="self must be Tensor"):
        dg.Tensor.__radd__(2, dg.ones(3))


def test_functions_in_place_are_the_methods():
    x = dg.tensor([0.0, 1.0])
    assert dg.exp_(x) is x and x.tolist() == pytest.approx([1.0, math.e])
    assert dg.clamp_(x, max=2.0).tolist() == [1.0, 2.0]


def test_negative_powers_of_integers_are_for_tensors_alone():
    assert dg.pow(dg.tensor([2, 1, -1]), dg.tensor(-1)).tolist() == [0, 1, -1]
    with pytest.raises(RuntimeError, match="negative integer powers"):
        dg.tensor([2]) ** -1


def test_tolerances_are_not_negative():
    with pytest.raises(RuntimeError, match="rtol"):
        dg.isclose(dg.ones(1), dg.ones(1), rtol=-1.0)


def test_conjugates_and_negatives_are_never_lazy():
    z = dg.tensor([1 + 2j])
    assert dg.conj_physical(z).tolist() == [1 - 2j]
    assert dg.resolve_conj(z) is z and dg.resolve_neg(z) is z
    assert not dg.is_conj(z.conj()) and not z.is_neg()
    assert z.conj_physical_() is z and z.tolist() == [1 - 2j]


# ---------------------------------------------------------------------- complex derivatives
@pytest.mark.parametrize("function", [dg.abs, dg.sgn, dg.angle, F.softsign])
def test_forward_mode_of_complex_functions_agrees_with_differences(function):
    rng = np.random.default_rng(0)
    z, t = (rng.standard_normal(5) + 1j * rng.standard_normal(5) for _ in range(2))
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(dg.tensor(z), dg.tensor(t)))
        tangent = forward_ad.unpack_dual(out).tangent.numpy()
    h = 1e-6
    slope = (function(dg.tensor(z + h * t)) - function(dg.tensor(z - h * t))).numpy() / (2 * h)
    np.testing.assert_allclose(tangent, slope, 1e-6, 1e-8)
    assert tangent.dtype == slope.dtype


@pytest.mark.parametrize("function", [dg.sgn, F.softsign, F.silu, dg.angle])
def test_backward_of_complex_functions_is_the_transpose_of_forward_mode(function):
    rng = np.random.default_rng(1)
    z, t, g = (rng.standard_normal(5) + 1j * rng.standard_normal(5) for _ in range(3))
    x = dg.tensor(z, requires_grad=True)
    out = function(x)
    g = g if out.is_complex() else g.real
    (grad,) = dg.autograd.grad(out, x, dg.tensor(g))
    _, tangent = dg.func.jvp(function, (dg.tensor(z),), (dg.tensor(t),))
    left = (np.conj(g) * tangent.numpy()).sum().real
    assert left == pytest.approx((np.conj(grad.numpy()) * t).sum().real)


def test_logaddexp_of_complex_numbers_is_the_logarithm_of_the_sum():
    a, b = np.array([1 + 2j, -700.0, 3j]), np.array([2 - 1j, -701 + 1j, 3j])
    got = dg.logaddexp(dg.tensor(a), dg.tensor(b)).numpy()
    np.testing.assert_allclose(got[[0, 2]], np.log(np.exp(a) + np.exp(b))[[0, 2]])
    assert got[1].real == pytest.approx(-700 + np.log(abs(1 + np.exp(-1 + 1j))))


# ---------------------------------------------------------------------- higher derivatives
@pytest.mark.parametrize(
    "function",
    [
        F.relu, F.leaky_relu, F.hardtanh, F.relu6, F.hardshrink, F.softshrink,
        lambda x: F.threshold(x, 0.1, 0.0),
    ],
)  # fmt: skip
def test_second_derivatives_of_piecewise_linear_functions_are_zero_not_absent(function):
    x = dg.tensor([-2.0, 0.3, 0.7], requires_grad=True)
    (first,) = dg.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = dg.autograd.grad(first.sum(), x)
    assert second.tolist() == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------------- float32 approximations
def test_gelu_in_float32_is_within_a_millionth():
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([np.linspace(-12, 12, 20001), [-1e30, 1e30, -50, 50]]).astype(np.float32)
    exact = x.astype(float) * special.ndtr(x.astype(float))
    np.testing.assert_allclose(F.gelu(dg.tensor(x)).numpy(), exact, 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("erfinv", "erfinv"), ("lgamma", "gammaln"), ("digamma", "digamma")],
)
def test_special_functions_in_float32_have_its_digits(name, reference):
    special = pytest.importorskip("scipy.special")
    ends = [0.0, 1.0, -1.0, 2.0, np.inf, np.nan]
    line = np.linspace(-0.99, 0.99, 101) if name == "erfinv" else np.linspace(-9.9, 30, 400)
    x = np.concatenate([line, ends]).astype(np.float32)
    got = getattr(dg, name)(dg.tensor(x)).numpy()
    with np.errstate(all="ignore"):
        want = getattr(special, reference)(x.astype(float))
    if name == "digamma":  # PyTorch's limits at the poles
        want[x == 0], want[x == -1] = -np.inf, np.nan
    np.testing.assert_allclose(got, want, 2e-6, 2e-6)


@pytest.mark.torch
def test_trigamma_beside_its_poles_is_pytorchs():
    torch = pytest.importorskip("torch")
    x = np.array([-1.0, -2.0, -1.0001, -0.5, 0.3, 50.0], np.float32)
    got, want = dg.polygamma(1, dg.tensor(x)).numpy(), torch.polygamma(1, torch.tensor(x)).numpy()
    np.testing.assert_allclose(got, want, 1e-5)


def test_random_slopes_of_rrelu_work_in_forward_mode():
    x, t = dg.tensor([-1.0, 2.0]), dg.ones(2)
    dg.manual_seed(0)
    out, tangent = dg.func.jvp(lambda v: F.rrelu(v, 0.1, 0.3, True), (x,), (t,))
    assert 0.1 <= tangent[0].item() <= 0.3 and out[0].item() == -tangent[0].item()
    with pytest.raises(RuntimeError, match=r"upper=0\.1"):
        F.rrelu(x, 0.3, 0.1)


# ---------------------------------------------------------------------- dtypes without a kernel
@pytest.mark.parametrize("name", ["bessel_j0", "airy_ai", "erfcx", "ndtri"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_special_functions_without_a_16_bit_kernel_refuse_such_floats(name, dtype):
    with pytest.raises(NotImplementedError, match=dtype):
        getattr(dg.special, name)(dg.ones(2, dtype=getattr(dg, dtype)))


@pytest.mark.parametrize(("call", "dtype"), [
    (dg.pdist, "float16"), (lambda x: dg.cdist(x, x), "complex64"), (dg.cov, "bool"),
    (dg.mode, "complex64"), (dg.argsort, "complex64"), (dg.trapezoid, "bool"),
    (lambda x: dg.isin(x, x), "bool"), (lambda x: dg.linalg.vecdot(x, x), "int64"),
    (lambda x: dg.linalg.lu(x), "int64"), (F.softsign, "bool"),
    (lambda x: F.dropout(x, 0.5), "complex64"), (lambda x: dg.polygamma(1, x), "complex64"),
])  # fmt: skip
def test_functions_refuse_dtypes_by_not_implemented_error(call, dtype):
    with pytest.raises(NotImplementedError):
        call(dg.ones(3, 3, dtype=getattr(dg, dtype)))


def test_the_mode_of_nothing_is_an_index_error():
    with pytest.raises(IndexError, match="non-zero size"):
        dg.mode(dg.ones(2, 0))


def test_the_sign_of_nan_is_zero():
    assert dg.sign(dg.tensor([math.nan, -2.0, 3.0])).tolist() == [0, -1, 1]
    assert dg.sgn(dg.tensor([math.nan])).tolist() == [0]


def test_gradients_through_where_stay_bfloat16():
    x = dg.ones(3, dtype=dg.bfloat16, requires_grad=True)
    dg.where(dg.tensor([True, False, True]), x, 2 * x).sum().backward()
    assert x.grad.dtype == dg.bfloat16 and x.grad.tolist() == [1, 2, 1]


def test_magnitudes_are_not_written_into_complex_memory():
    with pytest.raises(RuntimeError, match="In-place abs"):
        dg.tensor([1j]).abs_()


def test_some_reflected_methods_take_a_number_for_self():
    assert dg.Tensor.__rpow__(3, dg.tensor([2, 5])).tolist() == [8, 125]


# ---------------------------------------------------------------------- memory
def test_real_pairs_share_memory_with_complex_numbers():
    z = dg.tensor([1 + 2j, 3j])
    pairs = dg.view_as_real(z)
    pairs[0, 1] = 7.0
    assert pairs._base is z and z.tolist() == [1 + 7j, 3j]
    back = dg.view_as_complex(pairs)
    assert back._base is z and back.data_ptr() == z.data_ptr()
    with pytest.raises(RuntimeError, match="stride 1"):
        dg.view_as_complex(dg.ones(2, 3).mT)


def _changed_views(z):
    y = z * (2 + 1j)
    y.real.mul_(2.0)
    y.imag.mul_(3.0)
    dg.view_as_real(y)[0].exp_()
    return y * y


def test_changes_in_place_of_parts_of_complex_numbers_have_derivatives():
    z = dg.tensor([0.3 - 0.4j, 0.1 + 0.7j], dtype=dg.complex128, requires_grad=True)
    assert dg.autograd.gradcheck(_changed_views, (z,))
    assert dg.autograd.gradgradcheck(_changed_views, (z,))


def test_copies_and_lookups_are_contiguous():
    x = dg.ones(5, 4, 3)
    for made in (x[:, [0, 3]], dg.permute_copy(x, (2, 0, 1)), dg.ravel(x[:, ::2]),
                 F.pad(x, (1, 1), mode="reflect")):  # fmt: skip
        assert made.is_contiguous()
    assert dg.ravel(x[..., 0]).data_ptr() != x.data_ptr() and dg.flatten(x, 1, 1) is x


def test_composites_in_place_keep_what_they_need():
    x = dg.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=dg.float64, requires_grad=True)
    assert dg.autograd.gradcheck(lambda t: t.clone().renorm_(2, 0, 1.0), (x,))
    assert dg.autograd.gradcheck(lambda t: (t + 2).mvlgamma_(2), (x,))
    places, source = dg.tensor([0, 0]), dg.ones(2, 2, dtype=dg.float64) * 2
    assert dg.autograd.gradcheck(lambda t: t.clone().index_reduce_(0, places, source, "prod"), (x,))


def test_one_number_of_another_dtype_goes_where_a_mask_is_true():
    x = dg.zeros(3, dtype=dg.float64)
    x[dg.tensor([True, False, True])] = dg.tensor(2.0)
    assert x.tolist() == [2, 0, 2]
    with pytest.raises(RuntimeError, match="dtypes match"):
        x[dg.tensor([0, 2])] = dg.tensor(2.0)
    with pytest.raises(IndexError, match="int16"):
        x[dg.tensor([0, 2], dtype=dg.int16)]
