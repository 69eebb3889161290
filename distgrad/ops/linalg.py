"""Linear algebra: the namespace ``distgrad.linalg``.

The last two dimensions are matrices; those before them are a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.errors import ShapeError
from distgrad.ops import matmul as _products
from distgrad.ops.arrange import tril, triu
from distgrad.ops.decompose import (
    LinAlgError,
    check_matrix,
    check_square,
    cholesky,
    eigh,
    eigvalsh,
    qr,
    solved,
    svd,
    svdvals,
)
from distgrad.ops.join import cat
from distgrad.ops.matmul import matmul, multiply_chain
from distgrad.ops.shape import broadcast_tensors, movedim, reshape, squeeze, unsqueeze, wrap_dims
from distgrad.ops.shape import diagonal as _diagonal
from distgrad.tensor import Tensor
from distgrad.typing import Array, Dim, Namespace, Shape

__all__ = [
    "LinAlgError",
    "cholesky",
    "cholesky_ex",
    "cond",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "inv_ex",
    "logdet",
    "lstsq",
    "matmul",
    "matrix_exp",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "multi_dot",
    "norm",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "solve_triangular",
    "svd",
    "svdvals",
    "tensorinv",
    "tensorsolve",
    "vander",
    "vecdot",
    "vector_norm",
]


class InverseResult(NamedTuple):
    """What ``inv_ex`` returns."""

    inverse: Tensor
    info: Tensor


class CholeskyResult(NamedTuple):
    """What ``cholesky_ex`` returns."""

    L: Tensor
    info: Tensor


class LstsqResult(NamedTuple):
    """What ``lstsq`` returns."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


# ---------------------------------------------------------------------- inverse and determinant
_SQUARE = [case(real(3, 3)), case(real(2, 2, 2))]


@op(
    samples=_SQUARE,
    method=False,
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


@op(
    samples=_SQUARE,
    method=False,
    reference="linalg.det",
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


@op(samples=_SQUARE, method=False, reference="none", d_A=_d_cofactors)
def cofactors(xp: Namespace, A: Tensor) -> Array:
    """Return the derivative of the determinant, for singular matrices too."""
    u, s, vh = xp.linalg.svd(A)
    n = s.shape[-1]
    others = xp.where(xp.eye(n, dtype=bool), 1, s[..., None, :]).prod(-1).astype(s.dtype)
    sign = xp.linalg.det(u) * xp.linalg.det(vh)
    return (u * (others * sign[..., None])[..., None, :]) @ vh


@op(
    samples=_SQUARE,
    outputs=("sign!", "logabsdet"),
    method=False,
    reference="linalg.slogdet",
    d_A=lambda F, g, A: F.unsqueeze(F.unsqueeze(g, -1), -1) * F.mT(F.inv(A)),
)
def slogdet(xp: Namespace, A: Tensor) -> Array:
    """Return the sign of the determinant and the logarithm of its absolute value."""
    check_square(A)
    return tuple(xp.linalg.slogdet(A))


def logdet(input: Tensor) -> Tensor:
    """Return the logarithm of the determinant; nan where it is negative."""
    sign, logabsdet = slogdet(input)
    return logabsdet.masked_fill(sign < 0, math.nan)  # type: ignore[no-any-return]


def inv_ex(A: Tensor, *, check_errors: bool = False) -> InverseResult:
    """Return the inverse and a number that is 0 when it exists."""
    return InverseResult(inv(A), _no_errors(A))


def _no_errors(A: Tensor) -> Tensor:
    flat = reshape(A.detach(), (*A.array.shape[:-2], -1))
    return (flat.sum(-1) * 0).int()


def cholesky_ex(
    input: Tensor, *, upper: bool = False, check_errors: bool = False
) -> CholeskyResult:
    """Return the Cholesky factor and a number that is 0 when it exists."""
    return CholeskyResult(cholesky(input, upper=upper), _no_errors(input))


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
    if A.dtype != B.dtype:
        raise LinAlgError(f"Expected A and B to have the same dtype, but they are {A.dtype} and "
                          f"{B.dtype}")  # fmt: skip
    if _is_vector(A.shape, B.shape):
        if not left and len(B.shape) == 1:
            A = xp.swapaxes(A, -1, -2)
        return solved(xp, xp.linalg.solve, A, xp.expand_dims(B, -1))[..., 0]
    if B.shape[-2 if left else -1] != A.shape[-1]:
        raise ShapeError(
            f"Incompatible shapes of A and B for the equation {'AX' if left else 'XA'} = B "
            f"({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
        )
    if left:
        return solved(xp, xp.linalg.solve, A, B)
    across = solved(xp, xp.linalg.solve, xp.swapaxes(A, -1, -2), xp.swapaxes(B, -1, -2))
    return xp.swapaxes(across, -1, -2)


def solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Return the solution X of ``A @ X = B`` for triangular ``A``; its other half is not read."""
    half = triu(A, int(unitriangular)) if upper else tril(A, -int(unitriangular))
    if unitriangular:
        half = half + A.new_ones((A.array.shape[-1],)).diag()
    return solve(half, B, left=left)


def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """Return the tensor X with ``tensordot(A, X, X.ndim) = B``."""
    if dims is not None:
        A = movedim(A, tuple(dims), tuple(range(-len(dims), 0)))
    shape = A.array.shape[B.array.ndim :]
    n = B.array.size
    return reshape(solve(reshape(A, (n, math.prod(shape))), reshape(B, (-1,))), shape)


def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """Return the inverse of ``A`` as a map from its last dimensions to its first ``ind`` ones."""
    before, after = A.array.shape[:ind], A.array.shape[ind:]
    return reshape(inv(reshape(A, (math.prod(before), math.prod(after)))), after + before)


# ---------------------------------------------------------------------- functions of matrices
def _d_pinv(F: Any, g: Any, A: Any, out: Any) -> Any:
    g, across = F.mT(g), F.mT(out)
    if A.shape[-2] <= A.shape[-1]:
        k = F.matmul(g, out)
        k_across = F.matmul(k, across)
        found = -F.mT(F.matmul(out, k)) + k_across - F.matmul(F.matmul(A, out), k_across)
        return found + F.matmul(F.matmul(across, out), g - F.matmul(k, A))
    k = F.matmul(out, g)
    across_k = F.matmul(across, k)
    found = -F.mT(F.matmul(k, out)) + F.matmul(F.matmul(g - F.matmul(A, k), out), across)
    return found + across_k - F.matmul(F.matmul(across_k, out), A)


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 2, 3))],
    method=False,
    reference="linalg.pinv",
    d_A=_d_pinv,
)
def pinv_by_svd(xp: Namespace, A: Tensor, rtol: float | None = None, atol: float = 0) -> Array:
    """Return the pseudo-inverse; singular values up to ``max(atol, rtol * largest)`` count as 0."""
    check_matrix(A)
    u, s, vh = solved(xp, xp.linalg.svd, A, False)
    if rtol is None:
        rtol = 0.0 if atol else max(A.shape[-2:]) * float(xp.finfo(A.dtype).eps)
    limit = xp.maximum(s[..., :1] * rtol, atol)  # the first is the largest
    inverse = xp.where(s > limit, 1 / xp.where(s > limit, s, 1), 0).astype(A.dtype)
    return xp.swapaxes(vh, -1, -2) @ (inverse[..., None] * xp.swapaxes(u, -1, -2))


def pinv(
    A: Tensor,
    rcond: float | None = None,
    hermitian: bool = False,
    *,
    atol: float | None = None,
    rtol: float | None = None,
) -> Tensor:
    """Return the pseudo-inverse of matrices of any shape.

    Args:
        A: ``(*, m, n)``.
        rcond: another name of ``rtol``.
        hermitian: has no effect.
        atol: singular values up to this number count as zero.
        rtol: the same in parts of the largest one (max(m, n) times the dtype's eps).
    """
    return pinv_by_svd(A, rcond if rtol is None else rtol, atol or 0.0)


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


def lstsq(
    A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None
) -> LstsqResult:
    """Return the X of least ``norm(A @ X - B)``, with residuals, rank and singular values.

    Args:
        A: ``(*, m, n)``.
        B: ``(*, m, k)`` (or ``(*, m)``).
        rcond: singular values up to ``rcond * largest`` count as zero.
        driver: has no effect on the solution; "gelsy" (the default) reports the rank, "gels" the
            residuals, "gelsd" and "gelss" both and the singular values.
    """
    vector = A.array.ndim - 1 == B.array.ndim
    right = unsqueeze(B, -1) if vector else B
    solution = matmul(pinv_by_svd(A, rcond), right)
    rows, columns = A.array.shape[-2:]
    empty = A.detach().new_empty((0,))
    rank = empty.long() if driver == "gels" else matrix_rank(A, rtol=rcond)
    values = svdvals(A.detach()) if driver in ("gelsd", "gelss") else empty
    residuals = empty
    whole = rows > columns and bool((matrix_rank(A).array == columns).all())
    if whole and driver not in (None, "gelsy"):
        residuals = (matmul(A, solution) - right).square().sum(-2)
    return LstsqResult(squeeze(solution, -1) if vector else solution, residuals, rank, values)


# ---------------------------------------------------------------------- norms
def _d_vector_norm(
    F: Any, g: Any, input: Any, out: Any, ord: float, dim: Any, keepdim: bool
) -> Any:
    kept = _kept(input.shape, dim)
    g, out = F.reshape(g, kept), F.reshape(out, kept)
    if ord == 0:
        return F.zero(input)
    if ord in (math.inf, -math.inf):
        hit = F.to_dtype(F.abs(input) == out, _dtype_of(input))
        return g * F.sign(input) * hit / F.expand(F.sum(hit, dim, True), hit.shape)
    if ord == 1:
        return g * F.sign(input)
    nothing = out == 0
    if ord == 2:
        return F.masked_fill(g * input / F.masked_fill(out, nothing, 1), nothing, 0)
    size = F.abs(input) / F.masked_fill(out, nothing, 1)
    safe = F.masked_fill(size, size == 0, 1)
    slope = F.masked_fill(safe ** (ord - 1), size == 0, 0)
    return g * F.sign(input) * slope


def _dtype_of(x: Any) -> Any:
    return x.array.dtype if isinstance(x, Tensor) else x.dtype


def _kept(shape: Shape, dim: Any) -> Shape:
    """Return ``shape`` with 1 in the reduced dimensions."""
    if dim is None:
        return (1,) * len(shape)
    dims = {d % len(shape) for d in dim} if shape else set()
    return tuple(1 if i in dims else n for i, n in enumerate(shape))


@op(
    samples=[
        case(real(3, 4)),
        case(real(3, 4), ord=1, dim=(0,)),
        case(real(3, 4), ord=3, dim=(1,), keepdim=True),
        case(real(2, 3, 4), ord=2.5, dim=(0, -1)),
        case(real(3, 4), ord=math.inf, dim=(1,)),
        case(real(3, 4), ord=-math.inf),
        case(real(), ord=2),
        case(real(3, 4), ord=0.5, dim=(1,)),
    ],
    method=False,
    node="LinalgVectorNormBackward0",
    reference="linalg.vector_norm",
    d_input=_d_vector_norm,
)
def norm_of_vectors(
    xp: Namespace,
    input: Tensor,
    ord: float = 2,
    dim: tuple[int, ...] | None = None,
    keepdim: bool = False,
) -> Array:
    """Return ``sum(abs(x) ** ord) ** (1 / ord)`` over ``dim``."""
    x: Array = input
    if x.dtype.kind not in "fcV":
        raise LinAlgError(f"Expected a floating point or complex tensor as input. Got {x.dtype}")
    axis = None if dim is None else wrap_dims(dim, input.ndim) if input.ndim else ()
    if ord == 2:
        squares = xp.square(xp.abs(x) if x.dtype.kind == "c" else x)
        return xp.sqrt(xp.add.reduce(squares, axis=axis, keepdims=keepdim))
    size = xp.abs(x)
    if ord == 0:
        return xp.sum(size != 0, axis=axis, keepdims=keepdim, dtype=size.dtype)
    if ord in (math.inf, -math.inf):
        if ord > 0 and not size.size:
            return xp.sum(size, axis=axis, keepdims=keepdim)  # zeros
        return (xp.max if ord > 0 else xp.min)(size, axis=axis, keepdims=keepdim)
    if ord == 1:
        return xp.add.reduce(size, axis=axis, keepdims=keepdim)
    total = xp.add.reduce(xp.power(size, ord), axis=axis, keepdims=keepdim)
    return xp.power(total, 1 / ord)


def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Dim = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """Return the norm of vectors: ``sum(abs(x) ** ord) ** (1 / ord)`` over ``dim``.

    Args:
        x: any shape.
        ord: a number; inf is the largest, -inf the smallest, 0 counts what is not zero.
        dim: the dimensions of a vector; None means all.
        keepdim: keep the reduced dimensions with length 1.
        dtype: convert first.
    """
    if dtype is not None:
        x = x.to(dtype)
    dims = None if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if dims == ():
        dims = None
    return norm_of_vectors(x, ord, dims, keepdim)


def matrix_norm(
    A: Tensor,
    ord: float | str = "fro",
    dim: tuple[int, int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """Return the norm of matrices.

    Args:
        A: at least two dimensions.
        ord: "fro", "nuc" (sum of singular values), 2 or -2 (largest, smallest singular value),
            1 or -1 (of the columns' sums), inf or -inf (of the rows' sums).
        dim: the dimensions of the rows and of the columns.
        keepdim: keep the reduced dimensions with length 1.
        dtype: convert first.
    """
    try:
        if A.array.ndim < 2:
            raise ShapeError("The input tensor A must have at least 2 dimensions.")
        row, column = wrap_dims(dim, A.array.ndim)
        if ord not in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
            raise ShapeError(f"linalg.matrix_norm: Order {ord} not supported.")
    except Exception as error:
        recover("matrix_norm", error, {"A": A}, {"ord": ord, "dim": dim})
    if ord == "fro":
        return vector_norm(A, 2, (row, column), keepdim, dtype=dtype)
    A = movedim(A if dtype is None else A.to(dtype), (row, column), (-2, -1))
    out = _norm_of_matrices(A, ord)
    for place in sorted((row, column)) if keepdim else ():
        out = unsqueeze(out, place)
    return out


def _norm_of_matrices(A: Tensor, ord: float | str) -> Tensor:
    if isinstance(ord, str):
        return svdvals(A).sum(-1)
    values = svdvals(A) if abs(ord) == 2 else vector_norm(A, 1, -2 if abs(ord) == 1 else -1)
    return values.amax(-1) if ord > 0 else values.amin(-1)


def norm(
    A: Tensor,
    ord: float | str | None = None,
    dim: Dim = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """Return the norm of vectors or matrices, by the number of dimensions it is taken over.

    Args:
        A: any shape.
        ord: see ``vector_norm`` and ``matrix_norm``; None is the 2-norm of all elements.
        dim: one dimension: vectors; two: matrices; None: all.
        keepdim: keep the reduced dimensions with length 1.
        dtype: convert first.
    """
    if ord is None:
        return vector_norm(A, 2, dim, keepdim, dtype=dtype)
    pair = isinstance(dim, list | tuple) and len(dim) == 2
    if isinstance(ord, str) or pair or (dim is None and A.array.ndim == 2):
        places = tuple(dim) if pair and not isinstance(dim, int) and dim else (-2, -1)
        return matrix_norm(A, ord, (places[0], places[1]), keepdim, dtype=dtype)
    return vector_norm(A, ord, dim, keepdim, dtype=dtype)


def cond(A: Tensor, p: float | str | None = None) -> Tensor:
    """Return the condition number: the norm of matrices times that of their inverses."""
    if p is None or p in (2, -2):
        values = svdvals(A)
        largest, smallest = values[..., 0], values[..., -1]
        return largest / smallest if p != -2 else smallest / largest
    return matrix_norm(A, p) * matrix_norm(inv(A), p)


def matrix_rank(
    A: Tensor,
    tol: float | None = None,
    hermitian: bool = False,
    *,
    atol: float | None = None,
    rtol: float | None = None,
) -> Tensor:
    """Return the number of singular values above ``max(atol, rtol * largest)``."""
    values = svdvals(A.detach())
    atol = tol if atol is None else atol
    if rtol is None:
        eps = {4: 2.0**-23, 8: 2.0**-52}[values.array.dtype.itemsize]
        rtol = max(A.array.shape[-2:]) * eps if not atol else 0.0
    limit = (values[..., :1] * rtol).clamp(min=atol or 0.0)
    return (values > limit).sum(-1)


# ---------------------------------------------------------------------- products
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


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Return the dot products of vectors along ``dim``."""
    return ((x.conj() if x.is_complex() else x) * y).sum(dim)


def cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """Return the cross product of vectors of three elements along ``dim``; the rest broadcasts."""
    if input.array.shape != other.array.shape and input.array.ndim == other.array.ndim:
        input, other = broadcast_tensors(input, other)
    return _products.cross(input, other, dim)


def diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Return a view of the diagonals of matrices."""
    return _diagonal(A, offset, dim1, dim2)


def vander(x: Tensor, N: int | None = None) -> Tensor:
    """Return the matrices whose columns are the powers 0 to ``N - 1`` of ``x``."""
    count = x.array.shape[-1] if N is None else N
    return cat([unsqueeze(x, -1) ** k for k in range(count)], -1)


for _function in (cholesky, det, logdet, matrix_power, slogdet):
    as_method(_function)
del _function
as_method(inv, "inverse")
as_method(pinv, "pinverse")
