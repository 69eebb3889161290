"""Distances, covariances, the most frequent value, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, cast, named_results, op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, distinct
from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import default_float
from distgrad.errors import DistgradError, DtypeError, ShapeError
from distgrad.ops.compare import clamp, where
from distgrad.ops.index import index_select
from distgrad.ops.linalg import matrix_norm, vector_norm
from distgrad.ops.matmul import matmul
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import mT, reshape, unsqueeze, wrap_dim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "cdist", "corrcoef", "cov", "dist", "histogram", "mode", "nuclear_norm", "pdist", "renorm",
]  # fmt: skip


# ---------------------------------------------------------------------- distances
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """Return the ``p``-norm of ``input - other``."""
    return vector_norm(input - other, p)


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
    elif p < 0:
        error = ShapeError("cdist only supports non-negative p values")
    if error is not None:
        recover("cdist", error, {"x1": x1, "x2": x2}, {"p": p})
    if not a.shape[-1]:
        return sum_(unsqueeze(x1, -2) - unsqueeze(x2, -3), -1)
    return vector_norm(unsqueeze(x1, -2) - unsqueeze(x2, -3), p, -1)


def pdist(input: Tensor, p: float = 2) -> Tensor:
    """Return the ``p``-norms of the differences of all pairs of different rows of a matrix."""
    if input.array.ndim != 2:
        error = ShapeError(f"pdist only supports 2D tensors, got: {input.array.ndim}D")
        recover("pdist", error, {"input": input}, {"p": p})
    xp = array_namespace(input.array)
    first, second = xp.triu_indices(input.array.shape[0], 1)
    rows = index_select(input, 0, wrap(first)) - index_select(input, 0, wrap(second))
    return vector_norm(rows, p, -1)


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


def nuclear_norm(input: Tensor, dim: Sequence[int] = (-2, -1), keepdim: bool = False) -> Tensor:
    """Return the sum of the singular values."""
    return matrix_norm(input, "nuc", (dim[0], dim[1]), keepdim)


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
    if input.array.ndim > 2:
        error = ShapeError(
            f"expected input to have two or fewer dimensions, got {input.array.ndim}"
        )
        recover("cov", error, {"input": input}, {})
    x = input if input.array.dtype.kind in "fcV" else cast(input, default_float())
    one = x.array.ndim < 2
    x = reshape(x, (1, -1)) if one else x
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
    return reshape(found, ()) if one else found


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
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    axis = wrap_dim(dim, input.ndim)
    if not input.shape[axis]:
        raise ShapeError(f"mode(): Expected reduction dim {dim} to have non-zero size.")
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
    x = input.array
    xp = array_namespace(x)
    if x.dtype.kind != "f":
        error: DistgradError = DtypeError(f"histogram is not implemented for {x.dtype}")
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
as_method(renorm)
as_method(histogram)
