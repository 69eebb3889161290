"""Order: sort, topk, unique and their kin.  nan counts as larger than every number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, distinct, given, integers, positive, real
from distgrad.backend.device import array_namespace
from distgrad.errors import DtypeError, ShapeError
from distgrad.ops.shape import reshape, wrap_dim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Number, TensorLike

__all__ = [
    "argsort",
    "bincount",
    "bucketize",
    "histc",
    "isin",
    "kthvalue",
    "msort",
    "nanquantile",
    "quantile",
    "searchsorted",
    "sort",
    "topk",
    "unique",
    "unique_consecutive",
]


# ---------------------------------------------------------------------- sorting
def _order(xp: Namespace, x: Any, dim: int, descending: bool) -> Any:
    """Return the indices that sort ``x`` along ``dim``; equals keep their order."""
    if not descending:
        return xp.argsort(x, axis=dim, kind="stable")
    last = x.shape[dim] - 1
    return last - xp.flip(xp.argsort(xp.flip(x, dim), axis=dim, kind="stable"), dim)


@op(
    samples=[
        case(distinct(3, 4)),
        case(distinct(2, 3, 4), dim=0, descending=True),
        case(distinct()),
        case(distinct(0, 2), dim=0),
    ],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim: F.gather_backward(g, indices, input_shape, dim),
)
def sort(
    xp: Namespace, input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> Array:
    """Return the elements in order along ``dim``, and where each of them came from.

    Differs from PyTorch: equal elements keep their order without ``stable`` too.
    """
    place = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    indices = _order(xp, input, place, descending)
    return xp.take_along_axis(input, indices, place), indices


@op(samples=[case(distinct(3, 4)), case(distinct(3, 4), dim=0, descending=True)])
def argsort(
    xp: Namespace, input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> Array:
    """Return the indices that sort along ``dim``."""
    place = wrap_dim(dim, input.ndim)
    return _order(xp, input, place, descending) if input.ndim else xp.zeros((), xp.int64)


def msort(input: Tensor) -> Tensor:
    """Return the elements in order along the first dimension."""
    return sort(input, 0)[0]  # type: ignore[no-any-return]


@op(
    samples=[
        case(distinct(3, 5), k=2),
        case(distinct(5, 3), k=3, dim=0, largest=False),
        case(distinct(4), k=0),
        case(distinct(), k=1),
        case(distinct(30), k=3),
    ],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim: F.gather_backward(g, indices, input_shape, dim),
)
def topk(
    xp: Namespace, input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Array:
    """Return the ``k`` largest (or smallest) elements along ``dim``, and where they stand."""
    place = wrap_dim(dim, input.ndim)
    size = input.shape[place] if input.ndim else 1
    if not 0 <= k <= size:
        raise ShapeError(f"selected index k out of range: k={k}, but dimension {dim} has {size}")
    if not input.ndim:
        whole = (xp.array(input, copy=True), xp.zeros((), xp.int64))
        return whole if k else tuple(xp.zeros((0,), part.dtype) for part in whole)
    front = (slice(None),) * place + (slice(k),)
    if 0 < k < size // 4:
        indices = _extreme(xp, input, k, place, largest)
        values = xp.take_along_axis(input, indices, place)
        inner = _order(xp, values, place, largest)
        return xp.take_along_axis(values, inner, place), xp.take_along_axis(indices, inner, place)
    indices = _order(xp, input, place, largest)[front]
    return xp.take_along_axis(input, indices, place), xp.ascontiguousarray(indices)


def _extreme(xp: Namespace, x: Any, k: int, dim: int, largest: bool) -> Any:
    """Return the indices of the ``k`` extreme elements in the order of their places."""
    size = x.shape[dim]
    part = slice(size - k, None) if largest else slice(k)
    found = xp.argpartition(x, size - k if largest else k - 1, axis=dim)
    return xp.sort(found[(slice(None),) * dim + (part,)], axis=dim)


@op(
    samples=[case(distinct(3, 5), k=2), case(distinct(4, 2), k=4, dim=0, keepdim=True),
             case(distinct(), k=1)],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.gather_backward(
        *_kept(F, g, indices, dim, keepdim or not input_shape), input_shape, dim
    ),
)  # fmt: skip
def kthvalue(xp: Namespace, input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Array:
    """Return the ``k``-th smallest element along ``dim`` (from 1), and where it stands."""
    place = wrap_dim(dim, input.ndim)
    size = input.shape[place] if input.ndim else 1
    if not 1 <= k <= size:
        raise ShapeError(f"selected number k out of range for dimension {dim}: k={k} of {size}")
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    part = (slice(None),) * place
    indices = _order(xp, input, place, False)[(*part, slice(k - 1, k))]
    values = xp.take_along_axis(input, indices, place)
    if keepdim:
        return values, xp.ascontiguousarray(indices)
    return xp.squeeze(values, place), xp.array(xp.squeeze(indices, place), copy=True)


def _kept(F: Any, g: Any, indices: Any, dim: int, kept: bool) -> tuple[Any, Any]:
    return (g, indices) if kept else (F.unsqueeze(g, dim), F.unsqueeze(indices, dim))


# ---------------------------------------------------------------------- finding places
@op(
    samples=[
        case(given([1.0, 3.0, 5.0]), given([[3.0, 4.0], [0.0, 9.0]])),
        case(given([1.0, 3.0, 5.0]), given(3.0), right=True),
        case(given([[1.0, 3.0], [2.0, 2.0]]), given([[3.0, 1.0, 4.0], [2.0, 0.0, 3.0]])),
    ],
    method=False,
)
def searchsorted(
    xp: Namespace,
    sorted_sequence: Tensor,
    input: TensorLike,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Array:
    """Return where each value would be put into the sorted last dimension to keep its order.

    Args:
        sorted_sequence: ascending along its last dimension (or with ``sorter``: after that order).
        input: values, with the same leading dimensions unless the sequence is a vector.
        out_int32: give int32 instead of int64.
        right: after equal elements instead of before.
        side: "left" or "right", instead of ``right``.
        sorter: indices that sort the sequence.
    """
    if side not in (None, "left", "right") or (side == "left" and right):
        raise ShapeError(
            f"torch.searchsorted(): side can only be 'left' or 'right' and must agree with right, "
            f"got side={side!r}, right={right}"
        )
    rows: Any = sorted_sequence
    if sorter is not None:
        rows = xp.take_along_axis(rows, getattr(sorter, "array", sorter), -1)
    where = side or ("right" if right else "left")
    kind = xp.int32 if out_int32 else xp.int64
    if rows.ndim == 1:
        return xp.asarray(xp.searchsorted(rows, input, where)).astype(kind)
    values: Any = input
    if rows.shape[:-1] != values.shape[:-1]:
        raise ShapeError(
            "torch.searchsorted(): boundaries tensor should be 1 dimension or the first N-1 "
            "dimensions of boundaries tensor and input value tensor must match, but we got "
            f"boundaries tensor {list(rows.shape)} and input value tensor {list(values.shape)}"
        )
    return _row_by_row(xp, rows, values, where).astype(kind)


def _row_by_row(xp: Namespace, rows: Any, values: Any, side: str) -> Any:
    out = xp.empty(values.shape, xp.int64)
    flat = rows.reshape(-1, rows.shape[-1]), values.reshape(-1, values.shape[-1])
    for row, value, place in zip(*flat, out.reshape(flat[1].shape), strict=True):
        place[...] = xp.searchsorted(row, value, side)
    return out


@takes_out
def bucketize(
    input: TensorLike, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Tensor:
    """Return the number of the bucket between ascending ``boundaries`` that each value is in."""
    if boundaries.array.ndim != 1:
        error = ShapeError(
            f"boundaries tensor must be 1 dimension, but got dim({boundaries.array.ndim})"
        )
        recover("bucketize", error, {"input": input, "boundaries": boundaries}, {})
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


@op(samples=[case(integers(5, 3, 4), integers(3, 4)), case(integers(3, 4), given(1))],
    method=False)  # fmt: skip
def isin(
    xp: Namespace,
    elements: TensorLike,
    test_elements: TensorLike,
    *,
    assume_unique: bool = False,
    invert: bool = False,
) -> Array:
    """Return True for every element that is among ``test_elements``."""
    return xp.isin(elements, test_elements, assume_unique, invert)


# ---------------------------------------------------------------------- counting
@op(samples=[case(integers(5, 9)), case(integers(3, 4), positive(4), minlength=6)])
def bincount(
    xp: Namespace, input: Tensor, weights: Tensor | None = None, minlength: int = 0
) -> Array:
    """Return how often each number from 0 on stands in a vector, or the sum of its weights."""
    numbers: Array = input
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or (numbers.size and numbers.min() < 0):
        raise ShapeError("bincount only supports 1-d non-negative integral inputs.")
    if minlength < 0:
        raise ShapeError(f"minlength should be >= 0, got {minlength}")
    if weights is None:
        return xp.bincount(numbers, minlength=minlength).astype(xp.int64)
    if weights.shape != numbers.shape:
        raise ShapeError("weights should be 1-d and have the same length as input")
    total = xp.bincount(numbers, weights, minlength)
    is_float = xp.issubdtype(weights.dtype, xp.floating)
    return total.astype(weights.dtype if is_float else xp.float64)


@op(samples=[case(real(20), bins=4), case(real(20), bins=5, min=-1, max=1.5),
             case(given([1.0, 1.0]), bins=3)])  # fmt: skip
def histc(xp: Namespace, input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Array:
    """Return how many elements fall into each of ``bins`` equal parts of [min, max].

    With ``min == max == 0`` the range is that of the data.
    """
    if bins <= 0:
        raise ShapeError(f"bins must be > 0, but got {bins}")
    if not xp.issubdtype(input.dtype, xp.floating):
        raise DtypeError(f'"histogram_cpu" not implemented for {input.dtype}; use .float()')
    low, high = float(min), float(max)
    if low == high == 0 and xp.size(input):
        low, high = float(input.min()), float(input.max())
    if low == high:
        low, high = low - 1, high + 1
    if not low < high:
        raise ShapeError(f"max must be larger than min, got min={min}, max={max}")
    values = xp.reshape(input, -1)
    inside = values[(values >= low) & (values <= high)]
    places = ((inside - low) / (high - low) * bins).astype(xp.int64)
    counts = xp.bincount(xp.minimum(places, bins - 1), minlength=bins)
    return counts.astype(input.dtype)


# ---------------------------------------------------------------------- unique
def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """Return the different elements in ascending order (or the different slices along ``dim``).

    Args:
        input: any tensor.
        sorted: has no effect; the result is sorted.
        return_inverse: also which of them each element is.
        return_counts: also how often each occurs.
        dim: compare whole slices along this dimension.

    Example:
        >>> import distgrad as dg
        >>> dg.unique(dg.tensor([3, 1, 3]), return_counts=True)
        (tensor([1, 3]), tensor([1, 2]))
    """
    xp = array_namespace(input.array)
    try:
        place = None if dim is None else wrap_dim(dim, input.array.ndim)
        found, inverse, counts = xp.unique(
            input.array, return_inverse=True, return_counts=True, axis=place
        )
    except Exception as error:
        recover("unique", error, {"input": input}, {"dim": dim})
    shape = input.array.shape if dim is None else (-1,)
    return _answer(found, inverse.reshape(shape), counts, return_inverse, return_counts)


def unique_consecutive(
    input: Tensor,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """Return the elements (or slices along ``dim``) that differ from the one before them.

    Example:
        >>> import distgrad as dg
        >>> dg.unique_consecutive(dg.tensor([1, 1, 2, 1]))
        tensor([1, 2, 1])
    """
    xp = array_namespace(input.array)
    x = input.array
    try:
        place = 0 if dim is None else wrap_dim(dim, x.ndim)
    except Exception as error:
        recover("unique_consecutive", error, {"input": input}, {"dim": dim})
    slices = x.reshape(-1) if dim is None else xp.moveaxis(x, place, 0)
    count = len(slices)
    rows = slices.reshape(count, -1) if x.size else xp.zeros((count, 0))
    starts = xp.ones(count, bool)
    starts[1:] = (rows[1:] != rows[:-1]).any(1)
    places = starts.nonzero()[0]
    found = xp.moveaxis(slices[places], 0, place)
    inverse = xp.cumsum(starts) - 1
    counts = xp.diff(xp.concatenate([places, xp.asarray([count])]))
    shape = x.shape if dim is None else (-1,)
    return _answer(found, inverse.reshape(shape), counts, return_inverse, return_counts)


def _answer(found: Any, inverse: Any, counts: Any, with_inverse: bool, with_counts: bool) -> Any:
    xp = array_namespace(found)
    parts = [wrap(xp.ascontiguousarray(found))]
    if with_inverse:
        parts.append(wrap(inverse.astype(xp.int64, copy=False)))
    if with_counts:
        parts.append(wrap(counts.astype(xp.int64, copy=False)))
    return parts[0] if len(parts) == 1 else tuple(parts)


# ---------------------------------------------------------------------- quantiles
class _Ranks(NamedTuple):
    """Between which two elements of a sorted row each quantile lies, and how far along."""

    below: Any
    above: Any
    share: Any


def _ranks(rank: Any, interpolation: str) -> _Ranks:
    """Return the neighbours of fractional ranks for a way of interpolation."""
    low, high = numpy.floor(rank), numpy.ceil(rank)
    if interpolation == "linear":
        return _Ranks(low, high, rank - low)
    if interpolation == "midpoint":
        return _Ranks(low, high, numpy.where(high > low, 0.5, 0.0))
    one = {"lower": low, "higher": high, "nearest": numpy.round(rank)}.get(interpolation)
    if one is None:
        raise ShapeError(
            "quantile() interpolation must be one of linear, lower, higher, midpoint or nearest, "
            f"but got {interpolation}"
        )
    return _Ranks(one, one, numpy.zeros_like(rank))


@takes_out
def quantile(
    input: Tensor,
    q: Number | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """Return the values below which the fractions ``q`` of the elements along ``dim`` lie.

    Shape:
        A vector ``q`` adds a first dimension to the result.

    Args:
        input: float32 or float64.
        q: a number or a vector in [0, 1].
        dim: None means all elements.
        keepdim: keep the reduced dimension with length 1.
        interpolation: "linear", "lower", "higher", "nearest" or "midpoint" between two elements.
    """
    return _quantile("quantile", input, q, dim, keepdim, interpolation)


@takes_out
def nanquantile(
    input: Tensor,
    q: Number | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """Return the quantiles as ``quantile`` does, of the elements that are not nan."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation)


def _quantile(
    name: str, input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str
) -> Tensor:
    options = {"q": q, "dim": dim, "interpolation": interpolation}
    try:
        fractions = _fractions(input, q)
        place = wrap_dim(0 if dim is None else dim, input.array.ndim)
        rows = reshape(input, (-1,)) if dim is None or not input.array.ndim else input
        rows = rows.movedim(place if dim is not None else 0, -1)
        rows = sort(rows, -1)[0]
        size = rows.array.shape[-1]
        if name == "nanquantile":
            xp = array_namespace(rows.array)
            valid = xp.to_numpy((~xp.isnan(rows.array)).sum(-1))
        else:
            valid = numpy.full(rows.array.shape[:-1], size)
        rank = fractions.reshape(-1, *[1] * valid.ndim) * numpy.maximum(valid - 1, 0)
        ranks = _ranks(rank, interpolation)
    except Exception as error:
        recover(name, error, {"input": input}, options)
    out = _between(rows, ranks)
    if name == "quantile":
        out = _spoiled_by_nan(out, rows)
    return _shaped_quantile(out, input, q, dim, keepdim)


def _fractions(input: Tensor, q: Any) -> Any:
    """Return ``q`` as a NumPy array in the dtype of ``input``."""
    kind = input.array.dtype
    if kind.kind != "f" or kind.itemsize < 4:
        raise DtypeError(
            f"quantile() input tensor must be either float or double dtype, not {kind}"
        )
    if not input.array.size:
        raise ShapeError("quantile() input tensor must be non-empty")
    if isinstance(q, Tensor):
        if q.array.dtype != kind:
            raise DtypeError("quantile() q tensor must be same dtype as the input tensor")
        if q.array.ndim > 1:
            raise ShapeError(f"quantile() q must be a scalar or 1D tensor, got {q.array.ndim}D")
        q = q.detach().cpu().array
    fractions = numpy.asarray(q, kind)
    if ((fractions < 0) | (fractions > 1)).any():
        raise ShapeError(f"quantile() q must be in the range [0, 1] but got {q}")
    return fractions


def _between(rows: Tensor, ranks: _Ranks) -> Tensor:
    """Return the values at fractional places of sorted rows; the quantiles come first."""
    xp = array_namespace(rows.array)
    below, above = (wrap(xp.asarray(r.astype(numpy.int64))).movedim(0, -1) for r in ranks[:2])
    low, high = rows.gather(-1, below), rows.gather(-1, above)
    share = wrap(xp.asarray(ranks.share.astype(rows.array.dtype))).movedim(0, -1)
    return (low + (high - low) * share).movedim(-1, 0)


def _spoiled_by_nan(out: Tensor, rows: Tensor) -> Tensor:
    """Return ``out`` with nan where a row has one (sorted, it is the last)."""
    last = rows[..., -1]
    xp = array_namespace(last.array)
    spoiled = xp.isnan(last.array)
    return out.masked_fill(wrap(spoiled), float("nan")) if spoiled.any() else out


def _shaped_quantile(out: Tensor, input: Tensor, q: Any, dim: int | None, keepdim: bool) -> Tensor:
    """Return the result with the dimensions that ``q`` and ``keepdim`` ask for."""
    if keepdim and input.array.ndim:
        shape = [1] * input.array.ndim
        if dim is not None:
            shape = list(input.array.shape)
            shape[dim] = 1
        out = reshape(out, (out.array.shape[0], *shape))
    return out if isinstance(q, Tensor) and q.array.ndim else out.squeeze(0)


for _function in (msort, nanquantile, quantile, unique, unique_consecutive):
    as_method(_function)
del _function
