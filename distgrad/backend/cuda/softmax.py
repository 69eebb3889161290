"""Softmax and cross entropy: each row of logits is read once forward and once backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda import faults
from distgrad.backend.cuda.module import (
    LONGEST,
    MOST_BLOCKS,
    contiguous,
    kernel,
    or_none,
    over_rows,
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
    return over_rows(rows, count * x.itemsize, 32)


def _rows(name: str, dim: int, *arrays: Array) -> Any:
    """Return the result of a kernel that takes arrays of one shape, and gives another."""
    x, kind = arrays[0], type_name(arrays[0].dtype)
    if kind is None or not x.ndim or any(a.dtype != x.dtype for a in arrays):
        return NotImplemented
    if x.shape[dim] >= LONGEST:
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


def _types(x: Array, target: Array, weight: Array | None, loss: Any) -> dict[str, str] | None:
    """Return the types of the numbers, of weights, labels, and of losses (``loss``, a dtype)."""
    numbers, losses = type_name(x.dtype), type_name(loss)
    factors = numbers if weight is None else type_name(weight.dtype)
    labels = _LABELS.get(target.dtype.name)
    if numbers is None or factors is None or labels is None or losses is None or not x.size:
        return None
    return {"T": numbers, "W": factors, "Y": labels, "L": losses}


def _weight_sum(x: Array, weight: Array | None, smoothing: float) -> Any:
    return 0 if weight is None or not smoothing else weight.sum(dtype=sum_type(x))


def cross_entropy(
    x: Array, target: Array, weight: Array | None, reduction: str, ignore: int, smoothing: float,
    dtype: Any = None,
) -> Any:  # fmt: skip
    """Return the loss and what backward needs: the rows' weights, sums and maxima, and the total.

    The loss is in ``dtype``, or in that of the logits.  A label that is no class makes it nan, and
    an error when the host reads a number.
    """
    dtype = dtype or x.dtype
    types = _types(x, target, weight, dtype)
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
    loss, total = cupy.empty((), dtype), cupy.empty((), kind)
    kernel(_FILE, "finish_cross_entropy", **types)(
        (1,), (1024,),
        (losses, row_weights, loss if whole else 0, total, target.size, int(reduction == "mean")),
    )  # fmt: skip
    if not whole:
        loss = losses.reshape(target.shape).astype(dtype, copy=False)
    return loss, cupy.empty(0, target.dtype), row_weights, sums, shifts, total


def d_cross_entropy(
    g: Array, input: Array, target: Array, weight: Array | None, labels: Array,
    row_weights: Array, sums: Array, shift: Array, total: Array, reduction: str,
    ignore_index: int, label_smoothing: float, input_spare: bool = False,
) -> Any:  # fmt: skip
    """Return the gradient of the logits, in their place where nobody else has them."""
    types = _types(input, target, weight, g.dtype)
    if types is None or not (row_weights.size and shift.size):
        return NotImplemented
    g, x, target = (contiguous(a) for a in (g, input, target))
    in_place = input_spare or x is not input  # or a copy made here
    out, cut = x if in_place else cupy.empty(x.shape, x.dtype), _cut(x, int(x.ndim > 1))
    kernel(_FILE, "d_cross_entropy", **types)(
        *_shape(x, cut),
        (g, x, target, or_none(weight), _weight_sum(x, weight, label_smoothing), row_weights, sums,
         shift, total if reduction == "mean" else 0, out, *cut, ignore_index,
         float(label_smoothing), int(reduction == "none")),
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
