"""Several matrix products at once, of groups of rows or columns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from distgrad.autograd.declare import recover
from distgrad.backend.device import CPU, to_device
from distgrad.errors import DistgradError, DtypeError, ShapeError
from distgrad.ops.join import cat, split, stack, unbind
from distgrad.ops.matmul import matmul
from distgrad.ops.shape import to_dtype
from distgrad.tensor import Tensor

__all__ = ["grouped_mm"]


def grouped_mm(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> Tensor:
    """Return the products of groups: each expert's rows with its own matrix, for example.

    Shape:
        ``(M, K)`` and ``(G, K, N)``: rows of a in groups, ``(M, N)``; ``(G, M, K)`` and ``(K, N)``:
        columns of b in groups, ``(M, N)``; ``(M, K)`` and ``(K, N)``: both along K, ``(G, M, N)``;
        ``(G, M, K)`` and ``(G, K, N)``: ``(G, M, N)``, without ``offs``.
    Args:
        offs: where each group ends, int32.
        bias: not taken, as in PyTorch.
        out_dtype: of the result.

    Example:
        >>> import distgrad as dg
        >>> a, b = dg.ones(3, 2), dg.tensor([[[1.0], [1.0]], [[2.0], [2.0]]])
        >>> grouped_mm(a, b, offs=dg.tensor([1, 3], dtype=dg.int32)).flatten().tolist()
        [2.0, 4.0, 4.0]
    """
    try:
        out = _product(mat_a, mat_b, offs, bias)
    except DistgradError as error:
        if error.placed:
            raise
        operands = {"mat_a": mat_a, "mat_b": mat_b, "offs": offs}
        return recover("grouped_mm", error, operands, {})  # type: ignore[no-any-return]
    return out if out_dtype is None else to_dtype(out, out_dtype)


def _product(a: Tensor, b: Tensor, offs: Tensor | None, bias: Tensor | None) -> Tensor:
    if bias is not None:
        raise ShapeError("Bias not supported yet; add it to the result")
    if a.ndim not in (2, 3) or b.ndim not in (2, 3):
        raise ShapeError("mat_a and mat_b have to be 2 or 3 dimensional")
    if (offs is None) != (a.ndim == b.ndim == 3):
        raise ShapeError(
            "Have to provide offsets if there is a 2d matrix, or no offset if both matrices are 3d"
        )
    if offs is None:
        return matmul(a, b)
    if offs.array.dtype != "int32":
        raise DtypeError("Offsets have to be int32")
    ends = [0, *to_device(offs.array, CPU).tolist()]
    if a.ndim == b.ndim == 2:
        pairs = zip(_cut(a, ends, 1), _cut(b, ends, 0), strict=True)
        return stack([matmul(x, y) for x, y in pairs], 0)
    if a.ndim == 2:
        parts = zip(_cut(a, ends, 0), unbind(b, 0), strict=True)
        return cat([matmul(x, y) for x, y in parts], 0)
    parts = zip(unbind(a, 0), _cut(b, ends, 1), strict=True)
    return cat([matmul(x, y) for x, y in parts], 1)


def _cut(t: Tensor, ends: list[int], dim: int) -> list[Tensor]:
    """Return the parts of ``t`` along ``dim`` that end where ``ends`` says."""
    sizes = [end - start for start, end in pairwise(ends)]
    if min(sizes, default=0) < 0 or ends[-1] != t.array.shape[dim]:
        raise ShapeError(
            f"offs must not decrease and end at {t.array.shape[dim]}, but are {ends[1:]}"
        )
    return list(split(t, sizes, dim))
