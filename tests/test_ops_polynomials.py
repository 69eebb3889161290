"""Orthogonal polynomials beside SciPy's."""

import numpy as np
import pytest

import distgrad as dg

scipy = pytest.importorskip("scipy.special")

_X = np.random.default_rng(0).uniform(-1.5, 1.5, (40, 1))
_N = np.arange(12)


def _third(n, x):
    """Chebyshev polynomials of the third kind: differences of neighbours of the second."""
    return scipy.eval_chebyu(n, x) - np.where(n > 0, scipy.eval_chebyu(n - 1, x), 0)


def _fourth(n, x):
    return scipy.eval_chebyu(n, x) + np.where(n > 0, scipy.eval_chebyu(n - 1, x), 0)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("chebyshev_polynomial_t", scipy.eval_chebyt),
        ("chebyshev_polynomial_u", scipy.eval_chebyu),
        ("chebyshev_polynomial_v", _third), ("chebyshev_polynomial_w", _fourth),
        ("shifted_chebyshev_polynomial_t", scipy.eval_sh_chebyt),
        ("shifted_chebyshev_polynomial_u", scipy.eval_sh_chebyu),
        ("shifted_chebyshev_polynomial_v", lambda n, x: _third(n, 2 * x - 1)),
        ("shifted_chebyshev_polynomial_w", lambda n, x: _fourth(n, 2 * x - 1)),
        ("hermite_polynomial_h", scipy.eval_hermite),
        ("hermite_polynomial_he", scipy.eval_hermitenorm),
        ("laguerre_polynomial_l", scipy.eval_laguerre),
        ("legendre_polynomial_p", scipy.eval_legendre),
    ],
)  # fmt: skip
def test_values_are_scipys(name, reference):
    got = getattr(dg.special, name)(dg.tensor(_X), dg.tensor(_N))
    np.testing.assert_allclose(got.numpy(), reference(_N, _X), 1e-10, 1e-10)


def test_degrees_are_cut_to_integers_and_below_zero_give_zero():
    x = dg.tensor([0.5])
    assert dg.special.legendre_polynomial_p(x, 2.9).tolist() == pytest.approx([-0.125])
    assert dg.special.legendre_polynomial_p(x, -1).tolist() == [0.0]


def test_a_high_degree_within_the_interval_keeps_its_digits():
    got = dg.special.chebyshev_polynomial_t(dg.tensor([0.3], dtype=dg.float64), 5000)
    assert got.item() == pytest.approx(np.cos(5000 * np.arccos(0.3)), abs=1e-10)


def test_hermite_polynomials_of_too_high_a_degree_are_nan():
    assert dg.special.hermite_polynomial_h(dg.tensor([0.3]), 129).isnan().all()


def test_a_number_may_stand_for_either_operand_but_not_for_both():
    assert dg.special.hermite_polynomial_h(2, dg.tensor([3.0])).tolist() == [40.0]
    assert dg.special.hermite_polynomial_h(dg.tensor([1, 2]), 2).dtype == dg.float32
    with pytest.raises(TypeError, match="must be Tensor"):
        dg.special.hermite_polynomial_h(2, 3)


def test_no_gradient_is_recorded():
    x = dg.ones(2, requires_grad=True)
    assert not dg.special.laguerre_polynomial_l(x, 2).requires_grad
