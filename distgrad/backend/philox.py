"""Philox4x32-10 on the host: the words that GPUs make random numbers of.

Source:
    Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["words"]

_LOW = np.uint64(0xFFFFFFFF)
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = 0x9E3779B9, 0xBB67AE85


def words(n: int, key: int, draw: int = 0) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The first ``n`` words of the draw with this key of 64 bits, in PyTorch's and CUDA's sense.

    Example:
        >>> [f"{w:08x}" for w in words(4, 0)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    place = np.arange(-(-n // 4), dtype=np.uint64)
    a, b = place & _LOW, place >> np.uint64(32)
    c, d = (np.full_like(place, draw >> shift & 0xFFFFFFFF) for shift in (0, 32))
    k, l = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF  # noqa: E741
    for _ in range(10):
        first, second = a * _FACTORS[0], c * _FACTORS[1]
        a, b = (second >> np.uint64(32)) ^ b ^ np.uint64(k), second & _LOW
        c, d = (first >> np.uint64(32)) ^ d ^ np.uint64(l), first & _LOW
        k, l = (k + _STEPS[0]) & 0xFFFFFFFF, (l + _STEPS[1]) & 0xFFFFFFFF  # noqa: E741
    return np.stack([a, b, c, d], 1).reshape(-1)[:n].astype(np.uint32)
