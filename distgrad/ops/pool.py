"""Pooling: maxima with their places, averages, adaptive forms, unpooling.

Places are numbered within an image's spatial dimensions laid out in a row, as in PyTorch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, distinct, given, real
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, DistgradError, ShapeError, explain
from distgrad.ops.activation import relu
from distgrad.ops.elementwise import abs as abs_
from distgrad.ops.elementwise import sign
from distgrad.ops.matmul import matmul
from distgrad.ops.shape import movedim
from distgrad.tensor import Tensor, ndarray, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "lp_pool1d", "lp_pool2d", "lp_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_unpool1d", "max_unpool2d", "max_unpool3d",
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
    nans = x.dtype.kind == "f" and x.size
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
    dilation: Shape,
) -> Any:  # fmt: skip
    size = input_shape[-len(kernel_size) :]
    if _is_disjoint(kernel_size, stride, dilation):
        return F.unpool(g, indices, size)
    return F.unpool_sum(g, indices, size)


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


def _rows_of(xp: Namespace, x: Array, dims: int) -> Array:
    """Return ``x`` with its last ``dims`` dimensions laid out in a row, and images in rows."""
    return x.reshape(math.prod(x.shape[: x.ndim - dims]), math.prod(x.shape[x.ndim - dims :]))


def _flat_places(xp: Namespace, indices: Array, size: Shape) -> Array:
    rows = _rows_of(xp, indices, len(size))
    return rows + xp.arange(0, len(rows) * math.prod(size), max(math.prod(size), 1))[:, None]


@op(
    "multilinear",
    samples=[case(real(2, 2, 2), given([[[0, 2], [5, 3]], [[1, 2], [3, 4]]]), size=(2, 3))],
    method=False,
    reference="none",
    d_input=lambda F, g, indices, size: F.unpool_transposed(g, indices, len(size)),
)
def unpool(xp: Namespace, input: Tensor, indices: Tensor, size: Shape) -> Array:
    """Return zeros of ``size`` in the last dimensions, with each element put to its place."""
    out = xp.zeros((*input.shape[: -len(size)], *size), input.dtype)
    places = _flat_places(xp, indices, size)
    out.reshape(-1)[places.reshape(-1)] = xp.reshape(input, -1)
    return out


@op(
    "multilinear",
    samples=[case(real(2, 3), given([[0, 2, 2], [1, 1, 1]]), size=(4,))],
    method=False,
    reference="none",
    d_input=lambda F, g, indices, size: F.unpool_transposed(g, indices, len(size)),
)
def unpool_sum(xp: Namespace, input: Tensor, indices: Tensor, size: Shape) -> Array:
    """Return zeros of ``size`` in the last dimensions, with each element added to its place."""
    out = xp.zeros((*input.shape[: -len(size)], *size), input.dtype)
    places = _flat_places(xp, indices, size)
    xp.add_at(out.reshape(-1), places.reshape(-1), xp.reshape(input, -1))
    return out


@op(
    "multilinear",
    samples=[case(real(2, 4), given([[0, 2, 2], [1, 1, 1]]), dims=1)],
    method=False,
    reference="none",
    d_input=lambda F, g, input_shape, indices, dims: F.unpool_sum(
        g, indices, input_shape[len(input_shape) - dims :]
    ),
)
def unpool_transposed(xp: Namespace, input: Tensor, indices: Tensor, dims: int) -> Array:
    """Return the elements of ``input`` at ``indices`` of its last ``dims`` dimensions."""
    size = input.shape[input.ndim - dims :]
    places = _flat_places(xp, indices, size)
    return xp.take(xp.reshape(input, -1), places).reshape(indices.shape)


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


def _avg_pool(
    xp: Namespace, x: Array, windows: Any, include_pad: bool, divisor: int | None
) -> Array:
    """One dimension after the other: sums of shifted views."""
    dims = len(windows[0])
    scales = _scales(xp, x, x.shape[-dims:], windows, include_pad, divisor)
    factor = 1.0
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
        scale = scales[axis]
        factor, x = (factor * scale, total) if isinstance(scale, float) else (factor, total * scale)
    return x * factor


def _avg_pool_input(
    xp: Namespace, g: Array, space: Shape, windows: Any, include_pad: bool, divisor: int | None
) -> Array:
    dims = len(space)
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
    return g


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
def _each(name: str, value: Ints, dims: int) -> Shape:
    many = (value,) if isinstance(value, int) else tuple(value)
    if len(many) not in (1, dims):
        raise ShapeError(f"{name} must either be a single int, or a tuple of {dims} ints")
    return many * dims if len(many) == 1 else many


def _plan(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints,
    ceil: bool,
) -> tuple[Shape, Shape, Shape, Shape, Shape]:  # fmt: skip
    """Return kernel, stride, padding, dilation and the number of windows, all checked."""
    kernel = _each("kernel_size", kernel_size, dims)
    strides = kernel if stride is None or stride == () else _each("stride", stride, dims)
    pads, dilations = _each("padding", padding, dims), _each("dilation", dilation, dims)
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
    if 0 in input.array.shape[1:]:
        raise ShapeError(
            "Expected input with optional 0 dim batch size and other dimensions non-zero, but got "
            f"input of size: {list(input.shape)}"
        )


def _max(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints,
    ceil_mode: bool, return_indices: bool,
) -> Any:  # fmt: skip
    try:
        plan = _plan(dims, input, kernel_size, stride, padding, dilation, ceil_mode)
    except DistgradError as error:
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
    except DistgradError as error:
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
    count = math.prod(_each("kernel_size", kernel_size, dims))
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


# ---------------------------------------------------------------------- adaptive
def _goal(name: str, dims: int, input: Tensor, output_size: Any) -> Shape:
    """Return the wanted size; None keeps a dimension's length."""
    try:
        _check_dims(dims, input)
        space = input.array.shape[-dims:]
        many = (output_size,) * dims if isinstance(output_size, int | None) else tuple(output_size)
        if len(many) == 1:
            many *= dims
        if len(many) != dims:
            raise ShapeError(f"output_size must have {dims} entries, but has {len(many)}")
        goal = tuple(n if want is None else int(want) for n, want in zip(space, many, strict=True))
        if min(goal) < 0:
            raise ShapeError(f"elements of output_size must be non-negative, but got {list(goal)}")
        return goal
    except DistgradError as error:
        raise explain(name, error, {"input": input}, {"output_size": output_size}) from None


def _edges(n: int, out: int) -> list[tuple[int, int]]:
    """Return start and end of each window: ⌊i·n/out⌋ and ⌈(i + 1)·n/out⌉."""
    return [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


def _adaptive_avg(dims: int, input: Tensor, output_size: Any) -> Tensor:
    goal = _goal(f"adaptive_avg_pool{dims}d", dims, input, output_size)
    space = input.array.shape[-dims:]
    if all(out and n % out == 0 for n, out in zip(space, goal, strict=True)):
        kernel = tuple(n // out for n, out in zip(space, goal, strict=True))
        return avg_pool(input, (kernel, kernel, (0,) * dims, goal), True, None)
    xp = array_namespace(input.array)
    for axis, (n, out) in zip(range(-dims, 0), zip(space, goal, strict=True), strict=True):
        means = xp.zeros((n, out), input.array.dtype)
        for place, (start, end) in enumerate(_edges(n, out)):
            means[start:end, place] = 1 / (end - start)
        input = movedim(matmul(movedim(input, axis, -1), wrap(means)), -1, axis)
    return input


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the signal out evenly."""
    return _adaptive_avg(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the image out evenly.

    Args:
        output_size: a number, or a pair; None keeps a dimension.
    """
    return _adaptive_avg(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the volume out evenly."""
    return _adaptive_avg(3, input, output_size)


@op(
    samples=[case(distinct(2, 3, 7), output_size=(3,)),
             case(distinct(2, 2, 5, 4), output_size=(2, 3))],
    outputs=("out", "indices!"),
    method=False,
    reference=lambda torch, x, output_size: getattr(
        torch.nn.functional, f"adaptive_max_pool{len(output_size)}d"
    )(x, output_size, return_indices=True),
    d_input=lambda F, g, input_shape, indices, output_size: F.unpool_sum(
        g, indices, input_shape[len(input_shape) - len(output_size) :]
    ),
)  # fmt: skip
def adaptive_max_pool(xp: Namespace, input: Tensor, output_size: Shape) -> Any:
    """Return the maxima of windows that share the last dimensions out evenly, and their places."""
    return _adaptive_max_pool(xp, input, output_size)


def _adaptive_max_pool(xp: Namespace, x: Array, goal: Shape) -> tuple[Array, Array]:
    dims = len(goal)
    space, lead = x.shape[-dims:], x.shape[:-dims]
    out, places = xp.empty((*lead, *goal), x.dtype), xp.empty((*lead, *goal), xp.int64)
    numbers = xp.arange(math.prod(space)).reshape(space)
    cells = [list(enumerate(_edges(n, o))) for n, o in zip(space, goal, strict=True)]
    for cell in itertools.product(*cells):
        window = tuple(slice(*edges) for _, edges in cell)
        at = (..., *(place for place, _ in cell))
        block = x[(..., *window)].reshape(*lead, -1)
        best = xp.argmax(block, axis=-1)
        out[at] = xp.take_along_axis(block, best[..., None], -1)[..., 0]
        places[at] = xp.take(numbers[window].reshape(-1), best)
    return out, places


def _adaptive_max(dims: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    goal = _goal(f"adaptive_max_pool{dims}d", dims, input, output_size)
    out, indices = adaptive_max_pool(input, goal)
    return (out, indices) if return_indices else out


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the signal out evenly."""
    return _adaptive_max(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the image out evenly."""
    return _adaptive_max(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the volume out evenly."""
    return _adaptive_max(3, input, output_size, return_indices)


# ---------------------------------------------------------------------- unpooling
def _unpool(
    dims: int, input: Tensor, indices: Tensor, kernel_size: Ints, stride: Ints | None,
    padding: Ints, output_size: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    try:
        size = _unpooled_size(dims, input, kernel_size, stride, padding, output_size)
        if indices.array.shape != input.array.shape:
            raise ShapeError(
                "Expected shape of indices to be same as that of the input tensor "
                f"({list(input.shape)}) but got indices tensor with shape: {list(indices.shape)}"
            )
        places = indices.array
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < math.prod(size):
            wrong = int(places.min() if int(places.min()) < 0 else places.max())
            raise ShapeError(
                f"Found an invalid max index: {wrong} (output volumes are of size {list(size)})"
            )
    except DistgradError as error:
        options = {"kernel_size": kernel_size, "stride": stride, "output_size": output_size}
        operands = {"input": input, "indices": indices}
        raise explain(f"max_unpool{dims}d", error, operands, options) from None
    return unpool(input, indices, size)


def _unpooled_size(
    dims: int, input: Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints,
    output_size: Sequence[int] | None,
) -> Shape:  # fmt: skip
    kernel = _each("kernel_size", kernel_size, dims)
    strides = kernel if stride is None else _each("stride", stride, dims)
    pads = _each("padding", padding, dims)
    usual = tuple(
        (n - 1) * s - 2 * p + k
        for n, k, s, p in zip(input.array.shape[-dims:], kernel, strides, pads, strict=True)
    )
    if output_size is None:
        return usual
    size = tuple(output_size)[-dims:]
    for got, middle, s in zip(size, usual, strides, strict=True):
        if not middle - s < got < middle + s:
            raise ArgumentError(
                f"invalid output_size {list(size)}: dimensions must be within a stride of "
                f"{list(usual)}"
            )
    return size


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return zeros with the maxima put back to the places that ``max_pool1d`` returned."""
    return _unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return zeros with the maxima put back to the places that ``max_pool2d`` returned."""
    return _unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return zeros with the maxima put back to the places that ``max_pool3d`` returned."""
    return _unpool(3, input, indices, kernel_size, stride, padding, output_size)
