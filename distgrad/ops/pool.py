"""Pooling: maxima with their places, averages.

Places are numbered within an image's spatial dimensions laid out in a row, as in PyTorch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, distinct, real
from distgrad.backend.forms import device_form
from distgrad.errors import DistgradError, ShapeError, explain
from distgrad.ops.activation import relu
from distgrad.ops.checks import demand_floating, demand_full_precision, is_floating
from distgrad.ops.elementwise import abs as abs_
from distgrad.ops.elementwise import sign
from distgrad.tensor import Tensor, ndarray
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d", "max_pool1d",
    "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices",
]  # fmt: skip

Ints = int | Sequence[int]


# ---------------------------------------------------------------------- sizes and windows
def _out_size(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """Return how many windows fit; with ``ceil`` the last may hang over, but starts inside."""
    room = n + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + stride - 1 if ceil else room) // stride + 1
    if ceil and (count - 1) * stride >= n + padding:
        count -= 1
    return count


def _windows(
    kernel: Shape, stride: Shape, dilation: Shape, out: Shape
) -> Iterator[tuple[Shape, tuple[slice, ...]]]:
    """Return for each place in the kernel the slices that hold it in all windows."""
    for offset in itertools.product(*map(range, kernel)):
        yield (
            offset,
            tuple(
                slice(k * d, k * d + s * (n - 1) + 1, s)
                for k, d, s, n in zip(offset, dilation, stride, out, strict=True)
            ),
        )


def _around(
    space: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, out: Shape
) -> list[tuple[int, int]]:
    """Return the padding on both sides that the windows need; negative where they end early."""
    return [
        (p, (o - 1) * s + d * (k - 1) + 1 - n - p)
        for n, k, s, p, d, o in zip(space, kernel, stride, padding, dilation, out, strict=True)
    ]


def _steps(space: Shape) -> list[int]:
    return [math.prod(space[i + 1 :]) for i in range(len(space))]


# ---------------------------------------------------------------------- maxima
@device_form
def _max_pool(
    xp: Namespace, x: Array, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape,
    out: Shape,
) -> tuple[Array, Array]:  # fmt: skip
    dims = len(kernel)
    space = x.shape[-dims:]
    lowest = -xp.inf if x.dtype.kind in "fV" else xp.iinfo(x.dtype).min
    around = _around(space, kernel, stride, padding, dilation, out)
    grown = [max(0, a) + n + max(0, b) for n, (a, b) in zip(space, around, strict=True)]
    if tuple(grown) != tuple(space):
        wide = xp.full((*x.shape[:-dims], *grown), lowest, x.dtype)
        inner = tuple(slice(a, a + n) for n, (a, _) in zip(space, around, strict=True))
        wide[(..., *inner)] = x
        x = wide
    best = xp.full((*x.shape[:-dims], *out), lowest, x.dtype)
    first, base = _first_places(xp, space, kernel, stride, padding, dilation, out)
    place = xp.empty(best.shape, xp.int64)
    place[...] = first
    nans = is_floating(x) and x.size
    if nans and type(x) is ndarray:  # a device is not asked: the host would have to wait
        nans = bool(xp.isnan(xp.max(x)))
    for offset, window in _windows(kernel, stride, dilation, out):
        view = x[(..., *window)]
        higher = view > best
        if nans:
            higher |= xp.isnan(view)
        number = sum(o * d * s for o, d, s in zip(offset, dilation, _steps(space), strict=True))
        xp.copyto(place, number, where=higher)
        (xp.copyto(best, view, where=higher) if nans else xp.maximum(best, view, out=best))
    place += base
    return best, place


def _first_places(
    xp: Namespace, space: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape,
    out: Shape,
) -> tuple[Array, Array]:  # fmt: skip
    """Return each window's first place inside the image, relative to its start, and its start."""
    first, base = xp.zeros((), xp.int64), xp.zeros((), xp.int64)
    for axis, (s, p, d, n, step) in enumerate(
        zip(stride, padding, dilation, out, _steps(space), strict=True)
    ):
        shape = [1] * len(out)
        shape[axis] = n
        start = (xp.arange(n) * s - p).reshape(shape)
        base = base + start * step
        first = first + xp.maximum(-(start // d), 0) * (d * step)
    return first, base


def _is_disjoint(kernel: Shape, stride: Shape, dilation: Shape) -> bool:
    return all(s > d * (k - 1) for k, s, d in zip(kernel, stride, dilation, strict=True))


def _d_max_pool(
    F: Any, g: Any, input_shape: Shape, indices: Any, kernel_size: Shape, stride: Shape,
    padding: Shape, dilation: Shape,
) -> Any:  # fmt: skip
    size, windows = input_shape[-len(kernel_size) :], (kernel_size, stride, padding, dilation)
    if _is_disjoint(kernel_size, stride, dilation):
        return F.unpool(g, indices, size, windows)
    return F.unpool_sum(g, indices, size, windows)


def _pairs(torch: Any, x: Any, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
           out_size: Any) -> Any:  # fmt: skip
    pool = getattr(torch.nn.functional, f"max_pool{len(kernel_size)}d")
    floor = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[-len(kernel_size) :], kernel_size, stride, padding, dilation, strict=True
        )
    ]
    ceil = floor != list(out_size)
    return pool(x, kernel_size, stride, padding, dilation, ceil, return_indices=True)


@op(
    samples=[
        case(distinct(2, 3, 7), kernel_size=(2,), stride=(2,), padding=(0,), dilation=(1,),
             out_size=(3,)),
        case(distinct(2, 2, 5, 6), kernel_size=(3, 2), stride=(2, 1), padding=(1, 0),
             dilation=(1, 2), out_size=(3, 4)),
        case(distinct(1, 2, 5, 4), kernel_size=(2, 2), stride=(2, 2), padding=(0, 1),
             dilation=(1, 1), out_size=(3, 3)),
        case(distinct(1, 1, 3, 3, 3), kernel_size=(2, 2, 2), stride=(1, 1, 1), padding=(0, 0, 0),
             dilation=(1, 1, 1), out_size=(2, 2, 2)),
    ],
    outputs=("out", "indices!"),
    method=False,
    reference=_pairs,
    d_input=_d_max_pool,
)  # fmt: skip
def max_pool(
    xp: Namespace, input: Tensor, kernel_size: Shape, stride: Shape, padding: Shape,
    dilation: Shape, out_size: Shape,
) -> Any:  # fmt: skip
    """Return the maximum of each window over the last dimensions, and its place."""
    return _max_pool(xp, input, kernel_size, stride, padding, dilation, out_size)


# ---------------------------------------------------------------------- averages
@functools.lru_cache(maxsize=256)
def _divisors(
    n: int, kernel: int, stride: int, padding: int, out: int, include_pad: bool
) -> tuple[int, ...]:
    """Return how many elements each window counts along one dimension."""
    counts = []
    for start in range(-padding, out * stride - padding, stride):
        end = min(start + kernel, n + padding)
        counts.append(end - start if include_pad else min(end, n) - max(start, 0))
    return tuple(counts)


def _scales(
    xp: Namespace, like: Array, space: Shape, windows: Any, include_pad: bool, divisor: int | None
) -> list[Array | float]:
    """Return for each dimension 1 / (elements in each window), to be multiplied along it."""
    dims = len(space)
    if divisor is not None:
        return [1 / divisor] + [1.0] * (dims - 1)
    scales: list[Array | float] = []
    for axis, (n, k, s, p, o) in enumerate(zip(space, *windows, strict=True)):
        counts = _divisors(n, k, s, p, o, include_pad)
        if min(counts) == max(counts):
            scales.append(1 / counts[0])
        else:
            shape = (-1,) + (1,) * (dims - 1 - axis)
            scales.append((1 / xp.asarray(counts, like.dtype)).reshape(shape))
    return scales


def _window_sums(xp: Namespace, x: Array, windows: Any) -> Array:
    """Return the sum of each window, one dimension after the other: sums of shifted views."""
    dims = len(windows[0])
    for axis, (k, s, p, o) in zip(range(-dims, 0), zip(*windows, strict=True), strict=True):
        pads = [(0, 0)] * -axis
        pads[0] = (p, (o - 1) * s + k - x.shape[axis] - p)
        if any(pads[0]):
            x = xp.pad_zeros(x, pads)
        rest = (slice(None),) * (-axis - 1)
        total = x[(..., slice(0, s * (o - 1) + 1, s), *rest)]
        for shift in range(1, k):
            view = x[(..., slice(shift, shift + s * (o - 1) + 1, s), *rest)]
            total = xp.add(total, view, out=total if shift > 1 else None)
        x = total
    return x


@device_form
def _avg_pool(
    xp: Namespace, x: Array, windows: Any, include_pad: bool, divisor: int | None
) -> Array:
    space = x.shape[-len(windows[0]) :]
    total = _window_sums(xp, xp.widened(x), windows)
    if x.dtype.kind == "i":
        return _quotients(xp, total, space, windows, include_pad, divisor)
    factor = 1.0
    for scale in _scales(xp, total, space, windows, include_pad, divisor):
        if isinstance(scale, float):
            factor *= scale
        else:
            total = total * scale
    return (total * factor).astype(x.dtype, copy=False)


def _quotients(
    xp: Namespace, total: Array, space: Shape, windows: Any, include_pad: bool, divisor: int | None
) -> Array:
    """Return sums of integers divided by what the windows count, rounded towards zero."""
    count = xp.ones((), total.dtype)
    for axis, (n, k, s, p, o) in enumerate(zip(space, *windows, strict=True)):
        along = xp.asarray(_divisors(n, k, s, p, o, include_pad), total.dtype)
        count = count * along.reshape((-1,) + (1,) * (len(space) - 1 - axis))
    if divisor is not None:
        count = xp.full((), divisor, total.dtype)
    return xp.sign(total) * xp.sign(count) * (xp.abs(total) // xp.abs(count))


@device_form
def _avg_pool_input(
    xp: Namespace, g: Array, space: Shape, windows: Any, include_pad: bool, divisor: int | None
) -> Array:
    dims, kind, g = len(space), g.dtype, xp.widened(g)
    scales = _scales(xp, g, space, windows, include_pad, divisor)
    for scale in scales:
        g = g * scale
    each = [*zip(range(-dims, 0), space, *windows, strict=True)]
    for axis, n, k, s, p, o in reversed(each):
        length = (o - 1) * s + k
        shape = (*g.shape[: g.ndim + axis], length, *g.shape[g.ndim + axis + 1 :])
        rest = (slice(None),) * (-axis - 1)
        wide = xp.zeros(shape, g.dtype)
        for shift in range(k):
            window = (..., slice(shift, shift + s * (o - 1) + 1, s), *rest)
            if s >= k:
                wide[window] = g
            else:
                wide[window] += g
        if p or length != n:
            wide = xp.pad_zeros(wide, [(-p, n + p - length)] + [(0, 0)] * (-axis - 1))
        g = wide
    return g.astype(kind, copy=False)


def _torch_avg(torch: Any, x: Any, *, windows: Any, count_include_pad: bool,
               divisor_override: int | None) -> Any:  # fmt: skip
    kernel, stride, padding, out = windows
    pool = getattr(torch.nn.functional, f"avg_pool{len(kernel)}d")
    floor = [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(x.shape[-len(kernel) :], kernel, stride, padding, strict=True)
    ]
    more = () if len(kernel) == 1 else (divisor_override,)
    return pool(x, kernel, stride, padding, floor != list(out), count_include_pad, *more)


_AVERAGES = [
    {"windows": ((2,), (2,), (0,), (3,)), "count_include_pad": True, "divisor_override": None},
    {"windows": ((3, 2), (2, 1), (1, 1), (3, 7)), "count_include_pad": False,
     "divisor_override": None},
    {"windows": ((3, 2), (2, 2), (1, 0), (3, 3)), "count_include_pad": True, "divisor_override": 3},
    {"windows": ((2, 2), (2, 2), (0, 1), (3, 3)), "count_include_pad": True,
     "divisor_override": None},
    {"windows": ((2, 1, 2), (1, 1, 1), (0, 0, 0), (1, 2, 1)), "count_include_pad": True,
     "divisor_override": None},
]  # fmt: skip
_SHAPES = [(2, 3, 7), (2, 2, 5, 6), (2, 2, 5, 6), (1, 2, 5, 5), (1, 1, 2, 2, 2)]


@op(
    "linear",
    samples=[case(real(*a), **options) for a, options in zip(_SHAPES, _AVERAGES, strict=True)],
    method=False,
    reference=_torch_avg,
    d_input=lambda F, g, input_shape, windows, count_include_pad, divisor_override:
        F.avg_pool_input(g, input_shape[len(input_shape) - len(windows[0]):], windows,
                         count_include_pad, divisor_override),
)  # fmt: skip
def avg_pool(
    xp: Namespace, input: Tensor, windows: Any, count_include_pad: bool,
    divisor_override: int | None,
) -> Array:  # fmt: skip
    """Return the mean of each window over the last dimensions.

    Args:
        windows: (kernel, stride, padding, number of windows), each once for every dimension.
    """
    return _avg_pool(xp, input, windows, count_include_pad, divisor_override)


@op(
    "linear",
    samples=[case(real(2, 2, 3, 7), space=(5, 6), **_AVERAGES[1]),
             case(real(1, 2, 3, 3), space=(5, 5), **_AVERAGES[3])],
    method=False,
    reference="none",
    d_input=lambda F, g, windows, count_include_pad, divisor_override:
        F.avg_pool(g, windows, count_include_pad, divisor_override),
)  # fmt: skip
def avg_pool_input(
    xp: Namespace, input: Tensor, space: Shape, windows: Any, count_include_pad: bool,
    divisor_override: int | None,
) -> Array:  # fmt: skip
    """Return the gradient of ``avg_pool``'s input of size ``space``."""
    return _avg_pool_input(xp, input, space, windows, count_include_pad, divisor_override)


# ---------------------------------------------------------------------- arguments
def each_size(name: str, value: Ints, dims: int) -> Shape:
    """Return ``value`` once for each dimension."""
    many = (value,) if isinstance(value, int) else tuple(value)
    if len(many) not in (1, dims):
        raise ShapeError(f"{name} must either be a single int, or a tuple of {dims} ints")
    return many * dims if len(many) == 1 else many


def _plan(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints,
    ceil: bool,
) -> tuple[Shape, Shape, Shape, Shape, Shape]:  # fmt: skip
    """Return kernel, stride, padding, dilation and the number of windows, all checked."""
    kernel = each_size("kernel_size", kernel_size, dims)
    strides = kernel if stride is None or stride == () else each_size("stride", stride, dims)
    pads, dilations = each_size("padding", padding, dims), each_size("dilation", dilation, dims)
    _check_dims(dims, input)
    for k, s, p, d in zip(kernel, strides, pads, dilations, strict=True):
        if k < 1 or s < 1 or d < 1:
            raise ShapeError(
                "kernel size, stride and dilation should be greater than zero, but got kernel_size="
                f"{k}, stride={s}, dilation={d}"
            )
        if p < 0 or p > (d * (k - 1) + 1) // 2:
            raise ShapeError(
                "pad should be non-negative and at most half of effective kernel size, but got "
                f"pad={p}, kernel_size={k} and dilation={d}"
            )
    space = input.array.shape[-dims:]
    out = tuple(map(_out_size, space, kernel, strides, pads, dilations, (ceil,) * dims))
    if min(out) < 1:
        raise ShapeError(
            f"Given input size: {list(space)}. Calculated output size: {list(out)}. Output size is "
            "too small; use a smaller kernel_size or padding"
        )
    return kernel, strides, pads, dilations, out


def _check_dims(dims: int, input: Tensor) -> None:
    if input.ndim not in (dims + 1, dims + 2):
        raise ShapeError(
            f"Expected {dims + 1}D or {dims + 2}D (batch mode) tensor, but got input of size: "
            f"{list(input.shape)}"
        )
    if 0 in input.array.shape[input.ndim - dims - 1 :]:
        raise ShapeError(
            "Expected input with optional 0 dim batch size and other dimensions non-zero, but got "
            f"input of size: {list(input.shape)}"
        )


_INTEGERS = ("int8", "int16", "int32", "int64", "uint8")


def _max(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints,
    ceil_mode: bool, return_indices: bool,
) -> Any:  # fmt: skip
    try:
        plan = _plan(dims, input, kernel_size, stride, padding, dilation, ceil_mode)
        integers = () if dims == 1 and not return_indices else _INTEGERS
        demand_floating(input.array, *integers)
    except (DistgradError, TypeError) as error:
        options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        raise explain(f"max_pool{dims}d", error, {"input": input}, options) from None
    out, indices = max_pool(input, *plan)
    return (out, indices) if return_indices else out


def _avg(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints,
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    try:
        kernel, strides, pads, _, out = _plan(
            dims, input, kernel_size, stride, padding, 1, ceil_mode
        )
        if divisor_override == 0:
            raise ShapeError("divisor must be not zero")
        (demand_full_precision if dims == 3 else demand_floating)(input.array, "int64")
    except (DistgradError, TypeError) as error:
        options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        raise explain(f"avg_pool{dims}d", error, {"input": input}, options) from None
    return avg_pool(input, (kernel, strides, pads, out), count_include_pad, divisor_override)


# ---------------------------------------------------------------------- public: max, average
def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the maximum of each window, and with ``return_indices`` its place too.

    Shape:
        input: ``(N, C, L)`` or ``(C, L)``.
    Args:
        stride: kernel_size by default.
        padding: of -inf, on both sides, at most half the kernel.
        ceil_mode: the last window may hang over the end.
    """
    return _max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the maximum of each window, and with ``return_indices`` its place in the image too.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
    """
    return _max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the maximum of each window, and with ``return_indices`` its place in the volume too.

    Shape:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
    """
    return _max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return what ``max_pool1d`` returns with ``return_indices=True``."""
    return _max(1, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return what ``max_pool2d`` returns with ``return_indices=True``."""
    return _max(2, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return what ``max_pool3d`` returns with ``return_indices=True``."""
    return _max(3, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the mean of each window.

    Shape:
        input: ``(N, C, L)`` or ``(C, L)``.
    """
    return _avg(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


@takes_out
def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the mean of each window.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
    Args:
        count_include_pad: padding counts as elements that are 0.
        divisor_override: divide the sums by this instead.
    """
    return _avg(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@takes_out
def avg_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the mean of each window.

    Shape:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
    """
    return _avg(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _lp(
    dims: int, input: Tensor, norm_type: float, kernel_size: Ints, stride: Ints | None, ceil: bool
) -> Tensor:
    count = math.prod(each_size("kernel_size", kernel_size, dims))
    out = _avg(dims, input**norm_type, kernel_size, stride, 0, ceil, True, None)
    total: Tensor = (sign(out) * relu(abs_(out)) * count) ** (1.0 / norm_type)
    return total


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return (Σ xᵖ)^(1/p) of each window, p = ``norm_type``."""
    return _lp(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return (Σ xᵖ)^(1/p) of each window, p = ``norm_type``."""
    return _lp(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return (Σ xᵖ)^(1/p) of each window, p = ``norm_type``."""
    return _lp(3, input, norm_type, kernel_size, stride, ceil_mode)
