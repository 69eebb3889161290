"""Embeddings: rows of a table by their numbers, bags of rows, one-hot vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, given, integers, real
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.backend.forms import device_form
from distgrad.errors import (
    ArgumentError,
    DistgradError,
    DtypeError,
    IndexOutOfRange,
    ShapeError,
    explain,
)
from distgrad.ops.checks import demand_floating
from distgrad.ops.compare import where
from distgrad.ops.index import index_select
from distgrad.ops.reduce import amax
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import reshape, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "embedding", "embedding_bag", "one_hot",
]  # fmt: skip


def _check_rows(xp: Namespace, index: Array, count: int) -> None:
    """Refuse what is no row number, naming the first offender."""
    if not index.size or type(index) is not numpy.ndarray:  # a device would have to be waited for
        return
    low, high = int(xp.min(index)), int(xp.max(index))
    if low < 0 or high >= count:
        raise IndexOutOfRange(
            f"index out of range in self: {low if low < 0 else high} is not in [0, {count}), the "
            "rows of weight; enlarge num_embeddings or correct the indices"
        )


def _positive_padding(padding_idx: int | None, count: int) -> int | None:
    if padding_idx is None or -count <= padding_idx < count:
        return padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + count
    raise ArgumentError(f"Padding_idx must be within num_embeddings, {count}; got {padding_idx}")


def _limit_norms(xp: Namespace, weight: Array, index: Array, max_norm: float, p: float) -> None:
    """Scale the rows in use down to ``max_norm``, in place, as PyTorch does."""
    rows = xp.unique(index)
    norms = xp.linalg.norm(weight[rows], p, axis=1, keepdims=True)
    weight[rows] *= xp.where(norms > max_norm, max_norm / (norms + 1e-7), 1).astype(weight.dtype)


def _row_scale(xp: Namespace, index: Array, dtype: Any) -> Array:
    """Return 1 / (how often its row occurs) for every index."""
    return (1 / xp.bincount(index.reshape(-1))[index]).astype(dtype)[..., None]


@op(
    "multilinear",
    widens=False,
    samples=[case(given([[1, 2, 4], [4, 3, 1]]), real(5, 3)), case(integers(5), real(5, 3)),
             case(given([1, 0, 1]), real(4, 2), padding_idx=-1, max_norm=100.0),
             case(given([1, 0, 3]), real(4, 2), scale_grad_by_freq=True)],
    method=False,
    reference="nn.functional.embedding",
    d_weight=lambda F, g, input, weight_shape, padding_idx, scale_grad_by_freq:
        F.embedding_backward(g, input, weight_shape[0], padding_idx, scale_grad_by_freq),
)  # fmt: skip
def embedding(
    xp: Namespace,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    """Return the rows of ``weight`` whose numbers stand in ``input``.

    Shape:
        input: ``(*)`` integers in [0, V), weight: ``(V, D)``; result: ``(*, D)``.
    Args:
        padding_idx: this row gets no gradient.
        max_norm: rows in use with a larger norm are scaled down in place first.
        scale_grad_by_freq: divide a row's gradient by how often it occurs in ``input``.
        sparse: taken for compatibility; gradients are dense.
    Raises:
        IndexOutOfRange: an index is negative or not below V.
    """
    return _embedding(xp, input, weight, padding_idx, max_norm, norm_type)


def _embedding(
    xp: Namespace, index: Array, weight: Array, padding: int | None, max_norm: Any, p: float
) -> Array:
    if weight.ndim != 2:
        raise ShapeError("'weight' must be 2-D; one row for each index")
    _positive_padding(padding, len(weight))
    if index.dtype.kind not in "iu":
        raise DtypeError(
            f"expected indices of dtype int32 or int64, but got {index.dtype}; use .long()"
        )
    if max_norm is not None and index.size:
        _check_rows(xp, index, len(weight))
        _limit_norms(xp, weight, index, max_norm, p)
    return _embedding_rows(xp, index, weight)


@device_form
def _embedding_rows(xp: Namespace, index: Array, weight: Array) -> Array:
    _check_rows(xp, index, len(weight))
    return xp.take(weight, index, axis=0)


@op(
    "multilinear",
    samples=[case(real(2, 3), given([1, 1]), num_weights=3),
             case(real(3, 2), given([1, 0, 1]), num_weights=4, padding_idx=0),
             case(real(3, 2), given([1, 0, 1]), num_weights=4, scale_grad_by_freq=True)],
    method=False,
    reference="none",
    d_grad=lambda F, g, indices, padding_idx, scale_grad_by_freq: F.embedding_backward_transposed(
        g, indices, padding_idx, scale_grad_by_freq
    ),
)  # fmt: skip
def embedding_backward(
    xp: Namespace,
    grad: Tensor,
    indices: Tensor,
    num_weights: int,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
) -> Array:
    """Return ``num_weights`` rows, each the sum of the rows of ``grad`` that name it.

    Shape:
        grad: ``(*, D)``, indices: ``(*)``; result: ``(num_weights, D)``.
    """
    return _embedding_backward(xp, grad, indices, num_weights, padding_idx, scale_grad_by_freq)


@device_form
def _embedding_backward(
    xp: Namespace, grad: Array, indices: Array, num_weights: int, padding_idx: int | None,
    scale_grad_by_freq: bool,
) -> Array:  # fmt: skip
    out = xp.zeros((num_weights, grad.shape[-1]), grad.dtype)
    values: Array = grad
    if scale_grad_by_freq and xp.size(indices):
        values = values * _row_scale(xp, indices, grad.dtype)
    xp.add_at(out, indices, values)
    if padding_idx is not None:
        out[padding_idx] = 0
    return out


@op(
    "multilinear",
    samples=[case(real(4, 2), given([1, 0, 1]), padding_idx=0, scale_grad_by_freq=True)],
    method=False,
    reference="none",
    d_grad=lambda F, g, indices, grad_shape, padding_idx, scale_grad_by_freq:
        F.embedding_backward(g, indices, grad_shape[0], padding_idx, scale_grad_by_freq),
)  # fmt: skip
def embedding_backward_transposed(
    xp: Namespace,
    grad: Tensor,
    indices: Tensor,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
) -> Array:
    """Return the rows of ``grad`` by ``indices``, scaled as ``embedding_backward`` scales them."""
    rows = xp.take(grad, indices, axis=0)
    if scale_grad_by_freq and xp.size(indices):
        rows *= _row_scale(xp, indices, rows.dtype)
    if padding_idx is not None:
        rows[xp.equal(indices, padding_idx % len(grad))] = 0
    return rows


@op(
    widens=False,
    samples=[case(given([[0, 2], [1, 1]])), case(given([0, 1]), num_classes=4)],
    method=False,
    reference="nn.functional.one_hot",
)
def one_hot(xp: Namespace, tensor: Tensor, num_classes: int = -1) -> Array:
    """Return vectors of int64 that are 1 at the class and 0 elsewhere.

    Shape:
        tensor: ``(*)``; result: ``(*, num_classes)``, by default up to the largest class.
    """
    return _one_hot(xp, tensor, num_classes)


def _one_hot(xp: Namespace, index: Array, classes: int) -> Array:
    if index.dtype != xp.int64:
        raise DtypeError(
            f"one_hot is only applicable to index tensor of type LongTensor, but got {index.dtype}"
            "; use .long()"
        )
    if not index.size:
        if classes <= 0:
            raise ShapeError("Can not infer total number of classes from empty tensor; give it")
        return xp.zeros((*index.shape, classes), xp.int64)
    low, high = int(xp.min(index)), int(xp.max(index))
    if low < 0:
        raise ShapeError(f"Class values must be non-negative, but one is {low}")
    if classes == -1:
        classes = high + 1
    if classes < 1:
        raise ShapeError(f"num_classes should be positive, but is {classes}")
    if high >= classes:
        raise ShapeError(f"Class values must be smaller than num_classes, but one is {high}")
    return (index[..., None] == xp.arange(classes)).astype(xp.int64)


# ---------------------------------------------------------------------- bags
@where_it_is
def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return the sum, mean or maximum of the rows of ``weight`` that each bag names.

    Shape:
        input: ``(B, N)``, or ``(N)`` with offsets ``(B)`` where the bags begin; weight: ``(V, D)``;
        result: ``(B, D)``.
    Args:
        mode: "sum", "mean" or "max"; an empty bag gives zeros.
        per_sample_weights: factors of the rows, in the shape of input, for "sum" only.
        include_last_offset: offsets ends with the length of input.
        padding_idx: rows with this number are left out.
    """
    try:
        index, inside = _bags(input, offsets, include_last_offset)
        _check_bags(input, mode, per_sample_weights)
        demand_floating(weight.array)
        padding_idx = _positive_padding(padding_idx, len(weight.array))
    except DistgradError as error:
        operands = {"input": input, "weight": weight, "offsets": offsets}
        raise explain("embedding_bag", error, operands, {"mode": mode}) from None
    rows_input = _take_flat(input, index) if offsets is not None else input
    if padding_idx is not None:
        inside = inside & (rows_input.array != padding_idx)
    rows = embedding(
        rows_input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )
    if per_sample_weights is not None:
        given_flat = offsets is not None
        factors = _take_flat(per_sample_weights, index) if given_flat else per_sample_weights
        rows = rows * unsqueeze(factors, -1)
    return _bag_values(rows, inside, mode)


def _check_bags(input: Tensor, mode: str, factors: Tensor | None) -> None:
    if mode not in ("sum", "mean", "max"):
        raise ArgumentError(f"mode has to be one of sum, mean or max, but is {mode!r}")
    if factors is not None and mode != "sum":
        raise ShapeError(f"per_sample_weights is only supported for mode='sum', got mode={mode!r}")
    if factors is not None and factors.array.shape != input.array.shape:
        raise ArgumentError(
            f"expected per_sample_weights of the shape of input, {list(input.shape)}, but got "
            f"{list(factors.shape)}"
        )


def _bags(input: Tensor, offsets: Tensor | None, last: bool) -> tuple[Array, Array]:
    """Return the bags as a matrix of places in ``input``, and which entries belong to a bag."""
    xp = array_namespace(input.array)
    if input.ndim == 2:
        if offsets is not None:
            raise ArgumentError(
                "if input is 2D, then offsets has to be None: its rows are the bags"
            )
        count, length = input.array.shape
        return xp.arange(count * length).reshape(count, length), xp.ones((count, length), bool)
    if input.ndim != 1 or offsets is None or offsets.ndim != 1:
        raise ArgumentError("input has to be 2D, or 1D together with 1D offsets")
    size = input.array.shape[0]
    starts = offsets.array
    if starts.size and int(starts[0]) != 0:
        raise ShapeError(
            f"offsets[0] has to be 0: the first bag starts there; got {int(starts[0])}"
        )
    if starts.size and int(starts[-1]) > size:
        raise ShapeError(f"offsets[-1] can not be greater than input's length({size})")
    ends = starts[1:] if last else xp.concatenate([starts[1:], xp.asarray([size])])
    starts = starts[:-1] if last else starts
    lengths = ends - starts
    width = int(lengths.max()) if lengths.size else 0
    steps = xp.arange(width)
    inside = steps < lengths[:, None]
    return xp.where(inside, starts[:, None] + steps, 0), inside


def _take_flat(values: Tensor, index: Array) -> Tensor:
    """Return the elements of a vector by an array of places."""
    return reshape(index_select(values, 0, wrap(index.reshape(-1))), index.shape)


def _bag_values(rows: Tensor, inside: Array, mode: str) -> Tensor:
    """Return the sum, mean or maximum over the second dimension, of what is ``inside``."""
    xp = array_namespace(rows.array)
    chosen = wrap(inside[..., None])
    if mode == "max":
        if not inside.shape[1]:
            return sum_(rows, 1)
        best = amax(where(chosen, rows, -math.inf), 1)
        return where(wrap(inside.any(axis=1)[:, None]), best, 0.0)
    total = sum_(where(chosen, rows, 0.0), 1)
    if mode == "sum":
        return total
    counts = xp.maximum(inside.sum(axis=1), 1).astype(rows.array.dtype)
    return total / wrap(counts[:, None])
