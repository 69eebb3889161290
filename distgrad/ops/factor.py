"""LU and LDL decompositions, and solutions by known factors."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import named_results, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.backend.device import array_namespace
from distgrad.errors import DtypeError, ShapeError
from distgrad.ops.arrange import tril, triu
from distgrad.ops.decompose import (
    LinAlgError,
    check_matrix,
    check_square,
    diagonal,
    in_adjoints,
    mH,
    raw,
)
from distgrad.ops.matmul import matmul
from distgrad.ops.ranges import eye
from distgrad.ops.shape import adjoint, mT
from distgrad.ops.triangular import check_alike, check_sides, solve_triangular
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "ldl_factor", "ldl_factor_ex", "ldl_solve", "lu", "lu_factor", "lu_factor_ex", "lu_solve",
    "lu_unpack",
]  # fmt: skip


# ---------------------------------------------------------------------- LU
def _d_lu(F: Any, g: Any, LU: Any, pivots: Any) -> Any:
    """The gradient of A = P L U: P L⁻ᴴ (tril(Lᴴ g_L, -1) + triu(g_U Uᴴ)) U⁻ᴴ."""
    rows, columns = LU.shape[-2:]
    n = min(rows, columns)
    square = F.narrow(F.narrow(LU, -2, 0, n), -1, 0, n)
    lower = F.tril(square, -1)
    lower = lower + F.diag_embed(diagonal(F, F.zero(lower)) + 1)
    upper = F.triu(square)
    g_square = F.narrow(F.narrow(g, -2, 0, n), -1, 0, n)
    low = F.matmul(mH(F, lower), F.tril(g_square, -1))
    up = F.matmul(F.triu(g_square), mH(F, upper))
    if rows > columns:
        below, g_below = (F.narrow(x, -2, n, rows - n) for x in (LU, g))
        up = up - F.matmul(mH(F, below), g_below)
    if columns > rows:
        beside, g_beside = (F.narrow(x, -1, n, columns - n) for x in (LU, g))
        low = low - F.matmul(g_beside, mH(F, beside))
    found = _between(F, lower, F.tril(low, -1) + F.triu(up), upper)
    if rows > columns:
        right = F.solve_triangular(mH(F, upper), g_below, upper=False, left=False)
        found = F.cat([found, right], -2)
    if columns > rows:
        left = F.solve_triangular(mH(F, lower), g_beside, upper=True, unitriangular=True)
        found = F.cat([found, left], -1)
    return F.matmul(_permutation_like(pivots, rows, found), found)


def _between(F: Any, lower: Any, inside: Any, upper: Any) -> Any:
    """Return L⁻ᴴ inside U⁻ᴴ."""
    half = F.solve_triangular(mH(F, lower), inside, upper=True, unitriangular=True)
    return F.solve_triangular(mH(F, upper), half, upper=False, left=False)


def _permutation_like(pivots: Any, rows: int, like: Any) -> Any:
    exchanges = raw(pivots)
    matrix = _permutation(array_namespace(exchanges), exchanges, rows, raw(like).dtype)
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


def _size(xp: Namespace, x: Any) -> Any:
    """Return LAPACK's size of complex numbers: of both parts, added."""
    return xp.abs(x.real) + xp.abs(x.imag) if x.dtype.kind == "c" else xp.abs(x)


@op(
    samples=[case(real(3, 3)), case(real(2, 3, 3)), case(real(4, 2)), case(real(2, 4))],
    outputs=("LU", "pivots!", "info!"),
    method=False,
    widens=False,
    node="LinalgLuFactorExBackward0",
    reference="linalg.lu_factor_ex",
    d_A=in_adjoints(_d_lu),
)
def packed_lu(xp: Namespace, A: Tensor) -> Any:
    """Return L (below the diagonal) and U in one matrix, and the exchanges of rows from 1 on.

    Elimination goes column by column, all matrices of a batch at once. The last output numbers,
    from 1, the first zero on the diagonal of U; 0 where there is none.
    """
    check_matrix(A)
    rows, columns = A.shape[-2:]
    n = min(rows, columns)
    m: Array = xp.array(A, copy=True)
    pivots = xp.zeros((*m.shape[:-2], n), xp.int32)
    info = xp.zeros(m.shape[:-2], xp.int32)
    for i in range(n if m.size else 0):
        best = xp.argmax(_size(xp, m[..., i:, i]), axis=-1) + i
        pivots[..., i] = best + 1
        at = best[..., None, None]
        chosen, here = xp.take_along_axis(m, at, -2), m[..., i : i + 1, :] + 0
        xp.put_along_axis(m, at, here, -2)
        m[..., i : i + 1, :] = chosen
        corner = m[..., i : i + 1, i : i + 1]
        info = xp.where((info == 0) & (corner[..., 0, 0] == 0), xp.int32(i + 1), info)
        m[..., i + 1 :, i : i + 1] /= xp.where(corner == 0, m.dtype.type(1), corner)
        m[..., i + 1 :, i + 1 :] -= m[..., i + 1 :, i : i + 1] * m[..., i : i + 1, i + 1 :]
    return m, pivots, info


_LuFactors = named_results("linalg_lu_factor", ["LU", "pivots"])
_LuFactorsEx = named_results("linalg_lu_factor_ex", ["LU", "pivots", "info"])
_LuParts = named_results("linalg_lu", ["P", "L", "U"])
_Unpacked = named_results("lu_unpack", ["P", "L", "U"])


@takes_out
def lu_factor(A: Tensor, *, pivot: bool = True) -> Any:
    """Return L and U in one matrix, and the exchanges of rows (numbered from 1).

    Args:
        A: ``(*, m, n)``.
        pivot: True; elimination without exchanges is not offered on the host by PyTorch either.

    Raises:
        LinAlgError: U has a zero on its diagonal.
    """
    return _LuFactors(*lu_factor_ex(A, pivot=pivot, check_errors=True)[:2])


@takes_out
def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> Any:
    """Return what ``lu_factor`` returns, and the number (from 1) of the first zero of U, or 0."""
    _check_pivot("lu_factor", pivot)
    factors, pivots, info = packed_lu(A)
    if check_errors and bool((info != 0).any()):
        k = int(info.max())
        error = LinAlgError(
            f"U[{k},{k}] is zero and using it on lu_solve would result in a division by zero; to "
            "have the factors all the same call linalg.lu or linalg.lu_factor_ex"
        )
        recover("lu_factor", error, {"A": A}, {})
    return _LuFactorsEx(factors, pivots, info)


def _check_pivot(name: str, pivot: bool) -> None:
    if not pivot:
        raise ShapeError(f"linalg.{name}: LU without pivoting is not implemented on the CPU")


@takes_out
def lu_unpack(
    LU_data: Tensor, LU_pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> Any:
    """Return P, L and U of what ``lu_factor`` returned.

    Args:
        LU_data: ``(*, m, n)``.
        LU_pivots: ``(*, min(m, n))``, int32.
        unpack_data: False leaves L and U empty.
        unpack_pivots: False leaves P empty.
    """
    shape = LU_data.array.shape
    try:
        if len(shape) < 2:
            raise ShapeError("torch.lu_unpack: The input tensor must have at least 2 dimensions.")
        if unpack_pivots and str(LU_pivots.array.dtype) != "int32":
            raise DtypeError(
                "LU_pivots is expected to be a contiguous tensor of int32 dtype; convert it with "
                ".int()"
            )
        if unpack_pivots and LU_pivots.array.shape != (*shape[:-2], min(shape[-2:])):
            raise ShapeError("LU_pivots must hold one exchange per column of L")
    except Exception as error:
        recover("lu_unpack", error, {"LU_data": LU_data, "LU_pivots": LU_pivots}, {})
    rows, columns = shape[-2:]
    n = min(rows, columns)
    lower = upper = p = LU_data.detach().new_empty((0,))
    if unpack_data:
        ones = eye(rows, n, dtype=LU_data.dtype, device=LU_data.device)
        lower = tril(LU_data, -1)[..., :n] + ones
        upper = triu(LU_data)[..., :n, :]
    if unpack_pivots:
        p = unpacked_pivots(LU_pivots, rows, LU_data.detach())
    return _Unpacked(p, lower, upper)


@op(samples=[], method=False, widens=False)
def unpacked_pivots(xp: Namespace, pivots: Tensor, rows: int, like: Tensor) -> Array:
    """Return the permutation matrices that undo exchanges of rows."""
    return _permutation(xp, pivots, rows, like.dtype)


@takes_out
def lu(A: Tensor, *, pivot: bool = True) -> Any:
    """Return a permutation P, L with a diagonal of ones, and U with ``A = P @ L @ U``.

    Args:
        A: ``(*, m, n)``.
        pivot: True; elimination without exchanges is not offered on the host by PyTorch either.
    """
    _check_pivot("lu", pivot)
    return _LuParts(*lu_unpack(*packed_lu(A)[:2]))


@takes_out
def lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False
) -> Tensor:
    """Return the solution X of ``A @ X = B`` for A given by ``lu_factor``.

    Args:
        LU: ``(*, n, n)``.
        pivots: ``(*, n)``, int32.
        B: ``(*, n, k)``, or ``(*, k, n)`` when ``left`` is False.
        left: False solves ``X @ A = B``.
        adjoint: solve with the adjoint of A.
    """
    try:
        check_square(LU.array, "LU")
        check_matrix(B.array, "B")
        check_alike(LU, B)
        check_sides(LU.array, B.array, left)
        if str(pivots.array.dtype) != "int32":
            raise DtypeError("pivots should be a Tensor of scalar type int32; use .int()")
        if pivots.array.shape != LU.array.shape[:-1]:
            raise ShapeError(
                f"Number of pivots per batch should be same as the dimension of the matrix: "
                f"{list(pivots.array.shape)} for {list(LU.array.shape)}"
            )
    except Exception as error:
        recover("lu_solve", error, {"LU": LU, "pivots": pivots, "B": B}, {"left": left})
    p = unpacked_pivots(pivots, LU.array.shape[-1], LU.detach())
    if not left:
        return _conj_T(_solved_by(LU, p, _conj_T(B), not adjoint))
    return _solved_by(LU, p, B, adjoint)


_conj_T = adjoint


def _solved_by(LU: Tensor, p: Tensor, B: Tensor, adjoint: bool) -> Tensor:
    if adjoint:
        half = solve_triangular(_conj_T(LU), B, upper=False)
        return matmul(p, solve_triangular(_conj_T(LU), half, upper=True, unitriangular=True))
    half = solve_triangular(LU, matmul(mT(p), B), upper=False, unitriangular=True)
    return solve_triangular(LU, half, upper=True)


# ---------------------------------------------------------------------- LDL
_LdlFactors = named_results("linalg_ldl_factor", ["LD", "pivots"])
_LdlFactorsEx = named_results("linalg_ldl_factor_ex", ["LD", "pivots", "info"])
_ALPHA = (1 + 17**0.5) / 8  # Bunch and Kaufman's bound on the growth of entries


@op(samples=[], outputs=("LD!", "pivots!", "info!"), method=False, widens=False)
def packed_ldl(xp: Namespace, A: Tensor, hermitian: bool) -> Any:
    """Return L and D in one matrix, the exchanges, and the number of the first zero of D.

    Source: J. Bunch and L. Kaufman, "Some stable methods for calculating inertia and solving
    symmetric linear systems", Math. Comp. 31 (1977); LAPACK's numbering of the pivots.
    """
    check_square(A)
    lower = xp.to_numpy(xp.tril(A))
    flat = lower.reshape(math.prod(A.shape[:-2]), *A.shape[-2:])
    found = [_bunch_kaufman(m, hermitian and m.dtype.kind == "c") for m in flat]
    pivots = xp.asarray([p for p, _ in found], xp.int32).reshape(A.shape[:-1])
    info = xp.asarray([k for _, k in found], xp.int32).reshape(A.shape[:-2])
    return xp.asarray(flat).reshape(A.shape), pivots, info


def _bunch_kaufman(a: Any, hermitian: bool) -> tuple[list[int], int]:
    """Factor one lower triangle in place; return the pivots and the number of the first zero."""
    n, k, info, pivots = len(a), 0, 0, []
    while k < n:
        place, step = _pivot(a, k)
        if not step:
            info, step = info or k + 1, 1
        else:
            _exchange(a, k, step, place, hermitian)
            _eliminate(a, k, step, hermitian)
        pivots += [place + 1] if step == 1 else [-place - 1] * 2
        k += step
    return pivots, info


def _pivot(a: Any, k: int) -> tuple[int, int]:
    """Return the row to exchange with, and the order of the pivot: 0 where nothing is left."""
    size = _size(array_namespace(a), a)
    here, below = size[k, k], size[k + 1 :, k]
    largest = below.max() if len(below) else 0.0
    if max(here, largest) == 0:
        return k, 0
    if here >= _ALPHA * largest:
        return k, 1
    row = k + 1 + int(below.argmax())
    across = max(size[row, k:row].max(), size[row + 1 :, row].max(initial=0.0))
    if here >= _ALPHA * largest * (largest / across):
        return k, 1
    return row, 1 if size[row, row] >= _ALPHA * across else 2


def _exchange(a: Any, k: int, step: int, place: int, hermitian: bool) -> None:
    """Exchange a row and column of the lower triangle with those of the pivot."""
    last = k + step - 1
    if place == last:
        return
    a[place + 1 :, [last, place]] = a[place + 1 :, [place, last]]
    column, row = a[last + 1 : place, last].copy(), a[place, last + 1 : place].copy()
    a[last + 1 : place, last] = row.conj() if hermitian else row
    a[place, last + 1 : place] = column.conj() if hermitian else column
    if hermitian:
        a[place, last] = a[place, last].conj()
    a[last, last], a[place, place] = a[place, place], a[last, last]
    if step == 2:
        a[k + 1, k], a[place, k] = a[place, k], a[k + 1, k]


def _block(a: Any, k: int, step: int, hermitian: bool) -> Any:
    """Return the pivot as a whole symmetric (Hermitian) block."""
    block = a[k : k + step, k : k + step].copy()
    if hermitian:
        block[range(step), range(step)] = block.diagonal().real
    if step == 2:
        block[0, 1] = block[1, 0].conj() if hermitian else block[1, 0]
    return block


def _eliminate(a: Any, k: int, step: int, hermitian: bool) -> None:
    xp, end = array_namespace(a), k + step
    block = _block(a, k, step, hermitian)
    for i in range(step if hermitian else 0):
        a[k + i, k + i] = block[i, i]
    columns = a[end:, k:end].copy()
    scaled = columns @ xp.linalg.inv(block)
    a[end:, end:] -= xp.tril(scaled @ (columns.conj().T if hermitian else columns.T))
    a[end:, k:end] = scaled


@takes_out
def ldl_factor(A: Tensor, *, hermitian: bool = False) -> Any:
    """Return L and D with ``A = P @ L @ D @ L.mT @ P.mT`` in one matrix, and the pivots.

    Args:
        A: symmetric (Hermitian) matrices ``(*, n, n)``; the lower half is read.
        hermitian: complex matrices are Hermitian, not symmetric.
    """
    return _LdlFactors(*ldl_factor_ex(A, hermitian=hermitian, check_errors=True)[:2])


@takes_out
def ldl_factor_ex(A: Tensor, *, hermitian: bool = False, check_errors: bool = False) -> Any:
    """Return what ``ldl_factor`` returns, and the number (from 1) of the first zero of D, or 0."""
    factors, pivots, info = packed_ldl(A, hermitian)
    if check_errors and bool((info != 0).any()):
        k = int(info.max())
        error = LinAlgError(f"D[{k},{k}] is exactly zero: a solution would divide by zero")
        recover("ldl_factor", error, {"A": A}, {"hermitian": hermitian})
    return _LdlFactorsEx(factors, pivots, info)


@op(samples=[], method=False, widens=False)
def ldl_solve(
    xp: Namespace, LD: Tensor, pivots: Tensor, B: Tensor, *, hermitian: bool = False
) -> Array:
    """Return the solution X of ``A @ X = B`` for A given by ``ldl_factor``.

    Args:
        LD: ``(*, n, n)``.
        pivots: ``(*, n)``, int32.
        B: ``(*, n, k)``.
        hermitian: as it was for ``ldl_factor``.
    """
    check_square(LD, "LD")
    check_matrix(B, "B")
    check_alike(LD, B)
    check_sides(LD, B, True)
    if pivots.dtype.kind not in "iu":  # type: ignore[attr-defined]
        raise DtypeError(f"Expected pivots to be integers. Got {pivots.dtype}")
    if pivots.shape != LD.shape[:-1]:
        raise ShapeError(
            f"Expected LD.shape[:-1] and pivots.shape to be the same, but got pivots with shape "
            f"{list(pivots.shape)} instead"
        )
    lead = xp.broadcast_shapes(LD.shape[:-2], B.shape[:-2])
    count = math.prod(lead)
    hermitian = hermitian and LD.dtype.kind == "c"  # type: ignore[attr-defined]
    a, p, out = (
        xp.array(xp.broadcast_to(x, (*lead, *x.shape[-d:]))).reshape(count, *x.shape[-d:])
        for x, d in ((LD, 2), (pivots, 1), (B, 2))
    )
    for m, exchanges, b in zip(a, p, out, strict=True):
        _solve_ldl(m, exchanges, b, hermitian)
    return xp.asarray(out).reshape(*lead, *B.shape[-2:])


def _solve_ldl(a: Any, pivots: Any, b: Any, hermitian: bool) -> None:
    """Solve with one matrix, in place of the right side."""
    steps, k = [], 0
    while k < len(a):
        steps.append((k, 1 if pivots[k] > 0 else 2))
        k += steps[-1][1]
    for k, step in steps:
        end = k + step
        other, last = abs(int(pivots[k])) - 1, end - 1
        b[[last, other]] = b[[other, last]]
        b[end:] -= a[end:, k:end] @ b[k:end]
        b[k:end] = array_namespace(a).linalg.solve(_block(a, k, step, hermitian), b[k:end])
    for k, step in reversed(steps):
        end = k + step
        columns = a[end:, k:end]
        b[k:end] -= (columns.conj().T if hermitian else columns.T) @ b[end:]
        other, last = abs(int(pivots[k])) - 1, end - 1
        b[[last, other]] = b[[other, last]]
