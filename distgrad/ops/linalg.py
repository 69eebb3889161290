"""Linear algebra: inverses, determinants, systems, functions of matrices, products.

The last two dimensions are matrices; those before them are a batch.  ``distgrad.linalg`` is made of
this chapter and its neighbours; see ``linalg_names``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, named_results, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.errors import DtypeError, ShapeError
from distgrad.ops import matmul as _products
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.compare import where
from distgrad.ops.decompose import (
    LinAlgError,
    check_square,
    conj,
    in_adjoints,
    is_complex,
    solved,
    svdvals,
)
from distgrad.ops.decompose import diagonal as diagonal_of
from distgrad.ops.elementwise import log
from distgrad.ops.factor import packed_lu
from distgrad.ops.join import cat
from distgrad.ops.matmul import matmul, multiply_chain
from distgrad.ops.norms import matrix_norm, vector_norm
from distgrad.ops.ranges import eye
from distgrad.ops.shape import diagonal as _diagonal
from distgrad.ops.shape import movedim, reshape, squeeze, unsqueeze
from distgrad.ops.triangular import check_alike, check_sides, cholesky, no_errors
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "LinAlgError", "cond", "cross", "det", "diagonal", "inv", "inv_ex", "logdet", "matmul",
    "matrix_exp", "matrix_norm", "matrix_power", "multi_dot", "slogdet", "solve", "solve_ex",
    "tensorinv", "tensorsolve", "vander", "vecdot", "vector_norm",
]  # fmt: skip


# ---------------------------------------------------------------------- inverse and determinant
_SQUARE = [case(real(3, 3)), case(real(2, 2, 2))]


@op(
    samples=_SQUARE,
    method=False,
    widens=False,
    node="LinalgInvExBackward0",
    reference="linalg.inv",
    d_A=lambda F, g, out: -F.matmul(F.mT(out), F.matmul(g, F.mT(out))),
)
def inv(xp: Namespace, A: Tensor) -> Array:
    """Return the inverse of square matrices.

    Raises:
        LinAlgError: a matrix is singular.
    """
    check_square(A)
    return solved(xp, xp.linalg.inv, A)


_InverseResult = named_results("linalg_inv_ex", ["inverse", "info"])


@takes_out
def inv_ex(A: Tensor, *, check_errors: bool = False) -> Any:
    """Return the inverse, and for each matrix 0 or the number of the first zero pivot.

    An inverse that does not exist is nan.
    """
    try:
        return _InverseResult(inv(A), no_errors(A))
    except LinAlgError:
        if check_errors:
            raise
    safe, failed, info = _made_regular(A)
    return _InverseResult(inv(safe).masked_fill(failed, math.nan), info)


def _made_regular(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices, with ones in the place of singular ones; where; at which pivot."""
    info = packed_lu(A.detach())[2]
    failed = unsqueeze(unsqueeze(info != 0, -1), -1)
    ones = eye(A.array.shape[-1], dtype=A.dtype, device=A.device)
    return where(failed, ones, A), failed, info


@op(
    samples=_SQUARE,
    method=False,
    widens=False,
    reference="linalg.det",
    node="LinalgDetBackward0",
    d_A=lambda F, g, A: F.unsqueeze(F.unsqueeze(g, -1), -1) * F.cofactors(A),
)
def det(xp: Namespace, A: Tensor) -> Array:
    """Return the determinant of square matrices."""
    check_square(A)
    return xp.linalg.det(A)


def _d_cofactors(F: Any, g: Any, A: Any, out: Any) -> Any:
    inverse = F.inv(A)
    across = F.mT(inverse)
    along = F.unsqueeze(F.unsqueeze(F.sum(g * across, (-2, -1)), -1), -1)
    both = F.matmul(across, F.matmul(F.mT(g), across))
    return out * along - F.unsqueeze(F.unsqueeze(F.det(A), -1), -1) * both


@op(samples=_SQUARE, method=False, widens=False, reference="none", d_A=_d_cofactors)
def cofactors(xp: Namespace, A: Tensor) -> Array:
    """Return the derivative of the determinant, for singular matrices too."""
    u, s, vh = xp.linalg.svd(A)
    n = s.shape[-1]
    others = xp.where(xp.eye(n, dtype=bool), 1, s[..., None, :]).prod(-1).astype(s.dtype)
    size = xp.linalg.det(u) * xp.linalg.det(vh)
    return xp.conj(u * (others[..., None, :])) @ xp.conj(vh) * size[..., None, None]


def _d_slogdet(F: Any, g: Any, A: Any, sign: Any) -> Any:
    g_sign, along = g
    if is_complex(A):
        along = F.complex(along, -F.imag(conj(F, g_sign) * sign))
    return F.unsqueeze(F.unsqueeze(along, -1), -1) * conj(F, F.mT(F.inv(A)))


def _t_slogdet(F: Any, A: Any, t_A: Any) -> Any:
    sign = F.slogdet(A)[0]
    along = F.sum(diagonal_of(F, F.solve(A, t_A)), -1)
    if is_complex(A):
        turn = F.imag(along)
        return sign * F.complex(F.zero(turn), turn), F.real(along)
    return F.zero(sign), along


@op(
    samples=_SQUARE,
    outputs=("sign", "logabsdet"),
    method=False,
    widens=False,
    reference="linalg.slogdet",
    jvp=_t_slogdet,
    node="LinalgSlogdetBackward0",
    d_A=in_adjoints(_d_slogdet),
)
def slogdet(xp: Namespace, A: Tensor) -> Array:
    """Return the sign of the determinant and the logarithm of its absolute value."""
    check_square(A)
    sign, logabsdet = xp.linalg.slogdet(A)
    return sign, xp.real(logabsdet)


def logdet(input: Tensor) -> Tensor:
    """Return the logarithm of the determinant; nan where a real one is negative."""
    sign, logabsdet = slogdet(input)
    if input.is_complex():
        return log(sign) + logabsdet  # type: ignore[no-any-return]
    return logabsdet.masked_fill(sign < 0, math.nan)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- linear systems
def _is_vector(a_shape: Shape, b_shape: Shape) -> bool:
    """Return True when the right side is one vector per matrix (PyTorch's rule)."""
    return len(b_shape) == 1 or (len(a_shape) - 1 == len(b_shape) and b_shape == a_shape[:-1])


def _d_solve(F: Any, g: Any, A: Any, out: Any, B_shape: Any, left: bool) -> Any:
    vector = _is_vector(A.shape, B_shape)
    across = F.solve(F.mT(A), g, left=left)
    if vector:
        d_a = -F.unsqueeze(across, -1) * F.unsqueeze(out, -2)
    elif left:
        d_a = -F.matmul(across, F.mT(out))
    else:
        d_a = -F.matmul(F.mT(out), across)
    return d_a, across


@op(
    samples=[
        case(real(3, 3), real(3, 2)),
        case(real(3, 3), real(3)),
        case(real(2, 3, 3), real(2, 3)),
        case(real(2, 3, 3), real(3, 2)),
        case(real(3, 3), real(2, 3), left=False),
    ],
    method=False,
    widens=False,
    node="LinalgSolveExBackward0",
    reference="linalg.solve",
    d_all=_d_solve,
)
def solve(xp: Namespace, A: Tensor, B: Tensor, *, left: bool = True) -> Array:
    """Return the solution X of ``A @ X = B``, or of ``X @ A = B`` when ``left`` is False.

    Shape:
        A: ``(*, n, n)``, B: ``(*, n, k)`` (``(*, k, n)``), or one vector per matrix ``(*, n)``.
    """
    check_square(A)
    check_alike(A, B)
    if _is_vector(A.shape, B.shape):
        if not left and len(B.shape) == 1:
            A = xp.swapaxes(A, -1, -2)
        return solved(xp, xp.linalg.solve, A, xp.expand_dims(B, -1))[..., 0]
    check_sides(A, B, left)
    if left:
        return solved(xp, xp.linalg.solve, A, B)
    across = solved(xp, xp.linalg.solve, xp.swapaxes(A, -1, -2), xp.swapaxes(B, -1, -2))
    return xp.swapaxes(across, -1, -2)


_SolveResult = named_results("linalg_solve_ex", ["result", "info"])


@takes_out
def solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    """Return what ``solve`` returns, and for each matrix 0 or the number of the first zero pivot.

    A solution that does not exist is nan.
    """
    try:
        return _SolveResult(solve(A, B, left=left), no_errors(A))
    except LinAlgError:
        if check_errors:
            raise
    safe, failed, info = _made_regular(A)
    found = solve(safe, B, left=left)
    if _is_vector(A.array.shape, B.array.shape):
        failed = squeeze(failed, -1)
    return _SolveResult(found.masked_fill(failed, math.nan), info)


@takes_out
def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Return the tensor X with ``tensordot(A, X, X.ndim) = B``."""
    if dims is not None:
        A = movedim(A, tuple(dims), tuple(range(-len(dims), 0)))
    shape = A.array.shape[B.array.ndim :]
    n = B.array.size
    if math.prod(A.array.shape[: B.array.ndim]) != math.prod(shape) or n != math.prod(shape):
        error = ShapeError(
            "Expected self to satisfy the requirement prod(self.shape[other.ndim:]) == "
            f"prod(self.shape[:other.ndim]), but got {math.prod(shape)} != {n}"
        )
        recover("tensorsolve", error, {"A": A, "B": B}, {"dims": dims})
    return reshape(solve(reshape(A, (n, math.prod(shape))), reshape(B, (n,))), shape)


@takes_out
def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """Return the inverse of ``A`` as a map from its last dimensions to its first ``ind`` ones."""
    before, after = A.array.shape[: max(ind, 0)], A.array.shape[max(ind, 0) :]
    if ind <= 0 or math.prod(before) != math.prod(after):
        error = ShapeError(
            "Expected a strictly positive integer for 'ind'"
            if ind <= 0
            else "Expected self to satisfy the requirement prod(self.shape[ind:]) == "
            f"prod(self.shape[:ind]), but got {math.prod(after)} != {math.prod(before)}"
        )
        recover("tensorinv", error, {"A": A}, {"ind": ind})
    return reshape(inv(reshape(A, (math.prod(before), math.prod(after)))), after + before)


# ---------------------------------------------------------------------- functions of matrices
@takes_out
def matrix_power(A: Tensor, n: int) -> Tensor:
    """Return the ``n``-th power of square matrices; negative powers are of the inverse."""
    shape = A.array.shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        error = ShapeError(f"A must be batches of square matrices, but its shape is {list(shape)}")
        recover("matrix_power", error, {"A": A}, {"n": n})
    if n < 0:
        A, n = inv(A), -n
    if not n:
        return (A * 0).diagonal(0, -2, -1).add(1).diag_embed()
    out = None
    while n:
        if n & 1:
            out = A if out is None else matmul(out, A)
        n >>= 1
        A = matmul(A, A) if n else A
    assert out is not None
    return out


def _d_matrix_exp(F: Any, g: Any, A: Any) -> Any:
    """Return the upper right block of exp([[A.T, g], [0, A.T]])."""
    n, across = A.shape[-1], F.mT(A)
    top = F.cat([across, g], -1)
    bottom = F.cat([F.zero(across), across], -1)
    whole = F.matrix_exp(F.cat([top, bottom], -2))
    return F.narrow(F.narrow(whole, -2, 0, n), -1, n, n)


@op(samples=[case(real(3, 3)), case(real(2, 2, 2))], node="LinalgMatrixExpBackward0",
    d_A=_d_matrix_exp)  # fmt: skip
def matrix_exp(xp: Namespace, A: Tensor) -> Array:
    """Return the exponential of square matrices.

    Source: N. Higham, "The Scaling and Squaring Method for the Matrix Exponential Revisited",
    SIAM J. Matrix Anal. Appl. 26 (2005).
    """
    check_square(A)
    work = xp.astype(A, xp.promote_types(A.dtype, xp.float64))
    size = float(xp.abs(work).sum(-2).max()) if work.size else 0.0
    if not math.isfinite(size):
        return xp.full(A.shape, math.nan, A.dtype)
    halvings = max(0, math.ceil(math.log2(size / 5.37))) if size > 5.37 else 0
    work = work / 2.0**halvings
    eye = xp.broadcast_to(xp.eye(A.shape[-1]), work.shape)
    even, odd, power = eye * _PADE[0], eye * _PADE[1], eye
    square = work @ work
    for k in range(2, 14, 2):
        power = power @ square
        even = even + _PADE[k] * power
        odd = odd + _PADE[k + 1] * power
    odd = work @ odd
    out = xp.linalg.solve(even - odd, even + odd)
    for _ in range(halvings):
        out = out @ out
    return xp.astype(out, A.dtype)


_PADE = [
    math.factorial(26 - k) * math.factorial(13)
    / (math.factorial(26) * math.factorial(k) * math.factorial(13 - k))
    for k in range(14)
]  # fmt: skip


@takes_out
def cond(A: Tensor, p: float | str | None = None) -> Tensor:
    """Return the condition number: the norm of matrices times that of their inverses.

    Args:
        A: ``(*, m, n)`` for the default and for 2 and -2, else ``(*, n, n)``.
        p: as ``ord`` of ``matrix_norm``; None means 2. A singular matrix has an infinite one.
    """
    if p is None or p in (2, -2):
        values = svdvals(A)
        if not values.array.shape[-1]:
            return values.sum(-1)
        largest, smallest = values[..., 0], values[..., -1]
        return smallest / largest if p == -2 else largest / smallest
    if not A.array.size:
        return matrix_norm(A, p)
    inverse, info = inv_ex(A)
    found = matrix_norm(A, p) * matrix_norm(inverse, p)
    return where(info != 0, math.inf, found) if bool((info != 0).any()) else found


# ---------------------------------------------------------------------- products
@takes_out
def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """Return the product of matrices in the order of least cost; the ends may be vectors."""
    many = list(tensors)
    if len(many) < 2:
        error = ShapeError(f"expected at least 2 tensors but got {len(many)}")
        recover("multi_dot", error, {"tensors": many}, {})
    row, column = many[0].array.ndim == 1, many[-1].array.ndim == 1
    if row:
        many[0] = unsqueeze(many[0], 0)
    if column:
        many[-1] = unsqueeze(many[-1], -1)
    for number, matrix in enumerate(many):
        if matrix.array.ndim != 2:
            error = ShapeError(
                f"tensor {number} must be 2D but got {matrix.array.ndim}D; only the first and the "
                "last may be vectors"
            )
            recover("multi_dot", error, {"tensors": many}, {})
    out = multiply_chain(many)
    out = squeeze(out, -1) if column else out
    return squeeze(out, 0) if row else out


@takes_out
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Return the dot products of vectors along ``dim``."""
    refuse_kinds("vecdot", "biu", x, y)
    if x.array.dtype != y.array.dtype:
        error = DtypeError(
            f"Expected x and y to have the same dtype, but found x of type {x.array.dtype} and y "
            f"of type {y.array.dtype}; convert one with .to(dtype)"
        )
        recover("vecdot", error, {"x": x, "y": y}, {"dim": dim})
    return ((x.conj() if x.is_complex() else x) * y).sum(dim)


@takes_out
def cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """Return the cross product of vectors of three elements along ``dim``; the rest broadcasts."""
    return _products.cross_product(input, other, dim)


def diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Return a view of the diagonals of matrices."""
    return _diagonal(A, offset, dim1, dim2)


def vander(x: Tensor, N: int | None = None) -> Tensor:
    """Return the matrices whose columns are the powers 0 to ``N - 1`` of ``x``.

    Args:
        x: vectors ``(*, n)``.
        N: the number of columns; ``n`` by default.
    """
    refuse_kinds("vander", "bn", x)
    count = (x.array.shape[-1] if x.array.ndim else 1) if N is None else N
    if count <= 1 and N is not None:
        recover("vander", ShapeError("N must be greater than 1."), {"x": x}, {"N": N})
    return powers(x if x.array.ndim else reshape(x, (1,)), count)


def powers(x: Tensor, count: int) -> Tensor:
    """Return the powers 0 to ``count - 1`` along a new last dimension."""
    if x.array.dtype.kind in "biu":
        x = x.long()
    x = unsqueeze(x, -1)
    every = [x.new_ones(x.array.shape), *[x**k for k in range(1, count)]]
    return cat(every[:count], -1)


for _function in (cholesky, det, logdet, matrix_exp, matrix_power, slogdet):
    as_method(_function)
del _function
as_method(inv, "inverse")
