"""Decompositions of matrices, for ``distgrad.linalg``.

The last two dimensions are matrices; those before them are a batch.

Note [Adjoints]
    The gradient of a complex matrix stands in books, and in PyTorch, as dL/dx + i dL/dy, and its
    rules are written with adjoints.  Inside a backward its conjugate travels (see ``engine``).
    ``in_adjoints`` turns a rule of the first kind into one of the second; for real numbers both
    are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from distgrad.autograd.declare import named_results, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.autograd.traced import Traced
from distgrad.errors import DistgradError, DtypeNotImplemented, GradError, ShapeError
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["LinAlgError", "eigh", "eigvalsh", "qr", "svd", "svdvals"]


class LinAlgError(DistgradError, RuntimeError):
    """A matrix that a decomposition or a solution does not exist for."""


# ---------------------------------------------------------------------- checks
def check_square(a: Any, name: str = "A") -> None:
    check_matrix(a, name)
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
    if a.dtype.kind in "fV" and a.dtype.itemsize < 4:
        raise DtypeNotImplemented(f"not implemented for {a.dtype}; convert with .float()")
    if a.dtype.kind not in "fc":
        raise DtypeNotImplemented(
            f"Expected a floating point or complex tensor as input. Got {a.dtype}; use .float()"
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


# ---------------------------------------------------------------------- adjoints
def raw(x: Any) -> Any:
    """Return the array of a tensor, and an array as it is."""
    return x.array if isinstance(x, Tensor) else x


def is_complex(x: Any) -> bool:
    return bool(raw(x).dtype.kind == "c")


def conj(F: Any, x: Any) -> Any:
    return F.conj(x) if is_complex(x) else x


def mH(F: Any, x: Any) -> Any:
    """Return the adjoint of matrices."""
    return F.conj(F.mT(x)) if is_complex(x) else F.mT(x)


def real_part(F: Any, x: Any) -> Any:
    return F.real(x) if is_complex(x) else x


def diagonal(F: Any, x: Any) -> Any:
    return F.diagonal(x, 0, -2, -1)


def in_adjoints(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule written with adjoints as the engine takes it; see Note [Adjoints].

    It must ask for F, the gradient, and then the rest.
    """

    @functools.wraps(rule)
    def conjugating(F: Any, g: Any, *rest: Any) -> Any:
        g = tuple(conj(F, part) for part in g) if isinstance(g, tuple) else conj(F, g)
        found = rule(F, g, *rest)
        if isinstance(found, tuple):
            return tuple(None if part is None else conj(F, part) for part in found)
        return conj(F, found)

    return conjugating


def check_phase(name: str, what: Any) -> None:
    """Refuse a loss that depends on the phase of complex vectors: it has no derivative."""
    values = raw(what)
    if isinstance(values, Traced) or values.dtype.kind != "c":
        return
    if bool((abs(values.imag) > 1e-2 * abs(values.real) + 1e-2).any()):
        raise GradError(
            f"{name}: The vectors in the complex case are specified up to multiplication by "
            "e^{i phi}. The specified loss function depends on this phase term, making it "
            "ill-defined."
        )


def _gaps(F: Any, s: Any) -> Any:
    """Return s_j - s_i, and 1 on the diagonal."""
    ones = F.diag_embed(F.zero(s) + 1)
    return F.unsqueeze(s, -2) - F.unsqueeze(s, -1) + ones


def _without_diagonal(F: Any, x: Any) -> Any:
    return x - F.diag_embed(diagonal(F, x))


# ---------------------------------------------------------------------- QR
def _d_qr(F: Any, g: Any, A: Any, Q: Any, R: Any) -> Any:
    g_q, g_r = g
    rows, columns = A.shape[-2:]
    if Q.ndim < 2 or Q.shape[-1] > min(rows, columns):
        raise GradError(
            "The QR decomposition is not differentiable when mode='complete' and nrows > ncols, "
            "nor when mode='r'; use mode='reduced'"
        )
    if rows < columns:  # A = Q [U, V]: U is square, V = Qᴴ Y
        y = F.narrow(A, -1, rows, columns - rows)
        g_v = F.narrow(g_r, -1, rows, columns - rows)
        square = F.narrow(R, -1, 0, rows)
        g_x = _d_tall_qr(F, g_q + F.matmul(y, mH(F, g_v)), F.narrow(g_r, -1, 0, rows), Q, square)
        return F.cat([g_x, F.matmul(Q, g_v)], -1)
    return _d_tall_qr(F, g_q, g_r, Q, R)


def _d_tall_qr(F: Any, g_q: Any, g_r: Any, q: Any, r: Any) -> Any:
    inside = F.matmul(r, mH(F, g_r)) - F.matmul(mH(F, g_q), q)
    low = F.tril(inside, -1)
    both = low + mH(F, low) + F.diag_embed(real_part(F, diagonal(F, inside)))
    return F.matmul(g_q + F.matmul(q, both), mH(F, F.inv(r)))


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 4)), case(real(2, 3, 2))],
    outputs=("Q", "R"),
    method=False,
    widens=False,
    node="LinalgQrBackward0",
    reference="linalg.qr",
    d_A=in_adjoints(_d_qr),
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


# ---------------------------------------------------------------------- symmetric eigenvalues
def _d_eigh(F: Any, g: Any, eigenvalues: Any, eigenvectors: Any) -> Any:
    g_l, g_v = g
    inside = F.matmul(mH(F, eigenvectors), g_v)
    check_phase("linalg_eigh_backward", diagonal(F, inside))
    inside = (inside - mH(F, inside)) * 0.5 / _gaps(F, eigenvalues)
    inside = _without_diagonal(F, inside) + F.diag_embed(g_l)
    return F.matmul(eigenvectors, F.matmul(inside, mH(F, eigenvectors)))


def _t_eigh(F: Any, A: Any, UPLO: str, t_A: Any) -> Any:
    values, vectors = F.eigh(A, UPLO)
    inside = F.matmul(mH(F, vectors), F.matmul(t_A, vectors))
    turned = _without_diagonal(F, inside / _gaps(F, values))
    return real_part(F, diagonal(F, inside)), F.matmul(vectors, turned)


def _read_half(name: str, UPLO: str) -> str:
    half = UPLO.upper() if isinstance(UPLO, str) else UPLO
    if half not in ("L", "U"):
        raise ShapeError(f"Expected UPLO argument to be 'L' or 'U', but got {UPLO}")
    return half


@op(
    samples=[],  # one half is read, the gradient is symmetric: see tests/test_ops_decompose.py
    outputs=("eigenvalues", "eigenvectors"),
    method=False,
    widens=False,
    node="LinalgEighBackward0",
    jvp=_t_eigh,
    d_A=in_adjoints(_d_eigh),
)
def eigh(xp: Namespace, A: Tensor, UPLO: str = "L") -> Array:
    """Return the eigenvalues of symmetric (Hermitian) matrices in ascending order, and vectors.

    Args:
        A: ``(*, n, n)``.
        UPLO: which half is read, "L" (lower) or "U". The gradient is that of both.
    """
    check_square(A)
    half = _read_half("eigh", UPLO)
    if not xp.size(A):
        kind = xp.real(xp.zeros((), A.dtype)).dtype
        return xp.zeros(A.shape[:-1], kind), xp.copy(A)
    return tuple(solved(xp, xp.linalg.eigh, A, half))


def _d_eigvalsh(F: Any, g: Any, A: Any, UPLO: str) -> Any:
    vectors = F.eigh(A, UPLO)[1]
    return F.matmul(vectors * F.unsqueeze(g, -2), mH(F, vectors))


@op(
    samples=[],  # as eigh
    method=False,
    widens=False,
    node="LinalgEighBackward0",
    jvp=lambda F, A, UPLO, t_A: _t_eigh(F, A, UPLO, t_A)[0],
    d_A=in_adjoints(_d_eigvalsh),
)
def eigvalsh(xp: Namespace, A: Tensor, UPLO: str = "L") -> Array:
    """Return the eigenvalues of symmetric (Hermitian) matrices in ascending order."""
    check_square(A)
    half = _read_half("eigvalsh", UPLO)
    if not xp.size(A):
        return xp.zeros(A.shape[:-1], xp.real(xp.zeros((), A.dtype)).dtype)
    return solved(xp, xp.linalg.eigvalsh, A, half)


# ---------------------------------------------------------------------- singular values
def _d_svd(F: Any, g: Any, U: Any, S: Any, Vh: Any) -> Any:
    g_u, g_s, g_vh = g
    n = S.shape[-1]
    if U.shape[-1] > n:  # what lies beyond is not determined, so it carries no gradient
        U, g_u = F.narrow(U, -1, 0, n), F.narrow(g_u, -1, 0, n)
    if Vh.shape[-2] > n:
        Vh, g_vh = F.narrow(Vh, -2, 0, n), F.narrow(g_vh, -2, 0, n)
    u_part, v_part = F.matmul(mH(F, U), g_u), F.matmul(Vh, mH(F, g_vh))
    u_part, v_part = u_part - mH(F, u_part), v_part - mH(F, v_part)
    row, column = F.unsqueeze(S, -2), F.unsqueeze(S, -1)
    inside = (u_part * row + column * v_part) / _gaps(F, S * S)
    if is_complex(U):
        phase = diagonal(F, u_part)
        check_phase("svd_backward", phase + diagonal(F, v_part))
        inside = inside + F.diag_embed(phase / (S * 2))
    found = F.matmul(U, F.matmul(inside + F.diag_embed(g_s), Vh))
    if U.shape[-2] > n:
        rest = g_u / row
        found = found + F.matmul(rest - F.matmul(U, F.matmul(mH(F, U), rest)), Vh)
    if Vh.shape[-1] > n:
        rest = g_vh / column
        found = found + F.matmul(U, rest - F.matmul(F.matmul(rest, mH(F, Vh)), Vh))
    return found


@op(
    samples=[
        case(real(3, 3)),
        case(real(4, 2), full_matrices=False),
        case(real(2, 2, 3), full_matrices=False),
    ],
    outputs=("U", "S", "Vh"),
    method=False,
    widens=False,
    node="LinalgSvdBackward0",
    reference="none",  # the signs of singular vectors are LAPACK's choice
    d_A=in_adjoints(_d_svd),
)
def factors_of_svd(xp: Namespace, A: Tensor, full_matrices: bool = True) -> Array:
    """Return U, the singular values S in descending order, and Vh with ``A = U @ diag(S) @ Vh``."""
    check_matrix(A)
    return tuple(solved(xp, xp.linalg.svd, A, bool(full_matrices)))


@takes_out
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    """Return U, the singular values S in descending order, and Vh with ``A = U @ diag(S) @ Vh``.

    Args:
        A: ``(*, m, n)``.
        full_matrices: U and Vh are square; the columns beyond min(m, n) carry no gradient.
        driver: for CUDA in PyTorch; must be None.
    """
    _no_driver("svd", A, driver)
    return _Svd(*factors_of_svd(A, full_matrices))


_Svd = named_results("linalg_svd", ["U", "S", "Vh"])


def _no_driver(name: str, A: Tensor, driver: str | None) -> None:
    if driver is not None and not A.is_cuda:
        error = ShapeError(
            "keyword argument `driver=` is only supported on CUDA inputs with cuSOLVER backend."
        )
        recover(name, error, {"A": A}, {"driver": driver})


def _d_svdvals(F: Any, g: Any, A: Any) -> Any:
    u, _, vh = F.factors_of_svd(A, False)
    return F.matmul(u * F.unsqueeze(g, -2), vh)


@op(
    samples=[case(real(3, 3)), case(real(4, 2)), case(real(2, 2, 3))],
    method=False,
    widens=False,
    node="LinalgSvdBackward0",
    reference="linalg.svdvals",
    d_A=in_adjoints(_d_svdvals),
)
def singular_values(xp: Namespace, A: Tensor) -> Array:
    """Return the singular values in descending order."""
    check_matrix(A)
    if not xp.size(A):
        kind = xp.real(xp.zeros((), A.dtype)).dtype
        return xp.zeros((*A.shape[:-2], min(A.shape[-2:])), kind)
    return solved(xp, lambda a: xp.linalg.svd(a, compute_uv=False), A)


@takes_out
def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """Return the singular values in descending order.

    Args:
        A: ``(*, m, n)``.
        driver: for CUDA in PyTorch; must be None.
    """
    _no_driver("svdvals", A, driver)
    return singular_values(A)
