"""Intel's mkldnn, which is no part of this package."""

from __future__ import annotations

enabled = False


def is_available() -> bool:
    """Return False: NumPy brings its own BLAS."""
    return False
