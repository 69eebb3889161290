"""Eigenvalues of matrices that are not symmetric; the largest or smallest few of those that are."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import op, recover
from distgrad.errors import ArgumentError
from distgrad.ops.arrange import flip
from distgrad.ops.decompose import (
    LinAlgError,
    check_phase,
    check_square,
    diagonal,
    eigh,
    in_adjoints,
    is_complex,
    mH,
    real_part,
    solved,
)
from distgrad.ops.shape import adjoint, narrow
from distgrad.ops.triangular import cholesky, solve_triangular
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["eig", "eigvals", "lobpcg"]


def _d_eig(F: Any, g: Any, A: Any, eigenvalues: Any, eigenvectors: Any) -> Any:
    """Source: Boeddeker et al. 2017, with the norm of the vectors fixed to one."""
    g_l, g_v = g
    across = mH(F, eigenvectors)
    inside = F.matmul(across, g_v)
    along = diagonal(F, inside)
    check_phase("linalg_eig_backward", along)
    inside = inside - F.matmul(across, eigenvectors) * F.unsqueeze(F.real(along), -2)
    gaps = F.conj(F.unsqueeze(eigenvalues, -2) - F.unsqueeze(eigenvalues, -1))
    ones = F.diag_embed(F.zero(F.real(along)) + 1)
    inside = F.diag_embed(g_l) + inside * (1 - ones) / (gaps + ones)
    return _like(F, A, F.solve(across, F.matmul(inside, across)))


def _like(F: Any, A: Any, found: Any) -> Any:
    return found if is_complex(A) else real_part(F, found)


def _checked(xp: Namespace, A: Any) -> None:
    check_square(A)
    if A.size and not bool(xp.isfinite(A).all()):
        raise LinAlgError("input tensor should not contain infs or NaNs.")


@op(
    samples=[],  # complex outputs are beyond the checker: see tests/test_ops_decompose.py
    outputs=("eigenvalues", "eigenvectors"),
    method=False,
    widens=False,
    node="LinalgEigBackward0",
    d_A=in_adjoints(_d_eig),
)
def eig(xp: Namespace, A: Tensor) -> Any:
    """Return eigenvalues and eigenvectors (columns of norm one), both complex."""
    _checked(xp, A)
    kind = xp.result_type(A.dtype, xp.complex64)
    if not xp.size(A):
        return xp.zeros(A.shape[:-1], kind), xp.zeros(A.shape, kind)
    values, vectors = solved(xp, xp.linalg.eig, A)
    return values.astype(kind), vectors.astype(kind)


def _d_eigvals(F: Any, g: Any, A: Any) -> Any:
    across = mH(F, F.eig(A)[1])
    return _like(F, A, F.solve(across, F.unsqueeze(g, -1) * across))


@op(samples=[], method=False, widens=False, node="LinalgEigBackward0", d_A=in_adjoints(_d_eigvals))
def eigvals(xp: Namespace, A: Tensor) -> Array:
    """Return the eigenvalues of square matrices, complex and in no order."""
    _checked(xp, A)
    kind = xp.result_type(A.dtype, xp.complex64)
    if not xp.size(A):
        return xp.zeros(A.shape[:-1], kind)
    return solved(xp, xp.linalg.eigvals, A).astype(kind)


def lobpcg(
    A: Tensor,
    k: int | None = None,
    B: Tensor | None = None,
    X: Tensor | None = None,
    n: int | None = None,
    iK: Tensor | None = None,
    niter: int | None = None,
    tol: float | None = None,
    largest: bool | None = None,
    method: str | None = None,
    tracker: Any = None,
    ortho_iparams: dict[str, int] | None = None,
    ortho_fparams: dict[str, float] | None = None,
    ortho_bparams: dict[str, bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest (or smallest) eigenvalues of symmetric matrices, and the vectors.

    Args:
        A: ``(*, m, m)``.
        k: how many; the number of columns of ``X``, or 1.
        B: positive definite: solve ``A x = λ B x``.
        X: a first guess; here it says ``k`` only.
        n: the same as ``k`` where ``X`` is not given.
        iK: has no effect.
        niter: has no effect.
        tol: has no effect.
        largest: False for the smallest ones.
        method: has no effect.
        tracker: has no effect.
        ortho_iparams: has no effect.
        ortho_fparams: has no effect.
        ortho_bparams: has no effect.

    Differs from PyTorch: it is computed from all eigenvalues, not by iteration, so nothing is
    approximate and the options of the iteration are not needed.
    """
    count = k if k is not None else X.array.shape[-1] if X is not None else (n or 1)
    size = A.array.shape[-1]
    if size < 3 * count:
        error = ArgumentError(
            f"LOBPCG algorithm is not applicable when the number of A rows (={size}) is smaller "
            f"than 3 x the number of requested eigenpairs (={count}); use linalg.eigh"
        )
        recover("lobpcg", error, {"A": A}, {"k": count})
    lower = None if B is None else cholesky(B)
    if lower is not None:
        half = solve_triangular(lower, A, upper=False)
        A = solve_triangular(adjoint(lower), half, upper=True, left=False)
    values, vectors = eigh(A)
    if lower is not None:
        vectors = solve_triangular(adjoint(lower), vectors, upper=True)
    if largest is None or largest:
        first = size - count
        return flip(narrow(values, -1, first, count), -1), flip(
            narrow(vectors, -1, first, count), -1
        )
    return narrow(values, -1, 0, count), narrow(vectors, -1, 0, count)
