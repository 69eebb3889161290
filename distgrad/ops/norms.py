"""Norms of vectors and matrices, for ``distgrad.linalg``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import recover
from distgrad.autograd.outputs import takes_out
from distgrad.backend.dtype import as_numpy, can_cast
from distgrad.errors import ArgumentTypeError, DistgradError, DtypeError, ShapeError
from distgrad.ops.decompose import svdvals
from distgrad.ops.reduce import vector_norm as _vector_norm
from distgrad.ops.shape import movedim, unsqueeze, wrap_dims
from distgrad.tensor import Tensor
from distgrad.typing import Dim, Shape

__all__ = ["matrix_norm", "norm", "vector_norm"]  # what distgrad.linalg has

_ORDERS = ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf)


def _check_dtype(x: Tensor, dtype: Any) -> None:
    """Refuse a dtype of the other kind, or one that loses digits."""
    if dtype is None:
        return
    kind, own = as_numpy(dtype), x.array.dtype
    if kind.kind not in "fcV":
        raise DtypeError(f"dtype should be floating point or complex. Got {kind}")
    if (own.kind == "c") is not (kind.kind == "c"):
        raise DtypeError(
            f"dtype should be {'complex' if own.kind == 'c' else 'real'} for "
            f"{'complex' if own.kind == 'c' else 'real'} inputs, but got {kind}"
        )
    if own.kind in "fcV" and own.itemsize > kind.itemsize and can_cast(x.dtype, dtype):
        raise DtypeError(
            f"the dtype of the input ({own}) should be convertible without narrowing to the "
            f"specified dtype ({kind})"
        )


def _check_filled(shape: Shape, ord: float, dim: Dim) -> None:
    """Refuse the smallest or largest of no elements."""
    if dim is None or isinstance(dim, int):
        dims = range(len(shape)) if dim is None else wrap_dims([dim], len(shape))
    else:
        dims = wrap_dims(dim, len(shape)) or range(len(shape))
    if any(not shape[place] for place in dims):
        raise ShapeError(
            f"linalg.vector_norm cannot compute the {ord} norm of no elements because the "
            "operation does not have an identity"
        )


@takes_out
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
    try:
        _check_dtype(x, dtype)
        if not x.array.size and (ord < 0 or ord == math.inf):
            _check_filled(x.array.shape, ord, dim)
    except DistgradError as error:
        recover("vector_norm", error, {"x": x}, {"ord": ord, "dtype": dtype})
    return _vector_norm(x, ord, dim, keepdim, dtype=dtype)


@takes_out
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
        row, column = _matrix_dims(A, ord, dim)
        _check_dtype(A, dtype)
    except Exception as error:
        recover("matrix_norm", error, {"A": A}, {"ord": ord, "dim": dim})
    if ord == "fro":
        return _vector_norm(A, 2, (row, column), keepdim, dtype=dtype)
    A = movedim(A if dtype is None else A.to(dtype), (row, column), (-2, -1))
    out = _norm_of_matrices(A, ord)
    for place in sorted((row, column)) if keepdim else ():
        out = unsqueeze(out, place)
    return out


def _matrix_dims(A: Tensor, ord: float | str, dim: Any) -> tuple[int, ...]:
    if A.array.dtype.kind not in "fcV":
        raise DtypeError(
            f"Expected a floating point or complex tensor as input. Got {A.array.dtype}"
        )
    if A.array.ndim < 2:
        raise ShapeError("The input tensor A must have at least 2 dimensions.")
    if isinstance(dim, int):
        raise ArgumentTypeError(f"dim must be a tuple of two integers, not {dim}")
    if not isinstance(dim, list | tuple) or len(dim) != 2:
        raise ShapeError(f"linalg.matrix_norm: dim must be a 2-tuple. Got {dim}")
    if ord not in _ORDERS:
        raise ShapeError(f"linalg.matrix_norm: Order {ord} not supported.")
    if ord in ("nuc", 2, -2) and A.array.dtype.itemsize == 2:
        raise DtypeError(f"Low precision dtypes not supported. Got {A.array.dtype}")
    places = wrap_dims(dim, A.array.ndim)
    if places[0] == places[1]:
        raise ShapeError(f"linalg.matrix_norm: dims must be different. Got {dim}")
    return tuple(places)


def _norm_of_matrices(A: Tensor, ord: float | str) -> Tensor:
    if isinstance(ord, str):
        return svdvals(A).sum(-1)
    values = svdvals(A) if abs(ord) == 2 else _vector_norm(A, 1, -2 if abs(ord) == 1 else -1)
    if ord > 0 and not values.array.shape[-1]:  # of nothing: zero
        return values.sum(-1)
    return values.amax(-1) if ord > 0 else values.amin(-1)


@takes_out
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
    dims = [dim] if isinstance(dim, int) else dim
    if (dims is None and A.array.ndim not in (1, 2)) or (dims is not None and len(dims) > 2):
        error = ShapeError(
            f"linalg.norm: If dim={'not specified' if dim is None else dim} but ord is, the norm "
            f"is taken over one or two dimensions, but the input is {A.array.ndim}D"
        )
        recover("norm", error, {"A": A}, {"ord": ord, "dim": dim})
    if isinstance(ord, str) or (A.array.ndim if dims is None else len(dims)) == 2:
        row, column = (-2, -1) if dims is None else dims
        return matrix_norm(A, ord, (row, column), keepdim, dtype=dtype)
    return vector_norm(A, ord, dim, keepdim, dtype=dtype)


# ---------------------------------------------------------------------- outside distgrad.linalg
@takes_out
def frobenius_norm(input: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Return the root of the sum of squares over one or two dimensions."""
    if not isinstance(dim, int) and len(dim) > 2:
        error = ShapeError(f"Expected at most 2 dimensions, but got {len(dim)} dimensions instead.")
        recover("frobenius_norm", error, {"input": input}, {"dim": dim})
    return vector_norm(input, 2, dim if isinstance(dim, int) else tuple(dim), keepdim)


@takes_out
def nuclear_norm(
    input: Tensor, dim: Sequence[int] | bool = (-2, -1), keepdim: bool = False
) -> Tensor:
    """Return the sum of the singular values.

    Args:
        input: at least two dimensions.
        dim: the dimensions of the rows and of the columns; may be left out before ``keepdim``.
        keepdim: keep the reduced dimensions with length 1.
    """
    if isinstance(dim, bool):
        return matrix_norm(input, "nuc", (-2, -1), dim)
    if len(dim) != 2:
        error = ShapeError(f"nuclear norm requires a 'dim' argument of size 2, got {dim}")
        recover("nuclear_norm", error, {"input": input}, {"dim": dim})
    return matrix_norm(input, "nuc", (dim[0], dim[1]), keepdim)
