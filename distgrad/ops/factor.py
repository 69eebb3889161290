"""LU and eigenvalue decompositions, products of reflections, solutions by known factors."""

from __future__ import annotations

from typing import Any, NamedTuple

from distgrad.autograd.declare import as_method, op
from distgrad.autograd.samples import case, real
from distgrad.backend.device import array_namespace
from distgrad.errors import ShapeError
from distgrad.ops.arrange import tril, triu
from distgrad.ops.decompose import check_matrix, check_square, solved
from distgrad.ops.linalg import inv, solve_triangular
from distgrad.ops.matmul import matmul
from distgrad.ops.shape import mT, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "cholesky_inverse", "cholesky_solve", "eig", "eigvals", "householder_product", "lu",
    "lu_factor", "lu_solve", "lu_unpack", "ormqr",
]  # fmt: skip


class LuFactors(NamedTuple):
    """What ``lu_factor`` returns."""

    LU: Tensor
    pivots: Tensor


class LuParts(NamedTuple):
    """What ``lu`` returns."""

    P: Tensor
    L: Tensor
    U: Tensor


# ---------------------------------------------------------------------- LU
def _d_lu(F: Any, g: Any, LU: Any, pivots: Any) -> Any:
    """The gradient of A = P L U: P L⁻ᵀ (tril(Lᵀ g_L, -1) + triu(g_U Uᵀ)) U⁻ᵀ."""
    rows, columns = LU.shape[-2:]
    n = min(rows, columns)
    square = F.narrow(F.narrow(LU, -2, 0, n), -1, 0, n)
    lower = F.tril(square, -1)
    lower = lower + F.diag_embed(F.diagonal(F.zero(lower), 0, -2, -1) + 1)
    upper = F.triu(square)
    if rows > columns:
        below, g_below = (F.narrow(x, -2, n, rows - n) for x in (LU, g))
        g = F.narrow(g, -2, 0, n)
        inside = F.tril(F.matmul(F.mT(lower), F.tril(g, -1)), -1)
        up = F.matmul(F.triu(g), F.mT(upper)) - F.matmul(F.mT(below), g_below)
        inside = inside + F.triu(up)
        top = F.matmul(F.mT(F.inv(lower)), F.matmul(inside, F.mT(F.inv(upper))))
        found = F.cat([top, F.matmul(g_below, F.mT(F.inv(upper)))], -2)
    else:
        right = None
        g_u = F.triu(F.narrow(g, -1, 0, n))
        inside = F.matmul(F.mT(lower), F.tril(F.narrow(g, -1, 0, n), -1))
        if columns > rows:
            beside, right = (F.narrow(x, -1, n, columns - n) for x in (LU, g))
            inside = inside - F.matmul(right, F.mT(beside))
        inside = F.tril(inside, -1) + F.triu(F.matmul(g_u, F.mT(upper)))
        found = F.matmul(F.mT(F.inv(lower)), F.matmul(inside, F.mT(F.inv(upper))))
        if right is not None:
            found = F.cat([found, F.matmul(F.mT(F.inv(lower)), right)], -1)
    return F.matmul(_permutation_like(pivots, rows, found), found)


def _permutation_like(pivots: Any, rows: int, like: Any) -> Any:
    raw = pivots.array if isinstance(pivots, Tensor) else pivots
    kind = (like.array if isinstance(like, Tensor) else like).dtype
    matrix = _permutation(array_namespace(raw), raw, rows, kind)
    return wrap(matrix) if isinstance(like, Tensor) else matrix


def _permutation(xp: Namespace, pivots: Array, rows: int, kind: Any) -> Array:
    """Return the matrices P that undo the exchanges of rows ``pivots``."""
    lead = pivots.shape[:-1]
    order = xp.array(xp.broadcast_to(xp.arange(rows), (*lead, rows)))
    for i in range(pivots.shape[-1]):
        other = pivots[..., i : i + 1] - 1
        here, there = order[..., i : i + 1] + 0, xp.take_along_axis(order, other, -1)
        order[..., i : i + 1] = there
        xp.put_along_axis(order, other, here, -1)
    return xp.astype(xp.arange(rows)[:, None] == order[..., None, :], kind)


@op(
    samples=[case(real(3, 3)), case(real(2, 3, 3)), case(real(4, 2)), case(real(2, 4))],
    outputs=("LU", "pivots!"),
    method=False,
    node="LinalgLuFactorExBackward0",
    reference="linalg.lu_factor",
    d_A=_d_lu,
)
def packed_lu(xp: Namespace, A: Tensor) -> Any:
    """Return L (below the diagonal) and U in one matrix, and the exchanges of rows from 1 on.

    Elimination goes column by column, all matrices of a batch at once.
    """
    check_matrix(A)
    rows, columns = A.shape[-2:]
    n = min(rows, columns)
    m: Array = xp.array(A, copy=True)
    pivots = xp.zeros((*m.shape[:-2], n), xp.int32)
    for i in range(n):
        best = xp.argmax(xp.abs(m[..., i:, i]), axis=-1) + i
        pivots[..., i] = best + 1
        at = best[..., None, None]
        chosen, here = xp.take_along_axis(m, at, -2), m[..., i : i + 1, :] + 0
        xp.put_along_axis(m, at, here, -2)
        m[..., i : i + 1, :] = chosen
        corner = m[..., i : i + 1, i : i + 1]
        m[..., i + 1 :, i : i + 1] /= xp.where(corner == 0, m.dtype.type(1), corner)
        m[..., i + 1 :, i + 1 :] -= m[..., i + 1 :, i : i + 1] * m[..., i : i + 1, i + 1 :]
    return m, pivots


def lu_factor(A: Tensor, *, pivot: bool = True) -> LuFactors:
    """Return L and U in one matrix, and the exchanges of rows (numbered from 1).

    Args:
        pivot: True; elimination without exchanges is not offered on the host by PyTorch either.
    """
    _check_pivot("lu_factor", pivot)
    return LuFactors(*packed_lu(A))


def _check_pivot(name: str, pivot: bool) -> None:
    if not pivot:
        raise ShapeError(f"linalg.{name}: LU without pivoting is not implemented on the CPU")


def lu_unpack(
    LU_data: Tensor, LU_pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> LuParts:
    """Return P, L and U of what ``lu_factor`` returned."""
    xp = array_namespace(LU_data.array)
    rows, columns = LU_data.array.shape[-2:]
    n, kind = min(rows, columns), LU_data.array.dtype
    empty = wrap(xp.zeros((0,), kind))
    lower = upper = p = empty
    if unpack_data:
        lower = tril(LU_data, -1)[..., :n] + wrap(xp.eye(rows, n, dtype=kind))
        upper = triu(LU_data)[..., :n, :]
    if unpack_pivots:
        p = wrap(_permutation(xp, LU_pivots.array, rows, kind))
    return LuParts(p, lower, upper)


def lu(A: Tensor, *, pivot: bool = True) -> LuParts:
    """Return a permutation P, L with a diagonal of ones, and U with ``A = P @ L @ U``."""
    _check_pivot("lu", pivot)
    return lu_unpack(*packed_lu(A))


def lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    """Return the solution X of ``A @ X = B`` for A given by ``lu_factor``.

    Args:
        left: False solves ``X @ A = B``.
        adjoint: solve with the transpose of A.
    """
    check_square(LU.array, "LU")
    p, lower, upper = lu_unpack(LU, pivots)
    if not left:
        return mT(lu_solve(LU, pivots, mT(B), adjoint=not adjoint))
    if adjoint:
        half = solve_triangular(mT(upper), B, upper=False)
        return matmul(p, solve_triangular(mT(lower), half, upper=True))
    half = solve_triangular(lower, matmul(mT(p), B), upper=False)
    return solve_triangular(upper, half, upper=True)


# ---------------------------------------------------------------------- Cholesky factors
def cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    """Return the solution X of ``A @ X = B`` for A given by its Cholesky factor."""
    lower = mT(L) if upper else L
    half = solve_triangular(lower, B, upper=False)
    return solve_triangular(mT(lower), half, upper=True)


def cholesky_inverse(L: Tensor, upper: bool = False) -> Tensor:
    """Return the inverse of the matrix given by its Cholesky factor."""
    inverse = inv(triu(L) if upper else tril(L))
    return matmul(inverse, mT(inverse)) if upper else matmul(mT(inverse), inverse)


# ---------------------------------------------------------------------- reflections
def householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """Return the first columns of the product of the reflections ``I - tau v vᵀ``.

    Shape:
        input: ``(*, m, n)`` whose columns below the diagonal hold v, tau: ``(*, k)``.
    """
    rows, columns = input.array.shape[-2:]
    if rows < columns:
        raise ShapeError(
            f"householder_product({input._brief()}): input must have at least as many rows as "
            "columns"
        )
    return _reflected(input, tau)[..., :, :columns]


def _reflected(input: Tensor, tau: Tensor) -> Tensor:
    """Return the whole square product of the reflections."""
    xp = array_namespace(input.array)
    rows, kind = input.array.shape[-2], input.array.dtype
    eye = wrap(xp.eye(rows, dtype=kind))
    lower = tril(input, -1) + wrap(xp.eye(rows, input.array.shape[-1], dtype=kind))
    product = eye
    for i in range(tau.array.shape[-1]):
        v = lower[..., :, i : i + 1]
        scaled = matmul(product, v) * unsqueeze(tau[..., i : i + 1], -1)
        product = product - matmul(scaled, mT(v))
    return product


def ormqr(
    input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False
) -> Tensor:
    """Return ``Q @ other`` (or ``other @ Q``) for Q given by its reflections."""
    q = _reflected(input, tau)
    q = mT(q) if transpose else q
    return matmul(q, other) if left else matmul(other, q)


# ---------------------------------------------------------------------- eigenvalues
def _d_eig(F: Any, g: Any, eigenvalues: Any, eigenvectors: Any) -> Any:
    """Source: Boeddeker et al. 2017, with the norm of the vectors fixed to one."""
    g_l, g_v = F.conj(g[0]), F.conj(g[1])
    adjoint = F.conj(F.mT(eigenvectors))
    inside = F.matmul(adjoint, g_v)
    real = F.real(F.diagonal(inside, 0, -2, -1))
    inside = inside - F.matmul(adjoint, eigenvectors) * F.unsqueeze(real, -2)
    gaps = F.conj(F.unsqueeze(eigenvalues, -2) - F.unsqueeze(eigenvalues, -1))
    ones = F.diag_embed(F.zero(real) + 1)
    inside = F.diag_embed(g_l) + inside * (1 - ones) / (gaps + ones)
    return F.conj(F.matmul(F.inv(adjoint), F.matmul(inside, adjoint)))


@op(
    samples=[],  # complex outputs are beyond the checker: see tests/test_ops_factor.py
    outputs=("eigenvalues", "eigenvectors"),
    method=False,
    node="LinalgEigBackward0",
    d_A=lambda F, g, A, eigenvalues, eigenvectors: _real_if(
        F, A, _d_eig(F, g, eigenvalues, eigenvectors)
    ),
)
def eig(xp: Namespace, A: Tensor) -> Any:
    """Return eigenvalues and eigenvectors (columns of norm one), both complex."""
    check_square(A)
    values, vectors = solved(xp, xp.linalg.eig, A)
    kind = xp.result_type(A.dtype, xp.complex64)
    return values.astype(kind), vectors.astype(kind)


def _real_if(F: Any, A: Any, found: Any) -> Any:
    kind = (A.array if isinstance(A, Tensor) else A).dtype.kind
    return found if kind == "c" else F.real(found)


def eigvals(A: Tensor) -> Tensor:
    """Return the eigenvalues of square matrices, complex and in no order."""
    return eig(A)[0]  # type: ignore[no-any-return]


as_method(cholesky_solve)
as_method(cholesky_inverse)
as_method(ormqr)
as_method(householder_product, "orgqr")
