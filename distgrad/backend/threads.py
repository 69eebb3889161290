"""The number of threads that BLAS uses in this process, read and set while it runs."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from typing import Any

from distgrad.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "get_num_interop_threads", "get_num_threads", "set_num_interop_threads", "set_num_threads",
]  # fmt: skip

# How OpenBLAS spells its functions, by who built it: NumPy's wheels add prefix and suffix.
_SPELLINGS = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
_chosen: list[int] = []  # what set_num_threads was told where no library could be found


@cache
def _library() -> tuple[Any, Any] | None:
    """Return OpenBLAS's functions that read and set its threads, of the library NumPy loaded."""
    try:
        with open("/proc/self/maps") as maps:
            paths = set(re.findall(r"(/\S*(?:openblas)\S*)", maps.read()))
    except OSError:  # not Linux
        return None
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for spelling in _SPELLINGS:
            read = getattr(library, spelling.format("get_num_threads"), None)
            write = getattr(library, spelling.format("set_num_threads"), None)
            if read is not None and write is not None:
                return read, write
    return None


def get_num_threads() -> int:
    """Return how many threads a matrix product may use in this process."""
    found = _library()
    if found is not None:
        return int(found[0]())
    return _chosen[-1] if _chosen else int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def set_num_threads(n: int) -> None:
    """Let matrix products of this process use ``n`` threads; all else runs on one.

    It takes effect at once with OpenBLAS, which NumPy's wheels bring; other libraries read
    ``OMP_NUM_THREADS`` when they are loaded.

    Raises:
        ArgumentError: ``n`` is below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise ArgumentTypeError(
            f"set_num_threads({n!r}): expects an int, but got {type(n).__name__}"
        )
    if n < 1:
        raise ArgumentError(f"set_num_threads({n}): expects a positive integer")
    _chosen[:] = [n]
    found = _library()
    if found is not None:
        found[1](n)


def get_num_interop_threads() -> int:
    """Return 1: operations run one after the other."""
    return 1


def set_num_interop_threads(n: int) -> None:
    """Accept any number of threads for several operations at once, of which one is used."""
    if n < 1:
        raise ArgumentError(f"set_num_interop_threads({n}): expects a positive integer")
