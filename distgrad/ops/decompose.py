"""Decompositions of matrices, for ``distgrad.linalg``.

The last two dimensions are matrices; those before them are a batch.
"""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import case, given, real
from distgrad.errors import DistgradError, ShapeError
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["LinAlgError", "cholesky", "eigh", "eigvalsh", "qr", "svd", "svdvals"]


class LinAlgError(DistgradError, RuntimeError):
    """A matrix that a decomposition or a solution does not exist for."""


def check_square(a: Any, name: str = "A") -> None:
    check_float(a)
    if a.ndim < 2:
        raise ShapeError(f"The input tensor {name} must have at least 2 dimensions.")
    if a.shape[-1] != a.shape[-2]:
        raise ShapeError(
            f"{name} must be batches of square matrices, but they are {a.shape[-2]} by "
            f"{a.shape[-1]} matrices"
        )


def check_matrix(a: Any, name: str = "A") -> None:
    check_float(a)
    if a.ndim < 2:
        raise ShapeError(f"The input tensor {name} must have at least 2 dimensions.")


def check_float(a: Any) -> None:
    if a.dtype.kind not in "fc" or a.dtype.itemsize < 4:
        raise LinAlgError(
            "Expected a floating point or complex tensor (of 32 bits or more) as input. "
            f"Got {a.dtype}"
        )


_REASONS = {
    "Singular matrix": "the inversion could not be completed because the input matrix is singular; "
    "use pinv() or lstsq()",
    "Matrix is not positive definite": "The factorization could not be completed because the input "
    "is not positive-definite; add a small multiple of the identity",
}


def solved(xp: Namespace, function: Any, *args: Any) -> Any:
    """Return ``function(*args)``; what LAPACK cannot do is a LinAlgError."""
    try:
        return xp.solved(function, *args)
    except xp.linalg.LinAlgError as error:
        text = str(error)
        raise LinAlgError(_REASONS.get(text, f"The algorithm failed to converge: {text}")) from None


def _symmetric(xp: Namespace, a: Any) -> Any:
    return (a + xp.swapaxes(a, -1, -2)) * 0.5


def _d_cholesky(F: Any, g: Any, out: Any, upper: bool) -> Any:
    lower, g = (F.mT(out), F.mT(g)) if upper else (out, g)
    inside = F.tril(F.matmul(F.mT(lower), g))
    inside = inside - F.diag_embed(F.diagonal(inside, 0, -2, -1)) * 0.5
    inverse = F.inv(lower)
    found = F.matmul(F.mT(inverse), F.matmul(inside, inverse))
    return (found + F.mT(found)) * 0.5


_POSITIVE = given([[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]])


@op(
    samples=[case(_POSITIVE), case(_POSITIVE, upper=True)],
    method=False,
    node="LinalgCholeskyExBackward0",
    reference="linalg.cholesky",
    d_input=_d_cholesky,
)
def cholesky(xp: Namespace, input: Tensor, *, upper: bool = False) -> Array:
    """Return the lower triangular L with ``L @ L.T = input`` (or the upper one, ``L.T``).

    Raises:
        LinAlgError: a matrix is not positive definite.

    Differs from PyTorch: both triangles of the input are read, and their mean is taken.
    """
    check_square(input, "A")
    lower = solved(xp, xp.linalg.cholesky, _symmetric(xp, input))
    return xp.ascontiguousarray(xp.swapaxes(lower, -1, -2)) if upper else lower


def _d_qr(F: Any, g: Any, A: Any, Q: Any, R: Any) -> Any:
    g_q, g_r = g
    rows, columns = A.shape[-2:]
    if Q.ndim < 2 or Q.shape[-1] > min(rows, columns):
        raise LinAlgError(
            "The QR decomposition is not differentiable when mode='complete' and nrows > ncols, "
            "nor when mode='r'; use mode='reduced'"
        )
    if rows < columns:  # A = Q [U, V]: U is square, V = Q.T @ Y
        y = F.narrow(A, -1, rows, columns - rows)
        g_v = F.narrow(g_r, -1, rows, columns - rows)
        square = F.narrow(R, -1, 0, rows)
        g_x = _d_tall_qr(F, g_q + F.matmul(y, F.mT(g_v)), F.narrow(g_r, -1, 0, rows), Q, square)
        return F.cat([g_x, F.matmul(Q, g_v)], -1)
    return _d_tall_qr(F, g_q, g_r, Q, R)


def _d_tall_qr(F: Any, g_q: Any, g_r: Any, q: Any, r: Any) -> Any:
    inside = F.matmul(r, F.mT(g_r)) - F.matmul(F.mT(g_q), q)
    low = F.tril(inside, -1)
    both = low + F.mT(low) + F.diag_embed(F.diagonal(inside, 0, -2, -1))
    return F.matmul(g_q + F.matmul(q, both), F.mT(F.inv(r)))


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 4)), case(real(2, 3, 2))],
    outputs=("Q", "R"),
    method=False,
    node="LinalgQrBackward0",
    reference="linalg.qr",
    d_A=_d_qr,
)
def qr(xp: Namespace, A: Tensor, mode: str = "reduced") -> Array:
    """Return Q with orthogonal columns and upper triangular R with ``A = Q @ R``.

    Args:
        A: ``(*, m, n)``.
        mode: "reduced": Q has min(m, n) columns; "complete": Q is square (no gradient when
            m > n); "r": Q is empty.
    """
    check_matrix(A)
    if mode == "r":
        return xp.zeros((0,), A.dtype), xp.linalg.qr(A, mode="r")
    if mode not in ("reduced", "complete"):
        raise ShapeError(
            f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), "
            "'r', or 'complete'"
        )
    return tuple(xp.linalg.qr(A, mode=mode))


def _gaps(F: Any, s: Any) -> Any:
    """Return 1 / (s_j - s_i), and 0 on the diagonal."""
    gaps = F.unsqueeze(s, -2) - F.unsqueeze(s, -1)
    ones = F.diag_embed(F.zero(s) + 1)
    return (1 - ones) / (gaps + ones)


def _d_eigh(F: Any, g: Any, eigenvalues: Any, eigenvectors: Any) -> Any:
    g_l, g_v = g
    inside = F.diag_embed(g_l) + F.matmul(F.mT(eigenvectors), g_v) * _gaps(F, eigenvalues)
    found = F.matmul(eigenvectors, F.matmul(inside, F.mT(eigenvectors)))
    return (found + F.mT(found)) * 0.5


@op(
    samples=[case(real(3, 3)), case(real(2, 2, 2))],
    outputs=("eigenvalues", "eigenvectors"),
    method=False,
    node="LinalgEighBackward0",
    reference=lambda torch, a: torch.linalg.eigh((a + a.mT) / 2),
    d_A=_d_eigh,
)
def eigh(xp: Namespace, A: Tensor, UPLO: str = "L") -> Array:
    """Return the eigenvalues of symmetric matrices in ascending order, and the eigenvectors.

    Differs from PyTorch: both triangles are read, and their mean is taken; the gradient is
    symmetric.
    """
    check_square(A)
    return tuple(solved(xp, xp.linalg.eigh, _symmetric(xp, A), UPLO))


def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """Return the eigenvalues of symmetric matrices in ascending order."""
    return eigh(A, UPLO)[0]  # type: ignore[no-any-return]


def _d_svd(F: Any, g: Any, U: Any, S: Any, Vh: Any) -> Any:
    g_u, g_s, g_vh = g
    u_part, v_part = F.matmul(F.mT(U), g_u), F.matmul(Vh, F.mT(g_vh))
    gaps = _gaps(F, S * S)
    row, column = F.unsqueeze(S, -2), F.unsqueeze(S, -1)
    inside = F.diag_embed(g_s)
    inside = inside + (u_part - F.mT(u_part)) * gaps * row
    inside = inside + column * ((v_part - F.mT(v_part)) * gaps)
    found = F.matmul(U, F.matmul(inside, Vh))
    if U.shape[-2] > S.shape[-1]:
        rest = g_u / row
        found = found + F.matmul(rest - F.matmul(U, F.matmul(F.mT(U), rest)), Vh)
    if Vh.shape[-1] > S.shape[-1]:
        rest = g_vh / column
        found = found + F.matmul(U, rest - F.matmul(F.matmul(rest, F.mT(Vh)), Vh))
    return found


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 2, 3))],
    outputs=("U", "S", "Vh"),
    method=False,
    node="LinalgSvdBackward0",
    reference="none",  # the signs of singular vectors are LAPACK's choice
    d_A=_d_svd,
)
def reduced_svd(xp: Namespace, A: Tensor) -> Array:
    """Return U, the singular values in descending order, and Vh with ``A = U @ diag(S) @ Vh``."""
    check_matrix(A)
    return tuple(solved(xp, xp.linalg.svd, A, False))


@op(samples=[case(real(3, 2)), case(real(2, 3))], outputs=("U!", "S!", "Vh!"), method=False,
    reference="none")  # fmt: skip
def full_svd(xp: Namespace, A: Tensor) -> Array:
    """Return the singular value decomposition with square U and Vh; no gradient."""
    check_matrix(A)
    return tuple(solved(xp, xp.linalg.svd, A, True))


def svd(A: Tensor, full_matrices: bool = True) -> Any:
    """Return U, the singular values S in descending order, and Vh with ``A = U @ diag(S) @ Vh``.

    Args:
        A: ``(*, m, n)``.
        full_matrices: U and Vh are square; the columns beyond min(m, n) carry no gradient, so a
            matrix that requires grad needs False unless it is square.
    """
    rows, columns = A.array.shape[-2:] if A.array.ndim > 1 else (0, 0)
    if full_matrices and rows != columns:
        if A.requires_grad:
            error = LinAlgError(
                "svd_backward: the gradient of U and Vh with full_matrices=True is not defined; "
                "use full_matrices=False"
            )
            recover("svd", error, {"A": A}, {"full_matrices": True})
        return full_svd(A)
    return reduced_svd(A)


def svdvals(A: Tensor) -> Tensor:
    """Return the singular values in descending order."""
    return reduced_svd(A)[1]  # type: ignore[no-any-return]
