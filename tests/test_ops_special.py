"""Special functions over their whole range, beside SciPy's, to 14 digits."""

import numpy as np
import pytest

import distgrad as dg

scipy = pytest.importorskip("scipy.special")

_rng = np.random.default_rng(0)
_LINE = np.concatenate([_rng.uniform(-30, 30, 500), _rng.uniform(-1, 1, 100), [0, 8, -8, 2, 1e-8]])
_ENDS = np.array([0.0, np.inf, -np.inf, np.nan, -1.0])


def _check(name, reference, *arrays, rtol=2e-14, atol=2e-14):
    got = getattr(dg.special, name)(*(dg.tensor(a) for a in arrays))
    assert got.dtype == dg.float64
    np.testing.assert_allclose(got.array, reference(*arrays), rtol, atol)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("i0", "i0"), ("i0e", "i0e"), ("i1", "i1"), ("i1e", "i1e"), ("bessel_j0", "j0"),
        ("bessel_j1", "j1"), ("bessel_y0", "y0"), ("bessel_y1", "y1"), ("erfcx", "erfcx"),
        ("modified_bessel_k0", "k0"), ("modified_bessel_k1", "k1"), ("ndtr", "ndtr"),
        ("scaled_modified_bessel_k0", "k0e"), ("scaled_modified_bessel_k1", "k1e"),
        ("log_ndtr", "log_ndtr"), ("entr", "entr"), ("gammaln", "gammaln"), ("psi", "psi"),
        ("expit", "expit"), ("erf", "erf"), ("erfc", "erfc"), ("exp2", "exp2"),
        ("expm1", "expm1"),
    ],
)  # fmt: skip
def test_functions_of_one_number(name, reference):
    function = getattr(scipy, reference)
    x = np.abs(_LINE) if name in ("gammaln", "psi") else _LINE
    x = x[x != 0] if name == "psi" else x
    _check(name, function, x, atol=2e-13 if name == "psi" else 2e-14)


@pytest.mark.parametrize("name", ["i0e", "i1e", "erfcx", "log_ndtr", "ndtr", "ndtri", "entr"])
def test_the_ends_of_the_line(name):
    _check(name, getattr(scipy, name), _ENDS)


def test_airy_function():
    x = np.concatenate([_LINE, [2.0, -3.0, 103.8, 110.0]])
    _check("airy_ai", lambda x: scipy.airy(x)[0], x, rtol=1e-13, atol=1e-13)
    assert dg.special.airy_ai(dg.tensor([np.inf])).isnan().all()  # as in PyTorch


def test_normal_quantiles():
    p = np.concatenate([_rng.uniform(0, 1, 500), 10.0 ** -_rng.uniform(0, 300, 100), [0, 1, 0.5]])
    _check("ndtri", scipy.ndtri, p)


def test_zeta_and_incomplete_gamma():
    _check("zeta", scipy.zeta, _rng.uniform(1.01, 20, 200), _rng.uniform(0.1, 30, 200))
    for high in (1, 10, 100, 1e4):
        a = _rng.uniform(0, high, 100)
        x = np.abs(a + _rng.standard_normal(100) * np.sqrt(a) * 2)
        _check("gammainc", scipy.gammainc, a, x, rtol=2e-13)
        _check("gammaincc", scipy.gammaincc, a, x, rtol=2e-13)
    a = np.array([0, 0, 1, np.inf, 1, -1, 2.0, np.nan])
    x = np.array([0, 1, 0, 1, np.inf, 1, -1, 1.0])
    _check("gammainc", scipy.gammainc, a, x)
    _check("gammaincc", scipy.gammaincc, a, x)


def test_products_with_logarithms_at_zero():
    zeros, numbers = np.zeros(3), np.array([-1.0, 0.0, np.nan])
    _check("xlog1py", scipy.xlog1py, zeros, numbers)
    _check("xlogy", scipy.xlogy, zeros, numbers)
    assert dg.special.xlog1py(2.0, dg.tensor([0.5])).dtype == dg.float32


def test_multivariate_gamma():
    x = _rng.uniform(3, 9, 5)
    want = [scipy.multigammaln(v, 3) for v in x]
    np.testing.assert_allclose(dg.special.multigammaln(dg.tensor(x), 3).array, want, 1e-14)
    with pytest.raises(RuntimeError):
        dg.mvlgamma(dg.ones(2), 0)


def test_integers_become_the_default_float():
    assert dg.i0(dg.tensor([0, 1])).dtype == dg.float32
    assert dg.special.ndtr(dg.tensor([0])).tolist() == [0.5]
    x = dg.ones(2)
    assert x.i0_() is x and dg.special.zeta(2.0, x).dtype == dg.float32


@pytest.mark.torch
def test_the_namespace_has_the_names_of_torch():
    torch = pytest.importorskip("torch")
    for name in dg.special.__all__:
        assert hasattr(torch.special, name), name
    for name in dg.fft.__all__:
        assert hasattr(torch.fft, name), name
