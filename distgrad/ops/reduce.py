"""Reductions over one, several or all dimensions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, op
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import (
    Sample,
    apart,
    booleans,
    case,
    distinct,
    given,
    integers,
    positive,
    real,
    reductions,
)
from distgrad.autograd.traced import innermost
from distgrad.errors import (
    ArgumentTypeError,
    DtypeError,
    DtypeNotImplemented,
    IndexOutOfRange,
    ShapeError,
)
from distgrad.ops.compare import isnan, logical_not
from distgrad.ops.shape import dtype_of, wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Array, Dim, Namespace, Shape

__all__ = [
    "all", "amax", "amin", "any", "count_nonzero", "logsumexp", "mean", "nanmean", "nansum",
    "prod", "std", "std_mean", "sum", "var", "var_mean",
]  # fmt: skip


# ---------------------------------------------------------------------- dimensions
def axes(dim: Dim, ndim: int) -> tuple[int, ...] | None:
    """Return the dimensions that ``dim`` names, counted from the front; None means all."""
    if dim is None:
        return None
    if isinstance(dim, int):
        dims: tuple[int, ...] = (wrap_dim(dim, ndim),)
    else:
        dims = tuple(wrap_dim(d, ndim) for d in dim)
        if len(set(dims)) < len(dims):
            twice = next(d for d in dims if dims.count(d) > 1)
            raise ShapeError(
                f"dim {twice} appears multiple times in the list of dims; name it once"
            )
    return dims if ndim and dims else None


def kept_shape(shape: Shape, dim: Dim) -> Shape:
    """Return ``shape`` with 1 in the reduced dimensions."""
    dims = axes(dim, len(shape))
    return tuple(1 if dims is None or i in dims else n for i, n in enumerate(shape))


def reduced_count(shape: Shape, dim: Dim) -> int:
    """Return how many elements go into each result."""
    dims = axes(dim, len(shape))
    return math.prod(shape if dims is None else [shape[d] for d in dims])


def kept(F: Any, x: Any, shape: Shape, dim: Dim, keepdim: bool) -> Any:
    """Return a result (or its gradient) with its reduced dimensions put back as 1."""
    return x if keepdim else F.reshape(x, kept_shape(shape, dim))


def conjugate(F: Any, x: Any) -> Any:
    """Return the conjugate of a complex tensor or array, and a real one as it is."""
    return F.conj(x) if dtype_of(x).kind == "c" else x


def is_narrow(array: Any) -> bool:
    """Return True for float16 and bfloat16, whose sums are made in float32."""
    return bool(array.dtype.itemsize == 2 and array.dtype.kind in "fV")


def total(xp: Namespace, x: Array, dims: Any, keepdim: bool, kind: Any = None) -> Array:
    """Return the sum of an array: of integers in int64 (or ``kind``), of halves in float32."""
    if is_narrow(x):
        return xp.add.reduce(x, dims, xp.float32, None, keepdim).astype(x.dtype)
    if dims == (x.ndim - 1,) and x.dtype.char in "fd" and x.size > 1024 and x.flags.c_contiguous:
        rows = xp.matmul(x, xp.ones(x.shape[-1], x.dtype))  # BLAS adds up rows 6 times faster
        return xp.expand_dims(rows, -1) if keepdim else rows
    if kind is None and x.dtype.kind in "biu":
        kind = xp.int64
    return xp.add.reduce(x, dims, kind, None, keepdim)


def _float_only(name: str, input: Any) -> None:
    if input.dtype.kind in "biu":
        raise DtypeError(
            f"{name}(): could not infer output dtype. Input dtype must be either a floating point "
            f"or complex dtype. Got: {input.dtype}; pass dtype= or convert with .float()"
        )


def comparable(name: str, input: Any, dims: tuple[int, ...] | None) -> None:
    """Refuse complex numbers, and dimensions without an element."""
    if input.dtype.kind == "c":
        raise DtypeNotImplemented(f"{name}() does not support complex input; use .abs() or .real")
    if 0 not in input.shape:
        return
    if dims is None:
        raise ShapeError(
            f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the "
            "reduction dim with the 'dim' argument."
        )
    for d in dims:
        if not input.shape[d]:
            raise IndexOutOfRange(f"{name}(): Expected reduction dim {d} to have non-zero size.")


# ---------------------------------------------------------------------- sums
@op(
    "linear",
    samples=[*reductions(), case(real(0, 3), dim=0), case(real(2, 3), dim=[]),
             case(real(), dim=-1), case(real(2, 3), dim=[1], keepdim=True)],
    casts=True,
    d_input=lambda F, g, input_shape, dim, keepdim: F.expand(
        kept(F, g, input_shape, dim, keepdim), input_shape
    ),
)  # fmt: skip
def sum(
    xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """Return the sum over ``dim`` (all dimensions by default); of integers and bools in int64.

    Args:
        dim: one dimension or several; None or none at all means all of them.
        keepdim: keep the reduced dimensions as 1.
        dtype: convert ``input`` first.

    Example:
        >>> import distgrad as dg
        >>> dg.ones(2, 3).sum(dim=1)
        tensor([3., 3.])
    """
    return total(xp, input, axes(dim, input.ndim), keepdim, dtype and input.dtype)


@op(
    "linear",
    samples=[*reductions(), case(real(2, 3), dim=[])],
    casts=True,
    d_input=lambda F, g, input_shape, dim, keepdim: F.expand(
        kept(F, g / reduced_count(input_shape, dim), input_shape, dim, keepdim), input_shape
    ),
)
def mean(
    xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """Return the mean over ``dim`` (all dimensions by default); of no elements it is nan.

    Raises:
        DtypeError: ``input`` is not floating point and ``dtype`` is None.
    """
    _float_only("mean", input)
    return _mean(xp, input, axes(dim, input.ndim), keepdim)


def _mean(xp: Namespace, x: Array, dims: tuple[int, ...] | None, keepdim: bool) -> Array:
    count = reduced_count(x.shape, dims)
    if is_narrow(x):
        wide = xp.add.reduce(x, dims, xp.float32, None, keepdim)
        return xp.divide(wide, xp.float32(count)).astype(x.dtype)
    return xp.divide(total(xp, x, dims, keepdim), x.dtype.type(count))


@op(
    samples=[*reductions(), case(given([[1.0, float("nan")], [2.0, -1.0]]), dim=0)],
    casts=True,
    d_input=lambda F, g, input, dim, keepdim: F.where(
        F.isnan(input), 0.0, kept(F, g, input.shape, dim, keepdim)
    ),
)
def nansum(
    xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """Return the sum over ``dim`` of all that is not nan."""
    if input.dtype.kind == "c":  # type: ignore[attr-defined]
        raise DtypeError("nansum on CPU does not support complex inputs; sum .real and .imag")
    floating = input.dtype.kind not in "biu"  # type: ignore[attr-defined]
    x = xp.where(xp.isnan(input), xp.zeros((), input.dtype), input) if floating else input
    return total(xp, x, axes(dim, input.ndim), keepdim, dtype and input.dtype)


@takes_out
def nanmean(input: Tensor, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Return the mean over ``dim`` of all that is not nan."""
    if dtype is None and input.array.dtype.kind in "biu":
        raise DtypeError(
            f"nanmean({input._brief()}): expected input to have floating point or complex dtype; "
            "pass dtype= or convert with .float()"
        )
    there = sum(logical_not(isnan(input)), dim, keepdim)
    mean_: Tensor = nansum(input, dim, keepdim, dtype=dtype) / there
    return mean_


@op(
    widens=False,
    samples=[
        case(integers(2, 3, 4)),
        case(integers(2, 3, 4), dim=(0, 1)),
        case(booleans(3), dim=0),
    ],
)
def count_nonzero(xp: Namespace, input: Tensor, dim: Dim = None) -> Array:
    """Return how many elements are not zero, over ``dim`` (all dimensions by default)."""
    return xp.add.reduce(xp.not_equal(input, 0), axes(dim, input.ndim), xp.int64)


# ---------------------------------------------------------------------- products
@op(
    samples=[case(real(3, 4)), case(real(3, 4), dim=1), case(real(2, 3, 2), dim=-2, keepdim=True),
             case(real()), case(given([[0.0, 2.0, 3.0], [0.5, 0.0, 0.0]]), dim=1),
             case(given([2.0, 0.0, 1.5])), case(real(0, 3), dim=0), case(real(1, 3), dim=0)],
    casts=True,
    d_input=lambda F, g, input, out, dim, keepdim: _prod_rule(F, g, input, out, dim, keepdim),
)  # fmt: skip
def prod(
    xp: Namespace,
    input: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Array:
    """Return the product over ``dim`` (all dimensions by default); of integers in int64."""
    if dim is not None and not isinstance(dim, int):
        raise ArgumentTypeError(f"prod() takes one dimension, not dim={dim!r}")
    kind = xp.int64 if input.dtype.kind in "biu" and dtype is None else input.dtype  # type: ignore[attr-defined]
    dims = axes(dim, input.ndim)
    if is_narrow(input):
        return xp.multiply.reduce(input, dims, xp.float32, None, keepdim).astype(input.dtype)
    return xp.multiply.reduce(input, dims, kind, None, keepdim)


def _prod_rule(F: Any, g: Any, input: Any, out: Any, dim: int | None, keepdim: bool) -> Any:
    """Return ``g`` times the product of all other elements, which a zero does not hide."""
    shape = input.shape
    if not shape:
        return g
    g, out = kept(F, g, shape, dim, keepdim), kept(F, out, shape, dim, keepdim)
    if not has_zero(input):
        return g * out / input
    if dim is None:
        x, d = F.reshape(input, (math.prod(shape),)), 0
    else:
        x, d = input, dim % len(shape)
    after = F.flip(product_before(F, F.flip(x, (d,)), d), (d,))
    return g * F.reshape(product_before(F, x, d) * after, shape)


def has_zero(x: Any) -> bool:
    """Return True when a tensor or array holds a zero."""
    array = x.array if isinstance(x, Tensor) else x
    return bool((innermost(array) == 0).any())


def product_before(F: Any, x: Any, dim: int) -> Any:
    """Return for each element the product of those before it along ``dim``."""
    one = F.narrow(x, dim, 0, 1)
    rest = F.narrow(x, dim, 0, x.shape[dim] - 1)
    return F.cumprod(F.cat([F.where(one == one, 1.0, one), rest], dim), dim)


# ---------------------------------------------------------------------- variance
_SPREADS: list[Sample] = [
    *reductions()[:-1],
    case(real(3, 4), dim=1, correction=0),
    case(real(3, 4), correction=2, keepdim=True),
]


def _freedom(shape: Shape, dim: Dim, correction: float) -> float:
    freedom = reduced_count(shape, dim) - correction
    return freedom if freedom > 0 else 0.0


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.inf


@op(
    samples=_SPREADS,
    method=False,
    d_input=lambda F, g, input, dim, correction, keepdim: (
        kept(F, g, input.shape, dim, keepdim)
        * _ratio(2.0, _freedom(input.shape, dim, correction))
        * conjugate(F, input - F.mean(input, dim, True))
    ),
)
def var(
    xp: Namespace, input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False
) -> Array:
    """Return the variance over ``dim``."""
    return _variance(xp, "var", input, dim, correction, keepdim).astype(_real_kind(input))


@op(
    samples=_SPREADS,
    method=False,
    d_input=lambda F, g, input, out, dim, correction, keepdim: (
        kept(F, F.where(out == 0, 0.0, g / out), input.shape, dim, keepdim)
        * _ratio(1.0, _freedom(input.shape, dim, correction))
        * conjugate(F, input - F.mean(input, dim, True))
    ),
)
def std(
    xp: Namespace, input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False
) -> Array:
    """Return the standard deviation over ``dim``."""
    variance = _variance(xp, "std", input, dim, correction, keepdim)
    return xp.sqrt(variance).astype(_real_kind(input))


def _real_kind(input: Any) -> Any:
    return input.real.dtype if input.dtype.kind == "c" else input.dtype


def _variance(
    xp: Namespace, name: str, input: Any, dim: Dim, correction: float, keepdim: bool
) -> Array:
    if input.dtype.kind in "biu":
        raise DtypeError(
            "std and var only support floating point and complex dtypes; convert with .float()"
        )
    x = input.astype(xp.float32) if is_narrow(input) else input
    dims = axes(dim, input.ndim)
    apart_ = xp.subtract(x, _mean(xp, x, dims, True))
    square = xp.abs(apart_) ** 2 if x.dtype.kind == "c" else xp.multiply(apart_, apart_)
    freedom = _freedom(input.shape, dim, correction)
    if not freedom:
        warnings.warn(
            f"{name}(): degrees of freedom is <= 0. Correction should be strictly less than the "
            "reduction factor (input numel divided by output numel).",
            stacklevel=5,
        )
    with xp.errstate(divide="ignore", invalid="ignore"):
        return xp.divide(total(xp, square, dims, keepdim), square.dtype.type(freedom))


_var_op, _std_op = var, std


def _spread_options(dim: Any, unbiased: bool | None, correction: float | None) -> tuple[Dim, float]:
    """Return dim and correction from the forms ``(unbiased)``, ``(dim, unbiased)`` and keywords."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    elif unbiased is not None:
        raise ArgumentTypeError("unbiased and correction say the same; pass correction alone")
    return dim, correction


@takes_out  # type: ignore[no-redef]
def var(
    input: Tensor,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """Return the variance over ``dim`` (all dimensions by default).

    Args:
        correction: what is taken from the number of elements in the divisor: 1 by default.
        unbiased: False means ``correction=0``; also accepted in place of ``dim``.
    """
    return _var_op(input, *_spread_options(dim, unbiased, correction), keepdim)


@takes_out  # type: ignore[no-redef]
def std(
    input: Tensor,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """Return the standard deviation over ``dim``; arguments as for ``var``.

    Gradient: zero where the deviation is zero.
    """
    return _std_op(input, *_spread_options(dim, unbiased, correction), keepdim)


@takes_out
def var_mean(
    input: Tensor,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return variance and mean over ``dim``; arguments as for ``var``."""
    dims, correction = _spread_options(dim, unbiased, correction)
    return _var_op(input, dims, correction, keepdim), mean(input, dims, keepdim)


@takes_out
def std_mean(
    input: Tensor,
    dim: Dim = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return standard deviation and mean over ``dim``; arguments as for ``var``."""
    dims, correction = _spread_options(dim, unbiased, correction)
    return _std_op(input, dims, correction, keepdim), mean(input, dims, keepdim)


# ---------------------------------------------------------------------- extremes
def shared_among_ties(F: Any, g: Any, input: Any, out: Any, dim: Dim, keepdim: bool) -> Any:
    """Return the gradient of an extreme, in equal parts for all elements that attain it."""
    whole = kept(F, out, input.shape, dim, keepdim)
    same = (input == whole) | ((input != input) & (whole != whole))  # nan attains nan
    at = F.to_dtype(same, dtype_of(g))
    share = at / F.sum(at, dim, True)
    return kept(F, g, input.shape, dim, keepdim) * share


@op(
    widens=False,
    samples=[*reductions(distinct), case(integers(9, 3, 4), dim=1)],
    d_input=lambda F, g, input, out, dim, keepdim: shared_among_ties(
        F, g, input, out, dim, keepdim
    ),
)
def amax(xp: Namespace, input: Tensor, dim: Dim = (), keepdim: bool = False) -> Array:
    """Return the largest elements over ``dim`` (all dimensions by default); nan wins.

    Gradient: equal parts to all elements that attain the maximum.
    """
    dims = axes(dim, input.ndim)
    comparable("amax", input, dims)
    return xp.max(input, axis=dims, keepdims=keepdim)


@op(
    widens=False,
    samples=[*reductions(distinct), case(integers(9, 3, 4), dim=1)],
    d_input=lambda F, g, input, out, dim, keepdim: shared_among_ties(
        F, g, input, out, dim, keepdim
    ),
)
def amin(xp: Namespace, input: Tensor, dim: Dim = (), keepdim: bool = False) -> Array:
    """Return the smallest elements over ``dim`` (all dimensions by default); nan wins.

    Gradient: equal parts to all elements that attain the minimum.
    """
    dims = axes(dim, input.ndim)
    comparable("amin", input, dims)
    return xp.min(input, axis=dims, keepdims=keepdim)


# ---------------------------------------------------------------------- logic
def _truth(xp: Namespace, reduce: Any, input: Any, dim: Dim, keepdim: bool) -> Array:
    if dim is not None and not isinstance(dim, int) and not dim:
        out = xp.not_equal(input, 0)  # an empty list of dimensions reduces nothing
    else:
        out = reduce(input, axis=axes(dim, input.ndim), keepdims=keepdim and input.ndim > 0)
    return out.astype(xp.uint8) if input.dtype == xp.uint8 else out


@op(widens=False, samples=[*reductions(lambda *shape: booleans(*shape)), case(real(2, 3), dim=1),
             case(booleans(0, 2), dim=0), case(booleans(2, 3), dim=())])  # fmt: skip
def all(xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False) -> Array:
    """Return True where all elements over ``dim`` (all dimensions by default) are nonzero."""
    return _truth(xp, xp.all, input, dim, keepdim)


@op(widens=False, samples=[*reductions(lambda *shape: booleans(*shape)), case(real(2, 3), dim=1),
             case(booleans(0, 2), dim=0)])  # fmt: skip
def any(xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False) -> Array:
    """Return True where an element over ``dim`` (all dimensions by default) is nonzero."""
    return _truth(xp, xp.any, input, dim, keepdim)


# ---------------------------------------------------------------------- exponentials and norms
@op(
    samples=[case(real(3, 4), dim=0), case(real(2, 3, 4), dim=(0, -1)), case(real(), dim=0),
             case(real(2, 3), dim=1, keepdim=True)],
    promote=("input",),
    floats=True,
    d_input=lambda F, g, input, out, dim, keepdim: kept(F, g, input.shape, dim, keepdim)
    * F.exp(input - kept(F, out, input.shape, dim, keepdim)),
)  # fmt: skip
def logsumexp(
    xp: Namespace, input: Tensor, dim: int | Sequence[int], keepdim: bool = False
) -> Array:
    """Return the logarithm of the sum of exponentials over ``dim``, without overflow."""
    dims = axes(dim, input.ndim) or tuple(range(input.ndim))
    if input.dtype.kind == "c":  # type: ignore[attr-defined]
        return _complex_logsumexp(xp, input, dims, keepdim)
    if not input.ndim:
        return xp.array(input, copy=True)
    return xp.logsumexp(input, dims, keepdim)


def _complex_logsumexp(xp: Namespace, x: Any, dims: tuple[int, ...], keepdim: bool) -> Array:
    shift = x.real[:0].sum() if not x.size else xp.max(x.real, axis=dims, keepdims=True)
    shift = xp.where(xp.isfinite(shift), shift, shift.dtype.type(0))
    out = xp.log(xp.add.reduce(xp.exp(x - shift), dims, None, None, True)) + shift
    return out if keepdim else xp.squeeze(out, dims)


_NORMS = [
    case(apart(3, 4), ord=p, dim=dim, keepdim=keepdim)
    for p, dim, keepdim in (
        (2, None, False), (2, 1, True), (1, (0, 1), False), (math.inf, 1, False), (0, 0, False),
        (-math.inf, None, True), (3, -1, False), (1.5, None, False),
    )
] + [case(positive())]  # fmt: skip


@op(
    samples=_NORMS,
    promote=("input",),
    method=False,
    casts=True,
    node="LinalgVectorNormBackward0",
    reference=lambda torch, x, **options: torch.linalg.vector_norm(x, **options),
    d_input=lambda F, g, input, out, ord, dim, keepdim: _norm_rule(
        F, kept(F, g, input.shape, dim, keepdim), input, out, ord, dim, keepdim
    ),
)
def vector_norm(
    xp: Namespace,
    input: Tensor,
    ord: float = 2,
    dim: Dim = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Array:
    """Return ``sum(|input| ** ord) ** (1 / ord)`` over ``dim`` (all dimensions by default).

    Args:
        ord: any number; inf and -inf mean the largest and smallest magnitude, 0 counts nonzeros.
    """
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        raise DtypeError(
            f"vector_norm: Expected a floating point or complex tensor as input. Got {input.dtype}"
        )
    dims = axes(dim, input.ndim)
    x = xp.astype(input, xp.float32) if is_narrow(input) else input
    return xp.asarray(_norm(xp, x, ord, dims, keepdim)).astype(_real_kind(input))


def _norm(xp: Namespace, x: Any, p: float, dims: tuple[int, ...] | None, keepdim: bool) -> Array:
    if p == 2 and x.dtype.kind == "f":
        return xp.sqrt(xp.add.reduce(xp.multiply(x, x), dims, None, None, keepdim))
    size = xp.abs(x)
    if math.isinf(p):
        if p < 0 or not x.size:
            comparable("linalg.vector_norm", size, dims)
        return (xp.max if p > 0 else xp.min)(size, axis=dims, keepdims=keepdim)
    if p == 0:
        size = xp.not_equal(size, 0).astype(size.dtype)
    elif p != 1:
        if p < 0:
            comparable("linalg.vector_norm", size, dims)
        size = size**p
    power = xp.add.reduce(size, dims, None, None, keepdim)
    return power if p in (0, 1) else power ** (1.0 / p)


def _norm_rule(F: Any, g: Any, x: Any, out: Any, p: float, dim: Dim, keepdim: bool) -> Any:
    if p == 0:
        return F.zero(x) * g
    if math.isinf(p):
        shared = shared_among_ties(F, g, F.abs(x), out, dim, keepdim)
        return conjugate(F, F.sgn(x)) * shared
    out = kept(F, out, x.shape, dim, keepdim)
    if p == 1:
        return g * conjugate(F, F.sgn(x))
    if p == 2:
        return conjugate(F, x) * (g * F.where(out == 0, 0.0, 1.0 / out))
    nothing = out == 0
    scale = F.where(nothing, 0.0, g * F.pow(F.where(nothing, 1.0, out), 1.0 - p))
    if p < 2:
        slope = F.where(x == 0, 0.0, F.pow(F.abs(x), p - 1.0))
        return scale * conjugate(F, F.sgn(x)) * slope
    return scale * conjugate(F, x) * F.pow(F.abs(x), p - 2.0)


as_method(nanmean)
as_method(std)
as_method(var)
