"""Linear algebra under the names and with the signatures it has outside ``distgrad.linalg``."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method, named_results, recover
from distgrad.autograd.outputs import takes_out
from distgrad.errors import ShapeError
from distgrad.ops import decompose, factor, linalg
from distgrad.ops.arrange import flip
from distgrad.ops.shape import adjoint
from distgrad.ops.triangular import cholesky, triangular_solve
from distgrad.tensor import Tensor

__all__ = [
    "cholesky", "det", "inverse", "lu", "lu_solve", "matrix_exp", "matrix_power", "qr", "slogdet",
    "svd", "triangular_solve", "vander",
]  # fmt: skip

_Svd = named_results("svd", ["U", "S", "V"])
_Qr = named_results("qr", ["Q", "R"])


@takes_out
def svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> Any:
    """Return U, the singular values S in descending order, and V with ``U @ diag(S) @ V.mH``.

    Args:
        input: ``(*, m, n)``.
        some: U and V have min(m, n) columns, else they are square.
        compute_uv: False leaves U and V zero.
    """
    if not compute_uv:
        values = decompose.svdvals(input)
        *lead, rows, columns = input.array.shape
        zero = input.detach()
        return _Svd(zero.new_zeros((*lead, rows, rows)), values,
                    zero.new_zeros((*lead, columns, columns)))  # fmt: skip
    u, s, vh = decompose.svd(input, full_matrices=not some)
    return _Svd(u, s, adjoint(vh))


@takes_out
def qr(input: Tensor, some: bool = True) -> Any:
    """Return Q with orthogonal columns and upper triangular R with ``input = Q @ R``.

    Args:
        input: ``(*, m, n)``.
        some: Q has min(m, n) columns, else it is square.
    """
    return _Qr(*decompose.qr(input, "reduced" if some else "complete"))


@takes_out
def lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> Any:
    """Return L and U in one matrix, the exchanges of rows, and on demand where U has a zero.

    Args:
        A: ``(*, m, n)``.
        pivot: must be True.
        get_infos: return a third tensor, and do not refuse a U with a zero on its diagonal.
    """
    found = factor.lu_factor_ex(A, pivot=pivot, check_errors=not get_infos)
    return tuple(found) if get_infos else tuple(found[:2])


@takes_out
def lu_solve(b: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    """Return the solution X of ``A @ X = b`` for A given by ``lu``.

    Args:
        b: ``(*, n, k)``.
        LU_data: ``(*, n, n)``.
        LU_pivots: ``(*, n)``.
    """
    if b.array.ndim < 2:
        error = ShapeError(f"b should have at least 2 dimensions, but has {b.array.ndim} instead")
        recover("lu_solve", error, {"b": b, "LU_data": LU_data}, {})
    return factor.lu_solve(LU_data, LU_pivots, b)


@takes_out
def det(input: Tensor) -> Tensor:
    """Return the determinant of square matrices."""
    return linalg.det(input)


@takes_out
def slogdet(input: Tensor) -> Any:
    """Return the sign of the determinant and the logarithm of its absolute value."""
    return linalg.slogdet(input)


@takes_out
def inverse(input: Tensor) -> Tensor:
    """Return the inverse of square matrices."""
    return linalg.inv(input)


@takes_out
def matrix_power(input: Tensor, n: int) -> Tensor:
    """Return the ``n``-th power of square matrices; negative powers are of the inverse."""
    return linalg.matrix_power(input, n)


def matrix_exp(input: Tensor) -> Tensor:
    """Return the exponential of square matrices."""
    return linalg.matrix_exp(input)


def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """Return the matrix whose columns are the powers ``N - 1`` to 0 of a vector.

    Args:
        x: ``(n,)``.
        N: the number of columns; ``n`` by default.
        increasing: begin with the power 0.
    """
    count = x.array.size if N is None else N
    if x.array.ndim != 1 or count < 0:
        error = ShapeError(
            "x must be a one-dimensional tensor."
            if x.array.ndim != 1
            else "N must be non-negative."
        )
        recover("vander", error, {"x": x}, {"N": N})
    powers = linalg.powers(x, max(count, 1))[:, :count]
    return powers if increasing else flip(powers, -1)


for _function in (lu, lu_solve, qr, svd, triangular_solve):
    as_method(_function)
del _function
