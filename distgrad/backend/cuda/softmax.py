"""Softmax and cross entropy: each row of logits is read once forward and once backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda import faults
from distgrad.backend.cuda.module import (
    MOST_BLOCKS,
    contiguous,
    kernel,
    or_none,
    sum_type,
    type_name,
)
from distgrad.typing import Array

__all__ = ["KERNELS"]

_FILE = "softmax.cu"


def _cut(x: Array, dim: int) -> tuple[int, int, int]:
    """Return how many rows, of what length, and how many of them lie between each other."""
    dim %= x.ndim
    return math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])


def _shape(x: Array, cut: tuple[int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return grid and block: a warp or a block for each row, or a thread."""
    rows, count, inner = cut
    if inner > 1:
        return (min(-(-rows * inner // 128), MOST_BLOCKS),), (128,)
    threads = 32 * max(1, min(-(-count * x.itemsize // (16 * 32 * 4)), 32))
    each = 4 if threads == 32 else 1
    return (min(-(-rows // each), MOST_BLOCKS),), (threads, each)


def _rows(name: str, dim: int, *arrays: Array) -> Any:
    """Return the result of a kernel that takes arrays of one shape, and gives another."""
    x, kind = arrays[0], type_name(arrays[0].dtype)
    if kind is None or not x.ndim or any(a.dtype != x.dtype for a in arrays):
        return NotImplemented
    taken = [contiguous(a) for a in arrays]
    out, cut = cupy.empty(x.shape, x.dtype), _cut(x, dim)
    if x.size:
        kernel(_FILE, name, T=kind)(*_shape(x, cut), (*taken, out, *cut))
    return out


def softmax(x: Array, dim: int) -> Any:
    """Return the exponentials of ``x`` divided by their sums along ``dim``."""
    return _rows("softmax", dim, x)


def log_softmax(x: Array, dim: int) -> Any:
    """Return the logarithm of the softmax."""
    return _rows("log_softmax", dim, x)


def softmax_backward(grad: Array, output: Array, dim: int) -> Any:
    """Return ``output * (grad - sum(grad * output))``."""
    return _rows("softmax_backward", dim, grad, output)


def log_softmax_backward(grad: Array, output: Array, dim: int) -> Any:
    """Return ``grad - exp(output) * sum(grad)``."""
    return _rows("log_softmax_backward", dim, grad, output)


# ---------------------------------------------------------------------- cross entropy
_LABELS = {"int64": "long long", "uint8": "unsigned char"}


def _types(x: Array, target: Array, weight: Array | None) -> dict[str, str] | None:
    numbers = type_name(x.dtype)
    factors = numbers if weight is None else type_name(weight.dtype)
    labels = _LABELS.get(target.dtype.name)
    if numbers is None or factors is None or labels is None or not x.size:
        return None
    return {"T": numbers, "W": factors, "Y": labels}


def _weight_sum(x: Array, weight: Array | None, smoothing: float) -> Any:
    return 0 if weight is None or not smoothing else weight.sum(dtype=sum_type(x))


def cross_entropy(
    x: Array, target: Array, weight: Array | None, reduction: str, ignore: int, smoothing: float
) -> Any:
    """Return the loss and what backward needs: the rows' weights, sums and maxima, and the total.

    A label that is no class makes the loss nan, and an error when the host reads a number.
    """
    types = _types(x, target, weight)
    if types is None:
        return NotImplemented
    x, target = contiguous(x), contiguous(target)
    cut, kind = _cut(x, int(x.ndim > 1)), sum_type(x)
    losses, row_weights, sums, shifts = (cupy.empty(target.size, kind) for _ in range(4))
    kernel(_FILE, "cross_entropy", **types)(
        *_shape(x, cut),
        (x, target, or_none(weight), _weight_sum(x, weight, smoothing), losses, row_weights, sums,
         shifts, faults.place_for(), *cut, ignore, float(smoothing)),
    )  # fmt: skip
    whole = reduction != "none"
    loss, total = cupy.empty((), x.dtype), cupy.empty((), kind)
    kernel(_FILE, "finish_cross_entropy", **types)(
        (1,), (1024,),
        (losses, row_weights, loss if whole else 0, total, target.size, reduction == "mean"),
    )  # fmt: skip
    if not whole:
        loss = losses.reshape(target.shape).astype(x.dtype, copy=False)
    return loss, cupy.empty(0, target.dtype), row_weights, sums, shifts, total


def d_cross_entropy(
    g: Array, input: Array, target: Array, weight: Array | None, labels: Array,
    row_weights: Array, sums: Array, shift: Array, total: Array, reduction: str,
    ignore_index: int, label_smoothing: float,
) -> Any:  # fmt: skip
    """Return the gradient of the logits."""
    types = _types(input, target, weight)
    if types is None or g.dtype != input.dtype or not (row_weights.size and shift.size):
        return NotImplemented
    g, x, target = (contiguous(a) for a in (g, input, target))
    out, cut = cupy.empty(x.shape, x.dtype), _cut(x, int(x.ndim > 1))
    kernel(_FILE, "d_cross_entropy", **types)(
        *_shape(x, cut),
        (g, x, target, or_none(weight), _weight_sum(x, weight, label_smoothing), row_weights, sums,
         shift, total if reduction == "mean" else 0, out, *cut, ignore_index,
         float(label_smoothing), reduction == "none"),
    )  # fmt: skip
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "softmax_backward": softmax_backward,
    "log_softmax_backward": log_softmax_backward,
    "cross_entropy": cross_entropy,
    "d_cross_entropy": d_cross_entropy,
}
