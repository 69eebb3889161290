"""Reductions: forms of ``dim``, dtypes, ties, nan, empty tensors, precision and errors."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentTypeError, DtypeError, GradError, IndexOutOfRange, ShapeError

KINDS = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
         "float64")  # fmt: skip
DATA = [[[3, 0, 2, 2], [1, 3, 3, 0]], [[0, 1, 1, 2], [3, 3, 0, 1]], [[2, 2, 1, 0], [1, 0, 0, 3]]]
MANY = ("sum", "mean", "amax", "amin", "all", "any", "nansum", "nanmean", "count_nonzero", "var",
        "std", "logsumexp", "norm")  # fmt: skip
ONE = ("prod", "max", "min", "argmax", "argmin", "median", "nanmedian", "sum", "mean", "amax",
       "all", "any", "nansum", "var", "std", "logsumexp")  # fmt: skip
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6}


def compare(torch, call):
    """Assert that ``call(lib)`` gives equal results, or raises errors of equal kind."""
    outcomes = []
    for lib in (torch, dg):
        try:
            result = call(lib)
            outcomes.append(list(result) if isinstance(result, tuple) else [result])
        except Exception as error:
            kinds = (RuntimeError, TypeError, ValueError, IndexError)
            outcomes.append(next(k for k in kinds if isinstance(error, k)))
    want, got = outcomes
    if isinstance(want, type) or isinstance(got, type):
        assert got is want
        return
    for a, b in zip(got, want, strict=True):
        name = str(b.dtype).removeprefix("torch.")
        assert str(a.dtype).removeprefix("distgrad.") == name
        assert tuple(a.shape) == tuple(b.shape)
        tolerance = TOLERANCE.get(name, 1e-12)
        x, y = a.double().numpy(), b.double().numpy()
        np.testing.assert_allclose(x, y, tolerance, tolerance)


# ---------------------------------------------------------------------- against torch
@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({*MANY, *ONE} - {"median", "nanmedian"}))
def test_reductions_have_torchs_dtypes(name, kind):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    dim = {"dim": 1} if name == "logsumexp" else {}
    compare(torch, lambda lib: getattr(lib, name)(_data(lib, kind), **dim))
    compare(torch, lambda lib: getattr(lib, name)(_data(lib, kind), dim=1))


def _data(lib, kind):
    return lib.tensor(DATA).to(getattr(lib, kind))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(
    "dim", [0, -1, (0, 2), (-1, 0), [1], (0, 1, 2), 3, -4, (0, 0), (1, -2), "a"]
)
@pytest.mark.parametrize("name", MANY)
def test_several_dimensions_mean_what_they_mean_in_torch(name, dim):
    torch = pytest.importorskip("torch")
    options = [{}] if name == "count_nonzero" else [{}, {"keepdim": True}]
    for option in options:
        compare(torch, lambda lib, option=option: getattr(lib, name)(
            lib.tensor(DATA, dtype=lib.float64), dim=dim, **option))  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "var", "all", "any", "norm"])
def test_no_dimension_at_all_reduces_as_in_torch(name):
    torch = pytest.importorskip("torch")
    compare(torch, lambda lib: getattr(lib, name)(lib.tensor(DATA).double(), dim=()))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", sorted({*MANY, *ONE} - {"argmax", "argmin", "median"}))
def test_empty_and_zero_dimensional_tensors_reduce_as_in_torch(name):
    torch = pytest.importorskip("torch")
    for shape in ((0,), (0, 3), (3, 0)):
        for dim in (0, 1):
            compare(torch, lambda lib, shape=shape, dim=dim: getattr(lib, name)(
                lib.zeros(shape), dim=dim))  # fmt: skip
        if name != "logsumexp":
            compare(torch, lambda lib, shape=shape: getattr(lib, name)(lib.zeros(shape)))
    for dim in (0, -1, 1):
        compare(torch, lambda lib, dim=dim: getattr(lib, name)(lib.tensor(2.5), dim=dim))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["int8", "float16", "float64", "bool"])
@pytest.mark.parametrize("name", ["sum", "prod", "nansum", "mean"])
def test_dtype_converts_before_the_reduction(name, kind):
    torch = pytest.importorskip("torch")
    compare(torch, lambda lib: getattr(lib, name)(lib.tensor([1.5, 2.5, 100.0]),
                                                  dtype=getattr(lib, kind)))  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("values", [
    [1.0, 3.0, 3.0, 1.0], [1.0, math.nan, 3.0, math.nan], [math.inf, 1.0, -math.inf, 0.0], [2.0],
    [math.nan, math.nan], [3.0, 1.0, 2.0, 5.0, 4.0], [0.0, -0.0],
])  # fmt: skip
@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin", "median", "nanmedian", "amax",
                                  "logsumexp", "nansum", "nanmean"])  # fmt: skip
def test_ties_infinities_and_nan_give_torchs_values(name, values):
    torch = pytest.importorskip("torch")
    if name in ("median", "nanmedian") and len(set(values)) < len(values):
        compare(torch, lambda lib: getattr(lib, name)(lib.tensor(values)))
    else:
        compare(torch, lambda lib: getattr(lib, name)(lib.tensor(values), dim=0))


@pytest.mark.torch
@pytest.mark.parametrize("call", [
    lambda x: x.var(), lambda x: x.var(False), lambda x: x.var(0), lambda x: x.var(0, False),
    lambda x: x.var(0, False, True), lambda x: x.var(unbiased=False), lambda x: x.var((0, 1)),
    lambda x: x.var(dim=0, correction=0, keepdim=True), lambda x: x.std(1, correction=2),
    lambda x: x.std(unbiased=True), lambda x: x.std(0, True), lambda x: x.norm(),
    lambda x: x.norm(1), lambda x: x.norm("fro"), lambda x: x.norm(math.inf, 0),
    lambda x: x.norm(-math.inf, 1),
    lambda x: x.norm(p=0), lambda x: x.norm(3, (0, 1)), lambda x: x.norm(2, 1, True),
    lambda x: x.max(1).values, lambda x: x.max(1)[1], lambda x: x.max(x.flip(0)), lambda x: x.min(),
    lambda x: x.mean((0, 1), True), lambda x: x.sum((0,), keepdim=True),
    lambda x: x.aminmax(dim=0).max,
])  # fmt: skip
def test_forms_of_arguments_mean_what_they_mean_in_torch(call):
    torch = pytest.importorskip("torch")
    compare(torch, lambda lib: call(lib.tensor([[1.0, -2.0, 3.0], [4.0, 0.5, -6.0]])))


@pytest.mark.torch
@pytest.mark.parametrize("call", [
    lambda x: x.amax(1), lambda x: x.amin(0), lambda x: x.max(), lambda x: x.min(),
    lambda x: x.max(1).values, lambda x: x.min(0).values, lambda x: x.median(),
    lambda x: x.norm(math.inf), lambda x: x.norm(), lambda x: x.norm(1), lambda x: x.norm(3, 1),
    lambda x: (x * 0).norm(), lambda x: (x * 0).norm(3), lambda x: (x * 0 + 2).std(),
    lambda x: x.prod(), lambda x: x.prod(1), lambda x: (x - 2).prod(1), lambda x: (x - 3).prod(),
    lambda x: x.logsumexp(1), lambda x: x.aminmax(dim=1).min, lambda x: x.amax((0, 1)),
    lambda x: x.amax(1, keepdim=True),
])  # fmt: skip
def test_gradients_at_ties_and_zeros_are_torchs(call):
    torch = pytest.importorskip("torch")
    grads = []
    for lib in (torch, dg):
        x = lib.tensor([[1.0, 3.0, 3.0, 2.0], [2.0, 5.0, 2.0, 2.0]], requires_grad=True)
        call(x).sum().backward()
        grads.append(x.grad.numpy())
    np.testing.assert_allclose(grads[1], grads[0], 1e-6)


def test_median_of_an_even_number_of_elements_is_the_lower_one():
    for kind in (dg.int64, dg.float32):
        x = dg.tensor([[4, 1, 3, 2], [7, 9, 8, 6]], dtype=kind)
        assert x.median(1).values.tolist() == [2, 7]
        assert x.median(1).indices.tolist() == [3, 0]
        assert x.median().item() == 4


# ---------------------------------------------------------------------- precision
def test_sums_of_half_precision_are_made_in_single_precision():
    x = dg.ones(4096, 2, dtype=dg.float16)
    assert x.sum(0).tolist() == [4096.0, 4096.0]
    assert (x * 20).mean(0).tolist() == [20.0, 20.0]
    assert dg.full((300, 1), 200.0, dtype=dg.float16).std(0, correction=0).tolist() == [0.0]


def test_float32_sums_of_many_numbers_keep_their_digits():
    x = np.full(10**6, 0.1, "float32")
    assert abs(dg.tensor(x).sum().item() - x.astype("float64").sum()) < 1.0


def test_logsumexp_neither_overflows_nor_loses_small_numbers():
    assert dg.tensor([1000.0, 1000.0]).logsumexp(0).item() == pytest.approx(1000 + math.log(2))
    assert dg.tensor([-1000.0, -1000.0]).logsumexp(0).item() == pytest.approx(-1000 + math.log(2))
    assert dg.zeros(0, 2).logsumexp(0).tolist() == [-math.inf, -math.inf]


# ---------------------------------------------------------------------- results and errors
def test_named_results_print_as_those_of_torch():
    assert repr(dg.tensor([1.0, 3.0]).max(0)) == (
        "distgrad.return_types.max(\nvalues=tensor(3.),\nindices=tensor(1))"
    )


def test_indices_carry_no_gradient():
    x = dg.tensor([1.0, 3.0], requires_grad=True)
    values, indices = x.max(0)
    assert values.requires_grad
    assert not indices.requires_grad
    with pytest.raises(GradError):
        x.argmax().backward()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: dg.tensor([1]).mean(), DtypeError, "could not infer output dtype"),
        (lambda: dg.tensor([1]).var(), DtypeError, "only support floating point"),
        (lambda: dg.ones(2, 3).sum(2), IndexOutOfRange, r"range of \[-2, 1\], but got 2"),
        (lambda: dg.ones(2, 3).sum((0, -2)), ShapeError, "dim 0 appears multiple times"),
        (lambda: dg.zeros(0).max(), ShapeError, "Specify the reduction dim"),
        (lambda: dg.zeros(0, 2).amax(0), IndexOutOfRange, "reduction dim 0 to have non-zero size"),
        (lambda: dg.zeros(0).argmax(), IndexOutOfRange, "reduction dim to be specified"),
        (lambda: dg.tensor([True]).argmax(), DtypeError, "does not support bool"),
        (lambda: dg.ones(2).max((0,)), ArgumentTypeError, "takes one dimension"),
        (lambda: dg.ones(2).prod((0,)), ArgumentTypeError, "takes one dimension"),
        (lambda: dg.ones(2).std(correction=1, unbiased=True), ArgumentTypeError, "say the same"),
        (lambda: dg.tensor([1j]).amax(), DtypeError, "complex"),
    ],
)
def test_what_torch_refuses_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_too_few_numbers_for_a_variance_warn_and_give_nan():
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert math.isnan(dg.ones(1).var().item())
