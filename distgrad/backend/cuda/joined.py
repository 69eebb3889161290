"""Arrays joined to one, in captured graphs too.

CuPy joins up to eight arrays one by one; of more (small ones of one type) it first copies the
addresses to the device.  A graph would repeat that copy from memory of the host that has long been
used for something else, so in a capture they are joined by eights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cupy

from distgrad.backend import capture
from distgrad.typing import Array

__all__ = ["concatenate", "stack"]

_AT_ONCE = 8


def concatenate(arrays: Sequence[Array], axis: int | None = 0) -> Array:
    """The arrays one after the other along ``axis``."""
    return _joined(cupy.concatenate, arrays, axis)


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """The arrays one after the other along a new ``axis``."""
    return _joined(cupy.stack, arrays, axis)


def _joined(join: Callable[..., Array], arrays: Sequence[Array], axis: int | None) -> Array:
    if len(arrays) <= _AT_ONCE or capture.current() is None:
        return join(arrays, axis)
    starts = range(0, len(arrays), _AT_ONCE)
    return concatenate([join(arrays[i : i + _AT_ONCE], axis) for i in starts], axis)
