"""Convolutions by cuDNN, in the memory order that tensor cores read: channels last.

Note [Channels last]
    Operands of the ordinary order are copied to channels last first, and the result is copied
    back, which costs less than what cuDNN does about that order itself (gigabytes of workspace for
    a network of images).  Where an operand lies channels last, so does the result, as in PyTorch:
    a network that was moved by ``to(memory_format=channels_last)`` copies nothing.

Note [Evened]
    cuDNN pads both sides alike.  What one side has more is padded, or cut away, beforehand.  A
    signal is an image of height 1.  With half precision, channels come in eights: an image of 3 is
    given 5 of zeros, which saves a workspace of 100 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cupy

from distgrad.backend.cuda.cudnn import (
    WORKSPACE,
    Place,
    Plan,
    Sketch,
    Wishes,
    aligned,
    packed,
    plan,
    usable,
    wishes,
)
from distgrad.backend.cuda.ordered import channels_last, empty_last, lies_last
from distgrad.typing import Array, Shape

__all__ = ["KERNELS", "Convolution"]

Pads = tuple[tuple[int, int], ...]
_EIGHT = 8  # channels of half precision that a tensor core reads at once


# ---------------------------------------------------------------------- what cuDNN is asked
class Convolution(NamedTuple):
    """A convolution, or a gradient of one, all operands channels last.

    ``operation`` is "fprop" (of image and filter), "dgrad" (of result and filter: the image) or
    "wgrad" (of image and result: the filter).
    """

    operation: str
    image: Shape
    filter: Shape
    result: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    bias: bool
    dtype: str
    wishes: Wishes
    workspace: int | None = WORKSPACE
    compiled: bool = False

    def write(self, sketch: Sketch) -> None:
        """Write the graph: the operands in the order of the operation's name, then the result."""
        names = {"fprop": ("image", "filter", "result"), "dgrad": ("result", "filter", "image"),
                 "wgrad": ("image", "result", "filter")}[self.operation]  # fmt: skip
        places = [_place(getattr(self, name)) for name in names]
        first, second = (sketch.given(place, self.dtype) for place in places[:2])
        out = getattr(sketch.graph, f"conv_{self.operation}")(
            first, second, pre_padding=list(self.padding), post_padding=list(self.padding),
            stride=list(self.stride), dilation=list(self.dilation),
        )  # fmt: skip
        if self.bias:
            # The sum before the bias stays in float32, and is rounded once.
            shape, strides = map(list, places[2])
            out.set_dim(shape).set_stride(strides)
            each = _place((1, self.filter[0], *[1] * len(self.stride)))
            out = sketch.graph.bias(out, sketch.given(each, self.dtype))
        sketch.gives(out, places[2], self.dtype)


def _place(shape: Shape) -> Place:
    return Place(shape, packed(shape, channels_last(len(shape))))


# ---------------------------------------------------------------------- memory
def _last(x: Array, more: Pads = (), channels: int = 0) -> Array:
    """Return ``x`` channels last: itself if it lies so, and nothing is added.

    Args:
        more: zeros before and after each dimension of space; negative numbers cut away.
        channels: how many there shall be; new ones are 0.
    """
    if any(map(any, more)) or channels > x.shape[1]:
        return _enlarged(x, more or ((0, 0),) * (x.ndim - 2), max(channels, x.shape[1]))
    if x.transpose(channels_last(x.ndim)).flags.c_contiguous:
        return aligned(x)
    out = empty_last(x.shape, x.dtype)
    out[...] = x
    return out


def _enlarged(x: Array, more: Pads, channels: int) -> Array:
    """Return a copy of ``x``, channels last, with zeros around it; see `_last`."""
    space = _grown(x.shape[2:], more)
    out = empty_last((x.shape[0], channels, *space), x.dtype, cupy.zeros)
    here, there = [], []
    for n, (a, b) in zip(x.shape[2:], more, strict=True):
        here.append(slice(max(-a, 0), n - max(-b, 0)))
        there.append(slice(max(a, 0), n + a + b - max(b, 0)))
    out[(slice(None), slice(x.shape[1]), *there)] = x[(slice(None), slice(None), *here)]
    return out


def _as_image(*arrays: Array) -> list[Array]:
    """Return signals as images of height 1."""
    return [a[:, :, None] if a.ndim == 3 else a for a in arrays]


# ---------------------------------------------------------------------- geometry
class _Form(NamedTuple):
    """What a convolution does, after Note [Evened]."""

    stride: Shape
    padding: Shape
    more: Pads
    dilation: Shape


def _evened(stride: Shape, pads: Pads, dilation: Shape) -> _Form:
    even = tuple(max(0, min(pair)) for pair in pads)
    more = tuple((a - n, b - n) for (a, b), n in zip(pads, even, strict=True))
    if len(stride) == 1:
        return _Form((1, *stride), (0, *even), ((0, 0), *more), (1, *dilation))
    return _Form(tuple(stride), even, more, tuple(dilation))


def _sizes(space: Sequence[int], kernel: Sequence[int], form: _Form) -> Shape:
    each = zip(space, kernel, form.stride, form.padding, form.dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)


def _fitted(
    space: Shape, kernel: Shape, places: Shape, stride: Shape, pads: Pads, dilation: Shape
) -> Pads:
    """Return ``pads`` with so much less at the end that there are ``places`` windows, no more."""
    each = zip(space, kernel, places, stride, pads, dilation, strict=True)
    return tuple(
        (a, b) if (n + a + b - d * (k - 1) - 1) // s + 1 == o
        else (a, (o - 1) * s + d * (k - 1) + 1 - n - a)
        for n, k, o, s, (a, b), d in each
    )  # fmt: skip


def _grown(space: Sequence[int], more: Pads) -> list[int]:
    return [n + a + b for n, (a, b) in zip(space, more, strict=True)]


def _channels(channels: int, groups: int, dtype: Any) -> int:
    """Return how many channels to give an image (see Note [Evened])."""
    if groups > 1 or dtype.itemsize != 2:
        return channels
    return -(-channels // _EIGHT) * _EIGHT


def _planned(
    operation: str, image: Shape, filter: Shape, result: Shape, form: _Form, dtype: Any,
    bias: bool = False,
) -> Plan | None:  # fmt: skip
    return plan(
        Convolution(
            operation, tuple(image), tuple(filter), tuple(result), form.stride, form.padding,
            form.dilation, bias, dtype.name, wishes(),
        )
    )  # fmt: skip


def _shaped(out: Array, ndim: int, last: bool) -> Array:
    """Return a result in its number of dimensions, in the order that its operands had."""
    out = out if last else cupy.ascontiguousarray(out)
    return out[:, :, 0] if ndim == 3 else out


# ---------------------------------------------------------------------- the three operations
def convolve(
    x: Array, w: Array, bias: Array | None, stride: Shape, pads: Pads, dilation: Shape, groups: int
) -> Any:
    """Return the convolution of ``x`` with ``w``, plus ``bias``; see `ops.conv`."""
    operands = (x, w) if bias is None else (x, w, bias)
    if not usable(*operands):
        return NotImplemented
    form = _evened(stride, pads, dilation)
    last, ndim = lies_last(x) or lies_last(w), x.ndim
    x, w = _as_image(x, w)
    places = _sizes(_grown(x.shape[2:], form.more), w.shape[2:], form)
    channels = _channels(x.shape[1], groups, x.dtype)
    image = (len(x), channels, *_grown(x.shape[2:], form.more))
    filter = (len(w), channels // groups, *w.shape[2:])
    result = (len(x), len(w), *places)
    fused = found = _planned("fprop", image, filter, result, form, x.dtype, bias is not None)
    if fused is None and bias is not None:
        found = _planned("fprop", image, filter, result, form, x.dtype)
    if found is None:
        return NotImplemented
    out = empty_last(result, x.dtype)
    arrays = [_last(x, form.more, channels), _last(w, (), filter[1])]
    if bias is not None and fused is not None:
        arrays.append(aligned(cupy.ascontiguousarray(bias)))
    found.run(*arrays, out)
    if bias is not None and fused is None:
        out += bias.reshape(-1, *[1] * len(places))
    return _shaped(out, ndim, last)


def _first(x: Array, channels: int) -> Array:
    """Return the first channels; all of them are ``x`` itself, which is no view."""
    return x if x.shape[1] == channels else x[:, :channels]


def convolve_input(
    g: Array, w: Array, space: Shape, stride: Shape, pads: Pads, dilation: Shape, groups: int
) -> Any:
    """Return the gradient of the image of ``space``; see `ops.conv`."""
    if not usable(g, w) or not math.prod(space):
        return NotImplemented
    last, ndim = lies_last(g) or lies_last(w), g.ndim
    pads = _fitted(space, w.shape[2:], g.shape[2:], stride, pads, dilation)
    form = _evened(stride, pads, dilation)
    g, w = _as_image(g, w)
    space = (1, *space) if ndim == 3 else space
    channels = _channels(w.shape[1] * groups, groups, w.dtype)
    image = (len(g), channels, *_grown(space, form.more))
    filter = (len(w), channels // groups, *w.shape[2:])
    found = _planned("dgrad", image, filter, g.shape, form, g.dtype)
    if found is None:
        return NotImplemented
    out = empty_last(image, g.dtype)
    found.run(_last(g), _last(w, (), filter[1]), out)
    out = _last(_first(out, w.shape[1] * groups), tuple((-a, -b) for a, b in form.more))
    return _shaped(out, ndim, last)


def convolve_weight(
    g: Array, x: Array, kernel: Shape, stride: Shape, pads: Pads, dilation: Shape, groups: int
) -> Any:
    """Return the gradient of the weight; see `ops.conv`.

    It has the operands' dtype: cuDNN gives no sum in float32 of half precision.
    """
    if not usable(g, x):
        return NotImplemented
    last, ndim = lies_last(g) or lies_last(x), g.ndim
    pads = _fitted(x.shape[2:], kernel, g.shape[2:], stride, pads, dilation)
    form = _evened(stride, pads, dilation)
    g, x = _as_image(g, x)
    kernel = (1, *kernel) if ndim == 3 else tuple(kernel)
    channels = _channels(x.shape[1], groups, x.dtype)
    image = (len(x), channels, *_grown(x.shape[2:], form.more))
    filter = (g.shape[1], channels // groups, *kernel)
    found = _planned("wgrad", image, filter, g.shape, form, g.dtype)
    if found is None:
        return NotImplemented
    out = empty_last(filter, g.dtype)
    found.run(_last(x, form.more, channels), _last(g), out)
    out = _last(_first(out, x.shape[1] // groups))
    return _shaped(out, ndim, last)


KERNELS: dict[str, Callable[..., Any]] = {
    "convolve": convolve, "convolve_input": convolve_input, "convolve_weight": convolve_weight,
}  # fmt: skip
