"""What the array namespaces add to NumPy and CuPy."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from distgrad.backend import dtype as dt
from distgrad.backend import numpy_backend as xp

BACKEND = Path(xp.__file__).parent

# Computed with 40 digits by mpmath, at the float64 number nearest to the argument.
VALUES = {
    "erf": [
        (0.001, 0.001128378790969236403438),
        (0.4, 0.4283923550466684764541),
        (-1.7, -0.9837904585907745608413),
        (3.0, 0.9999779095030014145586),
        (5.5, 0.9999999999999926421521),
    ],
    "erfc": [
        (0.4, 0.5716076449533315235459),
        (-1.0, 1.842700792949714869341),
        (2.5, 0.0004069520174449589395642),
        (5.0, 1.537459794428034850188e-12),
        (23.0, 4.441265948088057244075e-232),
    ],
    "erfinv": [
        (0.001, 0.0008862271574665521230138),
        (0.5, 0.4769362762044698733814),
        (-0.9, -1.163087153676674162844),
        (0.999999, 3.458910737275498777532),
    ],
    "lgamma": [
        (0.1, 2.252712651734205902006),
        (1.4, -0.1196129141723712931867),
        (2.5, 0.2846828704729191596325),
        (12.9, 19.73501585071300574307),
        (100.5, 361.4355404677776215553),
        (-2.5, -0.05624371649767405067259),
    ],
    "digamma": [
        (0.1, -10.4237549404110762321),
        (1.0, -0.5772156649015328606065),
        (1.5, 0.03648997397857652055902),
        (30.0, 3.384438132685524876562),
        (-2.5, 1.103156640645243187226),
    ],
}


def functions_of(name: str) -> dict[str, list[str]]:
    """The functions that a module defines and the names of their arguments."""
    tree = ast.parse((BACKEND / name).read_text(encoding="utf-8"))
    return {
        node.name: [a.arg for a in node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_both_backends_define_the_same_functions():
    assert functions_of("numpy_backend.py") == functions_of("cupy_backend.py")


def test_the_cupy_backend_uses_numpy_for_types_only():
    tree = ast.parse((BACKEND / "cupy_backend.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "np"
    }
    assert used <= {"ndarray", "dtype", "float32", "int32", "int64", "uint64"}


def test_the_namespace_has_numpys_functions_too():
    assert xp.multiply is np.multiply
    assert xp.float32 is np.float32


@pytest.mark.parametrize("name", VALUES)
def test_special_functions_have_tabulated_values(name):
    at, want = np.array(VALUES[name]).T
    got = getattr(xp, name)(at)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=2e-14, atol=1e-15)
    single = at.astype("f4")
    nearest = getattr(xp, name)(single.astype("f8")).astype("f4")
    np.testing.assert_allclose(getattr(xp, name)(single), nearest, rtol=5e-7)


@pytest.mark.parametrize("name", VALUES)
def test_special_functions_agree_with_scipy(name):
    special = pytest.importorskip("scipy.special")
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-5.5, 5.5, 4000), rng.uniform(0, 40, 4000)])
    if name == "erfc":
        x = x[x < 6]  # SciPy itself loses digits in the tail
    elif name == "erfinv":
        x = np.tanh(x[:4000])
    theirs = getattr(special, {"lgamma": "gammaln"}.get(name, name))
    near_pole = np.abs(x - np.round(x)) < 1e-2 if name == "digamma" else np.zeros(len(x), bool)
    x = x[~near_pole | (x > 0.5)]
    np.testing.assert_allclose(getattr(xp, name)(x), theirs(x), rtol=3e-14, atol=2e-15)
    single = x.astype("f4")
    got = getattr(xp, name)(single)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, theirs(single.astype("f8")), rtol=5e-7, atol=1e-37)


def test_special_functions_at_the_ends():
    inf, nan = np.inf, np.nan
    ends = np.array([inf, -inf, nan, 0.0, -0.0])
    assert np.array_equal(xp.erf(ends), [1, -1, nan, 0, 0], equal_nan=True)
    assert np.array_equal(xp.erfc(ends), [0, 2, nan, 1, 1], equal_nan=True)
    assert np.array_equal(xp.lgamma(ends), [inf, inf, nan, inf, inf], equal_nan=True)
    assert np.array_equal(xp.digamma(ends), [inf, nan, nan, -inf, inf], equal_nan=True)
    steps = np.array([1.0, -1.0, 1.5, 0.0])
    assert np.array_equal(xp.erfinv(steps), [inf, -inf, nan, 0], equal_nan=True)
    assert np.array_equal(xp.lgamma(np.array([-1.0, -2.0, 1.0, 2.0])), [inf, inf, 0, 0])
    assert np.isnan(xp.digamma(np.array([-1.0, -2.0]))).all()
    assert np.signbit(xp.erf(np.array([-0.0]))).all()


@pytest.mark.parametrize("d", [dt.float16, dt.bfloat16], ids=lambda d: d.name)
def test_narrow_types_are_computed_in_float32(d):
    x = np.linspace(-12, 12, 50).reshape(5, 10).astype(d)
    wide = x.astype("f4")
    for name in ("erf", "sigmoid", "lgamma"):
        got = getattr(xp, name)(x)
        assert got.dtype == d.numpy
        assert np.array_equal(got, getattr(xp, name)(wide).astype(d))
    assert np.array_equal(xp.log_softmax(x, 1), xp.log_softmax(wide, 1).astype(d))
    assert np.array_equal(xp.softmax_(x.copy(), 1), xp.softmax_(wide, 1).astype(d))
    many = np.ones((5000, 2), d)
    assert xp.sum_to_shape(many, (2,)).tolist() == [np.float32(5000).astype(d).item()] * 2


def test_special_functions_keep_shape_and_take_strided_and_integer_arrays():
    x = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(xp.erf(x), xp.erf(x.copy()))
    assert xp.erf(np.float32(0.5).reshape(())).shape == ()
    assert xp.lgamma(np.array([1, 2, 4])).dtype == np.float32


def test_sigmoid_is_exact_in_both_tails():
    x = np.array([-800.0, -50.0, 0.0, 50.0, 800.0])
    np.testing.assert_allclose(xp.sigmoid(x), [0, 1.928749847963918e-22, 0.5, 1, 1], rtol=1e-14)
    assert np.array_equal(xp.sigmoid(np.array([-200, 200], "f4")), [0, 1])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_softmax_and_its_logarithm_are_the_definition(axis, kind):
    x = (np.random.default_rng(0).standard_normal((3, 4, 20)) * 30).astype(kind)
    wide = x.astype("f8") - x.max(axis, keepdims=True)
    want = np.exp(wide) / np.exp(wide).sum(axis, keepdims=True)
    rtol = 1e-5 if kind == "f4" else 1e-12
    np.testing.assert_allclose(xp.log_softmax(x, axis), np.log(want), rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(
        xp.logsumexp(x, axis, True),
        np.log(np.exp(wide).sum(axis, keepdims=True)) + x.max(axis, keepdims=True),
        rtol=rtol,
    )
    out = x.copy()
    assert xp.softmax_(out, axis) is out
    np.testing.assert_allclose(out, want, rtol=10 * rtol, atol=1e-30)


def test_softmax_of_infinities_is_pytorchs():
    x = np.array([[-np.inf, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
    nan = np.nan
    want = [[0, 1], [nan, nan], [nan, 0]]
    assert np.array_equal(xp.softmax_(x.copy(), 1)[:2], want[:2], equal_nan=True)
    assert np.isnan(xp.softmax_(x.copy(), 1)[2, 0])
    assert xp.logsumexp(x, 1).tolist() == [0.0, -np.inf, np.inf]
    assert xp.logsumexp(np.ones((2, 0)), 1).tolist() == [-np.inf, -np.inf]
    assert xp.logsumexp(np.ones((2, 3)), (0, 1)).shape == ()


@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "f2"])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 40), (200, 40), (200, 3), (5, 2, 3)])
def test_add_at_adds_every_row(shape, kind):
    rng = np.random.default_rng(0)
    index = rng.integers(0, shape[0], (6, 50))
    values = rng.integers(-3, 4, (6, 50, *shape[1:])).astype(kind)
    out, want = np.ones(shape, kind), np.ones(shape, kind)
    np.add.at(want, index, values)
    xp.add_at(out, index, values)
    assert np.array_equal(out, want)
    strided = np.ones((*shape[:-1], 2 * shape[-1]), kind)[..., ::2]
    xp.add_at(strided, index, values)
    assert np.array_equal(strided, want)
    xp.add_at(out, index[:0], values[:0])
    assert np.array_equal(out, want)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_scatter_add_is_the_loop(dim):
    rng = np.random.default_rng(0)
    out = np.zeros((4, 5, 6))
    size = [3, 4, 5]
    size[dim] = 7
    index = rng.integers(0, out.shape[dim], size)
    src = rng.integers(0, 9, [n + 1 for n in size]).astype(float)
    want = out.copy()
    for place in np.ndindex(*size):
        target = list(place)
        target[dim] = index[place]
        want[tuple(target)] += src[place]
    strided = np.zeros((6, 5, 4)).T
    for array in (out, strided):
        xp.scatter_add(array, dim, index, src)
        assert np.array_equal(array, want)


def test_windows_are_views_of_every_position():
    x = np.arange(2 * 7 * 8).reshape(2, 7, 8)
    got = xp.windows(x, [2, 3], [2, 1], [1, 2])
    assert got.shape == (2, 3, 4, 2, 3)
    assert np.shares_memory(got, x)
    for i, j in np.ndindex(3, 4):
        assert np.array_equal(got[:, i, j], x[:, 2 * i : 2 * i + 2, j : j + 5 : 2])


def test_pad_zeros_pads_and_cuts():
    x = np.arange(1, 7).reshape(2, 3)
    assert xp.pad_zeros(x, [(1, 0), (0, 2)]).tolist() == [[0] * 5, [1, 2, 3, 0, 0], [4, 5, 6, 0, 0]]
    assert xp.pad_zeros(x, [(-1, 1)]).tolist() == [[2, 3, 0], [5, 6, 0]]
    assert xp.pad_zeros(x, []).tolist() == x.tolist()


@pytest.mark.parametrize("kind", ["f4", "i8", "c16"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (3, 4), (2, 3, 4), (1, 1, 1)])
def test_sum_to_shape_undoes_broadcasting(shape, kind):
    g = np.random.default_rng(0).integers(-9, 9, (2, 3, 4)).astype(kind)
    got = xp.sum_to_shape(g, shape)
    assert got.shape == shape
    assert got.dtype == g.dtype
    big = np.broadcast_to(np.arange(20.0), (300, 20)).copy()
    assert xp.sum_to_shape(big, (20,)).tolist() == [300 * n for n in range(20)]
    probe = np.random.default_rng(1).integers(-9, 9, shape).astype(kind)
    assert (got * probe).sum() == (g * probe).sum()  # the adjoint of broadcasting


@pytest.mark.parametrize("targets", [300, 4000])
@pytest.mark.parametrize("skew", [False, True])
def test_wide_rows_are_added_however_often_they_are_named(targets, skew):
    rng = np.random.default_rng(0)
    index = rng.integers(0, targets, 900)
    if skew:
        index = np.minimum(rng.zipf(1.3, 900) - 1, targets - 1)
    rows = rng.standard_normal((900, 64))
    out, want = np.ones((targets, 64)), np.ones((targets, 64))
    xp.add_at(out, index, rows)
    np.add.at(want, index, rows)
    np.testing.assert_allclose(out, want, 1e-12, 1e-12)
