"""Unpooling: maxima put back to the places they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, given, real
from distgrad.backend.forms import device_form
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError, explain
from distgrad.ops.checks import demand_floating
from distgrad.ops.pool import Ints, each_size
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = ["max_unpool1d", "max_unpool2d", "max_unpool3d"]


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
def unpool(
    xp: Namespace, input: Tensor, indices: Tensor, size: Shape, windows: Any = None
) -> Array:
    """Return zeros of ``size`` in the last dimensions, with each element put to its place.

    Args:
        windows: as in ``unpool_sum``.
    """
    return _unpool(xp, input, indices, size, windows)


@device_form
def _unpool(xp: Namespace, x: Array, indices: Array, size: Shape, windows: Any) -> Array:
    out = xp.zeros((*x.shape[: -len(size)], *size), x.dtype)
    places = _flat_places(xp, indices, size)
    out.reshape(-1)[places.reshape(-1)] = xp.reshape(x, -1)
    return out


@op(
    "multilinear",
    samples=[case(real(2, 3), given([[0, 2, 2], [1, 1, 1]]), size=(4,))],
    method=False,
    reference="none",
    d_input=lambda F, g, indices, size: F.unpool_transposed(g, indices, len(size)),
)
def unpool_sum(
    xp: Namespace, input: Tensor, indices: Tensor, size: Shape, windows: Any = None
) -> Array:
    """Return zeros of ``size`` in the last dimensions, with each element added to its place.

    Args:
        windows: kernel, stride, padding and dilation, if the places come from pooling: each lies
            in its window, which lets a GPU gather what the CPU scatters.
    """
    return _unpool_sum(xp, input, indices, size, windows)


@device_form
def _unpool_sum(xp: Namespace, x: Array, indices: Array, size: Shape, windows: Any) -> Array:
    out = xp.zeros((*x.shape[: -len(size)], *size), x.dtype)
    places = _flat_places(xp, indices, size)
    xp.add_at(out.reshape(-1), places.reshape(-1), xp.reshape(x, -1))
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


# ---------------------------------------------------------------------- public
def _unpooled(
    dims: int, input: Tensor, indices: Tensor, kernel_size: Ints, stride: Ints | None,
    padding: Ints, output_size: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    try:
        if input.ndim not in (dims + 1, dims + 2) or 0 in input.array.shape[1:]:
            raise ShapeError(
                f"Input should be a {dims + 1}d or {dims + 2}d Tensor with non-zero size for "
                f"non-batch dimensions, but got {list(input.shape)}"
            )
        demand_floating(input.array)
        size = _unpooled_size(dims, input, kernel_size, stride, padding, output_size)
        if indices.array.dtype != "int64":
            raise DtypeError(
                f"elements in indices should be type int64 but got: {indices.array.dtype}"
            )
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
    kernel = each_size("kernel_size", kernel_size, dims)
    strides = kernel if stride is None else each_size("stride", stride, dims)
    pads = each_size("padding", padding, dims)
    usual = tuple(
        (n - 1) * s - 2 * p + k
        for n, k, s, p in zip(input.array.shape[-dims:], kernel, strides, pads, strict=True)
    )
    if output_size is None:
        return usual
    if len(output_size) not in (dims, dims + 2):
        raise ArgumentError(
            f"output_size should be a sequence containing {dims} or {dims + 2} elements, but it "
            f"has a length of {len(output_size)}"
        )
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
    return _unpooled(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return zeros with the maxima put back to the places that ``max_pool2d`` returned."""
    return _unpooled(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return zeros with the maxima put back to the places that ``max_pool3d`` returned."""
    return _unpooled(3, input, indices, kernel_size, stride, padding, output_size)
