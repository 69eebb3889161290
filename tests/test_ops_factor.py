"""LU, eigenvalues and reflections: what the samples cannot say, beside PyTorch."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.testing.torch_pairs import agree, draw

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4), (5, 3), (3, 5)])
def test_lu_parts(shape):
    for part in range(1, 3):
        agree(lambda a, i=part: dg.linalg.lu(a)[i], lambda a, i=part: torch.linalg.lu(a)[i],
              draw(*shape))  # fmt: skip
    a = draw(*shape)
    p, lower, upper = dg.linalg.lu(dg.tensor(a))
    np.testing.assert_allclose((p @ lower @ upper).array, a, atol=1e-12)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("adjoint", [True, False])
def test_lu_solve(left, adjoint):
    options = {"left": left, "adjoint": adjoint}
    agree(
        lambda a, b: dg.linalg.lu_solve(*dg.linalg.lu_factor(a), b, **options),
        lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b, **options),
        draw(3, 3), draw(3, 3),
    )  # fmt: skip


def test_factors_of_cholesky():
    a = draw(3, 3)
    a = np.linalg.cholesky(a @ a.T + np.eye(3))
    ours = dg.cholesky_inverse(dg.tensor(a)).array
    np.testing.assert_allclose(ours, torch.cholesky_inverse(torch.tensor(a)).numpy(), 1e-10)
    b = draw(3, 2)
    for upper in (False, True):
        factor = a.T.copy() if upper else a
        ours = dg.cholesky_solve(dg.tensor(b), dg.tensor(factor), upper).array
        theirs = torch.cholesky_solve(torch.tensor(b), torch.tensor(factor), upper).numpy()
        np.testing.assert_allclose(ours, theirs, 1e-10)


def test_products_of_reflections():
    a, tau = draw(5, 3), draw(3)
    agree(dg.linalg.householder_product, torch.linalg.householder_product, a, tau)
    for left in (True, False):
        other = draw(5, 2) if left else draw(2, 5)
        ours = dg.ormqr(*map(dg.tensor, (a, tau, other)), left, True)
        theirs = torch.ormqr(*map(torch.tensor, (a, tau, other)), left, True)
        np.testing.assert_allclose(ours.array, theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4)])
def test_eigenvalues(shape):
    def value(lib, a):
        values, vectors = lib.linalg.eig(a)
        return (values * values.abs()).sum().real + (vectors.abs() ** 3).sum()

    agree(lambda a: value(dg, a), lambda a: value(torch, a), draw(*shape))
    a = draw(*shape)
    values, vectors = dg.linalg.eig(dg.tensor(a))
    assert values.dtype == dg.complex128
    product = (vectors * values.unsqueeze(-2)).array
    np.testing.assert_allclose(a @ vectors.array, product, atol=1e-12)
    agree(lambda a: dg.linalg.eigvals(a).abs().sum(), lambda a: torch.linalg.eigvals(a).abs().sum(),
          draw(*shape))  # fmt: skip
