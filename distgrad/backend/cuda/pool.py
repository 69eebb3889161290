"""Pooling in one kernel each, forward and backward; images may have their channels last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda.module import MOST_BLOCKS, contiguous, kernel, type_name
from distgrad.typing import Array, Shape

__all__ = ["KERNELS"]

_FILE = "pool.cu"


def _kind(x: Array, images: Shape, result: Shape) -> str | None:
    """Return the type of a kernel; None where there is none for such operands."""
    size = math.prod(images) * math.prod(result)
    return type_name(x.dtype) if 0 < size < 2**31 and 0 < x.size < 2**31 else None


def _is_last(x: Array, dims: int) -> bool:
    """Return whether the channels of ``x``, (N, C, *), come last in memory, and are several."""
    if x.ndim != dims + 2 or x.shape[1] == 1 or x.flags.c_contiguous:
        return False
    return bool(cupy.moveaxis(x, 1, -1).flags.c_contiguous)


def _like(x: Array, last: bool, space: Shape, dtype: Any = None) -> Array:
    """Return a new array of the images of ``x`` in another size, with channels where it has them.

    It is no view, by which the graph would take it for one.
    """
    shape = (*x.shape[: x.ndim - len(space)], *space)
    if not last:
        return cupy.empty(shape, dtype or x.dtype)
    return cupy.empty_like(x, dtype, "K", None, shape)


def _axes(size: Shape, windows: Shape, *options: Shape) -> tuple[int, ...]:
    """Return the parameters of three dimensions, of which the first may be of length 1."""
    each = [*zip(size, windows, *options, strict=True)]
    missing = 3 - len(each)
    return tuple(int(v) for axis in ([(1, 1, 1, 1, 0, 1)] * missing + each) for v in axis)


def _taken(x: Array, last: bool) -> Array:
    """Return ``x`` with its channels where they are asked for."""
    if not last:
        return contiguous(x)
    return cupy.moveaxis(contiguous(cupy.moveaxis(x, 1, -1)), -1, 1)


def _grid(out: Array) -> tuple[tuple[int], tuple[int]]:
    return (max(1, min(-(-out.size // 256), MOST_BLOCKS * 8)),), (256,)


def max_pool(
    x: Array, kernel_size: Shape, stride: Shape, padding: Shape, dilation: Shape, out: Shape
) -> Any:
    """Return the maximum of each window, and its place."""
    kind, dims = _kind(x, x.shape[: -len(out)], out), len(kernel_size)
    if kind is None:
        return NotImplemented
    last = _is_last(x, dims)
    x = _taken(x, last)
    best, places = _like(x, last, out), _like(x, last, out, cupy.int64)
    axes = _axes(x.shape[-dims:], out, kernel_size, stride, padding, dilation)
    kernel(_FILE, "max_pool", T=kind)(
        *_grid(best), (x, best, places, best.size, x.shape[1] if last else 1, *axes)
    )
    return best, places


def unpool_windows(g: Array, indices: Array, size: Shape, windows: Any) -> Any:
    """Return zeros of ``size`` with ``g`` added at its places, which lie in the windows.

    Args:
        windows: kernel, stride, padding and dilation.
    """
    kind, dims = _kind(g, g.shape[: -len(size)], size), len(size)
    if kind is None or windows is None or indices.dtype != cupy.int64:
        return NotImplemented
    last = _is_last(indices, dims)
    g, indices = _taken(g, last), _taken(indices, last)
    out = _like(g, last, tuple(size))
    axes = _axes(size, g.shape[-dims:], *windows)
    kernel(_FILE, "d_max_pool", T=kind)(
        *_grid(out), (g, indices, out, out.size, g.shape[1] if last else 1, *axes)
    )
    return out


def avg_pool(x: Array, windows: Any, include_pad: bool, divisor: int | None) -> Any:
    """Return the mean of each window."""
    size = x.shape[-len(windows[0]) :]
    return _averaged("avg_pool", x, size, windows[3], windows, include_pad, divisor)


def avg_pool_input(
    g: Array, space: Shape, windows: Any, include_pad: bool, divisor: int | None
) -> Any:
    """Return the gradient of the input of `avg_pool`."""
    return _averaged("avg_pool_input", g, space, space, windows, include_pad, divisor)


def _averaged(
    name: str, x: Array, size: Shape, result: Shape, windows: Any, include_pad: bool,
    divisor: int | None,
) -> Any:  # fmt: skip
    kind, dims = _kind(x, x.shape[: -len(result)], result), len(size)
    if kind is None:
        return NotImplemented
    last, options = _is_last(x, dims), (windows[0], windows[1], windows[2], (1,) * dims)
    x = _taken(x, last)
    out = _like(x, last, tuple(result))
    arguments = (x, out, out.size, x.shape[1] if last else 1, int(include_pad), float(divisor or 0))
    kernel(_FILE, name, T=kind)(*_grid(out), (*arguments, *_axes(size, windows[3], *options)))
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "max_pool": max_pool,
    "unpool": unpool_windows,
    "unpool_sum": unpool_windows,
    "avg_pool": avg_pool,
    "avg_pool_input": avg_pool_input,
}
