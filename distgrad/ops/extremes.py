"""Extremes with their places, and medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, named_results, op
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.outputs import into, takes_out
from distgrad.autograd.samples import along, case, distinct, given, integers, real
from distgrad.errors import ArgumentTypeError, DtypeError, DtypeNotImplemented, IndexOutOfRange
from distgrad.ops.checks import sortable
from distgrad.ops.compare import maximum, minimum
from distgrad.ops.reduce import amax, amin, comparable, shared_among_ties
from distgrad.ops.shape import wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Array, Dim, Namespace, Shape

__all__ = ["aminmax", "argmax", "argmin", "max", "median", "min", "nanmedian"]


# ---------------------------------------------------------------------- extremes
_aminmax_result = named_results("aminmax", ["min", "max"])


@takes_names
def aminmax(
    input: Tensor,
    *,
    dim: int | None = None,
    keepdim: bool = False,
    out: Sequence[Tensor] | None = None,
) -> Any:
    """Return the smallest and the largest elements, as a named tuple ``(min, max)``."""
    if out is not None:
        for target in out:
            if target.array.dtype != input.array.dtype:
                raise DtypeError(
                    f"aminmax({input._brief()}): Expected out tensor to have dtype "
                    f"{input.array.dtype}, but got {target.array.dtype} instead"
                )
        return into(out, "aminmax", aminmax, (input,), {"dim": dim, "keepdim": keepdim})
    dims: Dim = () if dim is None else dim
    return _aminmax_result(amin(input, dims, keepdim), amax(input, dims, keepdim))


@op(
    "linear",
    samples=[case(real(3), integers(4, 3), size=(3, 4), dim=1),
             case(real(2, 1, 4), integers(3, 2, 1, 4), size=(2, 3, 4), dim=-2, keepdim=True),
             case(real(), integers(1), size=(), dim=0)],
    method=False,
    reference="none",
    d_grad=lambda F, g, indices, dim, grad_shape: _selected(F, g, indices, dim, grad_shape),
)  # fmt: skip
def value_selecting_reduction_backward(
    xp: Namespace, grad: Tensor, indices: Tensor, size: Shape, dim: int, keepdim: bool = False
) -> Array:
    """Return zeros of ``size`` with ``grad`` added at ``indices`` along ``dim``."""
    if not size:
        return xp.array(grad, copy=True)
    d = dim % len(size)
    if not keepdim:
        grad, indices = xp.expand_dims(grad, d), xp.expand_dims(indices, d)
    out = xp.zeros(size, grad.dtype)
    xp.scatter_add(out, d, indices, grad)
    return out


def _selected(F: Any, g: Any, indices: Any, dim: int, shape: Shape) -> Any:
    if not g.ndim:
        return g
    at = indices if indices.ndim == g.ndim else F.unsqueeze(indices, dim % g.ndim)
    return F.reshape(F.gather(g, dim, at), shape)


def _extreme(xp: Namespace, search: Any, name: str, input: Any, dim: int, keepdim: bool) -> Any:
    """Return the elements that ``search`` (argmax or argmin) finds along ``dim``, and where."""
    d = wrap_dim(dim, input.ndim)
    comparable(name, input, (d,) if input.ndim else ())
    if not input.ndim:
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    at = xp.expand_dims(search(input, axis=d), d)
    values = xp.take_along_axis(input, at, d)
    return (values, at) if keepdim else (values.squeeze(d), at.squeeze(d))


@op(
    widens=False,
    samples=[*along(distinct), case(distinct(2, 3), dim=1, keepdim=True),
             case(integers(9, 3, 4), dim=0)],
    outputs=("values", "indices!"),
    method=False,
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.value_selecting_reduction_backward(
        g, indices, input_shape, dim, keepdim
    ),
)  # fmt: skip
def max(xp: Namespace, input: Tensor, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Return the largest elements along ``dim`` and their indices."""
    values, at = _extreme(xp, xp.argmax, "max", input, dim, keepdim)
    return values, at


@op(
    widens=False,
    samples=[*along(distinct), case(distinct(2, 3), dim=1, keepdim=True),
             case(integers(9, 3, 4), dim=0)],
    outputs=("values", "indices!"),
    method=False,
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.value_selecting_reduction_backward(
        g, indices, input_shape, dim, keepdim
    ),
)  # fmt: skip
def min(xp: Namespace, input: Tensor, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Return the smallest elements along ``dim`` and their indices."""
    values, at = _extreme(xp, xp.argmin, "min", input, dim, keepdim)
    return values, at


_max_op, _min_op = max, min


@takes_out  # type: ignore[no-redef]
def max(
    input: Tensor,
    dim: int | Tensor | None = None,
    keepdim: bool = False,
    *,
    other: Tensor | None = None,
) -> Any:
    """Return the largest element; along ``dim`` a named tuple ``(values, indices)``.

    With a tensor as second argument, return the larger element of each pair, as ``maximum``.

    Gradient: to the one element that ``indices`` names; without ``dim`` in equal parts to all that
    attain the maximum.

    Example:
        >>> import distgrad as dg
        >>> dg.tensor([[1., 5.], [4., 2.]]).max(dim=1).indices
        tensor([1, 0])
    """
    other = dim if isinstance(dim, Tensor) else other
    if other is not None:
        return maximum(input, other)
    assert not isinstance(dim, Tensor)
    if dim is None:
        comparable("max", input.array, None)
        return amax(input)
    _one_dimension("max", dim)
    return _max_op(input, dim, keepdim)


@takes_out  # type: ignore[no-redef]
def min(
    input: Tensor,
    dim: int | Tensor | None = None,
    keepdim: bool = False,
    *,
    other: Tensor | None = None,
) -> Any:
    """Return the smallest element; along ``dim`` a named tuple ``(values, indices)``.

    With a tensor as second argument, return the smaller element of each pair, as ``minimum``.
    Gradient as for ``max``.
    """
    other = dim if isinstance(dim, Tensor) else other
    if other is not None:
        return minimum(input, other)
    assert not isinstance(dim, Tensor)
    if dim is None:
        comparable("min", input.array, None)
        return amin(input)
    _one_dimension("min", dim)
    return _min_op(input, dim, keepdim)


def _one_dimension(name: str, dim: object) -> None:
    if not isinstance(dim, int):
        raise ArgumentTypeError(
            f"{name}(dim={dim!r}): takes one dimension or another tensor; use a{name} for several"
        )


def _place(xp: Namespace, search: Any, name: str, input: Any, dim: Any, keepdim: bool) -> Array:
    if input.dtype.kind in "bc":
        raise DtypeError(f"{name}(): does not support {input.dtype} input; convert it first")
    if not input.size and dim is None:
        raise IndexOutOfRange(
            f"{name}(): Expected reduction dim to be specified for input.numel() == 0."
        )
    if dim is None or not input.ndim:
        wrap_dim(dim or 0, input.ndim)
        at = xp.asarray(search(input))
        return at.reshape((1,) * input.ndim if keepdim else ())
    d = wrap_dim(dim, input.ndim)
    comparable(name, input, (d,))
    at = search(input, axis=d)
    return xp.expand_dims(at, d) if keepdim else at


_PLACES = [*along(distinct), case(distinct(3, 4)), case(distinct(3, 4), dim=1, keepdim=True),
           case(distinct(3, 4), keepdim=True)]  # fmt: skip


@op(widens=False, samples=_PLACES)
def argmax(xp: Namespace, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Array:
    """Return the index of the first largest element: of all, or along ``dim``."""
    return _place(xp, xp.argmax, "argmax", input, dim, keepdim)


@op(widens=False, samples=_PLACES)
def argmin(xp: Namespace, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Array:
    """Return the index of the first smallest element: of all, or along ``dim``."""
    return _place(xp, xp.argmin, "argmin", input, dim, keepdim)


# ---------------------------------------------------------------------- medians
def _median_place(xp: Namespace, x: Array, nan_wins: bool) -> Array:
    """Return the index of the lower median along the last axis, kept as 1."""
    order = xp.argsort(sortable(xp, x), axis=-1)  # nan is last
    if x.dtype.kind in "iu":
        return order[..., (x.shape[-1] - 1) // 2, None]
    nan = xp.isnan(x)
    count = x.shape[-1] - xp.add.reduce(nan, -1, None, None, True)
    at = xp.take_along_axis(order, xp.maximum(count - 1, 0) // 2, -1)
    first_nan = xp.expand_dims(xp.argmax(nan, axis=-1), -1)
    return xp.where((count < x.shape[-1]) & nan_wins, first_nan, at)


def _median(xp: Namespace, input: Any, dim: int, keepdim: bool, nan_wins: bool) -> Any:
    if input.dtype.kind in "bc":
        raise DtypeNotImplemented(f'"median" not implemented for {input.dtype}; convert it first')
    if not input.ndim:
        wrap_dim(dim, 0)
        return xp.array(input, copy=True), xp.zeros((), xp.int64)
    d = wrap_dim(dim, input.ndim)
    comparable("median", input, (d,))
    last = xp.moveaxis(input, d, -1)
    at = _median_place(xp, last, nan_wins)
    values, at = (xp.moveaxis(a, -1, d) for a in (xp.take_along_axis(last, at, -1), at))
    if keepdim:
        return xp.array(values, copy=True), at
    return values.squeeze(d), at.squeeze(d)


@op(
    widens=False,
    samples=[*along(distinct), case(distinct(2, 5), dim=1, keepdim=True)],
    outputs=("values", "indices!"),
    method=False,
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.value_selecting_reduction_backward(
        g, indices, input_shape, dim, keepdim
    ),
)
def median(xp: Namespace, input: Tensor, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Return the lower medians along ``dim`` and their indices."""
    values, at = _median(xp, input, dim, keepdim, True)
    return values, at


@op(
    widens=False,
    samples=[*along(distinct), case(given([[1.0, float("nan"), 3.0], [2.0, 5.0, 4.0]]), dim=1)],
    outputs=("values", "indices!"),
    method=False,
    d_input=lambda F, g, indices, input_shape, dim, keepdim: F.value_selecting_reduction_backward(
        g, indices, input_shape, dim, keepdim
    ),
)
def nanmedian(xp: Namespace, input: Tensor, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Return the lower medians along ``dim`` of all that is not nan, and their indices."""
    values, at = _median(xp, input, dim, keepdim, False)
    return values, at


@op(
    widens=False,
    samples=[case(distinct(3, 4)), case(distinct()), case(distinct(5)), case(integers(9, 4))],
    method=False,
    node="MedianBackward0",
    reference="median",
    d_input=lambda F, g, input, out: shared_among_ties(F, g, input, out, None, False),
)
def median_all(xp: Namespace, input: Tensor, nan_wins: bool = True) -> Array:
    """Return the lower median of all elements; of none it is nan."""
    if not xp.size(input):
        return xp.full((), xp.nan, input.dtype)
    return _median(xp, xp.reshape(input, -1), 0, False, nan_wins)[0]


_median_op, _nanmedian_op = median, nanmedian


@takes_out  # type: ignore[no-redef]
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the median; along ``dim`` a named tuple ``(values, indices)``.

    Of an even number of elements it is the lower of the two in the middle.  A nan makes it nan.
    """
    return median_all(input) if dim is None else _median_op(input, dim, keepdim)


@takes_out  # type: ignore[no-redef]
def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the median of all that is not nan; forms as for ``median``."""
    return median_all(input, False) if dim is None else _nanmedian_op(input, dim, keepdim)


for _function in (aminmax, max, median, min, nanmedian):
    as_method(_function)
del _function
