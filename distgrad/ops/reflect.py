"""Products of reflections: what QR decompositions are made of inside."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.errors import ShapeError
from distgrad.ops.arrange import tril
from distgrad.ops.decompose import check_matrix
from distgrad.ops.matmul import matmul
from distgrad.ops.ranges import eye
from distgrad.ops.shape import adjoint, expand, narrow, unsqueeze
from distgrad.ops.triangular import check_alike
from distgrad.tensor import Tensor
from distgrad.typing import Namespace

__all__ = ["geqrf", "householder_product", "ormqr"]


@op(
    samples=[case(real(4, 3)), case(real(2, 2, 3))],
    outputs=("a!", "tau!"),
    widens=False,
)
def geqrf(xp: Namespace, input: Tensor) -> Any:
    """Return R with the vectors of reflections below it, and their factors: QR as LAPACK has it.

    Shape:
        input: ``(*, m, n)``; results: ``(*, m, n)`` and ``(*, min(m, n))``.
    """
    check_matrix(input)
    if not xp.size(input):
        return xp.copy(input), xp.zeros((*input.shape[:-2], min(input.shape[-2:])), input.dtype)
    across, tau = xp.linalg.qr(input, mode="raw")
    return xp.ascontiguousarray(xp.swapaxes(across, -1, -2)), tau


def _check_reflections(name: str, input: Tensor, tau: Tensor) -> None:
    a, t = input.array, tau.array
    check_matrix(a, "input")
    if a.shape[-2] < a.shape[-1]:
        raise ShapeError("input.shape[-2] must be greater than or equal to input.shape[-1]")
    if t.ndim < 1 or a.shape[-1] < t.shape[-1]:
        raise ShapeError("input.shape[-1] must be greater than or equal to tau.shape[-1]")
    if a.ndim - t.ndim != 1:
        raise ShapeError(
            f"Expected tau to have one dimension less than input, but got tau.ndim equal to "
            f"{t.ndim} and input.ndim is equal to {a.ndim}"
        )
    if a.shape[:-2] != t.shape[:-1]:
        raise ShapeError(
            f"Expected batch dimensions of tau to be equal to input.shape[:-2], but got "
            f"{list(t.shape[:-1])}"
        )
    check_alike(a, t)


@takes_out
def householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """Return the first columns of the product of the reflections ``I - tau v vᴴ``.

    Shape:
        input: ``(*, m, n)`` whose columns below the diagonal hold v, tau: ``(*, k)``.
    """
    try:
        _check_reflections("householder_product", input, tau)
    except Exception as error:
        recover("householder_product", error, {"input": input, "tau": tau}, {})
    return narrow(_reflected(input, tau), -1, 0, input.array.shape[-1])


def _reflected(input: Tensor, tau: Tensor) -> Tensor:
    """Return the whole square product of the reflections."""
    rows, columns = input.array.shape[-2:]
    ones = eye(rows, columns, dtype=input.dtype, device=input.device)
    product = eye(rows, dtype=input.dtype, device=input.device)
    product = expand(product, (*input.array.shape[:-2], rows, rows))
    lower = tril(input, -1) + ones
    count = tau.array.shape[-1]
    if not count:  # an empty product that depends on both, as far as autograd can see
        none = narrow(lower, -1, 0, 0)
        return product + matmul(none * unsqueeze(tau, -2), adjoint(none))
    for i in range(count):
        v = narrow(lower, -1, i, 1)
        scaled = matmul(product, v) * unsqueeze(narrow(tau, -1, i, 1), -1)
        product = product - matmul(scaled, adjoint(v))
    return product


@takes_out
def ormqr(
    input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False
) -> Tensor:
    """Return ``Q @ other`` (or ``other @ Q``) for Q given by its reflections.

    Args:
        input: ``(*, mn, k)``, the vectors of the reflections as ``geqrf`` returns them.
        tau: ``(*, k)``.
        other: ``(*, m, n)``.
        left: Q stands on the left.
        transpose: take the adjoint of Q.
    """
    try:
        _check_sides(input.array, tau.array, other.array, left)
    except Exception as error:
        operands = {"input": input, "tau": tau, "other": other}
        recover("ormqr", error, operands, {"left": left, "transpose": transpose})
    q = _reflected(input, tau)
    q = adjoint(q) if transpose else q
    return matmul(q, other) if left else matmul(other, q)


def _check_sides(a: Any, t: Any, b: Any, left: bool) -> None:
    if a.ndim < 2 or b.ndim < 2:
        raise ShapeError(f"{'input' if a.ndim < 2 else 'other'} must have at least 2 dimensions.")
    side = -2 if left else -1
    if b.shape[side] < t.shape[-1]:
        raise ShapeError(
            f"other.shape[{side}] must be greater than or equal to tau.shape[-1], but they are "
            f"{b.shape[side]} and {t.shape[-1]}"
        )
    if b.shape[side] != a.shape[-2]:
        raise ShapeError(
            f"other.shape[{side}] must be equal to input.shape[-2], but they are {b.shape[side]} "
            f"and {a.shape[-2]}"
        )
    if t.shape[-1] > a.shape[-1]:
        raise ShapeError(
            "tau.shape[-1] must be less than or equal to input.shape[-1], but they are "
            f"{t.shape[-1]} and {a.shape[-1]}"
        )
    if a.ndim - t.ndim != 1 or a.shape[:-2] != t.shape[:-1]:
        raise ShapeError(
            "Expected tau to have one dimension less than input and the same batch dimensions, "
            f"but got {list(t.shape)} and {list(a.shape)}"
        )
    if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
        raise ShapeError(
            "Expected batch dimensions of other to be equal to input.shape[:-2], but got "
            f"{list(b.shape)} and {list(a.shape)}"
        )
    check_alike(a, t, b)


as_method(ormqr)
as_method(householder_product, "orgqr")
