"""Kernels in CUDA C++: one file in ``kernels/``, compiled once for each choice of its types.

CuPy compiles a file when one of its kernels is first launched on a device, by NVRTC, and keeps
the result in its cache on disk.  A launch goes to the current stream of the current device, and
neither waits nor copies anything, so it can be captured in a graph.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from distgrad.typing import Array

__all__ = [
    "LONGEST", "MOST_BLOCKS", "SHARED", "TYPES", "blocks", "contiguous", "kernel", "or_none",
    "over_elements", "over_rows", "row_threads", "source", "sum_type", "type_name",
]  # fmt: skip

FOLDER = Path(__file__).with_name("kernels")
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)

MOST_BLOCKS = 132 * 8  # of 256 threads, all that an H100 holds at once; a loop does the rest
SHARED = 48 << 10  # bytes of shared memory that a block may have without asking
LONGEST = 1 << 31  # numbers in a row are fewer: kernels count these in 32 bits

_FLOAT, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

TYPES = {"float32": "float", "float64": "double", "float16": "half", "bfloat16": "bf16"}
"""What CUDA C++ calls the types of floating point numbers, by the names of dtypes."""


@cache
def source(name: str) -> str:
    """Return a file of ``kernels/`` with the headers it includes in their places.

    CuPy's cache knows a program by its text, and would not see a header change.
    """
    seen: set[str] = set()

    def header(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return _INCLUDE.sub(header, (FOLDER / match[1]).read_text(encoding="utf-8"))

    return _INCLUDE.sub(header, (FOLDER / name).read_text(encoding="utf-8"))


@cache
def kernel(file: str, name: str, **types: str) -> Any:
    """Return a kernel, to be called as ``kernel(grid, block, arguments, shared_mem=…)``.

    Args:
        file: the source file, ``"norm.cu"``.
        name: the kernel in it.
        types: what CUDA C++ calls its types (see ``TYPES``); ``T="bf16"`` is ``T_TYPE`` there.
    """
    return _module(file, tuple(sorted(types.items()))).get_function(name)


@cache
def _module(file: str, types: tuple[tuple[str, str], ...]) -> Any:
    macros = tuple(f"-D{macro}_TYPE={name}" for macro, name in types)
    return cupy.RawModule(code=source(file), options=("--std=c++17", *macros))


def type_name(dtype: Any) -> str | None:
    """Return what CUDA C++ calls a dtype; None for what is no floating point type."""
    return TYPES.get(dtype.name)


def sum_type(x: Array) -> np.dtype[Any]:
    """Return the dtype in which kernels add up numbers of ``x``."""
    return _DOUBLE if x.dtype == _DOUBLE else _FLOAT


def contiguous(array: Array) -> Array:
    """Return ``array``, or a copy that lies in row-major order."""
    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)


def or_none(array: Array | None) -> Any:
    """Return the argument of a kernel for an array that need not be there."""
    return 0 if array is None else contiguous(array)


# ---------------------------------------------------------------------- grids and blocks
def blocks(array: Array, threads: int = 256) -> int:
    """Return how many blocks go over ``array`` 16 bytes a thread, in a loop if it is long."""
    return max(1, min(-(-int(array.nbytes) // (16 * threads)), MOST_BLOCKS))


def over_elements(array: Array) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block of a kernel that goes over ``array`` as `blocks` says."""
    return (blocks(array),), (256,)


def row_threads(nbytes: int, packs_each: int, most_warps: int) -> int:
    """Return how many threads share a row, whole warps of them, to take 16 bytes so many times."""
    warps = -(-nbytes // (16 * 32 * packs_each))
    return 32 * max(1, min(warps, most_warps))


def over_rows(rows: int, nbytes: int, most_warps: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block of a kernel that has a block for each row, or a warp for a short one.

    Args:
        rows: how many.
        nbytes: of a row.
        most_warps: that may share a row.
    """
    threads = row_threads(nbytes, 4, most_warps)
    high = 4 if threads == 32 else 1
    return (min(-(-rows // high), MOST_BLOCKS),), (threads, high)
