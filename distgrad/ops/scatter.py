"""Gather and scatter: elements chosen or written by an index along one dimension."""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import Spec, case, distinct, given, integers, positive, real
from distgrad.backend.device import where_it_is
from distgrad.errors import DtypeError, DtypeNotImplemented, ShapeError
from distgrad.ops.shape import expand, reshape, wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape, TensorLike

__all__ = ["gather", "scatter", "scatter_add", "scatter_reduce", "take_along_dim"]


# ---------------------------------------------------------------------- reading an index
def _places(xp: Namespace, index: Any, dim: int) -> tuple[Any, ...]:
    """Return the NumPy index that names ``index`` along ``dim`` and each place itself elsewhere."""
    places = []
    for d, n in enumerate(index.shape):
        own = [1] * index.ndim
        own[d] = n
        places.append(index if d == dim else xp.arange(n).reshape(own))
    return tuple(places)


def _check(index: Any, shape: Shape, dim: int, source: Shape | None = None) -> None:
    """Raise what PyTorch raises for an index that does not fit."""
    if not index.size:
        return
    if index.dtype.kind != "i" or index.dtype.itemsize < 4:
        raise DtypeError(f"Expected dtype int32/int64 for index, not {index.dtype}; use .long()")
    if max(index.ndim, 1) != max(len(shape), 1):
        raise ShapeError(
            f"Index tensor must have the same number of dimensions as input tensor: {index.ndim} "
            f"and {len(shape)}"
        )
    for d, n in enumerate(index.shape):
        too_long = d != dim and len(shape) > d and n > shape[d]
        if too_long or (source is not None and len(source) > d and n > source[d]):
            against = f"self {list(shape)} apart from dimension {dim}"
            also = "" if source is None else f" and to be smaller size than src {list(source)}"
            raise ShapeError(
                f"Expected index {list(index.shape)} to be smaller than or equal to {against}{also}"
            )
    size = shape[dim] if shape else 1
    if type(index) is numpy.ndarray and (index.min() < 0 or index.max() >= size):
        wrong = index.min() if index.min() < 0 else index.max()
        raise ShapeError(f"index {wrong} is out of bounds for dimension {dim} with size {size}")


def _row(xp: Namespace, x: Any) -> Any:
    """Return ``x``, a number as a view of one element: what counts as one dimension here."""
    return x if x.ndim else xp.reshape(x, (1,))


def _corner(x: Any, shape: Shape) -> Any:
    """Return the first elements of ``x``, as many as ``shape`` says along each dimension."""
    if x.ndim != len(shape):  # a number and a row
        return x.reshape((-1,))[:1].reshape(shape)
    return x if x.shape == shape else x[tuple(slice(n) for n in shape)]


def _grown(F: Any, g: Any, shape: Shape) -> Any:
    """Return ``g`` with zeros after its elements, up to ``shape``; numbers are left alone."""
    if g.shape == shape or not shape:
        return g
    g = g if g.shape else F.reshape(g, (1,))
    pads = [n for size, want in zip(g.shape, shape, strict=True) for n in (want - size, 0)]
    return F.constant_pad_nd(g, tuple(pads[::-1]))


# ---------------------------------------------------------------------- gather
@op(
    "linear",
    widens=False,
    samples=[
        case(real(3, 4), integers(4, 3, 2), dim=1),
        case(real(3, 4), integers(3, 2, 4), dim=0),
        case(real(2, 3, 4), integers(3, 1, 5, 2), dim=-2),
        case(real(), given(0), dim=0),
        case(real(3), given([2, 2, 0, 1]), dim=0),
        case(real(3), given(1), dim=0),
    ],
    reference=lambda torch, x, index, dim: torch.gather(x, dim, index),
    d_input=lambda F, g, input_shape, dim, index: F.gather_backward(g, index, input_shape, dim),
)
def gather(
    xp: Namespace, input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False
) -> Array:
    """Return ``input[index[i, j], j]`` for dim 0, ``input[i, index[i, j]]`` for dim 1, and so on.

    Shape:
        index: as many dimensions as input, none but ``dim`` longer. The result has its shape.
    """
    place = wrap_dim(dim, input.ndim)
    _check(index, input.shape, place)
    if not xp.size(index):
        return xp.zeros(index.shape, input.dtype)
    found: Array = _row(xp, input)[_places(xp, _row(xp, index), place)]
    return found if index.ndim else xp.reshape(found, ())


@op(
    "linear",
    samples=[
        case(real(3, 2), integers(4, 3, 2), input_size=(3, 4), dim=1),
        case(real(2, 4), integers(3, 2, 4), input_size=(3, 4), dim=0),
        case(real(), given(0), input_size=(), dim=0),
    ],
    method=False,
    reference=lambda torch, g, index, input_size, dim: torch.zeros(
        input_size, dtype=g.dtype
    ).scatter_add(dim, index, g),
    d_grad=lambda F, g, dim, index: F.gather(g, dim, index),
)
def gather_backward(
    xp: Namespace, grad: Tensor, index: Tensor, input_size: Shape, dim: int
) -> Array:
    """Return zeros of ``input_size`` plus ``grad`` at the places that ``gather`` reads."""
    out = xp.zeros(input_size, grad.dtype)
    _add(xp, out, wrap_dim(dim, len(input_size)), index, grad)
    return out


def _add(xp: Namespace, out: Any, dim: int, index: Any, source: Any) -> None:
    xp.scatter_add(_row(xp, out), dim, _row(xp, index), _row(xp, source))


# ---------------------------------------------------------------------- scatter
_INTO = [
    case(real(3, 4), given([[3, 0], [1, 2]]), real(2, 2), dim=1),
    case(real(3, 4), given([[2, 0, 1, 0], [1, 2, 0, 2]]), real(3, 5), dim=0),
    case(real(2, 3, 2), given([[[2], [0]]]), real(1, 2, 2), dim=-2),
    case(real(), given(0), real(), dim=0),
    case(real(3), given(1), real(), dim=0),
    case(real(3), given(1), real(2), dim=0),
]


@op(
    "linear",
    widens=False,
    samples=[*_INTO, case(real(3, 4), given([[3, 0], [1, 2]]), real(), dim=1)],
    method=False,
    node="ScatterBackward0",
    reference=lambda torch, x, index, src, dim: torch.scatter(
        x, dim, index, src if src.ndim or not index.ndim else src.item()
    ),
    d_input=lambda F, g, dim, index: F.scatter_src(g, dim, index, 0),
    d_src=lambda F, g, dim, index, src_shape: _grown(F, F.gather(g, dim, index), src_shape),
)
def scatter_src(xp: Namespace, input: Tensor, dim: int, index: Tensor, src: TensorLike) -> Array:
    """Return ``input`` with ``src`` written where ``index`` says along ``dim``."""
    place = wrap_dim(dim, input.ndim)
    shape = xp.shape(src)
    _check(index, input.shape, place, shape or None)
    kinds: list[Any] = [input.dtype, getattr(src, "dtype", input.dtype)]
    if kinds[0].kind != "c" and kinds[1].kind == "c":
        raise DtypeError(f"value cannot be converted to type {input.dtype} without overflow")
    out = xp.array(input, copy=True)
    if xp.size(index):
        places = _places(xp, _row(xp, index), place)
        _row(xp, out)[places] = _corner(src, index.shape) if shape else src
    return out


@takes_out
def scatter(
    input: Tensor,
    dim: int,
    index: Tensor,
    src: TensorLike | None = None,
    *,
    value: TensorLike | None = None,
    reduce: str | None = None,
) -> Tensor:
    """Return ``input`` with ``src`` (or one ``value``) written where ``index`` says along ``dim``.

    Args:
        input: what is written into a copy of.
        dim: the dimension that ``index`` counts.
        index: where each element of ``src`` goes: ``out[index[i, j], j] = src[i, j]`` for dim 0.
        src: a tensor at least as large as ``index``, or a number.
        value: a number, instead of ``src``.
        reduce: "add" or "multiply" with what is there, instead of writing over it.
    """
    operands = {"input": input, "index": index}
    source = value if src is None else src
    if source is None:
        error: Exception = TypeError("missing argument: give src or value")
        recover("scatter", error, operands, {"dim": dim})
    assert source is not None
    many = isinstance(source, Tensor) and source.array.ndim
    if many and source.array.dtype != input.array.dtype:  # type: ignore[union-attr]
        error = DtypeError("Expected self.dtype to be equal to src.dtype")
        recover("scatter", error, operands | {"src": source}, {"dim": dim})
    if reduce is None:
        return scatter_src(input, dim, index, source)
    if reduce not in ("add", "multiply"):
        error = ShapeError("reduce argument must be either add or multiply.")
        recover("scatter", error, operands, {"dim": dim, "reduce": reduce})
    if not isinstance(source, Tensor):
        source = fill_like(input, index, source)
    if reduce == "add":
        return scatter_add(input, dim, index, source)
    return scatter_reduce(input, dim, index, source, "prod")


def fill_like(input: Tensor, index: Tensor, number: Any) -> Tensor:
    """Return ``number`` in the dtype of ``input`` and the shape of ``index``."""
    one = reshape(input, (-1,))[:1].detach().clone().fill_(number)
    return expand(reshape(one, (1,) * index.array.ndim), index.array.shape)


_ADDED = [
    case(real(3, 4), integers(4, 2, 2), real(2, 2), dim=1),
    case(real(3, 4), integers(3, 5, 4), real(6, 5), dim=0),
    case(real(), given(0), real(), dim=0),
    case(real(3), given(1), real(2), dim=0),
]


@op(
    "linear",
    samples=_ADDED,
    inplace=True,
    reference=lambda torch, x, index, src, dim: torch.scatter_add(x, dim, index, src),
    d_input=lambda g: g,
    d_src=lambda F, g, dim, index, src_shape: _grown(F, F.gather(g, dim, index), src_shape),
)
def scatter_add(xp: Namespace, input: Tensor, dim: int, index: Tensor, src: Tensor) -> Array:
    """Return ``input`` plus ``src`` where ``index`` says along ``dim``; repeats add up."""
    place = wrap_dim(dim, input.ndim)
    if input.dtype != src.dtype:
        raise DtypeError("Expected self.dtype to be equal to src.dtype")
    _check(index, input.shape, place, src.shape)
    out = xp.array(input, copy=True)
    _add(xp, out, place, index, src)
    return out


# ---------------------------------------------------------------------- scatter_reduce
def _extremes(F: Any, g: Any, input: Any, src: Any, out: Any, dim: int, index: Any,
              include_self: bool) -> tuple[Any, Any]:  # fmt: skip
    """Return the gradients of an extreme, shared evenly by the elements that reach it."""
    chosen = F.gather(out, dim, index)
    part = _corner(src, index.shape)
    from_src = F.to_dtype(part == chosen, _dtype_of(g))
    from_self = F.to_dtype(input == out, _dtype_of(g))
    if not include_self:
        from_self = F.scatter_src(from_self, dim, index, 0)
    count = F.scatter_add(from_self, dim, index, from_src)
    share = g / F.where(count == 0, 1.0, count)
    return share * from_self, from_src * F.gather(share, dim, index)


def _products(F: Any, g: Any, input: Any, src: Any, out: Any, dim: int, index: Any,
              include_self: bool) -> tuple[Any, Any]:  # fmt: skip
    """Return the gradients of a product: the product of the other factors.

    For elements of ``src`` by division; for one that is the only zero at its place, the product
    of what is not zero.
    """
    kind = _dtype_of(g)
    ones = F.zero(input) + 1
    d_input = g * _conj(F, F.scatter_extreme(ones, dim, index, src, "prod", True))
    if not include_self:
        d_input = F.scatter_src(d_input, dim, index, 0)
    part = _corner(src, index.shape)
    zero = part == 0
    count = F.gather(F.scatter_add(F.zero(g), dim, index, F.to_dtype(zero, kind)), dim, index)
    whole = F.where(zero, 1.0, part)
    rest = F.scatter_extreme(input, dim, index, whole, "prod", include_self)
    others = F.where(zero & (count == 1), F.gather(rest, dim, index),
                     F.gather(out, dim, index) / whole)  # fmt: skip
    return d_input, F.gather(g, dim, index) * _conj(F, others)


def _conj(F: Any, x: Any) -> Any:
    return F.conj(x) if _dtype_of(x).kind == "c" else x


def _dtype_of(x: Any) -> Any:
    return x.array.dtype if isinstance(x, Tensor) else x.dtype


def _reduced_gradients(
    F: Any, g: Any, input: Any, src: Any, out: Any, dim: int, index: Any, reduce: str,
    include_self: bool,
) -> tuple[Any, None, Any]:  # fmt: skip
    rule = _products if reduce == "prod" else _extremes
    d_input, d_src = rule(F, g, input, src, out, dim, index, include_self)
    return d_input, None, _grown(F, d_src, src.shape)


@op(
    samples=[
        case(positive(3, 4), integers(4, 2, 2), positive(2, 2), dim=1, reduce="prod"),
        case(positive(3, 4), integers(3, 5, 4), positive(6, 5), dim=0, reduce="prod",
             include_self=False),
        case(given([[0.0, 2.0], [1.5, 0.0]]), given([[0, 0, 1], [1, 0, 0]]),
             given([[0.0, 3.0, 0.5], [2.0, 0.0, 1.5]]), dim=1, reduce="prod"),
        case(distinct(3, 4), integers(4, 2, 3), Spec((2, 3), -1.9, 1.7, "distinct"), dim=1,
             reduce="amax"),
        case(distinct(3, 4), integers(3, 5, 4), Spec((6, 5), -1.9, 1.7, "distinct"), dim=0,
             reduce="amin", include_self=False),
        case(distinct(3), given(1), Spec((2,), -1.9, 1.7, "distinct"), dim=0, reduce="amax"),
    ],
    method=False,
    node="ScatterReduceBackward0",
    reference=lambda torch, x, index, src, dim, reduce, include_self=True: torch.scatter_reduce(
        x, dim, index, src, reduce, include_self=include_self
    ),
    d_all=_reduced_gradients,
)  # fmt: skip
def scatter_extreme(
    xp: Namespace, input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str,
    include_self: bool = True,
) -> Array:  # fmt: skip
    """Return ``input`` combined with ``src`` by "prod", "amax" or "amin" where ``index`` says."""
    place = wrap_dim(dim, input.ndim)
    if input.dtype != src.dtype:
        raise DtypeError("Expected self.dtype to be equal to src.dtype")
    memory: Array = input
    if reduce != "prod" and memory.dtype.kind == "c":
        raise DtypeNotImplemented(f'"{reduce}" not implemented for {input.dtype}')
    _check(index, input.shape, place, src.shape)
    out = xp.array(input, copy=True)
    if not xp.size(index):
        return out
    ufunc, start = {
        "prod": (xp.multiply, 1),
        "amax": (xp.maximum, _lowest(xp, out.dtype)),
        "amin": (xp.minimum, _highest(xp, out.dtype)),
    }[reduce]
    flat, index = _row(xp, out), _row(xp, index)
    places = _places(xp, index, place)
    if not include_self:
        flat[places] = start
    xp.combine_at(ufunc, flat, places, _corner(src, index.shape))
    return out


def _lowest(xp: Namespace, dtype: Any) -> Any:
    return -xp.inf if dtype.kind in "fV" else xp.iinfo(dtype).min if dtype.kind in "iu" else False


def _highest(xp: Namespace, dtype: Any) -> Any:
    return xp.inf if dtype.kind in "fV" else xp.iinfo(dtype).max if dtype.kind in "iu" else True


@takes_out
def scatter_reduce(
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """Return ``input`` combined with the elements of ``src`` that ``index`` sends to each place.

    Args:
        input: what is combined into a copy of.
        dim: the dimension that ``index`` counts.
        index: where each element of ``src`` goes.
        src: at least as large as ``index``.
        reduce: "sum", "prod", "mean", "amax" or "amin".
        include_self: False leaves out the elements of ``input`` where ``src`` sends any.
    """
    operands = {"input": input, "index": index, "src": src}
    if reduce in ("prod", "amax", "amin"):
        return scatter_extreme(input, dim, index, src, reduce, include_self)
    if reduce not in ("sum", "mean"):
        error = ShapeError(
            f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}"
        )
        recover("scatter_reduce", error, operands, {"dim": dim, "reduce": reduce})
    if reduce == "mean" and input.array.dtype.kind == "b":
        unknown = DtypeNotImplemented('"mean" not implemented for bool; convert with .to(dtype)')
        recover("scatter_reduce", unknown, operands, {"dim": dim, "reduce": reduce})
    start = input if include_self else scatter_src(input, dim, index, 0)
    total = scatter_add(start, dim, index, src)
    if reduce == "sum":
        return total
    count = _counts(input, dim, index, include_self)
    if input.is_floating_point() or input.is_complex():
        return total / count
    return total.div(count, rounding_mode="floor")


@where_it_is
def _counts(input: Tensor, dim: int, index: Tensor, include_self: bool) -> Tensor:
    """Return how many elements come together at each place."""
    start = input.detach().clone().fill_(1)
    if not include_self:
        start = scatter_src(start, dim, index, 0)
    return scatter_add(start, dim, index, fill_like(input, index, 1))


# ---------------------------------------------------------------------- along a dimension
@takes_out
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """Return the elements that ``indices`` name along ``dim``, the other dimensions broadcast.

    Without ``dim`` both count as one row.
    """
    if dim is None:
        return take_along_dim(reshape(input, (-1,)), reshape(indices, (-1,)), 0)
    a, b = input.array.shape, indices.array.shape
    try:
        if indices.array.dtype != numpy.int64:
            raise DtypeError(f"dtype of indices should be Long but got {indices.array.dtype}")
        place = wrap_dim(dim, len(a))
        if len(a) != len(b):
            raise ShapeError(
                "input and indices should have the same number of dimensions, but got "
                f"{len(a)} dimensions for input, and {len(b)} dimensions for indices"
            )
        joint = numpy.broadcast_shapes(
            (*a[:place], 1, *a[place + 1 :]), (*b[:place], 1, *b[place + 1 :])
        )
    except Exception as error:
        recover("take_along_dim", error, {"input": input, "indices": indices}, {"dim": dim})
    wide = expand(input, (*joint[:place], a[place], *joint[place + 1 :]))
    if a[place]:
        indices = indices % a[place]
    return gather(wide, place, expand(indices, (*joint[:place], b[place], *joint[place + 1 :])))


for _function in (scatter, scatter_reduce):
    as_method(_function)
    setattr(Tensor, _function.__name__ + "_", in_place(_function, _function.__name__ + "_"))
del _function
as_method(take_along_dim)
