"""Distances, covariances, the most frequent value, histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, cast, named_results, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, distinct
from distgrad.autograd.traced import innermost
from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import default_float
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistgradError,
    DtypeError,
    DtypeNotImplemented,
    IndexOutOfRange,
    ShapeError,
)
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.compare import clamp, where
from distgrad.ops.elementwise import refuse
from distgrad.ops.index import index_select
from distgrad.ops.linalg import matrix_norm, vector_norm
from distgrad.ops.matmul import matmul
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.reduce import vector_norm as _vector_norm
from distgrad.ops.shape import clone, mT, reshape, unsqueeze, wrap_dim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Dim, Namespace

__all__ = [
    "cdist", "corrcoef", "cov", "dist", "histogram", "histogramdd", "mode", "norm",
    "pdist", "renorm",
]  # fmt: skip


# ---------------------------------------------------------------------- distances
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """Return the ``p``-norm of ``input - other``."""
    for name, part in (("input", input), ("other", other)):
        if not isinstance(part, Tensor):
            raise ArgumentTypeError(
                f"dist(): argument '{name}' must be Tensor, not {type(part).__name__}"
            )
    return vector_norm(input - other, p)


_MODES = (
    "use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist",
    "donot_use_mm_for_euclid_dist",
)  # fmt: skip


def cdist(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    """Return the ``p``-norms of the differences of all pairs of rows.

    Shape:
        x1: ``(*, n, m)``, x2: ``(*, k, m)``; result: ``(*, n, k)``.
    Args:
        compute_mode: has no effect: differences are always formed, which loses no digits.
    """
    refuse_kinds("cdist", "biucn", x1, x2)
    a, b = x1.array, x2.array
    error: DistgradError | None = None
    if a.ndim < 2 or b.ndim < 2:
        error = ShapeError(
            f"cdist only supports at least 2D tensors, X1 got: {a.ndim}D, X2 got: {b.ndim}D"
        )
    elif a.shape[-1] != b.shape[-1]:
        error = ShapeError(
            f"X1 and X2 must have the same number of columns. X1: {a.shape[-1]} X2: {b.shape[-1]}"
        )
    elif compute_mode not in _MODES:
        error = ArgumentError(f"{compute_mode} is not a valid value for compute_mode")
    elif p < 0:
        error = ShapeError("cdist only supports non-negative p values")
    if error is not None:
        recover("cdist", error, {"x1": x1, "x2": x2}, {"p": p})
    if not a.shape[-1]:
        return sum_(unsqueeze(x1, -2) - unsqueeze(x2, -3), -1)
    return vector_norm(unsqueeze(x1, -2) - unsqueeze(x2, -3), p, -1)


def pdist(input: Tensor, p: float = 2) -> Tensor:
    """Return the ``p``-norms of the differences of all pairs of different rows of a matrix."""
    refuse_kinds("pdist", "biucn", input)
    if input.array.ndim != 2:
        error = ShapeError(f"pdist only supports 2D tensors, got: {input.array.ndim}D")
        recover("pdist", error, {"input": input}, {"p": p})
    xp = array_namespace(input.array)
    first, second = xp.triu_indices(input.array.shape[0], 1)
    rows = index_select(input, 0, wrap(first)) - index_select(input, 0, wrap(second))
    return vector_norm(rows, p, -1)


@takes_out
def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Return ``input`` with its entries along ``dim`` scaled down to ``p``-norm ``maxnorm``."""
    ndim = input.array.ndim
    try:
        if ndim < 2:
            raise ShapeError(f"renorm: input needs at least 2 dimensions, got {ndim} dimensions")
        if p <= 0 or maxnorm < 0:
            raise ShapeError(f"renorm: p must be > 0 and maxnorm >= 0, got {p} and {maxnorm}")
        place = wrap_dim(dim, ndim)
    except DistgradError as error:
        recover("renorm", error, {"input": input}, {"p": p, "dim": dim, "maxnorm": maxnorm})
    norms = vector_norm(input, p, tuple(d for d in range(ndim) if d != place), True)
    return input * where(norms > maxnorm, maxnorm / (norms + 1e-7), 1.0)


def _renorm_of_copy(self: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Return ``renorm(self, …)`` whose graph keeps no memory that is written over."""
    return renorm(clone(self), p, dim, maxnorm)


@takes_out
def norm(
    input: Tensor,
    p: float | str | None = "fro",
    dim: Dim = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Tensor:
    """Return the vector norm over ``dim`` (all dimensions by default).

    Args:
        p: a number as for ``linalg.vector_norm``; "fro" means 2, "nuc" the sum of the singular
            values of the matrices that two dimensions (by default both of a matrix) hold.
    """
    several = isinstance(dim, list | tuple) and len(dim) > 2
    if p == "nuc" and not several:
        pair: Any = (0, 1) if dim is None and input.array.ndim == 2 else dim
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            error = ShapeError(f"norm(): the nuclear norm takes two dimensions, got {dim}")
            recover("norm", error, {"input": input}, {"p": p, "dim": dim})
        return matrix_norm(input, "nuc", (pair[0], pair[1]), keepdim, dtype=dtype)
    if isinstance(p, str) and (p != "fro" or several):
        error = ShapeError(
            f"only valid string values are 'fro' (of one or two dimensions) and 'nuc', found {p}"
        )
        recover("norm", error, {"input": input}, {"p": p, "dim": dim})
    order = 2.0 if p is None or isinstance(p, str) else p
    return _vector_norm(input, order, dim, keepdim, dtype=dtype)


# ---------------------------------------------------------------------- covariance
def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the covariance matrix of variables (rows) over observations (columns).

    Args:
        correction: subtracted from the number of observations.
        fweights: how often each observation was made.
        aweights: how much each observation counts.
    """
    refuse_kinds("cov", "b", input)
    if input.array.ndim > 2:
        error = ShapeError(
            f"expected input to have two or fewer dimensions, got {input.array.ndim}"
        )
        recover("cov", error, {"input": input}, {})
    x = input if input.array.dtype.kind in "fcV" else cast(input, default_float())
    x = reshape(x, (1, -1)) if x.array.ndim < 2 else x
    count = x.array.shape[1]
    weights = _observations(fweights, aweights, x)
    if weights is None:
        centred = x - sum_(x, 1, keepdim=True) / count
        found = matmul(centred, mT(centred.conj())) / max(count - correction, 0)
    else:
        total = sum_(weights)
        spread = 1 if aweights is None else sum_(weights * aweights) / total
        centred = x - sum_(x * weights, 1, keepdim=True) / total
        found = matmul(centred * weights, mT(centred.conj())) / clamp(
            total - correction * spread, 0
        )
    return reshape(found, ()) if x.array.shape[0] == 1 else found


def _observations(fweights: Tensor | None, aweights: Tensor | None, x: Tensor) -> Tensor | None:
    for name, w, kinds in (("fweights", fweights, "iu"), ("aweights", aweights, "fV")):
        if w is None:
            continue
        if w.array.ndim > 1 or w.array.size != x.array.shape[1]:
            error: DistgradError = ShapeError(
                f"expected {name} to have one weight for each of {x.array.shape[1]} observations"
            )
            recover("cov", error, {"input": x, name: w}, {})
        if w.array.dtype.kind not in kinds:
            error = DtypeError(f"expected {name} to have another dtype than {w.array.dtype}")
            recover("cov", error, {"input": x, name: w}, {})
        if bool((innermost(w.array) < 0).any()):
            recover("cov", ShapeError(f"{name} cannot be negative"), {"input": x, name: w}, {})
    if fweights is None:
        return aweights
    return fweights if aweights is None else fweights * aweights


def corrcoef(input: Tensor) -> Tensor:
    """Return the matrix of correlations of variables (rows) over observations (columns)."""
    found = cov(input)
    if not found.array.ndim:
        return found / found
    scale = found.diagonal().real.sqrt()
    found = found / unsqueeze(scale, 1) / unsqueeze(scale, 0)
    return found if found.is_complex() else clamp(found, -1, 1)


# ---------------------------------------------------------------------- values that repeat
@op(
    samples=[case(distinct(3, 4)), case(distinct(2, 3, 4), dim=1, keepdim=True),
             case(distinct(), dim=0)],
    outputs=("values", "indices!"),
    d_input=lambda F, g, input, indices, dim, keepdim: _d_mode(F, g, input, indices, dim, keepdim),
)  # fmt: skip
def mode(xp: Namespace, input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    """Return the most frequent value along ``dim`` (the least of several), and where it stands."""
    refuse("c", "mode", input)
    axis = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    if not input.shape[axis]:
        raise IndexOutOfRange(f"mode(): Expected reduction dim {dim} to have non-zero size.")
    rows = xp.moveaxis(input, axis, -1)
    order = xp.argsort(rows, axis=-1, kind="stable")
    ordered = xp.take_along_axis(rows, order, -1)
    number = xp.broadcast_to(xp.arange(rows.shape[-1]), rows.shape)
    fresh = xp.ones(rows.shape, bool)
    fresh[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = xp.scan(xp.maximum, xp.where(fresh, number, 0), -1)
    best = xp.argmax(number - start, axis=-1)[..., None]  # the end of the first longest run
    values = xp.take_along_axis(ordered, best, -1)
    indices = xp.take_along_axis(order, best, -1)
    if keepdim:
        return xp.moveaxis(values, -1, axis), xp.moveaxis(indices, -1, axis)
    return values[..., 0], indices[..., 0]


def _d_mode(F: Any, g: Any, input: Any, indices: Any, dim: int, keepdim: bool) -> Any:
    if not input.ndim:
        return g
    if not keepdim:
        g, indices = F.unsqueeze(g, dim), F.unsqueeze(indices, dim)
    return F.scatter_add(F.zero(input), dim, indices, g)


_Histogram = named_results("histogram", ["hist", "bin_edges"])


@takes_out
def histogram(
    input: Tensor, bins: int | Tensor, *, range: Sequence[float] | None = None,
    weight: Tensor | None = None, density: bool = False,
) -> Any:  # fmt: skip
    """Return how many elements fall between each two neighbours of ``bin_edges``, and these.

    Args:
        bins: the number of equal bins, or their edges.
        range: the first and the last edge (by default the extremes).
        weight: what each element counts.
        density: divide by the total and by the widths.
    """
    refuse_kinds("histogram", "n", input)
    x = input.array
    xp = array_namespace(x)
    if x.dtype.kind != "f":
        error: DistgradError = DtypeNotImplemented(f"histogram is not implemented for {x.dtype}")
        recover("histogram", error, {"input": input}, {"bins": bins})
    if isinstance(bins, Tensor):
        edges = bins.array
    elif bins <= 0 or (range is not None and not range[0] <= range[1]):
        error = ShapeError(f"bins must be > 0 and range in order, but got {bins} and {range}")
        recover("histogram", error, {"input": input}, {"bins": bins, "range": range})
    else:
        edges = _edges(xp, x, bins, range)
    weights = None if weight is None else weight.array.reshape(-1)
    found, _ = xp.histogram(x.reshape(-1), edges, weights=weights)
    found = found.astype(x.dtype)
    if density:
        found = found / found.sum() / xp.diff(edges)
    return _Histogram(wrap(found.astype(x.dtype)), wrap(edges))


_HistogramDD = named_results("histogramdd", ["hist", "bin_edges"])


def histogramdd(
    input: Tensor, bins: int | Sequence[int] | Sequence[Tensor], *,
    range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False,
) -> Any:  # fmt: skip
    """Return how many points fall into each box, and a tuple of the edges along each dimension.

    Args:
        input: points, each along the last dimension.
        bins: the number of equal bins, one for each dimension, or the edges for each.
        range: the first and the last edge of each dimension in turn (by default the extremes).
        weight: what each point counts.
        density: divide by the total and by the volumes.
    """
    refuse_kinds("histogramdd", "n", input)
    x = input.array
    xp = array_namespace(x)
    dims = x.shape[-1] if x.ndim else 0
    many: Any = [bins] * dims if isinstance(bins, int) else bins
    if x.ndim < 2 or len(many) != dims or (range is not None and len(range) != 2 * dims):
        error: DistgradError = ShapeError(
            "input tensor should have at least 2 dimensions, and bins and range must fit the last"
        )
        recover("histogramdd", error, {"input": input}, {"bins": bins, "range": range})
    if x.dtype.kind != "f":
        error = DtypeNotImplemented(f"not implemented for {x.dtype}; use .float()")
        recover("histogramdd", error, {"input": input}, {"bins": bins})
    points = x.reshape(-1, dims)
    edges = []
    for d, one in enumerate(many):
        if isinstance(one, int) and one <= 0:
            error = ShapeError(f"bins must be > 0, but got {one} for dimension {d}")
            recover("histogramdd", error, {"input": input}, {"bins": bins})
        limits = None if range is None else range[2 * d : 2 * d + 2]
        edges.append(
            one.array if isinstance(one, Tensor) else _edges(xp, points[:, d], one, limits)
        )
    found = _boxes(xp, points, edges, None if weight is None else weight.array.reshape(-1))
    if density:
        found = found / found.sum()
        for d, e in enumerate(edges):
            found = found / xp.diff(e).reshape([-1 if i == d else 1 for i, _ in enumerate(edges)])
    return _HistogramDD(wrap(found.astype(x.dtype)), tuple(wrap(e) for e in edges))


def _boxes(xp: Namespace, points: Array, edges: Sequence[Array], weights: Array | None) -> Array:
    """Return the count (or weight) of the points in each box."""
    shape = [max(len(e) - 1, 0) for e in edges]
    number, inside = xp.zeros(len(points), xp.int64), xp.ones(len(points), bool)
    for d, (e, n) in enumerate(zip(edges, shape, strict=True)):
        column = points[:, d]
        place = xp.searchsorted(e, column, "right") - 1
        place = xp.where(column == e[-1], n - 1, place)  # the last edge belongs to the last bin
        inside &= (place >= 0) & (place < n)
        number = number * n + place
    chosen = None if weights is None else weights[inside]
    found = xp.bincount(number[inside], chosen, math.prod(shape))
    return found.astype(points.dtype).reshape(shape)


def _edges(xp: Namespace, x: Array, bins: int, range: Sequence[float] | None) -> Array:
    if range is not None:
        low, high = float(range[0]), float(range[1])
    else:
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return xp.linspace(low, high, bins + 1, dtype=x.dtype)


as_method(dist)
as_method(cov)
as_method(corrcoef)
as_method(norm)
as_method(renorm)
setattr(Tensor, "renorm_", in_place(_renorm_of_copy, "renorm_"))  # noqa: B010  (mypy knows no such name)
as_method(histogram)
