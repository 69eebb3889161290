"""Cumulative functions along a dimension: sums, products, extremes, differences, integrals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import booleans, case, distinct, given, integers, real
from distgrad.errors import ArgumentTypeError, DtypeNotImplemented, IndexOutOfRange, ShapeError
from distgrad.ops.compare import logical_xor
from distgrad.ops.elementwise import add, mul, sub
from distgrad.ops.index import select
from distgrad.ops.join import cat
from distgrad.ops.reduce import sum as sum_of
from distgrad.ops.shape import clone, dtype_of, narrow, reshape, wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Number

__all__ = [
    "cummax", "cummin", "cumprod", "cumsum", "cumulative_trapezoid", "diff", "gradient",
    "logcumsumexp", "trapezoid", "trapz",
]  # fmt: skip


def _sum_kind(xp: Namespace, x: Any, dtype: Any) -> Any:
    """Return the dtype in which to accumulate: int64 for integers, float32 for half precision."""
    if x.dtype.kind in "biu":
        return xp.dtype("int64") if dtype is None else x.dtype
    return xp.dtype("float32") if x.dtype.itemsize == 2 else x.dtype


def _accumulated(xp: Namespace, function: Any, x: Any, dim: int, dtype: Any = None) -> Array:
    place, kind = wrap_dim(dim, x.ndim), _sum_kind(xp, x, dtype)
    if kind.kind == "b":
        raise DtypeNotImplemented("not implemented for bool; use dtype=distgrad.int64")
    if not x.ndim:
        return xp.array(x, kind if kind.kind in "iu" else x.dtype)
    out = function(x, place, kind)
    return out if kind.kind in "iu" else out.astype(x.dtype, copy=False)


def _from_the_end(xp: Namespace, function: Any, x: Array, dim: int) -> Array:
    """Return ``function(x, dim)`` accumulated from the last element to the first."""
    return xp.flip(function(xp.flip(x, dim), dim), dim)


# ---------------------------------------------------------------------- sums
@op(
    "linear",
    samples=[case(real(3, 4), dim=1), case(real(2, 3, 2), dim=-3), case(real(), dim=0),
             case(real(0, 3), dim=0)],
    method=False,
    reference=lambda torch, x, dim: x.flip(dim).cumsum(dim).flip(dim) if x.ndim else x.clone(),
    d_input=lambda F, g, dim: F.cumsum(g, dim),
)  # fmt: skip
def cumsum_from_the_end(xp: Namespace, input: Tensor, dim: int) -> Array:
    """Return the sums of each element and those after it along ``dim``."""
    if not input.ndim:
        return xp.array(input, copy=True)
    return _accumulated(
        xp,
        lambda x, d, kind: _from_the_end(xp, lambda y, e: xp.cumsum(y, e, kind), x, d),
        input,
        dim,
    )


@op(
    "linear",
    samples=[case(real(3, 4), dim=1), case(real(2, 3, 2), dim=-3), case(real(), dim=0),
             case(integers(9, 5), dim=0), case(booleans(5), dim=0), case(real(0, 3), dim=0)],
    casts=True,
    inplace=True,
    d_input=lambda F, g, dim: F.cumsum_from_the_end(g, dim),
)  # fmt: skip
def cumsum(xp: Namespace, input: Tensor, dim: int, *, dtype: Any = None) -> Array:
    """Return the sums of each element and those before it along ``dim``; of integers in int64.

    Args:
        dtype: convert ``input`` to it first.
    """
    return _accumulated(xp, xp.cumsum, input, dim, dtype)


# ---------------------------------------------------------------------- products
def _scan(F: Any, x: Any, dim: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Return the cumulative ``combine`` along ``dim`` by doubling: log2(n) plain operations."""
    step, size = 1, x.shape[dim] if x.ndim else 1
    while step < size:
        early, late = F.narrow(x, dim, 0, size - step), F.narrow(x, dim, step, size - step)
        x = F.cat([F.narrow(x, dim, 0, step), combine(early, late)], dim)
        step *= 2
    return x


def _d_cumprod(xp: Namespace, g: Array, input: Array, out: Array, dim: int) -> Array:
    """Return Σ over i ≥ k of g[i] · (product up to i without factor k).

    That is Σ g·out / x[k], but at the first zero, which the products do not show: there the
    products are taken anew with a 1 in its place.  After it all are 0.
    """
    if not input.ndim:
        return g
    place = wrap_dim(dim, input.ndim)
    sums = _from_the_end(xp, xp.cumsum, g * out, place)
    zero = input == 0
    if not zero.any():
        return sums / input
    first = zero & (xp.cumsum(zero, place) == 1)
    one = input.dtype.type(1)
    without = xp.cumprod(xp.where(first, one, input), place)
    hidden = _from_the_end(xp, xp.cumsum, g * without, place)
    return xp.where(first, hidden, sums / xp.where(zero, one, input))


@op(
    samples=[case(real(3, 4), dim=1), case(real(2, 3, 2), dim=-3), case(real(), dim=0),
             case(given([[0.0, 2.0, 3.0], [0.5, 0.0, 1.5], [2.0, 0.0, 0.0]]), dim=1),
             case(given([2.0, 0.0, 1.5, 0.0, 3.0]), dim=0), case(real(0, 3), dim=1)],
    casts=True,
    inplace=True,
    formula=lambda F, input, dim: _scan(F, input, dim, lambda a, b: a * b),
    d_input=_d_cumprod,
)  # fmt: skip
def cumprod(xp: Namespace, input: Tensor, dim: int, *, dtype: Any = None) -> Array:
    """Return the products of each element and those before it along ``dim``; of integers in int64.

    Args:
        dtype: convert ``input`` to it first.
    """
    return _accumulated(xp, xp.cumprod, input, dim, dtype)


# ---------------------------------------------------------------------- logarithms of sums
def _add_logs(F: Any, a: Any, b: Any) -> Any:
    """Return ``log(exp(a) + exp(b))``, without overflow."""
    if dtype_of(a).kind != "c":
        return F.logaddexp(a, b)
    larger = F.real(a) >= F.real(b)
    high, low = F.where(larger, a, b), F.where(larger, b, a)
    return F.where(F.real(low) == -math.inf, high, high + F.log(F.exp(low - high) + 1.0))


def _cumulated_logs(xp: Namespace, x: Array, dim: int) -> Array:
    if x.dtype.kind != "c":
        return xp.scan(xp.logaddexp, x, dim)
    F, out = engine.array_functions(xp), xp.array(x, copy=True)
    rows = xp.moveaxis(out, dim, 0)
    for i in range(1, len(rows)):  # in order, for the phase depends on it
        rows[i] = _add_logs(F, rows[i - 1], rows[i])
    return out


def _d_logcumsumexp(xp: Namespace, g: Array, input: Array, out: Array, dim: int) -> Array:
    """Return Σ over i ≥ k of g[i]·exp(x[k] − out[i]), by logarithms for each sign of g."""
    if not input.ndim:
        return g
    place = wrap_dim(dim, input.ndim)
    shift = xp.where(xp.isinf(out), out.dtype.type(0), out)

    def part(share: Array) -> Array:
        logs = xp.log(share) - shift
        sums = _from_the_end(xp, lambda x, d: _cumulated_logs(xp, x, d), logs, place)
        return xp.exp(sums + input)

    if out.dtype.kind == "c":
        return part(g)
    nothing = g.dtype.type(0)
    return part(xp.maximum(g, nothing)) - part(xp.maximum(-g, nothing))


@op(
    samples=[case(real(3, 4), dim=1), case(real(2, 3, 2), dim=-3), case(real(), dim=0),
             case(given([800.0, -800.0, 801.0, 2.0]), dim=0), case(real(0, 3), dim=1)],
    formula=lambda F, input, dim: _scan(F, input, dim, lambda a, b: _add_logs(F, a, b)),
    d_input=_d_logcumsumexp,
)  # fmt: skip
def logcumsumexp(xp: Namespace, input: Tensor, dim: int) -> Array:
    """Return the logarithms of the cumulative sums of exp(``input``) along ``dim``."""
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        raise DtypeNotImplemented(f"not implemented for {input.dtype}; use .float() first")
    return _accumulated(
        xp, lambda x, d, kind: _cumulated_logs(xp, x.astype(kind, copy=False), d), input, dim
    )


# ---------------------------------------------------------------------- extremes
def _extremes(xp: Namespace, better: Any, x: Any, dim: int) -> tuple[Array, Array]:
    """Return the cumulative extremes and the last index at which each was met; nan stays."""
    place = wrap_dim(dim, x.ndim)
    if x.dtype.kind == "c":
        raise DtypeNotImplemented("complex numbers have no order; use .abs() or .real first")
    if not x.ndim:
        return xp.array(x, copy=True), xp.zeros((), "int64")
    values = xp.scan(better, x, place)
    shape = [1] * x.ndim
    shape[place] = -1
    places = xp.arange(x.shape[place]).reshape(shape)
    met = (x == values) | (x != x)
    return values, xp.scan(xp.maximum, xp.where(met, places, 0), place)


_EXTREMES = [
    case(distinct(3, 4), dim=1), case(distinct(2, 3, 2), dim=-3), case(real(), dim=0),
    case(integers(3, 9), dim=0), case(given([1.0, float("nan"), 2.0, float("nan"), 3.0]), dim=0),
    case(booleans(5), dim=0), case(real(0, 3), dim=0),
]  # fmt: skip


@op(
    widens=False,
    samples=[s for s in _EXTREMES if s is not _EXTREMES[4]],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim: F.gather_backward(g, indices, input_shape, dim),
)
def cummax(xp: Namespace, input: Tensor, dim: int) -> tuple[Array, Array]:
    """Return the largest of each element and those before it along ``dim``, and its index."""
    return _extremes(xp, xp.maximum, input, dim)


@op(
    widens=False,
    samples=[s for s in _EXTREMES if s is not _EXTREMES[4]],
    outputs=("values", "indices!"),
    d_input=lambda F, g, indices, input_shape, dim: F.gather_backward(g, indices, input_shape, dim),
)
def cummin(xp: Namespace, input: Tensor, dim: int) -> tuple[Array, Array]:
    """Return the smallest of each element and those before it along ``dim``, and its index."""
    return _extremes(xp, xp.minimum, input, dim)


# ---------------------------------------------------------------------- differences and integrals
@takes_out
def diff(
    input: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """Return the differences of neighbours along ``dim``, taken ``n`` times; of bools whether.

    Args:
        prepend: put before ``input`` first.
        append: put after ``input`` first.
    """
    try:
        if not input.array.ndim:
            raise ShapeError("diff expects input to be at least one-dimensional")
        if n < 0:
            raise ShapeError(f"order must be non-negative but got {n}")
        place = wrap_dim(dim, input.array.ndim)
    except Exception as error:
        recover("diff", error, {"input": input}, {"n": n, "dim": dim})
    if not n:
        return clone(input)
    parts = [t for t in (prepend, input, append) if t is not None]
    out = input if len(parts) == 1 else cat(parts, place)
    less = logical_xor if out.array.dtype == bool else sub
    for _ in range(min(n, out.array.shape[place])):
        rest = max(out.array.shape[place] - 1, 0)
        start = min(1, out.array.shape[place])
        out = less(narrow(out, place, start, rest), narrow(out, place, 0, rest))
    return out


@takes_names
def gradient(
    input: Tensor,
    *,
    spacing: Number | Tensor | Sequence[Number | Tensor] | None = None,
    dim: int | Sequence[int] | None = None,
    edge_order: int = 1,
) -> tuple[Tensor, ...]:
    """Return estimates of the derivatives of the function that ``input`` samples, one for each dim.

    Args:
        spacing: the distance of neighbours (1), or one for each dimension, or for each a vector of
            coordinates.
        dim: the dimensions to differentiate along; by default all.
        edge_order: the estimates at both ends use two points (1) or three (2).
    """
    try:
        dims = _gradient_dims(input, spacing, dim, edge_order)
    except Exception as error:
        recover("gradient", error, {"input": input}, {"dim": dim, "edge_order": edge_order})
    many = isinstance(spacing, list | tuple)
    steps: Any = spacing if many else [1 if spacing is None else spacing] * len(dims)
    return tuple(
        _slope(input, _widths(step, many), d, edge_order)
        for d, step in zip(dims, steps, strict=True)
    )


def _gradient_dims(input: Tensor, spacing: Any, dim: Any, edge_order: int) -> list[int]:
    """Return the dimensions counted from the front, after checks of all arguments."""
    if input.array.dtype == "uint8":
        raise DtypeNotImplemented("torch.gradient does not support uint8 input; use .float()")
    shape = input.array.shape
    dims = list(range(len(shape))) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [wrap_dim(d, len(shape)) for d in dims]
    if len(set(dims)) < len(dims):
        raise ShapeError(f"a dim appears multiple times in the list of dims {dims}")
    if edge_order not in (1, 2):
        raise ShapeError("torch.gradient only supports edge_order=1 and edge_order=2.")
    if isinstance(spacing, list | tuple):
        if len(spacing) != len(dims):
            raise ShapeError(
                "expected spacing to be unspecified, a scalar, or a list of length "
                f"{len(dims)}, but got a list of length {len(spacing)}"
            )
        for d, step in zip(dims, spacing, strict=True):
            if isinstance(step, Tensor) and step.array.shape != (shape[d],):
                raise ShapeError(
                    "expected each element of spacing to have one dimension and the length "
                    f"{shape[d]} of dimension {d}, but got {list(step.array.shape)}"
                )
    elif not isinstance(spacing, int | float | complex | Tensor | None):
        raise ArgumentTypeError(f"spacing must be a number, not {type(spacing).__name__}")
    if any(shape[d] <= edge_order for d in dims):
        raise ShapeError("expected each dimension size to be at least edge_order+1")
    return dims


def _widths(step: Any, many: bool) -> Any:
    """Return one distance, or the vector of distances between coordinates."""
    return diff(step) if many and isinstance(step, Tensor) else step


def _slope(y: Tensor, width: Any, dim: int, edge_order: int) -> Tensor:
    """Return the derivative of ``y`` along ``dim``."""
    n = y.array.shape[dim]
    first, last = narrow(y, dim, 0, 1), narrow(y, dim, n - 1, 1)
    second, before = narrow(y, dim, 1, 1), narrow(y, dim, n - 2, 1)
    if isinstance(width, Tensor) and width.array.ndim:
        along = [1] * y.array.ndim
        along[dim] = -1
        width = reshape(width, tuple(along))
        low, high = narrow(width, dim, 0, n - 2), narrow(width, dim, 1, n - 2)
        start, start_next = narrow(width, dim, 0, 1), narrow(width, dim, 1 if n > 2 else 0, 1)
        end, end_next = narrow(width, dim, n - 2, 1), narrow(width, dim, n - 3 if n > 2 else 0, 1)
        inner = (
            narrow(y, dim, 0, n - 2) * (-high / (low * (low + high)))
            + narrow(y, dim, 1, n - 2) * ((high - low) / (low * high))
            + narrow(y, dim, 2, n - 2) * (low / (high * (low + high)))
        )
    else:
        start = start_next = end = end_next = width
        inner = (narrow(y, dim, 2, n - 2) - narrow(y, dim, 0, n - 2)) / (2 * width)
    if edge_order == 1:
        ends = (second - first) / start, (last - before) / end
    else:
        ends = (
            _edge(first, second, narrow(y, dim, 2, 1), start, start_next),
            -_edge(last, before, narrow(y, dim, n - 3, 1), end, end_next),
        )
    return cat([ends[0], inner, ends[1]], dim)


def _edge(y0: Tensor, y1: Tensor, y2: Tensor, h1: Any, h2: Any) -> Tensor:
    """Return the slope at the first of three points at distances ``h1`` and ``h2``."""
    near: Tensor = y1 * ((h1 + h2) / (h1 * h2)) - y2 * (h1 / (h2 * (h1 + h2)))
    slope: Tensor = near - y0 * ((2 * h1 + h2) / (h1 * (h1 + h2)))
    return slope


def _intervals(
    name: str, y: Tensor, x: Tensor | None, dx: float | None, dim: int
) -> tuple[int, Tensor | float]:
    """Return ``dim`` counted from the front and the widths of the intervals."""
    try:
        place = wrap_dim(dim, y.array.ndim)
        if "b" in [t.array.dtype.kind for t in (y, x) if t is not None]:
            raise DtypeNotImplemented("received a bool input for `x` or `y`; convert with .float()")
        if x is not None and dx is not None:
            raise ArgumentTypeError("takes x or dx, not both")
        if not y.array.ndim:
            raise IndexOutOfRange(f"Dimension specified as {dim} but tensor has no dimensions")
        if x is None:
            return place, 1.0 if dx is None else dx
        if x.array.ndim == 1 and x.array.shape[0] != y.array.shape[place]:
            raise ShapeError(
                f"There must be one `x` value for each sample point: {x.array.shape[0]} "
                f"for {y.array.shape[place]}"
            )
    except Exception as error:
        recover(name, error, {"y": y} | ({} if x is None else {"x": x}), {"dim": dim})
    assert x is not None
    ndim = y.array.ndim
    if x.array.ndim == 1:
        spread = [1] * ndim
        spread[place] = -1
        x = reshape(x, tuple(spread))
    elif x.array.ndim < ndim:
        x = reshape(x, (1,) * (ndim - x.array.ndim) + x.array.shape)
    return place, diff(x, 1, place)


def _pairs(y: Tensor, dim: int) -> Tensor:
    """Return the sums of neighbours."""
    rest = max(y.array.shape[dim] - 1, 0)
    return add(narrow(y, dim, min(1, y.array.shape[dim]), rest), narrow(y, dim, 0, rest))


@takes_names
def trapezoid(
    y: Tensor, x: Tensor | None = None, *, dx: float | None = None, dim: int = -1
) -> Tensor:
    """Return the integral of ``y`` along ``dim`` by the trapezoidal rule.

    Args:
        x: the places of the samples; a vector, or a tensor that broadcasts with ``y``.
        dx: the distance of neighbouring samples, 1 by default.
    """
    place, widths = _intervals("trapezoid", y, x, dx, dim)
    if isinstance(widths, Tensor) or not y.array.shape[place]:
        return mul(sum_of(mul(_pairs(y, place), widths), place), 0.5)
    ends = add(select(y, place, 0), select(y, place, -1))
    return mul(sub(sum_of(y, place), mul(ends, 0.5)), widths)


@takes_names
def cumulative_trapezoid(
    y: Tensor, x: Tensor | None = None, *, dx: float | None = None, dim: int = -1
) -> Tensor:
    """Return the integrals of ``y`` from its first sample to each of the others along ``dim``.

    Args:
        x: the places of the samples; a vector, or a tensor that broadcasts with ``y``.
        dx: the distance of neighbouring samples, 1 by default.
    """
    place, widths = _intervals("cumulative_trapezoid", y, x, dx, dim)
    return mul(cumsum(mul(_pairs(y, place), widths), place), 0.5)


trapz = trapezoid
as_method(diff)
