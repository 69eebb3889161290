"""Embeddings: rows by their numbers, and the gradient of the table, the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda import faults
from distgrad.backend.cuda.module import MOST_BLOCKS, contiguous, kernel, sum_type, type_name
from distgrad.typing import Array

__all__ = ["KERNELS"]

_FILE = "embed.cu"
_TILE, _CHUNK = 1024, 64  # as in embed.cu
_INDICES = {"int64": "long long", "int32": "int", "uint8": "unsigned char"}


def _types(x: Array, index: Array) -> dict[str, str] | None:
    kind, numbers = type_name(x.dtype), _INDICES.get(index.dtype.name)
    return None if kind is None or numbers is None or not x.size else {"T": kind, "I": numbers}


def _threads(x: Array) -> int:
    warps: int = -(-x.shape[-1] * x.itemsize // (16 * 32))
    return 32 * max(1, min(warps, 32))


def embedding_rows(index: Array, weight: Array) -> Any:
    """Return the rows of ``weight`` that ``index`` names.

    A number that is no row gives nan, and an error when the host reads a number.
    """
    types = _types(weight, index)
    if types is None or not index.size:
        return NotImplemented
    index, weight = contiguous(index), contiguous(weight)
    out = cupy.empty((*index.shape, weight.shape[1]), weight.dtype)
    threads = _threads(weight)
    each = max(1, 128 // threads)
    kernel(_FILE, "embedding", **types)(
        (min(-(-index.size // each), MOST_BLOCKS * 4),), (threads, each),
        (index, weight, out, faults.place_for(), index.size, *weight.shape),
    )  # fmt: skip
    return out


def embedding_backward(
    grad: Array, indices: Array, num_weights: int, padding_idx: int | None, by_count: bool
) -> Any:
    """Return ``num_weights`` rows, each the sum of the rows of ``grad`` that name it."""
    types = _types(grad, indices)
    if types is None or not indices.size or not 0 < num_weights < 2**31:
        return NotImplemented
    g, n, width = contiguous(grad), indices.size, grad.shape[-1]
    out = cupy.zeros((num_weights, width), g.dtype)
    keys, places = _sorted(types, contiguous(indices), num_weights)
    chunks = -(-n // _CHUNK)
    parts = cupy.empty((chunks, 2, width), sum_type(g))
    padding = -1 if padding_idx is None else padding_idx % num_weights
    size = (n, num_weights, width, padding, int(by_count))
    kernel(_FILE, "add_pieces", **types)(
        (min(n, MOST_BLOCKS * 8),), (_threads(g),), (g, keys, places, out, parts, *size)
    )
    if chunks > 1:
        kernel(_FILE, "add_parts", **types)((chunks,), (256,), (keys, parts, out, *size))
    return out


def _sorted(types: dict[str, str], index: Array, rows: int) -> tuple[Array, Array]:
    """Return numbers of rows in order, and their places; equal ones in the order of places.

    CuPy's sort waits for the device, which a graph that is being captured forbids.
    """
    n, tiles = index.size, -(-index.size // _TILE)
    keys, places, other_keys, other_places = cupy.empty((4, n), cupy.uint32)
    counts = cupy.empty((256, tiles), cupy.uint32)
    for bit in range(0, rows.bit_length(), 8):
        kernel(_FILE, "count_digits", **types)(
            (tiles,), (256,), (index, keys, places, counts, n, rows, bit, int(bit == 0))
        )
        kernel(_FILE, "add_before", **types)((1,), (1024,), (counts, counts.size))
        kernel(_FILE, "sort_by_digit", **types)(
            (tiles,), (256,), (keys, places, counts, other_keys, other_places, n, bit)
        )
        keys, places, other_keys, other_places = other_keys, other_places, keys, places
    return keys, places


KERNELS: dict[str, Callable[..., Any]] = {
    "embedding_rows": embedding_rows,
    "embedding_backward": embedding_backward,
}
