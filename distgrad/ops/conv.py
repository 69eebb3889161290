"""Convolutions in one, two and three dimensions, and transposed ones.

Note [Three bilinear operations]
    A convolution, its gradient with respect to the input (which is the transposed convolution) and
    its gradient with respect to the weight are each linear in two operands, and each derivative of
    one of them is one of them.  So derivatives of every order, forward mode and the transposed
    convolutions come from three bodies of arrays.

Note [Columns]
    All windows of one image, side by side, are a matrix (channels·kernel, places) that the weight
    multiplies.  It is made for a few images at a time, so that it is still in the cache when BLAS
    reads it.  Where the stride is 1, the gradient of the input is a convolution of g with the
    flipped weight, which saves adding up columns; with few input channels those are cheaper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.narrow import is_narrow
from distgrad.autograd.samples import case, real
from distgrad.backend.forms import device_form
from distgrad.errors import DistgradError, DtypeError, ShapeError, explain
from distgrad.ops.checks import as_dtype, demand_floating, widened
from distgrad.ops.shape import permute, reshape, unsqueeze
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "convolution",
]  # fmt: skip

Pads = tuple[tuple[int, int], ...]
_CHUNK = 8  # blocks of the backend that the columns of one step may fill


# ---------------------------------------------------------------------- on arrays
def _out_sizes(space: Shape, kernel: Shape, stride: Shape, pads: Pads, dilation: Shape) -> Shape:
    return tuple(
        (n + sum(pad) - d * (k - 1) - 1) // s + 1
        for n, k, s, pad, d in zip(space, kernel, stride, pads, dilation, strict=True)
    )


def _fitted(
    pads: Pads, space: Shape, places: Shape, kernel: Shape, stride: Shape, dilation: Shape
) -> Pads:
    """Return ``pads`` with so much less at the end that there are only ``places`` windows.

    A transposed convolution with output_padding may be longer than its input's windows reach.
    """
    if _out_sizes(space, kernel, stride, pads, dilation) == tuple(places):
        return pads
    each = zip(pads, space, places, kernel, stride, dilation, strict=True)
    return tuple((a, (o - 1) * s + d * (k - 1) + 1 - n - a) for (a, _), n, o, k, s, d in each)


def _columns(
    xp: Namespace, x: Array, kernel: Shape, stride: Shape, pads: Pads, dilation: Shape, groups: int
) -> Iterator[tuple[slice, Array]]:
    """Return a few images at a time, with columns (images, groups, channels·kernel, places)."""
    batch, channels, *space = x.shape
    out = _out_sizes(tuple(space), kernel, stride, pads, dilation)
    places, dims = math.prod(out), len(kernel)
    if math.prod(kernel) == 1 and math.prod(stride) == 1 and not any(map(any, pads)):
        yield slice(0, batch), x.reshape(batch, groups, channels // groups, places)
        return
    each = channels * math.prod(kernel) * places
    step = max(1, min(batch, _CHUNK * xp.BLOCK // max(each, 1)))
    room = xp.empty((step, channels, *kernel, *out), x.dtype)
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    for start in range(0, batch, step):
        part = slice(start, min(start + step, batch))
        images = xp.pad_zeros(x[part], pads) if any(map(any, pads)) else x[part]
        filled = room[: part.stop - start]
        filled[...] = xp.windows(images, kernel, stride, dilation).transpose(order)
        yield part, filled.reshape(len(filled), groups, each // max(groups * places, 1), places)


@device_form
def _convolve(
    xp: Namespace, x: Array, w: Array, bias: Array | None, stride: Shape, pads: Pads,
    dilation: Shape, groups: int,
) -> Array:  # fmt: skip
    kernel = w.shape[2:]
    sizes = _out_sizes(x.shape[2:], kernel, stride, pads, dilation)
    out = xp.empty((len(x), len(w), *sizes), x.dtype)
    per_group = len(w) // groups
    rows = w.reshape(groups, per_group, -1)
    target = out.reshape(len(x), groups, per_group, math.prod(sizes))
    for part, columns in _columns(xp, x, kernel, stride, pads, dilation, groups):
        xp.matmul(rows, columns, out=target[part])
        if bias is not None:
            target[part] += bias.reshape(groups, per_group, 1)
    return out


@device_form
def _convolve_weight(
    xp: Namespace, g: Array, x: Array, kernel: Shape, stride: Shape, pads: Pads, dilation: Shape,
    groups: int,
) -> Array:  # fmt: skip
    out, channels = g.shape[1], x.shape[1]
    total = xp.zeros((groups, out // groups, channels // groups * math.prod(kernel)), g.dtype)
    rows = g.reshape(len(g), groups, out // groups, math.prod(g.shape[2:]))
    for part, columns in _columns(xp, x, kernel, stride, pads, dilation, groups):
        total += xp.add.reduce(xp.matmul(rows[part], xp.swapaxes(columns, -1, -2)), axis=0)
    return total.reshape(out, channels // groups, *kernel)


@device_form
def _convolve_input(
    xp: Namespace, g: Array, w: Array, space: Shape, stride: Shape, pads: Pads, dilation: Shape,
    groups: int,
) -> Array:  # fmt: skip
    kernel = w.shape[2:]
    split = w.reshape(groups, len(w) // groups, *w.shape[1:])
    if math.prod(stride) == 1 and len(w) <= 2 * groups * w.shape[1]:
        swapped = xp.swapaxes(split, 1, 2).reshape(groups * w.shape[1], -1, *kernel)
        flipped = xp.flip(swapped, tuple(range(2, swapped.ndim)))
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        each = zip(reach, pads, space, g.shape[2:], strict=True)
        around = tuple((r - a, n - places + a) for r, (a, _), n, places in each)
        return _convolve(xp, g, flipped, None, stride, around, dilation, groups)
    channels = w.shape[1] * groups
    rows = xp.swapaxes(split.reshape(groups, len(w) // groups, -1), 1, 2)
    padded = [n + sum(pad) for n, pad in zip(space, pads, strict=True)]
    out = xp.zeros((len(g), channels, *space), g.dtype)
    places = g.shape[2:]
    gs = g.reshape(len(g), groups, len(w) // groups, math.prod(places))
    each = channels * math.prod(kernel) * math.prod(places)
    step = max(1, _CHUNK * xp.BLOCK // max(each, 1))
    for start in range(0, len(g), step):
        columns = xp.matmul(rows, gs[start : start + step])
        columns = columns.reshape(len(columns), channels, *kernel, *places)
        wide = xp.zeros((len(columns), channels, *padded), g.dtype)
        for offset in itertools.product(*map(range, kernel)):
            ends = zip(offset, places, stride, dilation, strict=True)
            window = tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, n, s, d in ends)
            wide[(..., *window)] += columns[(slice(None), slice(None), *offset)]
        out[start : start + step] = xp.pad_zeros(wide, [(-a, -b) for a, b in pads])
    return out


# ---------------------------------------------------------------------- the three operations
_FEW = {"stride": (1, 1), "padding": ((1, 1),) * 2, "dilation": (1, 1), "groups": 1}
_1D = {"stride": (1,), "padding": ((1, 1),), "dilation": (1,), "groups": 1}
_2D = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2), "groups": 2}
_3D = {"stride": (1, 1, 1), "padding": ((0, 0),) * 3, "dilation": (1, 1, 1), "groups": 1}
_1x1 = {"stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1), "groups": 1}


def _reference(
    torch: Any, x: Any, w: Any, b: Any = None, *, stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> Any:  # fmt: skip
    pads = [n for pair in reversed(padding) for n in pair]
    function = getattr(torch.nn.functional, f"conv{x.dim() - 2}d")
    return function(torch.nn.functional.pad(x, pads), w, b, stride, 0, dilation, groups)


@op(
    samples=[case(real(2, 3, 5), real(4, 3, 3), real(4), **_1D),
             case(real(2, 4, 5, 6), real(2, 2, 3, 2), real(2), **_2D),
             case(real(1, 2, 3, 3, 2), real(3, 2, 2, 2, 1), **_3D),
             case(real(2, 3, 2, 2), real(4, 3, 1, 1), real(4), **_1x1),
             case(real(2, 1, 4, 3), real(4, 1, 3, 2), **_FEW)],
    method=False,
    reference=_reference,
    d_input=lambda F, g, weight, input_shape, stride, padding, dilation, groups:
        F.convolution_input(g, weight, input_shape[2:], stride, padding, dilation, groups),
    d_weight=lambda F, g, input, weight_shape, stride, padding, dilation, groups:
        F.convolution_weight(g, input, weight_shape[2:], stride, padding, dilation, groups),
    d_bias=lambda F, g: F.sum(g, (0, *range(2, g.ndim))),
    jvp=lambda F, input, weight, t_input, t_weight, t_bias, stride, padding, dilation, groups:
        (0 if t_input is None else
         F.convolution(t_input, weight, None, stride, padding, dilation, groups))
        + (0 if t_weight is None else
           F.convolution(input, t_weight, None, stride, padding, dilation, groups))
        + (0 if t_bias is None else F.reshape(t_bias, (-1,) + (1,) * (input.ndim - 2))),
)  # fmt: skip
def convolution(
    xp: Namespace, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape, padding: Pads,
    dilation: Shape, groups: int,
) -> Array:  # fmt: skip
    """Return the convolution (cross-correlation) of ``input`` with ``weight``, plus ``bias``.

    Shape:
        input: ``(N, C, *)``, weight: ``(O, C / groups, *kernel)``, bias: ``(O)``.
    Args:
        padding: zeros (before, after) each dimension; negative numbers cut away.
    """
    return _convolve(xp, input, weight, bias, stride, padding, dilation, groups)


@op(
    "multilinear",
    samples=[case(real(2, 4, 5), real(4, 3, 3), input_size=(5,), **_1D),
             case(real(2, 2, 2, 6), real(2, 2, 3, 2), input_size=(5, 6), **_2D),
             case(real(1, 4, 3), real(4, 3, 3), input_size=(5,), **_1D)],
    method=False,
    reference="none",
    d_grad=lambda F, g, weight, grad_shape, stride, padding, dilation, groups:
        F.convolution(
            g, weight, None, stride,
            _fitted(padding, g.shape[2:], grad_shape[2:], weight.shape[2:], stride, dilation),
            dilation, groups,
        ),
    d_weight=lambda F, g, grad, weight_shape, stride, padding, dilation, groups:
        F.convolution_weight(
            grad, g, weight_shape[2:], stride,
            _fitted(padding, g.shape[2:], grad.shape[2:], weight_shape[2:], stride, dilation),
            dilation, groups,
        ),
)  # fmt: skip
def convolution_input(
    xp: Namespace, grad: Tensor, weight: Tensor, input_size: Shape, stride: Shape, padding: Pads,
    dilation: Shape, groups: int,
) -> Array:  # fmt: skip
    """Return the gradient of a convolution's input of ``input_size``: the transposed convolution.

    Shape:
        grad: ``(N, O, *)``, weight: ``(O, C / groups, *kernel)``; result: ``(N, C, *input_size)``.
    """
    return _convolve_input(xp, grad, weight, input_size, stride, padding, dilation, groups)


@op(
    "multilinear",
    samples=[case(real(2, 4, 5), real(2, 3, 5), kernel_size=(3,), **_1D),
             case(real(2, 2, 2, 6), real(2, 4, 5, 6), kernel_size=(3, 2), **_2D)],
    method=False,
    reference="none",
    d_grad=lambda F, g, input, stride, padding, dilation, groups:
        F.convolution(input, g, None, stride, padding, dilation, groups),
    d_input=lambda F, g, grad, input_shape, stride, padding, dilation, groups:
        F.convolution_input(grad, g, input_shape[2:], stride, padding, dilation, groups),
)  # fmt: skip
def convolution_weight(
    xp: Namespace, grad: Tensor, input: Tensor, kernel_size: Shape, stride: Shape, padding: Pads,
    dilation: Shape, groups: int,
) -> Array:  # fmt: skip
    """Return the gradient of a convolution's weight.

    Shape:
        grad: ``(N, O, *)``, input: ``(N, C, *)``; result: ``(O, C / groups, *kernel_size)``.
    """
    return _convolve_weight(xp, grad, input, kernel_size, stride, padding, dilation, groups)


# ---------------------------------------------------------------------- arguments
def _each(name: str, value: int | Sequence[int], dims: int, least: int, wrong: str) -> Shape:
    """Return ``value`` once for each dimension."""
    many = (value,) if isinstance(value, int) else tuple(value)
    if len(many) not in (1, dims):
        raise ShapeError(
            f"expected {name} to be a single integer value or a list of {dims} values to match the "
            f"convolution dimensions, but got {name}={list(many)}"
        )
    if min(many) < least:
        raise ShapeError(f"{wrong}, but got {name}={list(many)}")
    return many * dims if len(many) == 1 else many


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _check_operands(
    dims: int, x: Tensor, w: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> None:
    shape, kernel = list(x.array.shape), list(w.array.shape)
    if w.ndim != dims + 2:
        raise ShapeError(f"expected a weight of {dims + 2} dimensions, but its size is {kernel}")
    if x.ndim not in (dims + 1, dims + 2):
        raise ShapeError(
            f"Expected {dims + 1}D (unbatched) or {dims + 2}D (batched) input, but got input of "
            f"size: {shape}"
        )
    if groups < 1:
        raise ShapeError(f"non-positive groups is not supported, but got groups={groups}")
    if kernel[0] % groups or not kernel[0]:
        raise ShapeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {kernel} instead"
        )
    channels = shape[-dims - 1]
    want = kernel[0] if transposed else kernel[1] * groups
    if channels != want:
        raise ShapeError(
            f"Given {'transposed=1' if transposed else f'groups={groups}'}, weight of size "
            f"{kernel}, expected input{shape} to have {want} channels, but got {channels} channels "
            "instead; the channels are the dimension before the last "
            f"{dims if dims > 1 else 'one'}"
        )
    out = kernel[1] * groups if transposed else kernel[0]
    if bias is not None and bias.array.shape != (out,):
        raise ShapeError(
            f"Given weight of size {kernel}, expected bias to be 1-dimensional with {out} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )
    if dims < 3 or transposed or x.array.dtype == bool:
        demand_floating(x.array, "int64", "complex64", "complex128")
    kinds = [t.array.dtype for t in (x, w, bias) if t is not None]
    if any(kind != kinds[0] for kind in kinds):
        names = " and ".join(map(str, kinds))
        raise DtypeError(
            f"Input type, weight type and bias type should be the same, but are {names}"
        )


def _paddings(
    padding: int | Sequence[int] | str, kernel: Shape, stride: Shape, dilation: Shape
) -> Pads:
    dims = len(kernel)
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * dims
        if padding != "same":
            raise ShapeError(f"Invalid padding string: {padding!r}; use 'same', 'valid' or numbers")
        if max(stride) > 1:
            raise ShapeError("padding='same' is not supported for strided convolutions")
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((n // 2, n - n // 2) for n in total)
    each = _each("padding", padding, dims, 0, "negative padding is not supported")
    return tuple((n, n) for n in each)


def _check_sizes(x: Tensor, kernel: Shape, pads: Pads, dilation: Shape) -> None:
    padded = [n + sum(p) for n, p in zip(x.array.shape[-len(kernel) :], pads, strict=True)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(n < r for n, r in zip(padded, reach, strict=True)):
        raise ShapeError(
            f"Calculated padded input size per channel: ({_times(padded)}). Kernel size: "
            f"({_times(reach)}). Kernel size can't be greater than actual input size"
        )


def _conv(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: int | Sequence[int],
    padding: int | Sequence[int] | str, dilation: int | Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    try:
        _check_operands(dims, input, weight, bias, groups, transposed=False)
        kernel = weight.array.shape[2:]
        strides = _each("stride", stride, dims, 1, "non-positive stride is not supported")
        dilations = _each("dilation", dilation, dims, 1, "dilation should be greater than zero")
        pads = _paddings(padding, kernel, strides, dilations)
        _check_sizes(input, kernel, pads, dilations)
    except (DistgradError, AttributeError) as error:
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        operands = {"input": input, "weight": weight, "bias": bias}
        raise explain(f"conv{dims}d", error, operands, options) from None
    if input.ndim == dims + 2:
        return convolution(input, weight, bias, strides, pads, dilations, groups)
    one = convolution(unsqueeze(input, 0), weight, bias, strides, pads, dilations, groups)
    return reshape(one, one.array.shape[1:])


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of a signal with ``weight``, plus ``bias``.

    Shape:
        input: ``(N, C, L)`` or ``(C, L)``, weight: ``(O, C / groups, K)``, bias: ``(O)``; result:
        ``(N, O, M)`` with M = (L + 2·padding - dilation·(K - 1) - 1) // stride + 1.
    Args:
        padding: zeros on both sides; "valid" for none, "same" for a result as long as input.
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of images with ``weight``, plus ``bias``.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, weight: ``(O, C / groups, KH, KW)``.
    Args:
        padding: zeros around the image; "valid" for none, "same" for a result as large as input.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return the convolution of volumes with ``weight``, plus ``bias``.

    Shape:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``, weight: ``(O, C / groups, KD, KH, KW)``.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


# ---------------------------------------------------------------------- transposed
def _conv_transpose(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: int | Sequence[int],
    padding: int | Sequence[int], output_padding: int | Sequence[int], groups: int,
    dilation: int | Sequence[int],
) -> Tensor:  # fmt: skip
    try:
        _check_operands(dims, input, weight, bias, groups, transposed=True)
        strides = _each("stride", stride, dims, 1, "non-positive stride is not supported")
        dilations = _each("dilation", dilation, dims, 1, "dilation should be greater than zero")
        each = _each("padding", padding, dims, 0, "negative padding is not supported")
        more = _each("output_padding", output_padding, dims, 0, "negative output_padding is wrong")
        if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
            raise ShapeError(
                "output padding must be smaller than either stride or dilation, but got "
                f"output_padding={list(more)}, stride={list(strides)}, dilation={list(dilations)}"
            )
        sizes = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + m + 1
            for n, s, p, d, k, m in zip(
                input.array.shape[-dims:], strides, each, dilations, weight.array.shape[2:], more,
                strict=True,
            )
        )  # fmt: skip
        if min(sizes) < 1:
            raise ShapeError(
                f"Given input size per channel: ({_times(input.array.shape[-dims:])}). Calculated "
                f"output size per channel: ({_times(sizes)}). Output size is too small"
            )
    except (DistgradError, AttributeError) as error:
        options = {"stride": stride, "padding": padding, "output_padding": output_padding,
                   "groups": groups, "dilation": dilation}  # fmt: skip
        operands = {"input": input, "weight": weight, "bias": bias}
        raise explain(f"conv_transpose{dims}d", error, operands, options) from None
    pads = tuple((p, p) for p in each)
    x = input if input.ndim == dims + 2 else unsqueeze(input, 0)
    if bias is None:
        out = convolution_input(x, weight, sizes, strides, pads, dilations, groups)
    elif is_narrow(x, weight, bias):  # rounded once, after the bias
        wide = widened(weight)
        out = convolution_input(widened(x), wide, sizes, strides, pads, dilations, groups)
        out = as_dtype(out + reshape(widened(bias), (-1,) + (1,) * dims), x.array.dtype)
    else:
        out = convolution_input(x, weight, sizes, strides, pads, dilations, groups)
        out = out + reshape(bias, (-1,) + (1,) * dims)
    return out if input.ndim == dims + 2 else reshape(out, out.array.shape[1:])


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Return the transposed convolution of a signal: the gradient of ``conv1d``'s input.

    Shape:
        input: ``(N, C, L)`` or ``(C, L)``, weight: ``(C, O / groups, K)``, bias: ``(O)``; result:
        ``(N, O, M)``, M = (L - 1)·stride - 2·padding + dilation·(K - 1) + output_padding + 1.
    """
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Return the transposed convolution of images: the gradient of ``conv2d``'s input.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, weight: ``(C, O / groups, KH, KW)``.
    """
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Return the transposed convolution of volumes: the gradient of ``conv3d``'s input.

    Shape:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``, weight: ``(C, O / groups, KD, KH, KW)``.
    """
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """Return ``conv1d`` of sequences whose dimensions are (time, batch, channels).

    Shape:
        input: ``(T, N, C)``, weight: ``(K, C, O)``, bias: ``(O)``; result: ``(M, N, O)`` with
        M = T + 2·pad - K + 1.
    """
    operands = {"input": input, "weight": weight, "bias": bias}
    if (input.ndim, weight.ndim, bias.ndim) != (3, 3, 1):
        error = ShapeError("Input and weight must have 3 dims: time, batch, channels; bias one")
        raise explain("conv_tbc", error, operands, {"pad": pad})
    out = conv1d(permute(input, (1, 2, 0)), permute(weight, (2, 1, 0)), bias, 1, pad)
    return permute(out, (2, 0, 1))
