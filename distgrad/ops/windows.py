"""Windows of images as columns and back; channels moved into space and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import case, real
from distgrad.errors import DistgradError, ShapeError
from distgrad.ops.checks import demand_floating
from distgrad.ops.shape import permute, reshape, squeeze, unsqueeze
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "channel_shuffle", "fold", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
    "unfold",
]  # fmt: skip

Ints = int | Sequence[int]


def _pair(name: str, value: Ints) -> tuple[int, int]:
    many = (value,) * 2 if isinstance(value, int) else tuple(value)
    many = many * 2 if len(many) == 1 else many
    if len(many) != 2:
        raise ShapeError(f"It is expected {name} equals to 2, but got size {len(many)}")
    return int(many[0]), int(many[1])


def _counts(space: Shape, kernel: Shape, dilation: Shape, padding: Shape, stride: Shape) -> Shape:
    """Return how many windows there are along each dimension."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(space, kernel, dilation, padding, stride, strict=True)
    )


_FORMS: list[dict[str, Any]] = [
    {"kernel_size": (2, 3), "dilation": (1, 1), "padding": (0, 0), "stride": (1, 1)},
    {"kernel_size": (2, 2), "dilation": (2, 1), "padding": (1, 2), "stride": (2, 1)},
]


@op(
    "linear",
    widens=False,
    samples=[case(real(2, 2, 4, 5), **form) for form in _FORMS],
    method=False,
    reference="nn.functional.unfold",
    node="Im2ColBackward0",
    d_input=lambda F, g, input_shape, kernel_size, dilation, padding, stride: F.col2im(
        g, tuple(input_shape[2:]), kernel_size, dilation, padding, stride
    ),
)
def im2col(
    xp: Namespace, input: Tensor, kernel_size: Shape, dilation: Shape, padding: Shape,
    stride: Shape,
) -> Array:  # fmt: skip
    """Return the windows of images (N, C, H, W) as columns (N, C * window, L)."""
    x = xp.pad_zeros(input, [(p, p) for p in padding]) if any(padding) else input
    cut = xp.windows(x, kernel_size, stride, dilation).transpose(0, 1, 4, 5, 2, 3)
    rows, places = x.shape[1] * math.prod(kernel_size), math.prod(cut.shape[-2:])
    return xp.array(cut, copy=True).reshape(x.shape[0], rows, places)


@op(
    "linear",
    samples=[
        case(real(2, 12, 9), output_size=(4, 5), **_FORMS[0]),
        case(real(1, 8, 16), output_size=(4, 5), **_FORMS[1]),
    ],
    method=False,
    reference="nn.functional.fold",
    node="Col2ImBackward0",
    d_input=lambda F, g, kernel_size, dilation, padding, stride: F.im2col(
        g, kernel_size, dilation, padding, stride
    ),
)  # fmt: skip
def col2im(
    xp: Namespace, input: Tensor, output_size: Shape, kernel_size: Shape, dilation: Shape,
    padding: Shape, stride: Shape,
) -> Array:  # fmt: skip
    """Return the images that the columns add up to."""
    counts = _counts(output_size, kernel_size, dilation, padding, stride)
    channels = input.shape[1] // math.prod(kernel_size)
    blocks = xp.reshape(input, (input.shape[0], channels, *kernel_size, *counts))
    wide = [n + 2 * p for n, p in zip(output_size, padding, strict=True)]
    out = xp.zeros((input.shape[0], channels, *wide), input.dtype)
    for i, j in itertools.product(*map(range, kernel_size)):
        rows = slice(i * dilation[0], i * dilation[0] + (counts[0] - 1) * stride[0] + 1, stride[0])
        cols = slice(j * dilation[1], j * dilation[1] + (counts[1] - 1) * stride[1] + 1, stride[1])
        out[:, :, rows, cols] += blocks[:, :, i, j]
    return xp.pad_zeros(out, [(-p, -p) for p in padding]) if any(padding) else out


def _sizes(
    kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> tuple[Shape, Shape, Shape, Shape]:
    kernel, dilations = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
    pads, strides = _pair("padding", padding), _pair("stride", stride)
    for name, sizes in (("kernel size", kernel), ("dilation", dilations), ("stride", strides)):
        if min(sizes) <= 0:
            raise ShapeError(f"{name} should be greater than zero, but got {list(sizes)}")
    if min(pads) < 0:
        raise ShapeError(f"padding should be non-negative, but got {list(pads)}")
    return kernel, dilations, pads, strides


def unfold(
    input: Tensor, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1
) -> Tensor:
    """Return the windows of images as columns.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; result: ``(N, C * kH * kW, L)``.
    """
    x = input.array
    try:
        sizes = _sizes(kernel_size, dilation, padding, stride)
        if x.ndim not in (3, 4) or 0 in x.shape[-3:]:
            raise ShapeError(
                "Expected 3D or 4D (batch mode) tensor with possibly 0 batch size and other "
                f"non-zero dimensions for input, but got: {list(x.shape)}"
            )
        demand_floating(x, "bool", "complex64", "complex128")
        counts = _counts(x.shape[-2:], *sizes)
        if min(counts) < 1:
            raise ShapeError(
                f"Given input with spatial size {list(x.shape[-2:])}, the calculated shape of the "
                f"array of sliding blocks is {list(counts)}, but its components must be at least "
                "one; use a smaller kernel_size or padding"
            )
    except DistgradError as error:
        options = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding}
        recover("unfold", error, {"input": input}, options)
    if x.ndim == 4:
        return im2col(input, *sizes)
    return squeeze(im2col(unsqueeze(input, 0), *sizes), 0)


def fold(
    input: Tensor, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0,
    stride: Ints = 1,
) -> Tensor:  # fmt: skip
    """Return the images of ``output_size`` that columns of windows add up to.

    Shape:
        input: ``(N, C * kH * kW, L)`` or ``(C * kH * kW, L)``; result: ``(N, C, H, W)``.
    """
    x = input.array
    try:
        space = _pair("output_size", output_size)
        sizes = _sizes(kernel_size, dilation, padding, stride)
        if x.ndim not in (2, 3) or 0 in x.shape[-2:]:
            raise ShapeError(
                "Expected 2D or 3D (batch mode) tensor for input with possibly 0 batch size and "
                f"non-zero dimensions for input, but got: {list(x.shape)}"
            )
        if x.shape[-2] % math.prod(sizes[0]):
            raise ShapeError(
                "Expected size of input's dimension 1 to be divisible by the product of "
                f"kernel_size, but got input.size(1)={x.shape[-2]} and kernel_size={sizes[0]}."
            )
        counts = _counts(space, *sizes)
        if min(counts) < 1 or math.prod(counts) != x.shape[-1]:
            raise ShapeError(
                f"Given output_size={space}, expected size of input's dimension 2 to match the "
                f"calculated number of sliding blocks {' * '.join(map(str, counts))} = "
                f"{math.prod(counts)}, but got input.size(2)={x.shape[-1]}."
            )
    except DistgradError as error:
        recover("fold", error, {"input": input}, {"output_size": output_size})
    if x.ndim == 3:
        return col2im(input, space, *sizes)
    return squeeze(col2im(unsqueeze(input, 0), space, *sizes), 0)


# ---------------------------------------------------------------------- channels and space
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """Return channels moved into space.

    Shape:
        input: ``(*, C * r², H, W)``; result: ``(*, C, H * r, W * r)`` with r ``upscale_factor``.
    """
    shape, r = input.array.shape, upscale_factor
    error = _channels_error(shape, r, "pixel_shuffle", "upscale_factor")
    if error is None and shape[-3] % (r * r):
        error = ShapeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square "
            f"of upscale_factor, but input.size(-3)={shape[-3]} is not divisible by {r * r}"
        )
    if error is not None:
        recover("pixel_shuffle", error, {"input": input}, {"upscale_factor": r})
    *lead, c, h, w = shape
    n = len(lead)
    x = reshape(input, (*lead, c // (r * r), r, r, h, w))
    x = permute(x, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshape(x, (*lead, c // (r * r), h * r, w * r))


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """Return space moved into channels, the reverse of ``pixel_shuffle``.

    Shape:
        input: ``(*, C, H * r, W * r)``; result: ``(*, C * r², H, W)`` with r ``downscale_factor``.
    """
    shape, r = input.array.shape, downscale_factor
    error = _channels_error(shape, r, "pixel_unshuffle", "downscale_factor")
    if error is None and (shape[-2] % r or shape[-1] % r):
        error = ShapeError(
            "pixel_unshuffle expects height and width to be divisible by downscale_factor, but "
            f"input.size(-2)={shape[-2]} and input.size(-1)={shape[-1]} are not both by {r}"
        )
    if error is not None:
        recover("pixel_unshuffle", error, {"input": input}, {"downscale_factor": r})
    *lead, c, h, w = shape
    n = len(lead)
    x = reshape(input, (*lead, c, h // r, r, w // r, r))
    x = permute(x, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshape(x, (*lead, c * r * r, h // r, w // r))


def _channels_error(shape: Shape, factor: int, name: str, what: str) -> DistgradError | None:
    if len(shape) < 3:
        return ShapeError(
            f"{name} expects input to have at least 3 dimensions, but got input with {len(shape)} "
            "dimension(s)"
        )
    if factor <= 0:
        return ShapeError(f"{name} expects a positive {what}, but got {factor}")
    return None


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Return ``input`` with ``groups`` blocks of channels interleaved.

    Shape:
        input: ``(N, C, *)``.
    """
    shape = input.array.shape
    error: DistgradError | None = None
    if len(shape) < 3:
        error = ShapeError(
            f"channel_shuffle expects input with > 2 dims, but got input with sizes {list(shape)}"
        )
    elif groups <= 0:
        error = ShapeError(
            f"Number of groups to divide channels in must be positive. Value of groups:{groups}"
        )
    elif shape[1] % groups:
        error = ShapeError(
            "Number of channels must be divisible by groups. Got "
            f"{shape[1]} channels and {groups} groups."
        )
    if error is not None:
        recover("channel_shuffle", error, {"input": input}, {"groups": groups})
    x = reshape(input, (shape[0], groups, shape[1] // groups, *shape[2:]))
    order = (0, 2, 1, *range(3, len(shape) + 1))
    return reshape(permute(x, order), shape)


def native_channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """Return ``channel_shuffle`` of the same arguments."""
    return channel_shuffle(input, groups)
