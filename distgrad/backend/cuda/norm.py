"""Layer and RMS norm: each row read from memory once, sums in float32 at least.

Gradients of weights and biases are sums over rows.  Each block of a kernel adds up its share, and a
second kernel adds the shares in a fixed order, so that results are the same from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda.module import (
    LONGEST,
    SHARED,
    contiguous,
    kernel,
    or_none,
    over_rows,
    row_threads,
    sum_type,
    type_name,
)
from distgrad.typing import Array, Shape

__all__ = ["KERNELS", "affine_types"]

_FILE = "norm.cu"
_MOST_SHARED = 160 << 10  # bytes of shared memory that a block gets for the asking, from A100 on
_PARTS = 1056  # blocks that add up columns: eight for each multiprocessor of an H100


def affine_types(x: Array, *affine: Array | None) -> dict[str, str] | None:
    """Return the types of a kernel for ``x`` with weights; None where there is no such kernel."""
    kinds = {a.dtype for a in affine if a is not None} or {x.dtype}
    kind = kinds.pop()
    numbers = type_name(x.dtype)
    if numbers is None or kinds or kind not in (x.dtype, sum_type(x)):
        return None
    return {"T": numbers, "W": type_name(kind) or ""}


# ---------------------------------------------------------------------- forward
def layer_norm(x: Array, shape: Shape, weight: Array | None, bias: Array | None, eps: float) -> Any:
    """Return the normalised rows, their means and 1 / standard deviations."""
    types = affine_types(x, weight, bias)
    if types is None or math.prod(shape) >= LONGEST:
        return NotImplemented
    x, out, mean, rstd, grid, block, size = _prepared(x, shape)
    if size[0]:
        arguments = (x, or_none(weight), or_none(bias), out, mean, rstd, *size, float(eps))
        kernel(_FILE, "layer_norm", **types)(grid, block, arguments)
    return out, mean, rstd


def rms_norm(x: Array, shape: Shape, weight: Array | None, eps: float) -> Any:
    """Return the normalised rows, and their 1 / root mean square."""
    types = affine_types(x, weight)
    if types is None or math.prod(shape) >= LONGEST:
        return NotImplemented
    x, out, _, rstd, grid, block, size = _prepared(x, shape)
    if size[0]:
        arguments = (x, or_none(weight), out, rstd, *size, float(eps))
        kernel(_FILE, "rms_norm", **types)(grid, block, arguments)
    return out, rstd


def _prepared(x: Array, shape: Shape) -> tuple[Any, ...]:
    """Return ``x`` in rows, new arrays for the results, and the shape of the launch."""
    width, x = math.prod(shape), contiguous(x)
    rows = x.size // width if width else 0
    lead = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    mean, rstd = cupy.empty(lead, sum_type(x)), cupy.empty(lead, sum_type(x))
    grid, block = over_rows(rows, width * x.itemsize, 16)
    return x, cupy.empty(x.shape, x.dtype), mean, rstd, grid, block, (rows, width)


# ---------------------------------------------------------------------- backward
def d_layer_norm(
    g: Array, needs: tuple[bool, ...], input: Array, normalized_shape: Shape,
    weight: Array | None, mean: Array, rstd: Array,
) -> Any:  # fmt: skip
    """Return the gradients of input, weight and bias; None for what is not needed."""
    return _backward("d_layer_norm", g, needs, input, normalized_shape, weight, (mean, rstd))


def d_rms_norm(
    g: Array, input: Array, normalized_shape: Shape, weight: Array | None, rstd: Array
) -> Any:
    """Return the gradients of input and weight."""
    needs = (True, weight is not None, False)
    found = _backward("d_rms_norm", g, needs, input, normalized_shape, weight, (rstd,))
    return found if found is NotImplemented else found[:2]


def _backward(
    name: str, g: Array, needs: tuple[bool, ...], x: Array, shape: Shape, weight: Array | None,
    stats: tuple[Array, ...],
) -> Any:  # fmt: skip
    types, width = affine_types(x, weight), math.prod(shape)
    columns = (needs[1], needs[2])
    shared = sum(columns) * width * sum_type(x).itemsize
    if types is None or g.dtype != x.dtype or shared > _MOST_SHARED or not x.size:
        return NotImplemented
    g, x = contiguous(g), contiguous(x)
    out = cupy.empty(x.shape, x.dtype) if needs[0] else None
    rows = x.size // width
    parts = max(1, min(_PARTS, rows // 4))
    shares = [cupy.empty((parts, width), stats[0].dtype) if n else None for n in columns]
    given = shares if name == "d_layer_norm" else shares[:1]
    run = kernel(_FILE, name, **types)
    if shared > SHARED:
        run.max_dynamic_shared_size_bytes = shared
    run(
        (parts,), (row_threads(width * x.itemsize, 1, 32),),
        (g, x, or_none(weight), *stats, or_none(out), *map(or_none, given), rows, width),
        shared_mem=shared,
    )  # fmt: skip
    kind = x.dtype if weight is None else weight.dtype
    sums = [None if s is None else cupy.empty(shape, kind) for s in shares]
    _add_shares(types, shares, sums, parts, width)
    return out, *sums


def _add_shares(
    types: dict[str, str], shares: list[Any], sums: list[Any], parts: int, width: int
) -> None:
    pairs = [a for pair in zip(shares, sums, strict=True) if pair[0] is not None for a in pair]
    if pairs:
        arguments = (*pairs, *[0] * (4 - len(pairs)), parts, width)
        grid = (-(-width // 32), len(pairs) // 2)
        kernel(_FILE, "column_sums", **types)(grid, (32, 32), arguments)


KERNELS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "d_layer_norm": d_layer_norm,
    "rms_norm": rms_norm,
    "d_rms_norm": d_rms_norm,
}
