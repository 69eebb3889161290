"""Cumulative functions: what samples cannot say."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import IndexOutOfRange, ShapeError
from distgrad.ops import cumulate
from distgrad.testing.torch_pairs import agree, draw, tensor

DIMS = [0, 1, 2, -1]


@pytest.mark.torch
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_diff_agrees_with_torch(dim, n):
    torch = pytest.importorskip("torch")
    agree(lambda x: dg.diff(x, n, dim), lambda x: torch.diff(x, n, dim), draw(3, 4, 5))
    agree(
        lambda x, a, b: x.diff(n, dim, a, b),
        lambda x, a, b: x.diff(n, dim, a, b),
        draw(3, 4, 5), draw(3, 4, 5), draw(3, 4, 5),
    )  # fmt: skip


def test_diff_of_bools_is_where_they_change():
    out = dg.diff(dg.tensor([True, True, False, True]))
    assert out.tolist() == [False, True, True]


@pytest.mark.torch
@pytest.mark.parametrize("name", ["trapezoid", "cumulative_trapezoid"])
@pytest.mark.parametrize("dim", DIMS)
def test_integrals_agree_with_torch(name, dim):
    torch = pytest.importorskip("torch")
    ours, theirs, y = getattr(dg, name), getattr(torch, name), draw(3, 4, 5)
    agree(lambda a: ours(a, dim=dim), lambda a: theirs(a, dim=dim), y)
    agree(lambda a: ours(a, dx=0.3, dim=dim), lambda a: theirs(a, dx=0.3, dim=dim), y)
    for x in (draw(y.shape[dim]), draw(*y.shape), draw(*y.shape[1:])):
        if x.ndim == 2 and dim == 0:
            continue
        agree(lambda a, b: ours(a, b, dim=dim), lambda a, b: theirs(a, b, dim=dim), y, x)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["cummax", "cummin"])
def test_extremes_keep_nan_and_the_last_index_of_ties(name):
    torch = pytest.importorskip("torch")
    x = np.array([1.0, 1.0, np.inf, -np.inf, 0.5, np.nan, 2.0, np.nan, 3.0])
    values, indices = getattr(dg, name)(tensor(x), 0)
    want = getattr(torch, name)(torch.tensor(x), 0)
    np.testing.assert_array_equal(values.array, want.values.numpy())
    np.testing.assert_array_equal(indices.array, want.indices.numpy())


@pytest.mark.torch
def test_logcumsumexp_and_its_gradient_survive_large_differences():
    torch = pytest.importorskip("torch")
    x = np.array([-700.0, 1.0, 700.0, -700.0, 2.0])
    agree(lambda a: dg.logcumsumexp(a, 0), lambda a: torch.logcumsumexp(a, 0), x)


def test_logcumsumexp_gives_no_gradient_to_minus_infinity():
    x = tensor(np.array([-np.inf, 1.0, -np.inf])).requires_grad_()
    out = dg.logcumsumexp(x, 0)
    np.testing.assert_array_equal(out.array, [-np.inf, 1.0, 1.0])
    out.sum().backward()
    np.testing.assert_allclose(x.grad.array, [0.0, 2.0, 0.0])


def test_half_precision_sums_do_not_lose_what_float32_holds():
    out = dg.cumsum(tensor(np.ones(4000, np.float16)), 0)
    assert out.dtype == dg.float16
    assert out.array[-1] == 4000


def test_integers_are_summed_in_int64_unless_a_dtype_is_named():
    x = tensor(np.array([200, 100], np.uint8))
    assert dg.cumsum(x, 0).tolist() == [200, 300]
    assert dg.cumprod(x, 0, dtype=dg.int32).dtype == dg.int32


def test_sums_in_place_have_the_gradient_of_sums():
    x = tensor(np.ones(3)).requires_grad_()
    y = x * 1
    y.cumsum_(0)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.array, [3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda x: dg.diff(x, -1), ShapeError),
        (lambda x: dg.diff(x.sum()), ShapeError),
        (lambda x: dg.trapezoid(x.sum()), IndexOutOfRange),
        (lambda x: dg.trapezoid(x, tensor(np.ones(7))), ShapeError),
        (lambda x: dg.cumsum(x, 2), IndexOutOfRange),
        (lambda x: cumulate.cummax(x, -3), IndexOutOfRange),
    ],
)
def test_wrong_arguments_are_named(call, kind):
    with pytest.raises(kind, match=r"float64\["):
        call(tensor(np.ones((2, 3))))


@pytest.mark.torch
@pytest.mark.parametrize("edge_order", [1, 2])
@pytest.mark.parametrize("form", ["plain", "number", "numbers", "coordinates"])
def test_gradient_takes_every_form_of_spacing(form, edge_order):
    torch = pytest.importorskip("torch")
    y = np.random.default_rng(0).standard_normal((4, 5))

    def call(lib):
        spacing = {
            "plain": {},
            "number": {"spacing": 0.5, "dim": 1},
            "numbers": {"spacing": [2.0, -0.5], "dim": (1, 0)},
            "coordinates": {"spacing": (lib.tensor([0.0, 1, 3, 7]), lib.tensor([0.0, 2, 3, 5, 9]))},
        }
        return lib.gradient(lib.from_numpy(y), edge_order=edge_order, **spacing[form])

    for found, want in zip(call(dg), call(torch), strict=True):
        np.testing.assert_allclose(found, want.numpy(), 1e-6)


def test_gradient_refuses_too_few_samples():
    with pytest.raises(ShapeError, match="at least edge_order"):
        dg.gradient(dg.ones(2), edge_order=2)
    with pytest.raises(ShapeError, match="length 1"):
        dg.gradient(dg.ones(3), spacing=[1.0, 2.0])


def test_complex_logarithms_of_sums():
    x = np.array([1 + 2j, -800 + 1j, 800 - 0.5j, 799 + 3j])
    found = dg.logcumsumexp(dg.from_numpy(x), 0).numpy()
    last = np.log(np.exp(-0.5j) + np.exp(-1 + 3j)) + 800
    np.testing.assert_allclose(found, [1 + 2j, 1 + 2j, 800 - 0.5j, last], 1e-9)
