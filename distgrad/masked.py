"""Reductions and normalisations of the elements that a mask selects.

An element with False in the mask counts as the value that does not change the result: 0 in a
sum, 1 in a product, -inf in a maximum.  A mask broadcasts with its input; without one all count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.backend.dtype import dtype as DType
from distgrad.backend.dtype import float32, iinfo, int64
from distgrad.errors import ArgumentError
from distgrad.ops import activation, compare, cumulate, elementwise, extremes, reduce
from distgrad.ops.create import full
from distgrad.ops.shape import expand, reshape
from distgrad.tensor import Tensor
from distgrad.typing import Dim

__all__ = [
    "amax", "amin", "argmax", "argmin", "cumprod", "cumsum", "log_softmax", "logaddexp",
    "logsumexp", "mean", "median", "norm", "normalize", "prod", "softmax", "softmin", "std", "sum",
    "var",
]  # fmt: skip


def _filled(input: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Return ``input`` with ``value`` (or the nearest that its dtype holds) where not selected."""
    if mask is None:
        return input
    kind = input.dtype
    if math.isinf(value) and not (kind.is_floating_point or kind.is_complex):
        limits = (0, 1) if kind.itemsize == 1 and kind.name == "bool" else _limits(kind)
        value = limits[value > 0]
    filling = full((), value, dtype=kind, device=input.device)
    return compare.where(expand(mask, input.shape), input, filling)


def _limits(kind: DType) -> tuple[int, int]:
    return iinfo(kind).min, iinfo(kind).max


def _dims(input: Tensor, dim: Dim) -> tuple[int, ...]:
    """Return the dimensions counted from the front; None and () mean all of them."""
    return reduce.axes(dim, input.ndim) or tuple(range(input.ndim))


def _wide(input: Tensor, dtype: Any) -> Any:
    """Return the dtype of sums and products: int64 of integers and bools."""
    if dtype is not None or input.dtype.is_floating_point or input.dtype.is_complex:
        return input.dtype if dtype is None else dtype
    return int64


# ---------------------------------------------------------------------- sums and products
def sum(
    input: Tensor, dim: Dim = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the sum over ``dim`` (all dimensions by default) of the selected elements."""
    return reduce.sum(
        _filled(input, mask, 0), _dims(input, dim), bool(keepdim), dtype=_wide(input, dtype)
    )


def prod(
    input: Tensor, dim: Dim = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the product over ``dim`` (all dimensions by default) of the selected elements."""
    out, kind = _filled(input, mask, 1), _wide(input, dtype)
    for d in sorted(_dims(input, dim), reverse=True):
        out = reduce.prod(out, d, bool(keepdim), dtype=kind)
    return out.to(kind)


def cumsum(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Return the sums of the selected elements up to each place along ``dim``."""
    kind = input.dtype if dtype is None else dtype
    return cumulate.cumsum(_filled(input, mask, 0), dim, dtype=kind)


def cumprod(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Return the products of the selected elements up to each place along ``dim``."""
    kind = input.dtype if dtype is None else dtype
    return cumulate.cumprod(_filled(input, mask, 1), dim, dtype=kind)


# ---------------------------------------------------------------------- extremes
def amax(
    input: Tensor, dim: Dim = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the largest of the selected elements over ``dim`` (all dimensions by default)."""
    out = reduce.amax(_filled(input, mask, -math.inf), _dims(input, dim), bool(keepdim))
    return out.to(input.dtype if dtype is None else dtype)


def amin(
    input: Tensor, dim: Dim = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the smallest of the selected elements over ``dim`` (all dimensions by default)."""
    out = reduce.amin(_filled(input, mask, math.inf), _dims(input, dim), bool(keepdim))
    return out.to(input.dtype if dtype is None else dtype)


def argmax(
    input: Tensor, dim: int | None = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the place of the largest selected element: of all, or along ``dim``."""
    found = extremes.argmax(_filled(input, mask, -math.inf), dim, bool(keepdim))
    return found.to(input.dtype if dtype is None else dtype)


def argmin(
    input: Tensor, dim: int | None = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the place of the smallest selected element: of all, or along ``dim``."""
    found = extremes.argmin(_filled(input, mask, math.inf), dim, bool(keepdim))
    return found.to(input.dtype if dtype is None else dtype)


def median(
    input: Tensor, dim: int = -1, *, keepdim: bool = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the lower median of the selected elements along ``dim``, nan where there is none.

    Raises:
        ArgumentError: integers have no nan, and somewhere no element is selected.
    """
    kind = input.dtype if dtype is None else dtype
    real = input if input.dtype.is_floating_point else input.to(float32)
    out: Tensor = extremes.nanmedian(_filled(real, mask, math.nan), dim, keepdim)[0]
    if input.dtype.is_floating_point:
        return out
    if bool(compare.isnan(out).any()):
        raise ArgumentError(
            f"masked.median({input._brief()}): expects no fully masked out rows if dtype is not "
            "floating point"
        )
    return out.to(kind)


# ---------------------------------------------------------------------- means and spreads
def _count(input: Tensor, dims: tuple[int, ...], keepdim: bool, mask: Tensor | None) -> Tensor:
    ones = full(input.shape, 1, dtype=int64, device=input.device)
    return reduce.sum(_filled(ones, mask, 0), dims, keepdim)


def mean(
    input: Tensor, dim: Dim = None, *, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean over ``dim`` (all dimensions by default) of the selected elements."""
    kind = input.dtype if dtype is None else dtype
    if not (kind.is_floating_point or kind.is_complex):
        raise ArgumentError(
            f"masked.mean({input._brief()}): Could not infer output dtype. Input dtype must be "
            f"either a floating point or complex dtype. Got: {kind}"
        )
    dims, keep = _dims(input, dim), bool(keepdim)
    total = sum(input, dims, keepdim=keep, dtype=kind, mask=mask)
    return elementwise.div(total, _count(input, dims, keep, mask))


def _spread(
    input: Tensor, dim: Dim, unbiased: bool | None, correction: int | None, keepdim: bool,
    dtype: Any, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the variance of the selected elements, in float32 of integers."""
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    elif unbiased is not None:
        raise ArgumentError("unbiased and correction say the same; pass correction alone")
    kind = input.dtype if dtype is None else dtype
    kind = kind if kind.is_floating_point or kind.is_complex else float32
    dims = _dims(input, dim)
    count = _count(input, dims, True, mask)
    centre = elementwise.div(sum(input, dims, keepdim=True, dtype=kind, mask=mask), count)
    apart = elementwise.sub(input, centre)
    square = apart * (apart.conj() if apart.is_complex() else apart)
    total = sum(square, dims, keepdim=keepdim, dtype=kind, mask=mask)
    freedom = compare.clamp(elementwise.sub(reshape(count, total.shape), correction), 0)
    return elementwise.div(total, freedom).to(kind)


def var(
    input: Tensor, dim: Dim = None, unbiased: bool | None = None, *,
    correction: int | None = None, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the variance over ``dim`` (all dimensions by default) of the selected elements.

    Args:
        unbiased: False means ``correction=0``.
        correction: what is taken from the number of elements in the divisor: 1 by default.
    """
    return _spread(input, dim, unbiased, correction, bool(keepdim), dtype, mask)


def std(
    input: Tensor, dim: Dim = None, unbiased: bool | None = None, *,
    correction: int | None = None, keepdim: bool | None = False, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the standard deviation of the selected elements; arguments as for ``var``."""
    variance = _spread(input, dim, unbiased, correction, bool(keepdim), dtype, mask)
    return elementwise.sqrt(variance)


def norm(
    input: Tensor, ord: float | None = 2.0, dim: Dim = None, *, keepdim: bool | None = False,
    dtype: Any = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the vector norm over ``dim`` (all dimensions by default) of the selected elements."""
    order = 2.0 if ord is None else ord
    filled = _filled(input, mask, math.inf if order == -math.inf else 0)
    return reduce.vector_norm(filled, order, _dims(input, dim), bool(keepdim), dtype=dtype)


def normalize(
    input: Tensor, ord: float, dim: int, *, eps: float = 1e-12, dtype: Any = None,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``input`` divided by the norm of the selected elements along ``dim``."""
    size = norm(input, ord, dim, keepdim=True, dtype=dtype, mask=mask)
    return elementwise.div(_filled(input, mask, 0), compare.clamp(size, eps))


# ---------------------------------------------------------------------- exponentials
def softmax(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Return the softmax of the selected elements along ``dim``."""
    return activation.softmax(_filled(input, mask, -math.inf), dim, dtype=dtype)


def log_softmax(
    input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None
) -> Tensor:
    """Return the logarithms of ``softmax``."""
    return activation.log_softmax(_filled(input, mask, -math.inf), dim, dtype=dtype)


def softmin(input: Tensor, dim: int, *, dtype: Any = None, mask: Tensor | None = None) -> Tensor:
    """Return the softmax of the negated selected elements along ``dim``."""
    return activation.softmin(_filled(input, mask, math.inf), dim, dtype=dtype)


def logsumexp(
    input: Tensor, dim: int | Sequence[int] | None = None, *, keepdim: bool = False,
    dtype: Any = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the logarithm of the sum of exponentials of the selected elements over ``dim``."""
    out = reduce.logsumexp(_filled(input, mask, -math.inf), _dims(input, dim), keepdim)
    return out.to(input.dtype if dtype is None else dtype)


def logaddexp(
    input: Tensor, other: Tensor, *, dtype: Any = None, input_mask: Tensor | None = None,
    other_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``log(exp(input) + exp(other))``, without the elements that are not selected."""
    a, b = _filled(input, input_mask, -math.inf), _filled(other, other_mask, -math.inf)
    return elementwise.logaddexp(a, b).to(input.dtype if dtype is None else dtype)
