"""The C library's allocator, told to keep what it has.

Note [Freed memory is kept]
    glibc gives large blocks back to the system when they are freed, and gets them again, page by
    page, at the next step.  A training step frees and takes the same blocks over and over, so
    this costs a third of its time.  ``DISTGRAD_KEEP_MEMORY=0`` leaves the allocator alone.
"""

from __future__ import annotations

import ctypes
import os
import sys

from distgrad.config import switch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES, _LARGEST_BYTES = 256 << 20, 64 << 20


def keep_freed_memory() -> bool:
    """Let the allocator keep freed blocks of up to 64 MiB; return whether it was told so.

    Values that the user has set (``MALLOC_TRIM_THRESHOLD_`` …) stay.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if not sys.platform.startswith("linux") or chosen or not switch("keep_memory"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False  # musl and others decide by themselves
    told = libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
    return bool(told and libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
