"""Batch norm: statistics in one pass over the batch, the result in a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda.module import (
    MOST_BLOCKS,
    contiguous,
    kernel,
    or_none,
    over_elements,
    sum_type,
    type_name,
)
from distgrad.backend.cuda.norm import affine_types
from distgrad.typing import Array

__all__ = ["KERNELS"]

_FILE = "batch.cu"
_MOST_COUNTED = 1 << 31  # numbers of a channel, which kernels count in 32 bits


class _Layout:
    """Where the numbers of a channel lie: in planes, or in columns if ``inner`` is 1."""

    __slots__ = ("channels", "images", "inner")
    channels: int
    images: int
    inner: int

    def __init__(self, x: Array) -> None:
        places = math.prod(x.shape[2:])
        self.channels = x.shape[1]
        columns = places == 1 or (not x.flags.c_contiguous and _is_channels_last(x))
        self.images, self.inner = (x.size // self.channels, 1) if columns else (x.shape[0], places)

    @property
    def count(self) -> int:
        """How many numbers a channel has."""
        return self.images * self.inner

    def taken(self, x: Array) -> Array:
        """Return ``x`` in this layout, itself if it lies so."""
        if self.inner > 1 or x.size == math.prod(x.shape[:2]):
            return contiguous(x)
        if _is_channels_last(x):
            return x
        out = contiguous(cupy.moveaxis(x, 1, -1))
        return cupy.moveaxis(out, -1, 1)

    def sums(self, name: str, types: dict[str, str], arrays: tuple[Array, ...]) -> Array:
        """Return shares of both sums of each channel, as (2, parts, channels)."""
        x, kind = arrays[-1] if name == "moments" else arrays[1], sum_type(arrays[0])
        if self.inner > 1:
            most = -(-self.count * x.itemsize // (16 * 256 * 2))
            parts = max(1, min(MOST_BLOCKS // self.channels, most))
            shares = cupy.empty((2, parts, self.channels), kind)
            kernel(_FILE, f"plane_{name}", **types)(
                (self.channels, parts), (256,),
                (*arrays, shares, self.images, self.channels, self.inner),
            )  # fmt: skip
            return shares
        each = 16 // x.itemsize
        packed = self.channels % each == 0 and all(a.data.ptr % 16 == 0 for a in arrays)
        each = each if packed else 1
        across = -(-self.channels // each)
        wide = min(1 << (across - 1).bit_length(), 32)
        groups, high = -(-across // wide), 256 // wide
        parts = max(1, min(MOST_BLOCKS // groups, -(-self.images // (high * 4))))
        shares = cupy.empty((2, parts, self.channels), kind)
        kernel(_FILE, f"column_{name}", **types)(
            (groups, parts), (wide, high),
            (*arrays, shares, self.images, self.channels, int(packed)),
            shared_mem=2 * each * 256 * kind.itemsize,
        )  # fmt: skip
        return shares


def _is_channels_last(x: Array) -> bool:
    return bool(cupy.moveaxis(x, 1, -1).flags.c_contiguous)


def batch_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> Any:
    """Return the normalised batch, and the mean and biased variance of its channels."""
    types = affine_types(x, weight, bias)
    if types is None or not x.size:
        return NotImplemented
    layout = _Layout(x)
    if layout.count >= _MOST_COUNTED:
        return NotImplemented
    x = layout.taken(x)
    shares = layout.sums("moments", types, (x,))
    mean, var, scale = (cupy.empty(layout.channels, shares.dtype) for _ in range(3))
    kernel(_FILE, "finish_moments", **types)(
        (-(-layout.channels // 32),), (32, 32),
        (shares, x, or_none(weight), mean, var, scale, shares.shape[1], layout.channels,
         layout.inner, float(layout.count), float(eps)),
    )  # fmt: skip
    out = cupy.empty_like(x)
    kernel(_FILE, "scale_channels", **types)(
        *over_elements(x),
        (x, mean, scale, or_none(bias), out, x.size, layout.channels, layout.inner),
    )  # fmt: skip
    return out, mean, var


def d_batch_norm(
    g: Array, input: Array, weight: Array | None, mean: Array, var: Array, eps: float
) -> Any:
    """Return the gradients of input, weight and bias."""
    types = affine_types(input, weight)
    if types is None or g.dtype != input.dtype or not input.size:
        return NotImplemented
    layout = _Layout(input)
    if layout.count >= _MOST_COUNTED:
        return NotImplemented
    g, x = layout.taken(g), layout.taken(input)
    shares = layout.sums("slopes", types, (g, x, mean))
    kind = input.dtype if weight is None else weight.dtype
    d_weight, d_bias = cupy.empty(layout.channels, kind), cupy.empty(layout.channels, kind)
    factors = cupy.empty((3, layout.channels), shares.dtype)
    kernel(_FILE, "finish_slopes", **types)(
        (-(-layout.channels // 32),), (32, 32),
        (shares, var, or_none(weight), d_weight, d_bias, factors, shares.shape[1],
         layout.channels, float(layout.count), float(eps)),
    )  # fmt: skip
    out = cupy.empty_like(x)
    kernel(_FILE, "d_scale_channels", **types)(
        *over_elements(x), (g, x, mean, factors, out, x.size, layout.channels, layout.inner)
    )
    return out, d_weight, d_bias


def move_statistics(
    running_mean: Array | None, running_var: Array | None, mean: Array, var: Array,
    momentum: float, count: int,
) -> Any:  # fmt: skip
    """Move running statistics in place towards those of a batch of ``count`` numbers a channel."""
    given = [a for a in (running_mean, running_var) if a is not None]
    numbers = type_name(mean.dtype)
    if numbers is None or not all(a.flags.c_contiguous for a in given):
        return NotImplemented
    if len({a.dtype for a in given}) > 1 or not all(type_name(a.dtype) for a in given):
        return NotImplemented
    if given:
        types = {"T": numbers, "W": type_name(given[0].dtype) or ""}
        kernel(_FILE, "move_statistics", **types)(
            *over_elements(mean),
            (or_none(running_mean), or_none(running_var), mean, var, mean.size, float(momentum),
             count / max(count - 1, 1)),
        )  # fmt: skip
    return None


KERNELS: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "d_batch_norm": d_batch_norm,
    "move_statistics": move_statistics,
}
