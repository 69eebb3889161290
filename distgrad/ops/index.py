"""Indexing by numbers, slices, masks and tensors of indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, cast, op, recover
from distgrad.autograd.inplace import assign, in_place, refuse_expanded, refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, given, integers, real
from distgrad.autograd.traced import Refused, Traced
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.errors import DtypeError, IndexOutOfRange, ShapeError
from distgrad.ops.index_reader import ALL, IndexReader, beyond
from distgrad.ops.shape import (
    copy,
    expand,
    reshape,
    slice_view,
    unsqueeze,
    wrap_dim,
)
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Namespace, Shape, TensorLike

__all__ = [
    "index_add",
    "index_copy",
    "index_fill",
    "index_put",
    "index_put_",
    "index_select",
    "put",
    "select",
    "take",
]


# ---------------------------------------------------------------------- one number
@op(
    "linear",
    samples=[case(real(3, 4), dim=0, index=1), case(real(2, 3, 4), dim=-1, index=-2),
             case(real(2), dim=0, index=0)],
    view=True,
    d_input=lambda F, g, input_shape, dim, index: F.select_backward(g, input_shape, dim, index),
)  # fmt: skip
def select(xp: Namespace, input: Tensor, dim: int, index: int) -> Array:
    """Return the view of entry ``index`` along ``dim``, which is taken away."""
    if not input.ndim:
        raise IndexOutOfRange(
            "invalid index of a 0-dim tensor. Use `tensor.item()` to convert a 0-dim tensor to a "
            "Python number"
        )
    dim = wrap_dim(dim, input.ndim)
    size = input.shape[dim]
    if not -size <= index < size:
        raise IndexOutOfRange(beyond(index, dim, size))
    return input[index, ...] if not dim else input[(slice(None),) * dim + (index, ...)]


@op("linear", widens=False,
    samples=[case(real(3, 2), input_size=(3, 4, 2), dim=1, index=-1)], method=False,
    reference="none",
    d_grad=lambda F, g, dim, index: F.select(g, dim, index))  # fmt: skip
def select_backward(xp: Namespace, grad: Tensor, input_size: Shape, dim: int, index: int) -> Array:
    """Return zeros of ``input_size`` with ``grad`` as entry ``index`` along ``dim``."""
    out = xp.zeros(input_size, grad.dtype)
    out[(slice(None),) * (dim % len(input_size)) + (index,)] = grad
    return out


def slice_of(
    input: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """Return the view ``start:end:step`` along ``dim``; numbers beyond the ends are cut."""
    index: list[Any] = [ALL] * input.array.ndim
    try:
        if not index:
            raise ShapeError("slice() cannot be applied to a 0-dim tensor.")
        index[wrap_dim(dim, len(index))] = slice(start, end, step)
        if step <= 0:
            raise ShapeError("slice step must be positive; use flip() to go backwards")
    except Exception as error:
        recover("slice", error, {"input": input}, {"dim": dim, "start": start, "end": end})
    return slice_view(input, tuple(index))


# ---------------------------------------------------------------------- tensors of indices
def _places(indices: Sequence[Any], dims: Sequence[int]) -> tuple[Any, ...]:
    """Return the NumPy index that looks up along ``dims`` and keeps the other dimensions."""
    places: list[Any] = [slice(None)] * (dims[-1] + 1)
    for dim, index in zip(dims, indices, strict=True):
        places[dim] = index
    return tuple(places)


def _torch_added(torch: Any, g: Any, indices: Any, size: Shape, dims: Shape) -> Any:
    x = torch.zeros(size, dtype=g.dtype, requires_grad=True)
    found = x[_places(indices, dims)]
    return torch.autograd.grad(found, x, g.expand(found.shape))[0]


def _torch_written(
    torch: Any, x: Any, indices: Any, values: Any, dims: Shape, accumulate: bool = False
) -> Any:
    if accumulate:
        return x + _torch_added(torch, values, indices, x.shape, dims)
    x = x.clone()
    x[_places(indices, dims)] = values
    return x


def _out_of_bounds(error: IndexError) -> IndexOutOfRange:
    return IndexOutOfRange(str(error).replace("for axis", "for dimension"))


_LOOKUPS: list[Any] = [
    case(real(4, 3), [given([2, 0, -1])], dims=(0,)),
    case(real(4, 3), [given([[2, 0], [1, 2]]), given([0, 1])], dims=(0, 1)),
    case(real(4, 2, 3), [given([2, 0]), given([[1], [-2]])], dims=(0, 2)),
    case(real(2, 4, 3), [given([3, 3, 1])], dims=(1,)),
]


@op(
    "linear",
    widens=False,
    samples=_LOOKUPS,
    method=False,
    reference=lambda torch, x, indices, dims: x[_places(indices, dims)],
    d_input=lambda F, g, input_shape, indices, dims: F.index_backward(
        g, indices, input_shape, dims
    ),
)
def index(xp: Namespace, input: Tensor, indices: Sequence[Tensor], dims: Shape) -> Array:
    """Return the elements that ``indices``, broadcast together, name along ``dims``.

    Shape:
        The dimensions of the indices stand where ``dims`` were when those are neighbours, else
        in front.
    """
    try:
        found: Array = input[_places(indices, dims)]
    except IndexError as error:
        raise _out_of_bounds(error) from None
    return found if found.flags.c_contiguous else xp.ascontiguousarray(found)


@op(
    "linear",
    samples=[case(real(3, 3), [given([2, 0, 2])], input_size=(4, 3), dims=(0,)),
             case(real(2, 2, 2), [given([2, 0]), given([[1], [-2]])], input_size=(4, 2, 3),
                  dims=(0, 2)),
             case(real(2, 3, 3), [given([3, 3, 1])], input_size=(2, 4, 3), dims=(1,))],
    method=False,
    reference=lambda torch, g, indices, input_size, dims: _torch_added(
        torch, g, indices, input_size, dims
    ),
    d_grad=lambda F, g, indices, dims: F.index(g, indices, dims),
)  # fmt: skip
def index_backward(
    xp: Namespace, grad: Tensor, indices: Sequence[Tensor], input_size: Shape, dims: Shape
) -> Array:
    """Return zeros of ``input_size`` plus ``grad`` at the places that ``indices`` name."""
    out = xp.zeros(input_size, grad.dtype)
    if dims == (0,):
        rows, _ = _row_numbers(indices, input_size[:1])
        xp.add_at(out, rows, grad)
        return out
    _accumulate(xp, out, indices, dims, grad)
    return out


def _accumulate(xp: Namespace, out: Any, indices: Any, dims: Shape, values: Any) -> None:
    """Add ``values`` to ``out`` in place; a place named twice gets both.

    The dimensions looked up are brought to the front and made one, for ``xp.add_at`` on rows.
    """
    joint = xp.broadcast_arrays(*indices) if len(indices) > 1 else indices
    rank, first = joint[0].ndim, dims[0]
    rows, sizes = _row_numbers(joint, [out.shape[d] for d in dims])
    rest = [d for d in range(out.ndim) if d not in dims]
    start = first if list(dims) == list(range(first, first + len(dims))) else 0
    whole = xp.broadcast_to(values, _lookup_shape(out.shape, joint[0].shape, rest, start))
    order = [*range(start, start + rank), *range(start), *range(start + rank, whole.ndim)]
    moved = out.transpose(*dims, *rest)
    shape = moved.shape[len(dims) :]
    table = moved.reshape(sizes, *shape)
    xp.add_at(table, rows, whole.transpose(order))
    if not xp.may_share_memory(table, out):
        moved[...] = table.reshape(moved.shape)


def _row_numbers(joint: Sequence[Any], sizes: Sequence[int]) -> tuple[Any, int]:
    """Return one index over the product of ``sizes`` for several indices, and that product."""
    rows: Any = 0
    for index, size in zip(joint, sizes, strict=True):
        if type(index) is not numpy.ndarray or (index.size and index.min() < 0):
            index = index % size  # on a device without looking: that would be a wait
        rows = index if type(rows) is int else rows * size + index
    return rows, math.prod(sizes)


def _lookup_shape(shape: Shape, found: Shape, rest: Sequence[int], start: int) -> Shape:
    kept = [shape[d] for d in rest]
    return (*kept[:start], *found, *kept[start:])


@op(
    "linear",
    widens=False,
    samples=[
        case(real(4, 3), [given([2, 0, -1])], real(3, 3), dims=(0,)),
        case(real(4, 3), [given([2, 0]), given([0, 1])], real(), dims=(0, 1)),
        case(real(4, 2, 3), [given([2, 0]), given([[1], [-1]])], real(2, 1), dims=(0, 2)),
        case(real(2, 4), [given([3, 3, 1])], real(2, 3), dims=(1,), accumulate=True),
        case(real(4, 2, 3), [given([2, 2]), given([1, 1])], real(2, 2), dims=(0, 2),
             accumulate=True),
    ],
    method=False,
    node="IndexPutBackward0",
    reference=_torch_written,
    d_input=lambda F, g, indices, dims, accumulate: g if accumulate else F.put_index(
        g, indices, 0, dims
    ),
    d_values=lambda F, g, indices, dims: F.index(g, indices, dims),
)  # fmt: skip
def put_index(
    xp: Namespace, input: Tensor, indices: Sequence[Tensor], values: TensorLike, dims: Shape,
    accumulate: bool = False,
) -> Array:  # fmt: skip
    """Return a copy of ``input`` with ``values`` written (or added) where ``indices`` say."""
    out = xp.array(input, copy=True)
    write_index(xp, out, indices, values, dims, accumulate)
    return out


def write_index(
    xp: Namespace, out: Any, indices: Any, values: Any, dims: Shape, accumulate: bool
) -> None:
    """Write (or add) ``values`` into the array ``out`` where ``indices`` say."""
    try:
        if accumulate:
            _accumulate(xp, out, indices, dims, values)
        else:
            out[_places(indices, dims)] = values
    except IndexError as error:
        raise _out_of_bounds(error) from None
    except ValueError:
        found = out[_places(indices, dims)].shape
        raise ShapeError(
            f"shape mismatch: value tensor of shape {list(xp.shape(values))} cannot be broadcast "
            f"to indexing result of shape {list(found)}"
        ) from None


# ---------------------------------------------------------------------- x[…]
_BASIC = frozenset((int, slice, type(None), type(...)))


def getitem(input: Tensor, index: Any) -> Tensor:
    """Return ``input[index]``: a view for numbers, slices, None and ...; a copy for the rest."""
    kind = type(index)
    if kind is int:
        return select(input, 0, index)
    if kind is tuple:
        if all([type(i) in _BASIC for i in index]):
            return _view(input, index)
    elif kind is Tensor and index.array.dtype.char in "ilq" and index.array.ndim:
        if input.array.ndim and type(index.array) is type(input.array):
            return lookup(input, [index], (0,))
    elif kind in _BASIC:
        return _view(input, (index,))
    try:
        reader = IndexReader(input.array.shape, index)
    except Exception as error:
        recover("getitem", error, {"input": input}, {"index": index})
    view = input
    if not reader.arrays or not reader.whole:
        view = slice_view(input, (*reader.basic, ...))
    return _look_up(view, reader)


def _view(input: Tensor, index: tuple[Any, ...]) -> Tensor:
    """Return the view at numbers, slices, None and ...; each number alone is a ``select``."""
    try:
        if index == (None,):
            return unsqueeze(input, 0)
        if index and len(index) == input.array.ndim and all([type(i) is int for i in index]):
            out = input
            for number in index:
                out = select(out, 0, number)
            return out
        return slice_view(input, index if ... in index else (*index, ...))
    except IndexOutOfRange as error:
        reason: Exception = error
    try:
        IndexReader(input.array.shape, index)  # knows which dimension of the whole it is
    except Exception as error:
        reason = error
    recover("getitem", reason, {"input": input}, {"index": index})
    raise reason


def _look_up(view: Tensor, reader: IndexReader) -> Tensor:
    if not reader.arrays:
        return view
    return lookup(view, on_device(view, reader.arrays), tuple(reader.dims))


@where_it_is
def on_device(like: Tensor, arrays: Sequence[Any]) -> list[Tensor]:
    xp = array_namespace(like.array)
    return [wrap(a if isinstance(a, Traced) else xp.asarray(a)) for a in arrays]


@where_it_is
def setitem(input: Tensor, index: Any, value: Any) -> None:
    """Write ``value`` into ``input[index]``; gradients flow to ``value`` and stop at ``input``."""
    refuse_leaf(input, "setitem")
    try:
        reader = IndexReader(input.array.shape, index)
        if reader.one_mask and isinstance(value, Tensor) and value.array.size == 1:
            value = _one_number(value, input.array.dtype)
        _check_value(input, value, bool(reader.arrays))
        flows = isinstance(value, Tensor) and value.requires_grad
        if mode.grad and (flows or input.requires_grad):
            _write_recorded(input, reader, value)
        else:
            try:
                _write(input, reader, value.array if isinstance(value, Tensor) else value)
            except Refused:
                _write_recorded(input, reader, value)
    except Exception as error:
        recover("setitem", error, {"input": input}, {"index": index, "value": value})


def _one_number(value: Tensor, kind: Any) -> Tensor:
    """Return one number in another dtype, as ``masked_fill`` takes it; no complex as a real one."""
    if value.array.dtype == kind or (value.array.dtype.kind == "c" and kind.kind != "c"):
        return value
    return cast(value, kind)


def _check_value(input: Tensor, value: Any, exact: bool) -> None:
    if isinstance(value, Tensor):
        if exact and value.array.dtype != input.array.dtype:
            raise DtypeError(
                "Index put requires the source and destination dtypes match, got "
                f"{input.array.dtype} for the destination and {value.array.dtype} for the source"
            )
        return
    if isinstance(value, int | float | complex | numpy.generic):
        if isinstance(value, complex) and input.array.dtype.kind != "c":
            raise DtypeError(
                f"value cannot be converted to type {input.array.dtype} without overflow"
            )
        return
    raise TypeError(
        f"can't assign a {type(value).__name__} to a tensor of {input.array.dtype}; "
        "make one with distgrad.tensor(...)"
    )


def _write(input: Tensor, reader: IndexReader, value: Any) -> None:
    refuse_expanded(input.array)
    place = input.array[(*reader.basic, ...)]
    if reader.arrays:
        xp = array_namespace(place)
        indices = [xp.asarray(a) for a in reader.arrays]
        write_index(xp, place, indices, value, tuple(reader.dims), False)
    else:
        try:
            place[...] = value
        except ValueError:
            raise ShapeError(_cannot_expand(place.shape, value.shape)) from None
    shared_of(input).bump()


def _cannot_expand(target: Shape, have: Shape) -> str:
    return (
        f"shape mismatch: value tensor of shape {list(have)} cannot be broadcast to indexing "
        f"result of shape {list(target)}"
    )


def _write_recorded(input: Tensor, reader: IndexReader, value: Any) -> None:
    view = input if reader.whole else slice_view(input, (*reader.basic, ...))
    if isinstance(value, Tensor):
        value = _without_leading_ones(value, reader.found_ndim)
    if reader.arrays:
        places = on_device(view, reader.arrays)
        result = put_index(view, places, value, tuple(reader.dims))
    elif reader.whole:
        result = copy(view, value)
    else:  # CopySlices cuts the old history off
        result = _filling(view, value)
    assign(view, result, "setitem")


def _without_leading_ones(value: Tensor, ndim: int) -> Tensor:
    shape = value.array.shape
    extra = len(shape) - ndim
    if extra <= 0 or any([n != 1 for n in shape[:extra]]):
        return value
    return reshape(value, shape[extra:])


def _filling(view: Tensor, value: Any) -> Tensor:
    """Return ``value`` in the dtype and shape of ``view``."""
    if not isinstance(value, Tensor):
        value = wrap(array_namespace(view.array).asarray(value, view.array.dtype))
    elif value.array.dtype != view.array.dtype:
        value = cast(value, view.array.dtype)
    return expand(value, view.array.shape)


lookup = index  # methods below have options of that name
as_method(getitem, "__getitem__")
as_method(setitem, "__setitem__")


# ---------------------------------------------------------------------- along one dimension
def check_numbers(index: Any, size: int) -> None:
    """Raise for numbers outside [0, size); PyTorch takes no negative ones here."""
    if index.dtype.kind != "i" or index.dtype.itemsize < 4:
        raise DtypeError(f"Expected dtype int32 or int64 for index, not {index.dtype}; use .long()")
    if index.size and type(index) is numpy.ndarray and (index.min() < 0 or index.max() >= size):
        wrong = index.min() if index.min() < 0 else index.max()
        raise IndexOutOfRange(f"index out of range in self: index {wrong} for size {size}")


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 4), integers(4, 5), dim=1), case(real(3, 4), integers(3, 2), dim=0),
             case(real(2, 3, 2), integers(3, 4), dim=-2), case(real(4), integers(4), dim=0),
             case(real(), integers(1, 1), dim=0)],
    reference=lambda torch, x, i, dim: torch.index_select(x, dim, i),
    d_input=lambda F, g, input_shape, dim, index: F.index_backward(
        g, [F.reshape(index, (-1,))], input_shape, (dim % len(input_shape),)
    ) if input_shape else F.reshape(g, ()),
)  # fmt: skip
def index_select(xp: Namespace, input: Tensor, dim: int, index: Tensor) -> Array:
    """Return the entries ``index`` (of at most one dimension) along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    if index.ndim > 1:
        raise IndexOutOfRange("Index is supposed to be a vector; flatten it, or use x[index]")
    check_numbers(index, input.shape[dim] if input.ndim else 1)
    if not input.ndim:
        if xp.size(index) != 1:
            raise ShapeError(
                f"Index to scalar can have only 1 value, got {xp.size(index)} value(s)"
            )
        return xp.array(input, copy=True)
    return xp.take(input, xp.atleast_1d(index), axis=dim)


@op(
    "linear",
    samples=[case(real(3, 4), given([3, 0]), real(3, 2), dim=1),
             case(real(3, 4), given([1, 1, 0]), real(3, 4), dim=0, alpha=2.5),
             case(real(2, 3), given(1), real(2, 1), dim=1),
             case(real(), given([0]), real(), dim=0)],
    inplace=True,
    reference=lambda torch, x, i, s, dim, alpha=1: torch.index_add(x, dim, i, s, alpha=alpha),
    d_input=lambda g: g,
    d_source=lambda F, g, dim, index, alpha, source_shape: F.reshape(
        _scaled(F.index_select(g, dim, index), alpha), source_shape
    ),
)  # fmt: skip
def index_add(
    xp: Namespace, input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1
) -> Array:
    """Return ``input`` plus ``alpha`` times the entries of ``source`` at ``index`` along ``dim``.

    Shape:
        source: as input, but as long as ``index`` along ``dim``.
    """
    dim = wrap_dim(dim, input.ndim)
    out = xp.array(input, copy=True)
    _check_source(input, dim, index, source)
    if alpha != 1:
        if isinstance(alpha, complex) and out.dtype.kind != "c":
            raise DtypeError(f"value cannot be converted to type {input.dtype} without overflow")
        factor = xp.astype(xp.asarray(alpha), input.dtype)
        source = xp.multiply(source, factor)
    line: Array = xp.reshape(out, -1) if not input.ndim else out
    values: Array = source
    if not input.ndim:
        values = xp.reshape(values, -1)
    if out.dtype.kind == "b":
        line[...] = _added_bools(xp, line, index, dim, values)
    else:
        _accumulate(xp, line, [xp.atleast_1d(index)], (dim,), values)
    return out


def _added_bools(xp: Namespace, out: Any, index: Any, dim: int, values: Any) -> Any:
    total = xp.astype(out, xp.int32)
    _accumulate(xp, total, [xp.atleast_1d(index)], (dim,), xp.astype(values, xp.int32))
    return total != 0


def _scaled(x: Any, alpha: float) -> Any:
    if isinstance(alpha, complex):
        alpha = alpha.conjugate()
    return x if alpha == 1 else x * alpha


def _check_source(
    input: Any, dim: int, index: Any, source: Any, unequal: type[Exception] = ShapeError
) -> None:
    if index.ndim > 1:
        raise IndexOutOfRange("Index is supposed to be a vector; flatten it")
    if input.dtype != source.dtype:
        raise DtypeError(
            f"self and source expected to have the same dtype, but got (self) {input.dtype} and "
            f"(source) {source.dtype}; convert source"
        )
    check_numbers(index, input.shape[dim] if input.ndim else 1)
    want = (*input.shape[:dim], index.size, *input.shape[dim + 1 :]) if input.ndim else (1,)
    number = (source.size, *want) == (1, 1) and (not input.ndim or unequal is not ShapeError)
    if source.shape != want and not number:
        raise (unequal if source.ndim else ShapeError)(
            f"source has shape {list(source.shape)}, but input and index ask for {list(want)}"
        )


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 4), given([3, 0]), real(3, 2), dim=1),
             case(real(3, 4), given([1, 0]), real(2, 4), dim=0),
             case(real(), given([0]), real(), dim=0), case(real(), given(0), real(1), dim=0)],
    inplace=True,
    reference=lambda torch, x, i, s, dim: torch.index_copy(x, dim, i, s),
    d_input=lambda F, g, dim, index: F.index_fill(g, dim, index, 0),
    d_source=lambda F, g, dim, index, source_shape: F.reshape(
        F.index_select(g, dim, index), source_shape
    ),
)  # fmt: skip
def index_copy(xp: Namespace, input: Tensor, dim: int, index: Tensor, source: Tensor) -> Array:
    """Return ``input`` with the entries ``index`` along ``dim`` replaced by those of ``source``."""
    dim = wrap_dim(dim, input.ndim)
    if index.dtype != xp.int64:
        raise DtypeError(f"Expected a long tensor for index, but got {index.dtype}; use .long()")
    _check_source(input, dim, index, source, IndexOutOfRange)
    out = xp.array(input, copy=True)
    if not input.ndim:
        out[...] = xp.reshape(source, ())
    else:
        out[(slice(None),) * dim + (xp.atleast_1d(index),)] = source
    return out


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 4), given([3, 0]), real(), dim=1),
             case(real(3, 4), given([1, 1]), real(), dim=0)],
    inplace=True,
    reference=lambda torch, x, i, v, dim: torch.index_fill(x, dim, i, v),
    d_input=lambda F, g, dim, index: F.index_fill(g, dim, index, 0),
    d_value=lambda F, g, dim, index: F.sum(
        F.mul(g, F.index_fill(F.zero(g), dim, index, 1))
    ),
)  # fmt: skip
def index_fill(xp: Namespace, input: Tensor, dim: int, index: Tensor, value: TensorLike) -> Array:
    """Return ``input`` with ``value`` in all entries ``index`` along ``dim``."""
    dim = wrap_dim(dim, input.ndim)
    size = input.shape[dim] if input.ndim else 1
    if index.dtype != xp.int64:
        raise IndexOutOfRange("index_fill_(): Expected dtype int64 for index; use .long()")
    if index.ndim > 1:
        raise ShapeError("Index has to be a vector/scalar; flatten it")
    if xp.ndim(value):
        raise ShapeError("index_fill_ only supports a 0-dimensional value tensor")
    check_kind(input, value)
    out = xp.array(input, copy=True)
    try:
        target = out.reshape(1) if not input.ndim else out
        target[(slice(None),) * dim + (index,)] = value
    except IndexError:
        raise IndexOutOfRange(f"index out of bounds for dimension {dim} with size {size}") from None
    return out


def check_kind(input: Any, value: Any) -> None:
    """Raise for a number that the dtype of ``input`` cannot hold; -1 may be the largest uint8."""
    kind = getattr(value, "dtype", input.dtype)
    wrong = kind.kind == "c" and input.dtype.kind != "c"
    if kind.kind == "i" and input.dtype.kind in "iu" and type(value) is numpy.ndarray:
        limits = numpy.iinfo(input.dtype)
        wrong = not -limits.max - 1 <= value <= limits.max
    if wrong:
        raise DtypeError(f"value cannot be converted to type {input.dtype} without overflow")


# ---------------------------------------------------------------------- by number in a row
@takes_out
def take(input: Tensor, index: Tensor) -> Tensor:
    """Return the elements that ``index`` numbers in row-major order, in the shape of ``index``."""
    try:
        _check_long(index)
        if index.array.size and not input.array.size:
            raise IndexOutOfRange("tried to take from an empty tensor")
    except Exception as error:
        recover("take", error, {"input": input, "index": index}, {})
    if not index.array.ndim:
        return reshape(lookup(reshape(input, (-1,)), [reshape(index, (1,))], (0,)), ())
    return lookup(reshape(input, (-1,)), [index], (0,))


def _check_long(index: Tensor) -> None:
    if index.array.dtype != numpy.int64:
        raise DtypeError(f"Expected a long tensor for index, but got {index.array.dtype}")


@takes_out
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Return ``input`` with ``source`` written (or added) where ``index`` numbers elements."""
    try:
        _check_long(index)
        if input.array.dtype != source.array.dtype:
            raise DtypeError(
                "self and source expected to have the same dtype, but got self.dtype = "
                f"{input.array.dtype} and source.dtype = {source.array.dtype}"
            )
        if index.array.size != source.array.size:
            raise IndexOutOfRange(
                "Expected source and index to have the same number of elements, but got "
                f"source.numel() = {source.array.size}, index.numel() = {index.array.size}"
            )
    except Exception as error:
        recover("put", error, {"input": input, "index": index, "source": source}, {})
    places, values = [reshape(index, (-1,))], reshape(source, (-1,))
    flat = put_index(reshape(input, (-1,)), places, values, (0,), accumulate)
    return reshape(flat, input.array.shape)


def index_put(
    input: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
) -> Tensor:
    """Return ``input`` with ``values`` written (or added) at ``input[indices]``."""
    try:
        if not isinstance(values, Tensor):
            raise TypeError(f"argument 'values' must be Tensor, not {type(values).__name__}")
        if values.array.dtype != input.array.dtype:
            raise DtypeError(
                "Index put requires the source and destination dtypes match, got "
                f"{input.array.dtype} for the destination and {values.array.dtype} for the source"
            )
        if not len(indices):
            raise ShapeError("index_put() needs one index at least; use copy_() for all elements")
        whole = tuple(slice(None) if i is None else i for i in indices)
        reader = IndexReader(input.array.shape, whole)
    except Exception as error:
        recover("index_put", error, {"input": input, "values": values}, {"indices": indices})
    if not reader.arrays or not reader.whole:  # all are numbers
        reader = IndexReader(input.array.shape, tuple(_vector(i) for i in whole))
    places = on_device(input, reader.arrays)
    return put_index(input, places, values, tuple(reader.dims), accumulate=accumulate)


def _vector(index: Any) -> Any:
    return reshape(index, (1,)) if isinstance(index, Tensor) and not index.array.ndim else index


for _function in (index_put, put, take):
    as_method(_function)
for _function in (index_put, put):
    setattr(Tensor, _function.__name__ + "_", in_place(_function, _function.__name__ + "_"))
del _function


def index_put_(
    input: Tensor, indices: Sequence[Tensor], values: Tensor, accumulate: bool = False
) -> Tensor:
    """Write (or add) ``values`` at ``input[indices]`` in place and return ``input``."""
    written: Tensor = input.index_put_(indices, values, accumulate)
    return written
