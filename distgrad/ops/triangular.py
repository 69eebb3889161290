"""Triangular systems, Cholesky's decomposition, and what is solved with its factor."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import named_results, op
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import between, case, real
from distgrad.errors import DtypeError, ShapeError
from distgrad.ops.compare import where
from distgrad.ops.decompose import (
    LinAlgError,
    check_matrix,
    check_square,
    diagonal,
    in_adjoints,
    mH,
    raw,
    solved,
)
from distgrad.ops.ranges import eye
from distgrad.ops.shape import adjoint, unsqueeze
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = [
    "cholesky", "cholesky_ex", "cholesky_inverse", "cholesky_solve", "solve_triangular",
    "triangular_solve",
]  # fmt: skip


# ---------------------------------------------------------------------- triangular systems
def check_alike(*arrays: Any) -> None:
    """Refuse matrices and right sides of different dtypes."""
    kinds = {raw(a).dtype for a in arrays}
    if len(kinds) > 1:
        raise DtypeError(
            "Expected A and B to have the same dtype, but found "
            f"{' and '.join(sorted(map(str, kinds)))}; convert one with .to(dtype)"
        )


def check_sides(A: Any, B: Any, left: bool) -> None:
    """Refuse a right side whose length is not that of the square matrices."""
    if B.shape[-2 if left else -1] != A.shape[-1]:
        raise ShapeError(
            f"Incompatible shapes of A and B for the equation {'AX' if left else 'XA'} = B "
            f"({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
        )


def _half(F: Any, x: Any, upper: bool, unitriangular: bool) -> Any:
    return F.triu(x, int(unitriangular)) if upper else F.tril(x, -int(unitriangular))


def _d_solve_triangular(
    F: Any, g: Any, A: Any, out: Any, upper: bool, left: bool, unitriangular: bool, needs: Any
) -> Any:
    across = F.solve_triangular(F.mT(A), g, upper=not upper, left=left, unitriangular=unitriangular)
    if not needs[0]:
        return None, across
    full = F.matmul(across, F.mT(out)) if left else F.matmul(F.mT(out), across)
    return -_half(F, full, upper, unitriangular), across


_FIRM = between(1.0, 2.0, 3, 3)


@op(
    samples=[
        case(_FIRM, real(3, 2), upper=True),
        case(_FIRM, real(2, 3), upper=False, left=False),
        case(between(1.0, 2.0, 2, 3, 3), real(3, 2), upper=False),
        case(real(3, 3), real(3, 2), upper=True, unitriangular=True),
    ],
    method=False,
    widens=False,
    reference="linalg.solve_triangular",
    node="LinalgSolveTriangularBackward0",
    formula=lambda F, A, B, upper, left, unitriangular: _by_solve(
        F, A, B, upper, left, unitriangular
    ),
    d_all=_d_solve_triangular,
)
def solve_triangular(
    xp: Namespace,
    A: Tensor,
    B: Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Array:
    """Return the solution X of ``A @ X = B`` for triangular ``A``; its other half is not read.

    Args:
        A: ``(*, n, n)``.
        B: ``(*, n, k)``, or ``(*, k, n)`` when ``left`` is False.
        upper: ``A`` is an upper triangular matrix, else a lower one.
        left: False solves ``X @ A = B``.
        unitriangular: the diagonal counts as ones and is not read.
    """
    check_square(A, "A")
    check_matrix(B, "B")
    check_alike(A, B)
    check_sides(A, B, left)
    a, b = (A, B) if left else (xp.swapaxes(A, -1, -2), xp.swapaxes(B, -1, -2))
    down = upper is not left
    out = _substituted(xp, a, b, not down, unitriangular)
    return out if left else xp.swapaxes(out, -1, -2)


def _substituted(xp: Namespace, a: Any, b: Any, upper: bool, unitriangular: bool) -> Any:
    """Return the solution by LAPACK; where the diagonal has a zero, row by row: inf and nan."""
    n = a.shape[-1]
    half: Array = xp.triu(a) if upper else xp.tril(a)
    if unitriangular:
        half = xp.where(xp.eye(n, dtype=bool), half.dtype.type(1), half)
    try:
        return solved(xp, xp.linalg.solve, half, b)
    except LinAlgError:
        lead = xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out: Array = xp.array(xp.broadcast_to(b, (*lead, *b.shape[-2:])))
        for i in range(n - 1, -1, -1) if upper else range(n):
            known = half[..., i : i + 1, :] * (xp.arange(n) > i if upper else xp.arange(n) < i)
            done = xp.where((xp.arange(n) > i if upper else xp.arange(n) < i)[:, None], out, 0)
            rest = out[..., i : i + 1, :] - xp.matmul(known, done)
            out[..., i : i + 1, :] = rest / half[..., i : i + 1, i : i + 1]
        return out


def _by_solve(F: Any, A: Any, B: Any, upper: bool, left: bool, unitriangular: bool) -> Any:
    half = _half(F, A, upper, unitriangular)
    if unitriangular:
        half = half + F.diag_embed(diagonal(F, F.zero(A)) + 1)
    return F.solve(half, B, left=left)


def triangular_solve(
    b: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    """Return the solution of ``A @ X = b`` for triangular ``A``, and a copy of ``A``.

    Args:
        b: ``(*, n, k)``.
        A: ``(*, n, n)``.
        upper: ``A`` is an upper triangular matrix.
        transpose: solve with the transpose (the adjoint of a complex matrix).
        unitriangular: the diagonal counts as ones.
    """
    a = A
    if transpose:
        a, upper = A.mT if not A.is_complex() else adjoint(A), not upper
    found = solve_triangular(a, b, upper=upper, unitriangular=unitriangular)
    lead = found.array.shape[:-2]
    return _TriangularSolution(found, A.expand(*lead, *A.array.shape[-2:]).clone())


_TriangularSolution = named_results("triangular_solve", ["solution", "cloned_coefficient"])
triangular_solve = takes_out(triangular_solve)


# ---------------------------------------------------------------------- Cholesky
def _half_diagonal(F: Any, x: Any) -> Any:
    """Return the lower triangle, its diagonal halved."""
    low = F.tril(x)
    return low - F.diag_embed(diagonal(F, low)) * 0.5


def _d_cholesky(F: Any, g: Any, out: Any, upper: bool) -> Any:
    lower, g = (mH(F, out), mH(F, g)) if upper else (out, g)
    low = F.tril(F.matmul(mH(F, lower), g))
    inside = (low + mH(F, F.tril(low, -1))) * 0.5
    inverse = F.solve_triangular(lower, F.diag_embed(diagonal(F, F.zero(lower)) + 1), upper=False)
    return F.matmul(mH(F, inverse), F.matmul(inside, inverse))


def _t_cholesky(F: Any, input: Any, upper: bool, t_input: Any) -> Any:
    lower = F.cholesky(input, upper=upper)
    lower = mH(F, lower) if upper else lower
    half = F.solve_triangular(lower, t_input, upper=False)
    both = F.solve_triangular(mH(F, lower), half, upper=True, left=False)
    found = F.matmul(lower, _half_diagonal(F, both))
    return mH(F, found) if upper else found


@op(
    samples=[],  # one half is read, the gradient is symmetric: see tests/test_ops_decompose.py
    method=False,
    widens=False,
    node="LinalgCholeskyExBackward0",
    reference="linalg.cholesky",
    jvp=_t_cholesky,
    d_input=in_adjoints(_d_cholesky),
)
def cholesky(xp: Namespace, input: Tensor, upper: bool = False) -> Array:
    """Return the lower triangular L with ``L @ L.mH = input``, or the upper one, ``L.mH``.

    Args:
        input: symmetric (Hermitian) positive definite matrices ``(*, n, n)``; only the lower half
            is read (the upper one if ``upper``). The gradient is that of both.
        upper: return the upper triangular factor.

    Raises:
        LinAlgError: a matrix is not positive definite.
    """
    check_square(input, "A")
    if not upper:
        return solved(xp, xp.linalg.cholesky, input)
    lower = solved(xp, xp.linalg.cholesky, xp.conj(xp.swapaxes(input, -1, -2)))
    return xp.ascontiguousarray(xp.conj(xp.swapaxes(lower, -1, -2)))


@op(samples=[], method=False, widens=False)
def order_of_failure(xp: Namespace, input: Tensor, upper: bool) -> Array:
    """Return the order of the first leading minor that is not positive, or 0."""
    a: Array = xp.conj(xp.swapaxes(input, -1, -2)) if upper else xp.array(input)
    a = xp.array(a)
    info = xp.zeros(a.shape[:-2], xp.int32)
    for i in range(a.shape[-1]):
        pivot = xp.real(a[..., i, i])
        bad = ~(pivot > 0)
        info = xp.where((info == 0) & bad, xp.int32(i + 1), info)
        root = xp.sqrt(xp.where(bad, 1, pivot))[..., None]
        column = a[..., i + 1 :, i] / root
        a[..., i + 1 :, i + 1 :] -= column[..., :, None] * xp.conj(column[..., None, :])
    return info


_CholeskyResult = named_results("linalg_cholesky_ex", ["L", "info"])


@takes_out
def cholesky_ex(input: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """Return Cholesky's factor, and for each matrix 0 or the order of the minor that fails.

    A factor that does not exist is nan.
    """
    try:
        found = cholesky(input, upper=upper)
    except LinAlgError:
        if check_errors:
            raise
        info = order_of_failure(input, upper)
        failed = unsqueeze(unsqueeze(info != 0, -1), -1)
        ones = eye(input.array.shape[-1], dtype=input.dtype, device=input.device)
        safe = where(failed, ones, input)
        return _CholeskyResult(cholesky(safe, upper=upper).masked_fill(failed, math.nan), info)
    return _CholeskyResult(found, no_errors(input))


def no_errors(A: Tensor) -> Tensor:
    """Return a zero for each matrix."""
    return A.detach().new_zeros(A.shape[:-2]).int()


def _check_factor(L: Any, B: Any = None) -> None:
    for name, value in (("L", L), ("B", B)):
        if value is not None and value.ndim < 2:
            raise ShapeError(
                f"{name} should have at least 2 dimensions, but has {value.ndim} instead"
            )
    check_square(L)
    if B is not None:
        check_alike(B, L)
        check_sides(L, B, True)


def _moved(F: Any, L: Any, t_L: Any, upper: bool) -> Any:
    """Return the change of L Lᴴ (or Lᴴ L) with L."""
    half = F.matmul(mH(F, L), t_L) if upper else F.matmul(t_L, mH(F, L))
    return half + mH(F, half)


def _d_cholesky_solve(F: Any, g: Any, L: Any, out: Any, upper: bool) -> Any:
    across = F.cholesky_solve(g, L, upper)
    half = F.matmul(across, mH(F, out))
    both = half + mH(F, half)
    return across, -(F.matmul(L, both) if upper else F.matmul(both, L))


def _t_cholesky_solve(F: Any, B: Any, L: Any, upper: bool, t_B: Any, t_L: Any) -> Any:
    change = F.zero(B) if t_B is None else t_B
    if t_L is not None:
        change = change - F.matmul(_moved(F, L, t_L, upper), F.cholesky_solve(B, L, upper))
    return F.cholesky_solve(change, L, upper)


@op(
    samples=[],  # the gradient of L is that of a full matrix: see tests/test_ops_decompose.py
    widens=False,
    jvp=_t_cholesky_solve,
    d_all=in_adjoints(_d_cholesky_solve),
)
def cholesky_solve(xp: Namespace, B: Tensor, L: Tensor, upper: bool = False) -> Array:
    """Return the solution X of ``A @ X = B`` for A given by its Cholesky factor.

    Args:
        B: ``(*, n, k)``.
        L: ``(*, n, n)``, lower triangular; the other half is not read.
        upper: ``L`` is upper triangular.
    """
    _check_factor(L, B)
    lower = xp.conj(xp.swapaxes(L, -1, -2)) if upper else L
    half = _substituted(xp, lower, B, False, False)
    return _substituted(xp, xp.conj(xp.swapaxes(lower, -1, -2)), half, True, False)


def _d_cholesky_inverse(F: Any, g: Any, L: Any, out: Any, upper: bool) -> Any:
    both = F.matmul(F.matmul(out, g + mH(F, g)), out)
    return -(F.matmul(L, both) if upper else F.matmul(both, L))


def _t_cholesky_inverse(F: Any, L: Any, upper: bool, t_L: Any) -> Any:
    inverse = F.cholesky_inverse(L, upper)
    return -F.matmul(F.matmul(inverse, _moved(F, L, t_L, upper)), inverse)


@op(samples=[], widens=False, jvp=_t_cholesky_inverse, d_L=in_adjoints(_d_cholesky_inverse))
def cholesky_inverse(xp: Namespace, L: Tensor, upper: bool = False) -> Array:
    """Return the inverse of the matrix given by its Cholesky factor.

    Args:
        L: ``(*, n, n)``, lower triangular; the other half is not read.
        upper: ``L`` is upper triangular.
    """
    _check_factor(L)
    lower = xp.conj(xp.swapaxes(L, -1, -2)) if upper else L
    inverse = solved(xp, xp.linalg.inv, xp.tril(lower))
    return xp.matmul(xp.conj(xp.swapaxes(inverse, -1, -2)), inverse)
