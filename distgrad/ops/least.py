"""Pseudo-inverses, ranks and least squares; decompositions of low rank."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method, named_results, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.backend.device import where_it_is
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError
from distgrad.ops.compare import maximum
from distgrad.ops.decompose import (
    check_float,
    check_matrix,
    check_square,
    eigvalsh,
    in_adjoints,
    mH,
    qr,
    solved,
    svd,
    svdvals,
)
from distgrad.ops.matmul import matmul
from distgrad.ops.random import randn
from distgrad.ops.reduce import mean
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import adjoint, narrow, reshape, squeeze, unsqueeze
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["lstsq", "matrix_rank", "pca_lowrank", "pinv", "svd_lowrank"]

Tolerance = float | Tensor | None


# ---------------------------------------------------------------------- pseudo-inverse and rank
def _d_pinv(F: Any, g: Any, A: Any, out: Any) -> Any:
    g, across = mH(F, g), mH(F, out)
    if A.shape[-2] <= A.shape[-1]:
        k = F.matmul(g, out)
        k_across = F.matmul(k, across)
        found = -mH(F, F.matmul(out, k)) + k_across - F.matmul(F.matmul(A, out), k_across)
        return found + F.matmul(F.matmul(across, out), g - F.matmul(k, A))
    k = F.matmul(out, g)
    across_k = F.matmul(across, k)
    found = -mH(F, F.matmul(k, out)) + F.matmul(F.matmul(g - F.matmul(A, k), out), across)
    return found + across_k - F.matmul(F.matmul(across_k, out), A)


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 2, 3))],
    method=False,
    widens=False,
    reference="linalg.pinv",
    node="LinalgPinvBackward0",
    d_A=in_adjoints(_d_pinv),
)
def pinv_by_svd(
    xp: Namespace, A: Tensor, rtol: Any = None, atol: Any = None, hermitian: bool = False
) -> Array:
    """Return the pseudo-inverse; singular values up to ``max(atol, rtol * largest)`` count as 0."""
    (check_square if hermitian else check_matrix)(A)
    a: Array = A
    if hermitian:  # the lower half says all
        low = xp.tril(a, -1)
        a = low + xp.conj(xp.swapaxes(low, -1, -2)) + xp.real(a) * xp.eye(a.shape[-1], dtype=bool)
    if not a.size:
        return xp.zeros((*a.shape[:-2], a.shape[-1], a.shape[-2]), a.dtype)
    u, s, vh = solved(xp, xp.linalg.svd, a, False)
    rtol, atol = (t.array if isinstance(t, Tensor) else t for t in (rtol, atol))
    if rtol is None:
        eps = max(a.shape[-2:]) * float(xp.finfo(a.dtype).eps)
        rtol = eps if atol is None else xp.where(xp.asarray(atol) > 0, 0.0, eps)
    low, high = (xp.asarray(0.0 if t is None else t)[..., None] for t in (atol, rtol))
    limit = xp.maximum(low, high * s[..., :1])  # the first is the largest
    inverse = xp.where(s > limit, 1 / xp.where(s > limit, s, 1), 0).astype(a.dtype)
    across = inverse[..., None] * xp.conj(xp.swapaxes(u, -1, -2))
    return xp.matmul(xp.conj(xp.swapaxes(vh, -1, -2)), across)


@takes_out
def pinv(
    A: Tensor,
    rcond: Tolerance = None,
    hermitian: bool = False,
    *,
    atol: Tolerance = None,
    rtol: Tolerance = None,
) -> Tensor:
    """Return the pseudo-inverse of matrices of any shape.

    Args:
        A: ``(*, m, n)``.
        rcond: another name of ``rtol``.
        hermitian: A is symmetric (Hermitian); its lower half is read.
        atol: singular values up to this number count as zero.
        rtol: the same in parts of the largest one (max(m, n) times the dtype's eps).
    """
    return pinv_by_svd(A, rcond if rtol is None else rtol, atol, hermitian)


def pinverse(input: Tensor, rcond: float = 1e-15) -> Tensor:
    """Return the pseudo-inverse of matrices of any shape.

    Args:
        input: ``(*, m, n)``.
        rcond: singular values up to this part of the largest one count as zero.
    """
    return pinv_by_svd(input, rcond)


@takes_out
def matrix_rank(
    A: Tensor,
    tol: Tolerance = None,
    hermitian: bool = False,
    *,
    atol: Tolerance = None,
    rtol: Tolerance = None,
) -> Tensor:
    """Return the number of singular values above ``max(atol, rtol * largest)``.

    Args:
        A: ``(*, m, n)``.
        tol: another name of ``atol``, without any ``rtol``.
        hermitian: A is symmetric (Hermitian); its lower half is read.
        atol: a number, or a tensor with one per matrix.
        rtol: the same in parts of the largest one (max(m, n) times the dtype's eps).
    """
    try:
        (check_square if hermitian else check_matrix)(A.array)
        for name, given in (("tol", tol), ("atol", atol), ("rtol", rtol)):
            if isinstance(given, Tensor) and given.is_complex():
                raise DtypeError(f"{name} tensor of complex type is not supported.")
    except DistgradError as error:
        recover("matrix_rank", error, {"A": A}, {"hermitian": hermitian})
    values = eigvalsh(A.detach()).abs() if hermitian else svdvals(A.detach())
    if not values.array.shape[-1]:
        return sum_(values > 0, -1)
    if tol is not None:
        return sum_(values > _last(tol), -1)
    if rtol is None:
        eps = max(A.array.shape[-2:]) * {4: 2.0**-23, 8: 2.0**-52}[values.array.dtype.itemsize]
        zero = atol is None or (not isinstance(atol, Tensor) and atol <= 0)
        rtol = eps if zero else (atol <= 0) * eps if isinstance(atol, Tensor) else 0.0
    limit = values.amax(-1, keepdim=True) * _last(rtol)
    if atol is not None:
        low = _last(atol)
        limit = maximum(limit, low) if isinstance(low, Tensor) else limit.clamp(min=low)
    return sum_(values > limit, -1)


def _last(value: Any) -> Any:
    """Return a tensor with a last dimension of one; a number as it is."""
    return unsqueeze(value, -1) if isinstance(value, Tensor) else value


# ---------------------------------------------------------------------- least squares
_LstsqResult = named_results("linalg_lstsq", ["solution", "residuals", "rank", "singular_values"])
_DRIVERS = (None, "gels", "gelsy", "gelsd", "gelss")


@takes_out
@where_it_is
def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
    """Return the X of least ``norm(A @ X - B)``, with residuals, rank and singular values.

    Args:
        A: ``(*, m, n)``.
        B: ``(*, m, k)`` (or ``(*, m)``).
        rcond: singular values up to ``rcond * largest`` count as zero.
        driver: has no effect on the solution; "gelsy" (the default) reports the rank, "gels" the
            residuals, "gelsd" and "gelss" both and the singular values.
    """
    vector = A.array.ndim - 1 == B.array.ndim and A.array.shape[:-1] == B.array.shape
    try:
        _check_least_squares(A.array, B.array, vector, driver)
    except DistgradError as error:
        recover("lstsq", error, {"A": A, "B": B}, {"rcond": rcond, "driver": driver})
    right = unsqueeze(B, -1) if vector else B
    solution = matmul(pinv_by_svd(A, rcond), right)
    rows, columns = A.array.shape[-2:]
    empty = narrow(reshape(solution, (-1,)), 0, 0, 0) if solution.array.size else solution
    empty = reshape(empty, (0,)).abs()  # a part of the solution, so that gradients find it
    rank = empty.detach().long() if driver == "gels" else matrix_rank(A, rtol=rcond)
    values = svdvals(A.detach()) if driver in ("gelsd", "gelss") else empty.detach()
    residuals = empty
    whole = rows > columns and bool((matrix_rank(A).array == columns).all())
    if whole and driver not in (None, "gelsy"):
        residuals = (matmul(A, solution) - right).abs().square().sum(-2)
    return _LstsqResult(squeeze(solution, -1) if vector else solution, residuals, rank, values)


def _check_least_squares(a: Any, b: Any, vector: bool, driver: str | None) -> None:
    if a.ndim < 2:
        raise ShapeError("input must have at least 2 dimensions.")
    if b.ndim < 1:
        raise ShapeError("other must have at least 1 dimension.")
    check_float(a)
    if a.dtype != b.dtype:
        raise DtypeError(
            f"Expected input and other to have the same dtype, but got input's dtype {a.dtype} "
            f"and other's dtype {b.dtype}"
        )
    if not vector and (b.ndim < 2 or a.shape[-2] != b.shape[-2]):
        raise ShapeError(
            f"input.size(-2) should match other.size(-2): {list(a.shape)} and {list(b.shape)}"
        )
    if driver not in _DRIVERS:
        raise ShapeError(
            f"parameter `driver` should be one of (gels, gelsy, gelsd, gelss), got {driver}"
        )


# ---------------------------------------------------------------------- low rank
def _range(A: Tensor, q: int, niter: int, M: Tensor | None) -> Tensor:
    """Return an orthonormal basis that holds most of the range of ``A - M``.

    Source: N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", SIAM Review 53
    (2011), algorithm 4.4.
    """
    across, m_across = adjoint(A), None if M is None else adjoint(M)
    omega = randn(A.array.shape[-1], q, dtype=A.dtype, device=A.device)
    basis = qr(_without(A, M, omega))[0]
    for _ in range(niter):
        basis = qr(_without(across, m_across, basis))[0]
        basis = qr(_without(A, M, basis))[0]
    return basis  # type: ignore[no-any-return]


def _without(A: Tensor, M: Tensor | None, x: Tensor) -> Tensor:
    """Return ``(A - M) @ x``."""
    return matmul(A, x) if M is None else matmul(A, x) - matmul(M, x)


def svd_lowrank(
    A: Tensor, q: int | None = 6, niter: int | None = 2, M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, V with ``A - M`` nearly ``U @ diag(S) @ V.mH``, by a random sketch.

    Args:
        A: ``(*, m, n)``.
        q: a little more than the rank.
        niter: steps of the subspace iteration.
        M: subtracted from ``A``.
    """
    q, niter = 6 if q is None else q, 2 if niter is None else niter
    rows, columns = A.array.shape[-2:]
    if M is not None:
        M = M.broadcast_to(A.array.shape)
    wide = rows < columns
    if wide:
        A, M = adjoint(A), None if M is None else adjoint(M)
    basis = _range(A, q, niter, M)
    small = _without(adjoint(A), None if M is None else adjoint(M), basis)
    u, s, vh = svd(adjoint(small), full_matrices=False)
    left, right = matmul(basis, u), adjoint(vh)
    return (right, s, left) if wide else (left, s, right)


def pca_lowrank(
    A: Tensor, q: int | None = None, center: bool = True, niter: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, V of the principal components of ``A``, by a random sketch.

    Args:
        A: ``(*, m, n)``: m observations of n variables.
        q: how many components; min(6, m, n) by default.
        center: subtract the mean of each column first.
        niter: steps of the subspace iteration.
    """
    rows, columns = A.array.shape[-2:]
    q = min(6, rows, columns) if q is None else q
    if not 0 <= q <= min(rows, columns):
        recover(
            "pca_lowrank",
            ArgumentError(
                f"q(={q}) must be non-negative integer and not greater than min(m, n)="
                f"{min(rows, columns)}"
            ),
            {"A": A},
            {"q": q},
        )
    if niter < 0:
        error = ArgumentError(f"niter(={niter}) must be non-negative integer")
        recover("pca_lowrank", error, {"A": A}, {"niter": niter})
    if not center:
        return svd_lowrank(A, q, niter)
    return svd_lowrank(A - mean(A, -2, True), q, niter)


as_method(pinverse)
