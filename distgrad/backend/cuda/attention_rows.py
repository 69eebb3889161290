"""Attention in float32 and float64, for which cuDNN has no backward: products and two kernels.

Backward makes the weights anew, so nothing of the size queries times keys outlives the operation;
long sequences go some samples at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cupy

from distgrad.backend.cuda.gemm import matmul
from distgrad.backend.cuda.module import MOST_BLOCKS, kernel, row_threads, type_name
from distgrad.typing import Array

__all__ = ["attend_by_rows", "backward_by_rows"]

_FILE = "attention.cu"
_MOST = 1 << 26  # bytes of the weights of some samples


def _fits(q: Array, k: Array, v: Array) -> bool:
    """Return whether each query has keys and values of its own head, and there are any."""
    alike = q.ndim > 2 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    return alike and q.dtype.kind == "f" and q.itemsize > 2 and bool(q.size and k.size and v.size)


def _parts(q: Array, k: Array) -> Iterator[slice]:
    """Return the samples in parts that do not take too much memory."""
    each = math.prod(q.shape[1:-1]) * k.shape[-2] * q.itemsize
    step = max(1, _MOST // each)
    for start in range(0, len(q), step):
        yield slice(start, min(start + step, len(q)))


def _over_rows(name: str, *arrays: Array, length: int, causal: bool, scale: float) -> None:
    """Run a kernel over the rows of its first array."""
    rows, count = math.prod(arrays[0].shape[:-1]), arrays[0].shape[-1]
    threads = row_threads(arrays[0].itemsize * count, 1, 8)
    kernel(_FILE, name, T=str(type_name(arrays[0].dtype)))(
        (min(rows, MOST_BLOCKS),), (threads,),
        (*arrays, rows, count, length, int(causal), float(scale)),
    )  # fmt: skip


def _turned(x: Array) -> Array:
    return cupy.swapaxes(x, -1, -2)


def _like(x: Array, *shape: int) -> Array:
    """Return new memory in another shape, its dimensions in the order of those of ``x``."""
    return cupy.empty_like(x, None, "K", None, shape)


def attend_by_rows(q: Array, k: Array, v: Array, scale: float, causal: bool) -> Any:
    """Return output, no weights, the logarithms of the rows' sums, and nothing."""
    if not _fits(q, k, v):
        return NotImplemented
    length, none = q.shape[-2], cupy.empty(0, q.dtype)
    out, logs = _like(q, *q.shape[:-1], v.shape[-1]), cupy.empty((*q.shape[:-1], 1), q.dtype)
    for part in _parts(q, k):
        s = matmul(q[part], _turned(k[part]))
        _over_rows("attention_rows", s, logs[part], length=length, causal=causal, scale=scale)
        matmul(s, v[part], out=out[part])
        del s
    return out, none, logs, none


def backward_by_rows(
    g: Array, q: Array, k: Array, v: Array, logs: Array, scale: float, causal: bool
) -> Any:
    """Return the gradients of queries, keys and values."""
    if not _fits(q, k, v):
        return NotImplemented
    dq, dk, dv = (_like(x, *x.shape) for x in (q, k, v))
    for part in _parts(q, k):
        p, ds = matmul(q[part], _turned(k[part])), matmul(g[part], _turned(v[part]))
        _over_rows(
            "d_attention_rows", p, ds, logs[part], length=q.shape[-2], causal=causal, scale=scale
        )
        matmul(_turned(p), g[part], out=dv[part])
        del p
        matmul(ds, k[part], out=dq[part])
        matmul(_turned(ds), q[part], out=dk[part])
        del ds
    return dq, dk, dv
