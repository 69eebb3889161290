"""Order: sort, topk, unique and their kin.  nan counts as larger than every number."""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.autograd.declare import as_method, cast, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, distinct, given, integers, positive, real
from distgrad.autograd.traced import innermost
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.errors import ArgumentTypeError, DtypeError, DtypeNotImplemented, ShapeError
from distgrad.ops.checks import refuse_kinds, sortable
from distgrad.ops.compare import clamp, isnan, logical_not, where
from distgrad.ops.elementwise import add, mul, sub
from distgrad.ops.reduce import sum as sum_of
from distgrad.ops.rounding import ceil, floor
from distgrad.ops.rounding import round as round_
from distgrad.ops.scatter import gather
from distgrad.ops.shape import movedim, narrow, reshape, squeeze, wrap_dim
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
def _ordered(name: str, x: Any, refused: str) -> None:
    """Refuse the kinds of dtypes that PyTorch does not put in order."""
    if x.dtype.kind in refused:
        raise DtypeNotImplemented(f"{name} is not implemented for {x.dtype}; convert it first")


def _order(xp: Namespace, x: Any, dim: int, descending: bool) -> Any:
    """Return the indices that sort ``x`` along ``dim``; equals keep their order."""
    x = sortable(xp, x)
    if not descending:
        return xp.argsort(x, axis=dim, kind="stable")
    last = x.shape[dim] - 1
    return last - xp.flip(xp.argsort(xp.flip(x, dim), axis=dim, kind="stable"), dim)


@op(
    widens=False,
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
    _ordered("sort", input, "c")
    place = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    indices = _order(xp, input, place, descending)
    return xp.take_along_axis(input, indices, place), indices


@op(widens=False, samples=[case(distinct(3, 4)), case(distinct(3, 4), dim=0, descending=True)])
def argsort(
    xp: Namespace, input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> Array:
    """Return the indices that sort along ``dim``."""
    _ordered("argsort", input, "c")
    place = wrap_dim(dim, input.ndim)
    return _order(xp, input, place, descending) if input.ndim else xp.zeros((), xp.int64)


@takes_out
def msort(input: Tensor) -> Tensor:
    """Return the elements in order along the first dimension."""
    return sort(input, 0)[0]  # type: ignore[no-any-return]


@op(
    widens=False,
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
    _ordered("topk", input, "bc")
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
    found = xp.argpartition(sortable(xp, x), size - k if largest else k - 1, axis=dim)
    return xp.sort(found[(slice(None),) * dim + (part,)], axis=dim)


@op(
    widens=False,
    samples=[case(distinct(3, 5), k=2), case(distinct(4, 2), k=4, dim=0, keepdim=True),
             case(distinct(), k=1)],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.gather_backward(
        *_kept(F, g, indices, dim, keepdim or not input_shape), input_shape, dim
    ),
)  # fmt: skip
def kthvalue(xp: Namespace, input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Array:
    """Return the ``k``-th smallest element along ``dim`` (from 1), and where it stands."""
    _ordered("kthvalue", input, "bc")
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
    widens=False,
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
    _ordered("searchsorted", rows, "bc")
    if sorter is not None:
        if getattr(sorter, "array", sorter).dtype != xp.int64:
            raise DtypeError("torch.searchsorted(): sorter must be a tensor of long dtype")
        rows = xp.take_along_axis(rows, getattr(sorter, "array", sorter), -1)
    where = side or ("right" if right else "left")
    kind = xp.int32 if out_int32 else xp.int64
    rows, input = sortable(xp, rows), sortable(xp, input)
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
    out = xp.zeros(values.shape, xp.int64)
    if not (values.size and rows.size):
        return out
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


@op(widens=False, samples=[case(integers(5, 3, 4), integers(3, 4)), case(integers(3, 4), given(1))],
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
    for part in (elements, test_elements):
        _ordered("isin", part, "bc")
    return xp.isin(elements, test_elements, assume_unique, invert)


# ---------------------------------------------------------------------- counting
@op(widens=False, samples=[case(integers(5, 9)), case(integers(3, 4), positive(4), minlength=6)])
def bincount(
    xp: Namespace, input: Tensor, weights: Tensor | None = None, minlength: int = 0
) -> Array:
    """Return how often each number from 0 on stands in a vector, or the sum of its weights."""
    numbers: Array = input
    if numbers.ndim == 1:
        _ordered("bincount", numbers, "fVc")
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


@op(widens=False, samples=[case(real(20), bins=4), case(real(20), bins=5, min=-1, max=1.5),
             case(given([1.0, 1.0]), bins=3)])  # fmt: skip
def histc(xp: Namespace, input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Array:
    """Return how many elements fall into each of ``bins`` equal parts of [min, max].

    With ``min == max == 0`` the range is that of the data.
    """
    if bins <= 0:
        raise ShapeError(f"bins must be > 0, but got {bins}")
    if input.dtype.kind not in "fV":  # type: ignore[attr-defined]
        raise DtypeNotImplemented(
            f'"histogram_cpu" not implemented for {input.dtype}; use .float()'
        )
    low, high = float(min), float(max)
    if low == high == 0 and xp.size(input):
        low, high = float(input.min()), float(input.max())
    if low == high:
        low, high = low - 1, high + 1
    if not low < high:
        raise ShapeError(f"max must be larger than min, got min={min}, max={max}")
    values = xp.reshape(input, -1)
    first, last = (xp.asarray(edge, input.dtype) for edge in (low, high))
    inside = values[(values >= first) & (values <= last)]
    places = ((inside - first) * xp.asarray(bins, input.dtype) / (last - first)).astype(xp.int64)
    counts = xp.bincount(xp.minimum(places, bins - 1), minlength=bins)
    return counts.astype(input.dtype)


# ---------------------------------------------------------------------- unique
@where_it_is
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
        _ordered("unique", input.array, "c")
        place = None if dim is None else wrap_dim(dim, input.array.ndim)
        found, inverse, counts = xp.unique(
            sortable(xp, input.array), return_inverse=True, return_counts=True, axis=place,
            equal_nan=False,
        )  # fmt: skip
        found = found.astype(input.array.dtype, copy=False)
    except Exception as error:
        recover("unique", error, {"input": input}, {"dim": dim})
    shape = input.array.shape if dim is None else (-1,)
    return _answer(found, inverse.reshape(shape), counts, return_inverse, return_counts)


@where_it_is
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
    refuse_kinds("unique_consecutive", "c", input)
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
@takes_out
@where_it_is
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
@where_it_is
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


_WAYS = ("linear", "lower", "higher", "midpoint", "nearest")


def _quantile(
    name: str, input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str
) -> Tensor:
    ndim = input.array.ndim
    try:
        fractions = _fractions(name, input, q)
        place = wrap_dim(0 if dim is None else dim, ndim)
        if interpolation not in _WAYS:
            raise ShapeError(
                f"{name}() interpolation must be one of {', '.join(_WAYS)}, but got {interpolation}"
            )
    except Exception as error:
        recover(name, error, {"input": input}, {"q": q, "dim": dim, "interpolation": interpolation})
    rows = reshape(input, (-1,)) if dim is None or not ndim else movedim(input, place, -1)
    rows = sort(rows, -1)[0]
    ranks = _ranks(rows, fractions, name == "nanquantile")
    out = movedim(_between(rows, ranks, interpolation), -1, 0)
    if keepdim and ndim:
        shape = [1] * ndim
        if dim is not None:
            shape = [1 if d == place else n for d, n in enumerate(input.array.shape)]
        out = reshape(out, (out.array.shape[0], *shape))
    return out if isinstance(q, Tensor) and q.array.ndim else squeeze(out, 0)


def _fractions(name: str, input: Tensor, q: Any) -> Tensor:
    """Return ``q`` as a vector in the dtype of ``input``."""
    kind = input.array.dtype
    if kind.kind != "f" or kind.itemsize < 4:
        raise DtypeError(f"{name}() input tensor must be either float or double dtype, not {kind}")
    if 0 in input.array.shape:
        raise ShapeError(f"{name}() input tensor must be non-empty")
    if isinstance(q, Tensor):
        if q.array.dtype != kind:
            raise DtypeError(f"{name}() q tensor must be same dtype as the input tensor")
        if q.array.ndim > 1:
            raise ShapeError(f"{name}() q must be a scalar or 1D tensor, got {q.array.ndim}D")
    elif not isinstance(q, int | float):
        raise ArgumentTypeError(f"{name}(): q must be a number or tensor, not {type(q).__name__}")
    else:
        xp = array_namespace(innermost(input.array))
        q = wrap(xp.asarray(q, kind))
    found = innermost(q.array)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ShapeError(f"{name}() q values must be in the range [0, 1]")
    return reshape(q, (-1,))


def _ranks(rows: Tensor, q: Tensor, skip_nan: bool) -> Tensor:
    """Return where in the sorted ``rows`` the quantiles lie: at the last place if that is nan."""
    size = rows.array.shape[-1]
    if skip_nan:
        count = sum_of(logical_not(isnan(rows)), -1, True)
        return mul(clamp(sub(cast(count, rows.array.dtype), 1), 0), q)
    spoiled = isnan(narrow(rows, -1, size - 1, 1))
    return where(spoiled, float(size - 1), mul(q, size - 1))


def _between(rows: Tensor, ranks: Tensor, interpolation: str) -> Tensor:
    """Return the values of sorted rows at fractional places."""

    def at(places: Tensor) -> Tensor:
        return gather(rows, -1, cast(places, numpy.dtype("int64")))

    if interpolation in ("lower", "higher", "nearest"):
        return at({"lower": floor, "higher": ceil, "nearest": round_}[interpolation](ranks))
    below = floor(ranks)
    low = at(below)
    share = sub(ranks, below) if interpolation == "linear" else 0.5
    return add(low, mul(sub(at(ceil(ranks)), low), share))


for _function in (msort, nanquantile, quantile, unique, unique_consecutive):
    as_method(_function)
del _function
