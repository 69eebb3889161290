"""Marks for NVIDIA's profilers, through CuPy; without a GPU they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distgrad.backend.device import cuda_in_use, cupy_module


def range_push(msg: str) -> int:
    """Begin a range with a name; return 0."""
    if cuda_in_use():
        cupy_module("nvtx").cuda.nvtx.RangePush(msg)
    return 0


def range_pop() -> int:
    """End the innermost range; return 0."""
    if cuda_in_use():
        cupy_module("nvtx").cuda.nvtx.RangePop()
    return 0


def mark(msg: str) -> None:
    """Mark a moment with a name."""
    if cuda_in_use():
        cupy_module("nvtx").cuda.nvtx.Mark(msg)


@contextmanager
def range(msg: str) -> Iterator[None]:
    """Name what happens in a ``with`` block."""
    range_push(msg)
    try:
        yield
    finally:
        range_pop()
